package openai

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"strings"
	"testing"
)

const formType = `multipart/form-data; boundary=b`

// crlf writes a form's lines as they are on the wire.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// field is a part with a text.
func field(name, value string) string {
	return "--b\nContent-Disposition: form-data; name=\"" + name + "\"\n\n" + value + "\n"
}

const sound = "--b\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\nContent-Type: audio/wav\n\nRIFF\x00\xff\n--B\n"

func TestForm(t *testing.T) {
	disposition := func(d string) string { return "--b\nContent-Disposition: " + d + "\n\nm\n--b--" }
	tests := []struct {
		name, contentType, body, model, prompt string
		stream                                 bool
	}{
		{"as SDKs send it", "", sound + field("model", "whisper") + field("stream", "true") + field("language", "de") + field("prompt", "Fairway") + "--b--\n", "whisper", "Fairway|<RIFF\x00\xff\n--B>|de", true},
		{"no model", "", sound + "--b--\n", "", "<RIFF\x00\xff\n--B>", false},
		{"no line end at the end", "", field("model", "m") + "--b--", "m", "", false},
		{"empty lines at the end", "", field("model", "m") + "--b--\n\n", "m", "", false}, // as npm's form-data-encoder
		{"last model wins", "", field("model", "a") + field("model", "b") + "--b--", "b", "", false},
		{"an empty model is none", "", field("model", "a") + field("model", "") + "--b--", "", "", false},
		{"last prompt, stream and file win", "", sound + field("file", "no file") + field("prompt", "a") + field("stream", "1") + field("prompt", "b") + field("stream", "0") + "--b--", "", "b", false},
		{"a file before the text", "", strings.Replace(field("model", "a"), `"model"`, `"model"; filename="f"`, 1) + field("model", "b") + "--b--", "b", "", false},
		{"names are told apart by case", "", field("Model", "a") + field("model ", "b") + field("model[]", "c") + "--b--", "", "", false},
		{"the value as it is", "", field("model", " a\"\\\n\n b%20é ") + "--b--", " a\"\\\r\n\r\n b%20é ", "", false},
		{"what looks like a boundary", "", field("model", "x--b--\n-\n--\n --b--") + "--b--", "x--b--\r\n-\r\n--\r\n --b--", "", false},
		{"quoted boundary", `Multipart/Form-Data ; Charset=UTF-8;boundary="b"`, field("model", "m") + "--b--", "m", "", false},
		{"boundary with hyphens at its end", `multipart/form-data; boundary=b--`, strings.ReplaceAll(field("model", "m"), "--b", "--b--") + "--b----", "m", "", false},
		{"token for a name", "", disposition(`form-data; name=model`), "m", "", false},
		{"another case", "", "--b\ncontent-DISPOSITION:Form-Data;NAME=\"model\" \t\nContent-Transfer-Encoding: 8bit\n\nm\n--b--", "m", "", false},
		{"file names", "", disposition(`form-data; filename="a;\"b\\c\x;name=model"; filename*=UTF-8''%e2; name="file"`), "", "<m>", false},
		{"an empty file name", "", disposition(`form-data; name="file"; filename=""`), "", "<m>", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			contentType := tt.contentType
			if contentType == "" {
				contentType = formType
			}
			body := []byte(crlf(tt.body))
			if err := r.ReadForm(Transcription, []byte(contentType), body); err != nil {
				t.Fatal(err)
			}
			if string(r.Model) != tt.model || prompt(&r) != crlf(tt.prompt) || r.Stream != tt.stream {
				t.Errorf("model %q, prompt %q, stream %v", r.Model, prompt(&r), r.Stream)
			}
			if want := strings.Count(tt.prompt, "<"); r.Audios != want {
				t.Errorf("%d sounds, want %d", r.Audios, want)
			}
			if r.InjectUsage() {
				t.Error("asks a form for usage")
			}
			checkForm(t, &r, contentType, body)
		})
	}
}

