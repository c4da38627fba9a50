package file

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy"
)

func TestPickerDefaults(t *testing.T) {
	roots := filepath.Join(t.TempDir(), "roots.pem")
	const pem = "-----BEGIN CERTIFICATE-----\n"
	if err := os.WriteFile(roots, []byte(pem), 0o644); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]*proxy.Picker{
		"":                           nil,
		"picker: null":               nil,
		"picker: {address: 'epp:1'}": {Address: "epp:1"},
		"picker: {address: 'epp:1', roots: " + roots + ", server_name: e}": {Address: "epp:1", Roots: pem, ServerName: "e"},
	} {
		if want != nil {
			want.FailureMode, want.Timeout = proxy.FailClose, proxy.DefaultPickerTimeout
			want.Body, want.Answers = proxy.BodyFullDuplex, proxy.AnswersHead
		}
		c, err := Parse("f", []byte("pools: [{name: a, endpoints: ['http://10.0.0.1:8000'], "+text+"}]"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := c.World.Pools[0].Picker; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
	_, err := Parse("f", []byte("pools: [{name: a, endpoints: ['http://a:80'], picker: {address: 'epp:1'}}]"))
	if want := "f:1: pools[0].picker: a picker names endpoints by IP address and port: a:80 is a host name"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestPickerErrors(t *testing.T) {
	for text, want := range map[string]string{
		"{failure_mode: FailOpen}":                   "pools[0].picker.address: missing: want where the picker listens, host:port",
		"{address: epp}":                             `pools[0].picker.address: "epp": want host:port`,
		"{address: 'e:1', failure_mode: failopen}":   `pools[0].picker.failure_mode: "failopen": did you mean "FailOpen"?: want FailClose or FailOpen`,
		"{address: 'e:1', timeout: 0}":               `pools[0].picker.timeout: "0": want 1ms or more`,
		"{address: 'e:1', body_mode: STREAMED}":      `pools[0].picker.body_mode: "STREAMED": want FULL_DUPLEX_STREAMED or BUFFERED`,
		"{address: 'e:1', answers: all}":             `pools[0].picker.answers: "all": want none, head or body`,
		"{address: 'e:1', server_name: e}":           "pools[0].picker.server_name: the certificate is not verified without roots",
		"{address: 'e:1', mode: BUFFERED}":           `pools[0].picker.mode: unknown key (keys: address, answers, body_mode, failure_mode`,
		"{address: 'e:1', roots: testdata/none.pem}": "pools[0].picker.roots: open testdata/none.pem: no such file or directory",
		"{address: 'e:1', secure_serving: 'no'}":     `pools[0].picker.secure_serving: "no": want true or false`,
	} {
		_, err := Parse("f", []byte("pools: [{name: a, endpoints: ['http://10.0.0.1:8000'], picker: "+text+"}]"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// A plain pool has no engines, so that nothing is said of what they would do.
func TestPlainPools(t *testing.T) {
	c, err := Parse("f", []byte("pools: [{name: a, plain: true, endpoints: ['http://10.0.0.1:80']}]"))
	if err != nil || !c.World.Pools[0].Plain {
		t.Errorf("%v", err)
	}
	for text, want := range map[string]string{
		"pools: [{name: a, plain: true, endpoints: ['http://10.0.0.1:80'], picker: {address: 'e:1'}}]":       "pools[0].picker: a plain pool has no picker: leave out one of the two",
		"{pools: [{name: a, plain: true, endpoints: ['http://10.0.0.1:80']}], models: [{name: m, pool: a}]}": `models[0].pool: pool "a" is plain: its endpoints are no engines and serve no models`,
	} {
		if _, err := Parse("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
