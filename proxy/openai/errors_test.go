package openai

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAppendError(t *testing.T) {
	got := string(AppendError([]byte("x"), 400, "fairway_bad_request", "no \"model\"\n\x00\xff", "model"))
	want := `x{"error":{"message":"no \"model\"\n\u0000` + "\ufffd" + `","type":"fairway_bad_request","param":"model","code":400}}`
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestAppendErrorEvents(t *testing.T) {
	for kind, want := range map[Kind]string{
		Chat:        "data: {\"error\":{\"message\":\"gone\",\"type\":\"fairway_upstream_gone\",\"param\":null,\"code\":502}}\n\ndata: [DONE]\n\n",
		Completions: "data: {\"error\":{\"message\":\"gone\",\"type\":\"fairway_upstream_gone\",\"param\":null,\"code\":502}}\n\ndata: [DONE]\n\n",
		Messages:    "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"gone\"}}\n\n",
		Responses:   "event: error\ndata: {\"type\":\"error\",\"code\":\"fairway_upstream_gone\",\"message\":\"gone\",\"param\":null}\n\n",
	} {
		got := string(AppendErrorEvents(nil, kind, 502, "fairway_upstream_gone", "gone"))
		if got != want {
			t.Errorf("%v\n got %s\nwant %s", kind, got, want)
		}
		// What we write is what we take for an error when it passes.
		var e Events
		if s := watch(&e, true, []byte(got), single); !s.Failed || s.Done != strings.Contains(want, "[DONE]") {
			t.Errorf("%v: read back as %+v", kind, s)
		}
	}
}

func FuzzError(f *testing.F) {
	f.Add(400, "fairway_bad_request", "a\"b\\c\u2028<&>\x7f", "model")
	f.Add(0, "\t\r\n\b\f", "\x00\x01\x1e\x1f\x20\x7f", "\x1f")
	f.Add(-1, "", "\xff\xed\xa0\x80", "")
	f.Fuzz(func(t *testing.T, status int, typ, message, param string) {
		var got struct {
			Error struct {
				Message, Type string
				Param         *string
				Code          int
			}
		}
		out := AppendError(nil, status, typ, message, param)
		if !utf8.Valid(out) {
			t.Fatalf("not UTF-8: %q", out)
		}
		dec := json.NewDecoder(strings.NewReader(string(out)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&got); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		g := got.Error
		if g.Code != status || (g.Param == nil) != (param == "") ||
			utf8.ValidString(message) && g.Message != message || utf8.ValidString(typ) && g.Type != typ {
			t.Errorf("%q says %+v", out, g)
		}
	})
}