func TestFormOptions(t *testing.T) {
	var r Request
	body := []byte(crlf(field("stream_include_usage", "on") + field("max_completion_tokens", "7") + "--b--"))
	if err := r.ReadForm(Translation, []byte(formType), body); err != nil {
		t.Fatal(err)
	}
	if r.Kind != Translation || !r.StreamOptions || !r.IncludeUsage || r.MaxTokens != 7 || r.N != 1 || r.Prompts != 1 || r.Tokens != -1 {
		t.Errorf("%+v", r)
	}
}

// Where parsers might differ, a form is refused with the place.
func TestFormRefused(t *testing.T) {
	model := field("model", "m")
	head := func(lines string) string { return "--b\n" + lines + "\n\nm\n--b--\n" }
	tests := []struct {
		name, contentType, body string
		offset                  int // −1: anywhere
		reason                  string
	}{
		{"JSON", "application/json", `{"model":"m"}`, 0, "its Content-Type is not multipart/form-data"},
		{"no Content-Type", " ", model + "--b--", 0, "its Content-Type is not multipart/form-data"},
		{"URL-encoded", "application/x-www-form-urlencoded", "model=m", 0, "its Content-Type is not multipart/form-data"},
		{"no boundary", "multipart/form-data", model + "--b--", 0, "its Content-Type has no boundary of 1 to 70 bytes"},
		{"empty boundary", `multipart/form-data; boundary=""`, "--\n" + model + "----", 0, "its Content-Type has no boundary of 1 to 70 bytes"},
		{"long boundary", `multipart/form-data; boundary=` + strings.Repeat("b", 71), model, 0, "its Content-Type has no boundary of 1 to 70 bytes"},
		{"two boundaries", `multipart/form-data; boundary=a; boundary=b`, model + "--b--", 0, "its Content-Type has a parameter that is unknown or repeated"},
		{"extended boundary", `multipart/form-data; boundary*=UTF-8''b`, model + "--b--", 0, "its Content-Type has a parameter that is unknown or repeated"},
		{"boundary in parts", `multipart/form-data; boundary*0=b`, model + "--b--", 0, "its Content-Type has a parameter that is unknown or repeated"},
		{"another charset", `multipart/form-data; boundary=b; charset=utf-16`, model + "--b--", 0, "its Content-Type has a parameter that is unknown or repeated"},
		{"boundary escaped", `multipart/form-data; boundary="\b"`, model + "--b--", 0, "the boundary has a character that none may have"},
		{"boundary with a space", `multipart/form-data; boundary="b "`, model + "--b--", 0, "the boundary has a character that none may have"},
		{"boundary unquoted", `multipart/form-data; boundary=b c`, model + "--b--", 0, "its Content-Type cannot be read"},
		{"quote left open", `multipart/form-data; boundary="b`, model + "--b--", 0, "its Content-Type cannot be read"},
		{"semicolon at the end", `multipart/form-data; boundary=b;`, model + "--b--", 0, "its Content-Type cannot be read"},
		{"empty", "", "", 0, "it does not start with the boundary that its Content-Type names"},
		{"preamble", "", "x\n" + model + "--b--", 0, "it does not start with the boundary that its Content-Type names"},
		{"empty preamble", "", "\n" + model + "--b--", 0, "it does not start with the boundary that its Content-Type names"},
		{"epilogue", "", model + "--b--\nx", -1, "something follows the last boundary"},
		{"half a line end", "", model + "--b--\n\r", -1, "something follows the last boundary"},
		{"a second form", "", model + "--b--\n" + field("model", "n") + "--b--\n", -1, "something follows the last boundary"},
		{"no fields", "", "--b--\n", 5, "it has no fields"},
		{"no last boundary", "", model, -1, "it ends without its last boundary"},
		{"cut in the last boundary", "", model + "--b-", -1, "a boundary is followed by something else than CRLF or two hyphens"},
		{"space behind a boundary", "", "--b \n" + model[4:] + "--b--", 3, "a boundary is followed by something else than CRLF or two hyphens"},
		{"longer line than a boundary", "", field("model", "m\n--bx") + "--b--", -1, "a boundary is followed by something else than CRLF or two hyphens"},
		{"boundary for a value", "", "--b\nContent-Disposition: form-data; name=\"model\"\n\n--b\n\n\n--b--", -1, "a boundary stands where a value should"},
		{"folded line", "", head("Content-Disposition: form-data;\n name=\"model\""), -1, "a Content-Disposition cannot be read"},
		{"folded other line", "", head("Content-Disposition: form-data; name=\"model\"\nA: b\n c: d"), -1, "a line in the head of a part is no field"},
		{"space before the colon", "", head("Content-Disposition : form-data; name=\"model\""), -1, "a line in the head of a part is no field"},
		{"no colon", "", head("Content-Disposition"), -1, "a line in the head of a part is no field"},
		{"control character", "", head("Content-Disposition: form-data; name=\"model\x00\""), -1, "a line in the head of a part holds control characters or does not end in CRLF"},
		{"no head", "", "--b\n\nm\n--b--", 5, "a part has no name"},
		{"no name", "", head("Content-Disposition: form-data; filename=x"), -1, "a part has no name"},
		{"no disposition", "", head("Content-Type: text/plain"), -1, "a part has no name"},
		{"two dispositions", "", head("Content-Disposition: form-data; name=\"a\"\nContent-Disposition: form-data; name=\"model\""), -1, "a part has two Content-Dispositions"},
		{"attachment", "", head("Content-Disposition: attachment; name=\"model\""), -1, "a part is no form-data"},
		{"two names", "", head("Content-Disposition: form-data; name=\"a\"; name=\"model\""), -1, "a Content-Disposition has a parameter that is unknown, repeated or escaped"},
		{"extended name", "", head("Content-Disposition: form-data; name=\"a\"; name*=UTF-8''model"), -1, "a Content-Disposition has a parameter that is unknown, repeated or escaped"},
		{"escaped name", "", head(`Content-Disposition: form-data; name="\model"`), -1, "a Content-Disposition has a parameter that is unknown, repeated or escaped"},
		{"extended file name alone", "", head("Content-Disposition: form-data; name=\"model\"; filename*=UTF-8''x"), -1, "a part has a filename* and no filename"},
		{"two backslashes before a quote", "", head(`Content-Disposition: form-data; name="a"; filename="x\\"; name="model"`), -1, "a Content-Disposition cannot be read"},
		{"quoted-printable", "", head("Content-Disposition: form-data; name=\"model\"\nContent-Transfer-Encoding: quoted-printable"), -1, "a part is encoded"},
		{"long head", "", head("Content-Disposition: form-data; name=\"model\"\nA: " + strings.Repeat("x", maxPartHead)), -1, "the head of a part does not end, or is too long"},
		{"many lines", "", head("Content-Disposition: form-data; name=\"model\"" + strings.Repeat("\nA: b", 8)), -1, "the head of a part has too many fields"},
		{"many parts", "", strings.Repeat(model, maxParts+1) + "--b--", -1, "too many fields"},
		{"model a file", "", head("Content-Disposition: form-data; name=\"model\"; filename=\"\""), -1, "the model must be text, not a file"},
		{"model not UTF-8", "", field("model", "m\xff") + "--b--", 53, "the name of the model is not valid Unicode"},
		{"model too long", "", field("model", strings.Repeat("m", MaxModel+1)) + "--b--", 53, "the name of the model is too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			contentType := tt.contentType
			if contentType == "" {
				contentType = formType
			}
			var r Request
			err := r.ReadForm(Transcription, []byte(contentType), []byte(crlf(tt.body)))
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Reason != tt.reason || tt.offset >= 0 && e.Offset != tt.offset {
				t.Errorf("got %v, want %s", err, tt.reason)
			}
		})
	}
	lf := strings.ReplaceAll(model, "\r\n", "\n") + "--b--\n"
	var r Request
	if r.ReadForm(Transcription, []byte(formType), []byte(lf)) == nil {
		t.Error("read line ends without CR")
	}
}

