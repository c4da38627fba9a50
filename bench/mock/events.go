package mock

import "strconv"

// chunks are the events of the two completions APIs, which begin and end alike.
type chunks struct {
	g      *generation
	chat   bool   // they say more of the usage
	prefix []byte // of every event, up to the choices
}

func newChunks(g *generation, chat bool) chunks {
	object := "text_completion"
	if chat {
		object = "chat.completion.chunk"
	}
	return chunks{g, chat, []byte(`data: {"id":` + quote(g.id) + `,"object":"` + object + `","created":` + strconv.FormatInt(g.created, 10) +
		`,"model":` + quote(g.model) + `,"choices":[`)}
}

// event begins an event.
func (c *chunks) event(w *events) { w.data = append(w.data[:0], c.prefix...) }

// close ends an event with one choice, and sends it.
func (c *chunks) close(w *events, d *delta) {
	w.data = append(w.data, `,"token_ids":`...)
	w.appendTokens(c.g.tokenIDs, d.token)
	w.data = append(w.data, "}]"...)
	w.appendRunningUsage(d.tokens, c.chat)
	if d.finish != "" && !c.g.includeUsage {
		w.appendFingerprint()
	}
	w.data = append(w.data, '}')
	w.send()
}

func (c *chunks) end(w *events) {
	if c.g.includeUsage {
		c.event(w)
		w.data = append(w.data, ']')
		w.appendUsage(c.g.usage(), c.chat)
		w.appendFingerprint()
		w.data = append(w.data, '}')
		w.send()
	}
	w.done()
}

// appendJSON appends s as a JSON string.
func appendJSON(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return append(b, quote(s)...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func (w *events) appendFinish(d *delta) {
	if d.finish == "" {
		w.data = append(w.data, "null"...)
		return
	}
	w.data = append(w.data, '"')
	w.data = append(w.data, d.finish...)
	w.data = append(w.data, '"')
}

// appendToolDelta appends a chat delta of a tool's arguments; the first has the call's id and name.
func (w *events) appendToolDelta(d *delta) {
	w.data = append(w.data, `,"delta":{"tool_calls":[{`...)
	if d.tokens == 1 {
		w.data = append(w.data, `"id":"`...)
		w.data = append(w.data, d.job.tool.id...)
		w.data = append(w.data, `","type":"function","index":0,"function":{"name":`...)
		w.data = append(appendJSON(w.data, d.job.tool.name), ',')
	} else {
		w.data = append(w.data, `"index":0,"function":{`...)
	}
	w.data = append(w.data, `"arguments":`...)
	w.data = append(appendJSON(w.data, d.text), `}}]}`...)
}

func (w *events) appendStopReason(d *delta) {
	w.data = append(w.data, `,"stop_reason":`...)
	if d.finish == "stop" && d.job.stoppedBy != "" {
		w.data = appendJSON(w.data, d.job.stoppedBy)
		return
	}
	w.data = append(w.data, "null"...)
}

func (j *job) stopReason() *string {
	if j.stoppedBy == "" {
		return nil
	}
	return &j.stoppedBy
}

// appendTokens appends token ids, or null unless they were asked for.
func (w *events) appendTokens(asked bool, ids ...uint32) {
	if !asked {
		w.data = append(w.data, "null"...)
		return
	}
	w.data = append(w.data, '[')
	for i, id := range ids {
		if i > 0 {
			w.data = append(w.data, ',')
		}
		w.data = strconv.AppendUint(w.data, uint64(id), 10)
	}
	w.data = append(w.data, ']')
}

func (w *events) appendCounts(prompt, completion int) {
	w.data = append(w.data, `,"usage":{"prompt_tokens":`...)
	w.data = strconv.AppendInt(w.data, int64(prompt), 10)
	w.data = append(w.data, `,"total_tokens":`...)
	w.data = strconv.AppendInt(w.data, int64(prompt+completion), 10)
	w.data = append(w.data, `,"completion_tokens":`...)
	w.data = strconv.AppendInt(w.data, int64(completion), 10)
}

// appendRunningUsage is the usage on every event, if it was asked for. Chat completions mention that there are no details.
func (w *events) appendRunningUsage(completion int, details bool) {
	if w.g.everyUsage {
		w.appendCounts(len(w.g.prompts[0]), completion)
		if details {
			w.data = append(w.data, `,"completion_tokens_details":null`...)
		}
		w.data = append(w.data, '}')
	}
}

// appendUsage is the usage of the last event.
func (w *events) appendUsage(u usage, created bool) {
	w.appendCounts(u.prompt, u.completion)
	if !w.g.x.s.cfg.HideCachedTokens {
		w.data = append(w.data, `,"prompt_tokens_details":{"cached_tokens":`...)
		w.data = strconv.AppendInt(w.data, int64(u.cached), 10)
		if created {
			w.data = append(w.data, `,"created_cache_tokens":`...)
			w.data = strconv.AppendInt(w.data, int64(u.created), 10)
		}
		w.data = append(w.data, '}')
	}
	w.data = append(w.data, '}')
}

func (w *events) appendFingerprint() {
	w.data = append(w.data, `,"system_fingerprint":"`+fingerprint+`"`...)
}

// done writes the event that ends a stream.
func (w *events) done() {
	w.data = append(w.data[:0], "data: [DONE]"...)
	w.send()
}

// wholeUsage is the usage of an answer in one piece.
type wholeUsage struct {
	PromptTokens     int            `json:"prompt_tokens"`
	TotalTokens      int            `json:"total_tokens"`
	CompletionTokens int            `json:"completion_tokens"`
	PromptDetails    *promptDetails `json:"prompt_tokens_details"`
	OutputDetails    *struct{}      `json:"completion_tokens_details"`
}

type promptDetails struct {
	CachedTokens     int  `json:"cached_tokens"`
	CreatedTokens    *int `json:"created_cache_tokens"`
	MultimodalTokens *int `json:"multimodal_tokens"`
}

func (g *generation) wholeUsage(created bool) wholeUsage {
	u := g.usage()
	w := wholeUsage{PromptTokens: u.prompt, TotalTokens: u.prompt + u.completion, CompletionTokens: u.completion}
	if !g.x.s.cfg.HideCachedTokens {
		w.PromptDetails = &promptDetails{CachedTokens: u.cached}
		if created {
			w.PromptDetails.CreatedTokens = &u.created
		}
	}
	return w
}
