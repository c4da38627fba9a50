package mock

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// The speech APIs' shapes are those of vllm/entrypoints/speech_to_text; they were not captured.

const (
	audioRate    = 32_000 // bytes of a second of audio: 16 bits, 16 kHz, one channel
	clipTokens   = 50     // that a second is worth
	maxClip      = 1500   // tokens of the longest clip: Whisper's 30 s
	maxFormParts = 100    // fields of a form that are read
)

// upload is the file of a form.
type upload struct {
	size int
	hash uint64
}

func (u *upload) seconds() int { return max(1, (u.size+audioRate-1)/audioRate) }

// tokens are what the audio is worth to the engine. Its content decides on them, so that the same audio is found in the cache.
func (u *upload) tokens() []uint32 {
	t := make([]uint32, min(u.seconds()*clipTokens, maxClip))
	for i := range t {
		t[i] = uint32((u.hash + uint64(i)) * 0x9E3779B97F4A7C15 >> 33)
	}
	return t
}

// parseForm reads a multipart form: its fields as if they were strings of a JSON object, and its file.
func (x *exchange) parseForm() (f *fields, file *upload, e *apiError) {
	f = &fields{values: map[string]json.RawMessage{}}
	kind, params, _ := mime.ParseMediaType(x.req.Header.Get("Content-Type"))
	if kind != "multipart/form-data" || params["boundary"] == "" {
		return f, nil, nil
	}
	unreadable := &apiError{Message: "There was an error parsing the body", Type: "Bad Request", Code: 400}
	r := multipart.NewReader(bytes.NewReader(x.body), params["boundary"])
	for range maxFormParts {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return f, file, nil
		}
		if err != nil {
			return f, nil, unreadable
		}
		content, err := io.ReadAll(part) // the body is bounded
		if err != nil {
			return f, nil, unreadable
		}
		if part.FormName() == "file" {
			file = &upload{len(content), xxhash.Sum64(content)}
			continue
		}
		f.values[part.FormName()] = json.RawMessage(quote(string(content)))
	}
	return f, nil, unreadable
}

// transcriptions is POST /v1/audio/transcriptions.
func (x *exchange) transcriptions() {
	x.speech(&speechDialect{object: "transcription", idPrefix: "transcribe-"})
}

// translations is POST /v1/audio/translations.
func (x *exchange) translations() {
	x.speech(&speechDialect{object: "translation", idPrefix: "translate-"})
}

func (x *exchange) speech(d *speechDialect) {
	faults, ok := x.begin()
	if !ok {
		return
	}
	if e := x.readSpeech(d); e != nil {
		x.s.count(&x.s.counts.Refused)
		x.fail(e)
		return
	}
	d.g.faults = faults
	d.g.run(d)
}

func (x *exchange) readSpeech(d *speechDialect) *apiError {
	f, file, e := x.parseForm()
	if e != nil {
		return e
	}
	if file == nil {
		f.missing("file")
		return f.err()
	}
	g := x.sampling(f, d.idPrefix)
	d.g, d.file = g, file
	g.includeUsage = x.s.cfg.ForceUsage || f.boolean("stream_include_usage")
	g.everyUsage = g.includeUsage && f.boolean("stream_continuous_usage_stats")
	g.limits(f, "max_completion_tokens")
	d.format = f.text("response_format")
	d.language = f.text("language")
	g.prompts = [][]uint32{tokenize(append([]uint32{tokenBOS, tokenImage}, file.tokens()...), f.text("prompt"))}
	if e := f.err(); e != nil {
		return e
	}
	if d.format != "" && !slices.Contains([]string{"json", "text", "verbose_json"}, d.format) {
		return &apiError{Message: "Currently only support response_format: `text`, `json`, `verbose_json` or `diarized_json`", Type: "BadRequestError", Code: 400}
	}
	if d.format == "verbose_json" && g.stream {
		return &apiError{Message: "verbose_json format doesn't support streaming case", Type: "BadRequestError", Code: 400}
	}
	return g.check()
}

// speechDialect is how the speech APIs answer. The formats "text" and "json" are the same, as in vLLM.
type speechDialect struct {
	g                                  *generation
	file                               *upload
	object, idPrefix, format, language string
}

func (s *speechDialect) whole(all []output) any {
	type usage struct {
		Type    string `json:"type"`
		Seconds int    `json:"seconds"`
	}
	switch {
	case s.format == "verbose_json":
		return struct {
			Duration float64     `json:"duration"`
			Language string      `json:"language"`
			Text     string      `json:"text"`
			Segments []struct{}  `json:"segments"`
			Words    *[]struct{} `json:"words"`
		}{float64(s.file.size) / audioRate, s.language, all[0].text, []struct{}{}, nil}
	case s.object == "translation":
		return struct {
			Text string `json:"text"`
		}{all[0].text}
	}
	return struct {
		Text  string `json:"text"`
		Usage usage  `json:"usage"`
	}{all[0].text, usage{"duration", s.file.seconds()}}
}

func (s *speechDialect) open(*events)  {}
func (s *speechDialect) start(*events) {}

// event begins an event up to its choices.
func (s *speechDialect) event(w *events) {
	w.data = append(w.data[:0], `data: {"id":`...)
	w.data = append(appendJSON(w.data, s.g.id), `,"object":"`...)
	w.data = append(append(w.data, s.object...), `.chunk","created":`...)
	w.data = append(strconv.AppendInt(w.data, s.g.created, 10), `,"model":`...)
	w.data = append(appendJSON(w.data, s.g.model), `,"choices":[`...)
}

func (s *speechDialect) delta(w *events, d *delta) {
	s.event(w)
	w.data = append(appendJSON(append(w.data, `{"delta":{"content":`...), d.text), '}')
	if d.finish != "" {
		w.data = append(w.data, `,"finish_reason":`...)
		w.appendFinish(d)
		w.appendStopReason(d)
	}
	w.data = append(w.data, "}]"...)
	w.appendRunningUsage(d.tokens, false)
	w.data = append(w.data, '}')
	w.send()
}

func (s *speechDialect) end(w *events) {
	if s.g.includeUsage {
		u := s.g.usage()
		s.event(w)
		w.data = append(w.data, ']')
		w.appendCounts(u.prompt, u.completion)
		w.data = append(w.data, "}}"...)
		w.send()
	}
	w.done()
}