// A form cut anywhere is refused.
func TestCutFormsRefused(t *testing.T) {
	body := []byte(crlf(sound + field("model", "m") + "--b--"))
	var r Request
	for n := range body {
		if r.ReadForm(Transcription, []byte(formType), body[:n:n]) == nil {
			t.Fatalf("read %q", body[:n])
		}
	}
}

// multipartModel is the model that mime/multipart reads, of fields of that name the
// last.
func multipartModel(contentType string, body []byte) (model string, parts int, err error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", 0, err
	}
	for r := multipart.NewReader(bytes.NewReader(body), params["boundary"]); ; parts++ {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return model, parts, nil
		}
		if err != nil {
			return "", parts, err
		}
		value, err := io.ReadAll(p)
		if err != nil {
			return "", parts, err
		}
		if p.FormName() != "model" {
			continue
		}
		model = string(value)
		_, params, _ := mime.ParseMediaType(p.Header.Get("Content-Disposition"))
		if _, isFile := params["filename"]; isFile {
			model = "a file"
		}
	}
}

// checkForm holds a form that was read, and its edits, to mime/multipart.
func checkForm(t *testing.T, r *Request, contentType string, body []byte) {
	t.Helper()
	model, parts, err := multipartModel(contentType, body)
	if err != nil || model != string(r.Model) {
		t.Fatalf("model %q, mime/multipart says %q, %v: %q", r.Model, model, err, body)
	}
	if !r.hasModel {
		parts++
	}
	if same := bytes.Join(r.AppendSegments(nil, body), nil); !bytes.Equal(same, body) || r.Len() != len(body) {
		t.Fatalf("unedited body changed: %q", same)
	}
	r.ReplaceModel("a target tried before")
	r.ReplaceModel(`org/"other"`)
	edited := bytes.Join(r.AppendSegments(nil, body), nil)
	if len(edited) != r.Len() {
		t.Fatalf("Len says %d, it is %d", r.Len(), len(edited))
	}
	model, n, err := multipartModel(contentType, edited)
	if err != nil || model != `org/"other"` || n != parts {
		t.Fatalf("edited: model %q, %d parts, want %d, %v: %q", model, n, parts, err, edited)
	}
	var again Request
	if err := again.ReadForm(r.Kind, []byte(contentType), edited); err != nil || string(again.Model) != model || prompt(&again) != prompt(r) {
		t.Fatalf("edited: %v: %q", err, edited)
	}
}

