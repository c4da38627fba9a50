package mock

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"strings"
	"testing"
	"testing/synctest"
)

// form makes a multipart request; the file is left out if it is nil.
func form(path string, file []byte, fields ...string) string {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		w.WriteField(fields[i], fields[i+1])
	}
	if file != nil {
		part, _ := w.CreateFormFile("file", "speech.wav")
		part.Write(file)
	}
	w.Close()
	return strings.Replace(post(path, b.String()), "application/json", w.FormDataContentType(), 1)
}

func TestSpeech(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		c := connect(t, ln)
		speech := bytes.Repeat([]byte{1, 2}, 5*audioRate/2+1) // 5 s and a little
		const transcribe, translate = "/v1/audio/transcriptions", "/v1/audio/translations"
		_, first := c.ask(form(transcribe, speech, "model", "tiny", "response_format", "json"))
		a := decode[struct {
			Text  string
			Usage struct {
				Type    string
				Seconds int
			}
		}](t, first)
		if len(a.Text) < 20 || a.Usage.Type != "duration" || a.Usage.Seconds != 6 {
			t.Error(first)
		}
		if hits := s.Stats().Engine.PrefixHits; hits != 0 {
			t.Errorf("%d tokens hit", hits)
		}
		if _, again := c.ask(form(transcribe, speech, "model", "tiny")); again != first {
			t.Errorf("the same audio was heard as %s and %s", first, again)
		}
		if s.Stats().Engine.PrefixHits < 200 {
			t.Error("the same audio is not cached")
		}
		if _, other := c.ask(form(transcribe, append(speech, 3), "model", "tiny")); other == first {
			t.Error("other audio was heard as the same")
		}
		if _, text := c.ask(form(translate, speech, "model", "tiny")); !strings.HasPrefix(text, `{"text":"`) || strings.Contains(text, "usage") {
			t.Error(text)
		}
		if _, text := c.ask(form(transcribe, speech, "response_format", "verbose_json", "language", "en")); !strings.Contains(text, `"language":"en"`) ||
			!strings.HasPrefix(text, `{"duration":5.0000625,`) {
			t.Error(text)
		}

		resp, text := c.ask(form(transcribe, speech, "model", "tiny", "stream", "true", "stream_include_usage", "true"))
		heard := ""
		events := stream(text)
		for _, data := range events[:len(events)-1] {
			heard += *decode[chatEvent](t, data).Choices[0].Delta.Content
		}
		if heard != a.Text || !strings.HasSuffix(text, "data: [DONE]\n\n") || !strings.Contains(events[0], `"object":"transcription.chunk"`) ||
			!strings.Contains(events[len(events)-1], `"choices":[],"usage":{"prompt_tokens":`) || !strings.Contains(events[len(events)-2], `"finish_reason":"stop","stop_reason":null}]`) {
			t.Errorf("%s: streamed %q, whole %q\n%s", resp.Status, heard, a.Text, text)
		}
	})
}

func TestSpeechErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		const path = "/v1/audio/transcriptions"
		var many []string
		for i := range maxFormParts {
			many = append(many, fmt.Sprint("field", i), "x")
		}
		for i, tt := range []struct {
			raw, says string
			status    int
		}{
			{form(path, nil, "model", "tiny"), "body.file", 400},
			{post(path, `{"model":"tiny"}`), "body.file", 400},
			{form(path, []byte("x"), "model", "nope"), "does not exist", 404},
			{form(path, []byte("x"), "stream", "perhaps"), "valid boolean", 400},
			{form(path, []byte("x"), "response_format", "srt"), "Currently only support", 400},
			{form(path, []byte("x"), "response_format", "verbose_json", "stream", "1"), "streaming", 400},
			{form(path, []byte("x"), many...), "error parsing", 400},
			{strings.Replace(post(path, "--b\r\nno form"), "application/json", "multipart/form-data; boundary=b", 1), "error parsing", 400},
		} {
			if resp, text := c.ask(tt.raw); resp.StatusCode != tt.status || !strings.Contains(text, tt.says) {
				t.Errorf("%d: %s %s", i, resp.Status, text)
			}
		}
	})
}
