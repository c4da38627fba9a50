package mock

import (
	"encoding/json"
	"strconv"
)

// completions is POST /v1/completions.
func (x *exchange) completions() {
	faults, ok := x.begin()
	if !ok {
		return
	}
	g, e := x.readCompletion()
	if e != nil {
		x.s.count(&x.s.counts.Refused)
		x.fail(e)
		return
	}
	g.faults = faults
	g.run(&completionDialect{chunks: newChunks(g, false)})
}

func (x *exchange) readCompletion() (*generation, *apiError) {
	f, e := x.parse()
	if e != nil {
		return nil, e
	}
	g := x.sampling(f, "cmpl-")
	g.completionFields(f)
	g.logprobs, g.topLogprobs = f.get("logprobs") != nil, max(0, f.integer("logprobs", 0))
	if raw := f.get("prompt"); raw == nil {
		f.missing("prompt")
	} else if prompts, ok := readPrompts(raw); ok {
		g.prompts = prompts
	} else {
		f.add("prompt", "string_type", "Input should be a valid string", pythonValue(raw))
	}
	if e := f.err(); e != nil {
		return nil, e
	}
	if f.get("max_tokens") == nil { // the API's own default
		g.limit, g.limitName = 16, "max_tokens"
	}
	return g, g.check()
}

// readPrompts takes a string, strings, token ids, or arrays of token ids.
func readPrompts(raw json.RawMessage) (prompts [][]uint32, ok bool) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return [][]uint32{tokenize([]uint32{tokenBOS}, text)}, true
	}
	var texts []string
	if json.Unmarshal(raw, &texts) == nil {
		for _, t := range texts {
			prompts = append(prompts, tokenize([]uint32{tokenBOS}, t))
		}
		return prompts, true
	}
	var ids []uint32
	if json.Unmarshal(raw, &ids) == nil {
		return [][]uint32{ids}, true
	}
	return prompts, json.Unmarshal(raw, &prompts) == nil
}

// completionDialect is how /v1/completions answers.
type completionDialect struct {
	chunks
	offset []int // bytes said so far, by choice; kept only for logprobs
}

// said counts the bytes of a token and returns how many came before it.
func (c *completionDialect) said(d *delta) (before int) {
	if c.offset == nil {
		c.offset = make([]int, len(c.g.call.jobs))
	}
	before = c.offset[d.job.index]
	c.offset[d.job.index] += len(d.piece)
	return before
}

func (c *completionDialect) open(*events)  {}
func (c *completionDialect) start(*events) {}

func (c *completionDialect) delta(w *events, d *delta) {
	c.event(w)
	w.data = append(w.data, `{"index":`...)
	w.data = strconv.AppendInt(w.data, int64(d.job.index), 10)
	w.data = append(w.data, `,"text":`...)
	w.data = appendJSON(w.data, d.text)
	w.data = append(w.data, `,"logprobs":`...)
	if c.g.logprobs && d.piece != "" {
		w.data = appendCompletionLogprobs(w.data, []delta{*d}, c.g.topLogprobs, c.said(d))
	} else {
		w.data = append(w.data, "null"...)
	}
	w.data = append(w.data, `,"finish_reason":`...)
	w.appendFinish(d)
	w.appendStopReason(d)
	w.data = append(w.data, `,"prompt_token_ids":`...)
	w.appendTokens(c.g.tokenIDs && d.tokens == 1, c.g.prompts[d.job.index/c.g.params.n]...)
	c.close(w, d)
}

// completionChoice is a choice of an answer in one piece.
type completionChoice struct {
	Index          int             `json:"index"`
	Text           string          `json:"text"`
	Logprobs       json.RawMessage `json:"logprobs"`
	FinishReason   string          `json:"finish_reason"`
	StopReason     *string         `json:"stop_reason"`
	TokenIDs       []uint32        `json:"token_ids"`
	PromptLogprobs *struct{}       `json:"prompt_logprobs"`
	PromptTokenIDs []uint32        `json:"prompt_token_ids"`
	RoutedExperts  *[]struct{}     `json:"routed_experts"`
}

func (c *completionDialect) whole(all []output) any {
	choices := make([]completionChoice, len(all))
	for i, j := range c.g.call.jobs {
		choices[i] = completionChoice{
			Index: i, Text: all[i].text, FinishReason: j.finish, StopReason: j.stopReason(),
			TokenIDs: c.g.ids(all[i].tokens), PromptTokenIDs: c.g.promptIDs(i / c.g.params.n),
		}
		if c.g.logprobs {
			choices[i].Logprobs = appendCompletionLogprobs(nil, all[i].tokens, c.g.topLogprobs, 0)
		}
	}
	return struct {
		ID                string             `json:"id"`
		Object            string             `json:"object"`
		Created           int64              `json:"created"`
		Model             string             `json:"model"`
		Choices           []completionChoice `json:"choices"`
		ServiceTier       *string            `json:"service_tier"`
		SystemFingerprint string             `json:"system_fingerprint"`
		Usage             wholeUsage         `json:"usage"`
		KVTransferParams  *struct{}          `json:"kv_transfer_params"`
		ECTransferParams  *struct{}          `json:"ec_transfer_params"`
		Metrics           *struct{}          `json:"metrics"`
	}{
		ID: c.g.id, Object: "text_completion", Created: c.g.created, Model: c.g.model, Choices: choices,
		SystemFingerprint: fingerprint, Usage: c.g.wholeUsage(false),
	}
}