// FuzzForm holds ReadForm to mime/multipart: whatever it accepts, that reads, with
// the same model.
func FuzzForm(f *testing.F) {
	for _, body := range []string{
		sound + field("model", "whisper") + field("stream", "true") + field("prompt", "Fairway") + "--b--\n",
		field("model", "a") + field("model", "\n--") + "--b--",
		"--b\ncontent-disposition: form-data; filename=\"a;\\\"b\\\\c\"; name=model; filename*=UTF-8''%e2\nA:b\n\n\n--b--",
	} {
		f.Add(formType, []byte(crlf(body)))
		f.Add(`multipart/form-data; charset="utf-8"; boundary="b"`, []byte(crlf(body)))
	}
	var r Request
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		if r.ReadForm(Transcription, []byte(contentType), body) == nil {
			checkForm(t, &r, contentType, body)
		}
	})
}

// soundForm is a form with a file of so many bytes, all values as often.
func soundForm(size int) []byte {
	var data []byte
	for x := uint32(1); len(data) < size; x = x*1664525 + 1013904223 {
		data = append(data, byte(x>>24))
	}
	start, end, _ := strings.Cut(sound, "RIFF")
	return []byte(crlf(start) + string(data) + crlf(end[2:]+field("model", "whisper")+"--b--\n"))
}

func TestReadFormAllocatesNothing(t *testing.T) {
	body, contentType := soundForm(16<<10), []byte(formType)
	var r Request
	dst := make([][]byte, 0, 8)
	if n := testing.AllocsPerRun(100, func() {
		if err := r.ReadForm(Transcription, contentType, body); err != nil {
			t.Fatal(err)
		}
		r.ReplaceModel("other")
		dst = r.AppendSegments(dst[:0], body)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReadForm(b *testing.B) {
	body, contentType := soundForm(1<<20), []byte(formType)
	var r Request
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := r.ReadForm(Transcription, contentType, body); err != nil {
			b.Fatal(err)
		}
	}
}
