package openai

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// Whatever the server would not read, or read otherwise, is refused with the place.
func TestRefused(t *testing.T) {
	deep := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	tests := []struct {
		name, body string
		offset     int // −1: anywhere
		param      string
		reason     string
	}{
		{"empty", ``, 0, "", "it is empty"},
		{"white space", " \n", 2, "", "it is empty"},
		{"array", ` []`, 1, "", "it is not a JSON object"},
		{"string", `"model"`, 0, "", "it is not a JSON object"},
		{"UTF-16", "{\x00\"\x00", 1, "", "expected a key in double quotes"},
		{"UTF-16 with a byte order mark", "\xff\xfe{\x00", 0, "", "it is not a JSON object"},
		{"trailing garbage", `{"model":"m"} x`, 14, "", "something follows the JSON object"},
		{"a second object", `{"model":"m"}{"model":"n"}`, 13, "", "something follows the JSON object"},
		{"NUL behind it", "{}\x00", 2, "", "something follows the JSON object"},
		{"trailing comma", `{"model":"m",}`, 13, "", "expected a key in double quotes"},
		{"no comma", `{"a":1 "model":"m"}`, 7, "", "expected ',' or '}'"},
		{"no colon", `{"model" "m"}`, 9, "", "expected ':' after a key"},
		{"single quotes", `{'model':'m'}`, 1, "", "expected a key in double quotes"},
		{"comment", `{/**/"model":"m"}`, 1, "", "expected a key in double quotes"},
		{"wrong bracket", `{"a":[1}`, 7, "", "expected ',' or ']'"},
		{"control character", "{\"model\":\"a\nb\"}", 11, "", "control character in a string (it must be escaped)"},
		{"control character far in", `{"a":"` + strings.Repeat("x", 100) + "\x1f\"}", 106, "", "control character in a string (it must be escaped)"},
		{"escape", `{"a":"\x"}    `, 6, "", "invalid escape in a string"},
		{"short \\u", `{"a":"\u12"}    `, 6, "", "invalid escape in a string"},
		{"leading zero", `{"a":01}`, 6, "", "expected ',' or '}'"},
		{"leading zero among ids", `{"prompt":[1,02]}`, 14, "", "expected ',' or ']'"},
		{"plus", `{"a":+1}`, 5, "", "expected a value"},
		{"point without digits", `{"a":1.}`, 7, "", "a number without digits after its point"},
		{"exponent without digits", `{"a":1e}`, 7, "", "a number without digits in its exponent"},
		{"minus", `{"a":-}`, 6, "", "a number without digits"},
		{"literal", `{"a":True}`, 5, "", "expected a value"},
		{"literal cut", `{"a":tru}`, 5, "", "expected a value"},
		{"10,000 deep", `{"a":` + deep + `}`, 5 + MaxDepth, "", "nested too deeply"},
		{"10,000 deep in a message", `{"messages":[{"x":` + deep + `}]}`, -1, "", "nested too deeply"},
		{"10,000 contents", `{"messages":[{"content":[` + strings.Repeat(`{"content":[`, 10_000), -1, "", "nested too deeply"},
		{"key not UTF-8", "{\"mod\xffel\":\"m\"}", 1, "", "the key is not valid UTF-8"},
		{"model a number", `{"model":1}`, 9, "model", "the model must be a string"},
		{"model a list", `{"model":["m"],"stream":true}`, 9, "model", "the model must be a string"},
		{"model not UTF-8", "{\"model\":\"m\xff\"}", 9, "model", "the name of the model is not valid Unicode"},
		{"model half a pair", `{"model":"\ud800"}`, 9, "model", "the name of the model is not valid Unicode"},
		{"model too long", `{"model":"` + strings.Repeat("m", MaxModel+1) + `"}`, 9, "model", "the name of the model is too long"},
		{"last model a number", `{"model":"m","model":1}`, 21, "model", "the model must be a string"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			for _, kind := range []Kind{Chat, Completions} {
				var e *Error
				if err := r.Read(kind, []byte(tt.body)); !errors.As(err, &e) {
					t.Fatalf("%v: read: model %q", kind, r.Model)
				}
				if tt.offset >= 0 && e.Offset != tt.offset || e.Param != tt.param || e.Reason != tt.reason {
					t.Errorf("%v: got %d %q %q", kind, e.Offset, e.Param, e.Reason)
				}
			}
		})
	}
}

