package main

import (
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/doctor"
)

// mockEngine starts a mock vLLM and gives its URL.
func mockEngine(t *testing.T, c mock.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := mock.New(c)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "http://" + l.Addr().String()
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	good, bad := mockEngine(t, mock.Config{Model: "m"}), mockEngine(t, mock.Config{Model: "m", HideCachedTokens: true})
	dir := t.TempDir()
	config := filepath.Join(dir, "fairway.yaml")
	writeFile(t, config, "pools: [{name: a, endpoints: ["+good+"]}]\nmodels: [{name: chat, pool: a, targets: [{name: m, weight: 1}, {name: n, weight: 1}]}]\n")
	for _, tt := range []struct {
		name, args string
		code       int
		says       []string
	}{
		{"good", "--endpoint " + good, 0, []string{"pool default  ok", "no problem found", "examined 127.0.0.1"}},
		{"bad", "--no-requests=false --endpoint " + good + " --endpoint " + bad, 1, []string{"problem: cached-tokens", "cure: start vLLM with --enable-prompt-tokens-details", "1 problem found", "(2 of 2)"}},
		{"config", "--no-requests --config " + config, 1, []string{"does not serve n, which is configured"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, out, err := call(t, append([]string{"doctor"}, strings.Fields(tt.args)...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, want := range tt.says {
				if !strings.Contains(out+err, want) {
					t.Errorf("it does not say %q:\n%s%s", want, out, err)
				}
			}
		})
	}
	t.Run("JSON", func(t *testing.T) {
		t.Parallel()
		code, out, err := call(t, "doctor", "--json", "--no-requests", "--endpoint", bad)
		var r doctorReport
		if e := json.Unmarshal([]byte(out), &r); e != nil || code != 0 || !r.OK || len(r.Pods) != 1 || r.Pods[0].Models[0] != "m" || err != "" {
			t.Errorf("exit code %d, %v: %s%s", code, e, out, err)
		}
	})
}

// A certificate that cannot be had is a finding like any other.
func TestDoctorIdentity(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "fairway.yaml")
	writeFile(t, filepath.Join(dir, "tls.crt"), "no certificate")
	writeFile(t, filepath.Join(dir, "tls.key"), "no key")
	writeFile(t, filepath.Join(dir, "root.pem"), "no root")
	writeFile(t, config, "listen: {http: \"127.0.0.1:0\"}\ntls: {files: {certificate: "+dir+"/tls.crt, key: "+dir+"/tls.key, roots: "+dir+"/root.pem}}\npools: [{name: a, endpoints: [{url: \"hbone://127.0.0.1:1\", identity: \"spiffe://cluster.local/ns/a/sa/b\"}]}]\n")
	code, out, err := call(t, "doctor", "--json", "--timeout", "1s", "--config", config)
	var r doctorReport
	if e := json.Unmarshal([]byte(out), &r); e != nil || code != 1 || r.OK || r.Identity == nil || !doctor.HasProblem(r.Identity.Findings) || r.Pods[0].Reachable {
		t.Errorf("exit code %d, %v: %s%s", code, e, out, err)
	}
}