func TestErrorSaysWhatAndWhere(t *testing.T) {
	var r Request
	err := r.Read(Chat, []byte(`{"model":1}`))
	if want := "the request body cannot be read: the model must be a string (at byte 9)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A body cut anywhere is refused.
func TestCutBodiesRefused(t *testing.T) {
	bodies := [][]byte{
		[]byte("\ufeff" + `{"messages":[{"role":"user","content":[{"type":"text","text":"a\u0041\n"},{"type":"image_url","image_url":{"url":"u"}}],"n":[-1.5e+3,NaN,-Infinity]}],"model":"m\u00e9","stream":true,"tools":[{}],"stream_options":{"include_usage":true}}`),
		[]byte(`{"prompt":[[1,2],[3]],"model":"m"}`),
	}
	for _, name := range []string{"chat-stream-contusage", "completions-tokens"} {
		b, err := os.ReadFile("testdata/captures/" + name + ".req.json")
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, b)
	}
	var r Request
	for _, body := range bodies {
		for _, kind := range []Kind{Chat, Completions, Messages, Responses} {
			for n := range body {
				if err := r.Read(kind, body[:n:n]); err == nil {
					t.Fatalf("%v: read %q", kind, body[:n])
				}
			}
			if err := r.Read(kind, body); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What the server accepts is accepted, and the model is the server's.
func TestModelIsTheServers(t *testing.T) {
	tests := []struct{ name, body, want string }{
		{"plain", `{"model":"m"}`, "m"},
		{"none", `{"messages":[]}`, ""},
		{"null", `{"model":null}`, ""},
		{"empty object", `{}`, ""},
		{"last wins", `{"model":"a","stream":true,"model":"b"}`, "b"},
		{"null is last", `{"model":"a","model":null}`, ""},
		{"number is not last", `{"model":1,"model":"b"}`, "b"},
		{"escaped key", `{"model":"a","mod\u0065l":"b"}`, "b"},
		{"escaped key, all of it", `{"\u006d\u006F\u0064\u0065\u006c":"b"}`, "b"},
		{"escaped value", `{"model":"org\/m\u00e9\ud83d\ude00\"\\"}`, "org/mé😀\"\\"},
		{"escaped, then plain", `{"model":"\u0061","model":"b"}`, "b"},
		{"not in another object", `{"x":{"model":"a"},"messages":[{"model":"c","role":"user"}],"model":"m"}`, "m"},
		{"another case", `{"Model":"a"}`, ""},
		{"longer key", `{"model ":"a","model\u0000":"b"}`, ""},
		{"byte order mark", "\ufeff{\"model\":\"m\"}", "m"},
		{"Python's numbers", `{"a":[NaN,Infinity,-Infinity],"model":"m"}`, "m"},
		{"huge numbers", `{"max_tokens":1e999999,"n":` + strings.Repeat("9", 5000) + `,"model":"m"}`, "m"},
		{"half a pair in a key", `{"\ud800":1,"model":"m"}`, "m"},
		{"text not UTF-8", "{\"messages\":[{\"content\":\"\xff\"}],\"model\":\"m\"}", "m"},
		{"white space", " {\r\n\t\"model\" : \"m\" } ", "m"},
		{"null messages", `{"messages":null,"model":"m"}`, "m"},
		{"messages of a wrong type", `{"messages":{"a":[1]},"model":"m"}`, "m"},
		{"nested as deep as allowed", `{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `,"model":"m"}`, "m"},
	}
	for _, tt := range tests {
		var r Request
		for _, kind := range []Kind{Chat, Completions, Responses, Messages, Embeddings, Rerank, Tokenize} {
			if err := r.Read(kind, []byte(tt.body)); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			} else if string(r.Model) != tt.want {
				t.Errorf("%s: got %q, want %q", tt.name, r.Model, tt.want)
			}
		}
	}
}
