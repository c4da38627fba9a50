package mock

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
)

var errCut = errors.New("mock: stream cut by a fault")

// chatMessage is one message of a conversation.
type chatMessage struct {
	Role       string          `json:"role"`
	Content    json.RawMessage `json:"content"`
	ToolCalls  json.RawMessage `json:"tool_calls"`
	ToolCallID string          `json:"tool_call_id"`
}

// chatCompletions is POST /v1/chat/completions.
func (x *exchange) chatCompletions() {
	faults, ok := x.begin()
	if !ok {
		return
	}
	g, e := x.readChat()
	if e != nil {
		x.s.count(&x.s.counts.Refused)
		x.fail(e)
		return
	}
	g.faults = faults
	g.run(&chatDialect{newChunks(g, true)})
}

func (x *exchange) readChat() (*generation, *apiError) {
	f, e := x.parse()
	if e != nil {
		return nil, e
	}
	var messages []chatMessage
	if raw := f.get("messages"); raw == nil {
		f.missing("messages")
	} else if json.Unmarshal(raw, &messages) != nil {
		f.add("messages", "list_type", "Input should be a valid list", pythonValue(raw))
	}
	g := x.sampling(f, "chatcmpl-")
	g.completionFields(f)
	g.logprobs, g.topLogprobs = f.boolean("logprobs"), max(0, f.integer("top_logprobs", 0))
	g.tools.tools = f.readTools()
	f.readToolChoice(&g.tools)
	g.tools.settled = len(messages) > 0 && messages[len(messages)-1].Role == "tool"
	g.format = f.readFormat()
	if e := f.err(); e != nil {
		return nil, e
	}
	if e := g.tools.check(f.get("tool_choice") != nil); e != nil {
		return nil, e
	}
	g.prompts = [][]uint32{chatTemplate(f.get("tools"), messages)}
	return g, g.check()
}

// chatTemplate makes a prompt of a conversation: tools first, then each message under its role, then the assistant's turn.
func chatTemplate(tools json.RawMessage, messages []chatMessage) []uint32 {
	t := []uint32{tokenBOS}
	turn := func(role string) { t = append(tokenize(append(t, tokenHeader), role), tokenHeaderEnd) }
	if len(tools) > 0 {
		turn("tools")
		t = append(tokenizeJSON(t, tools), tokenEnd)
	}
	for _, m := range messages {
		turn(m.Role)
		t = tokenize(t, m.ToolCallID)
		t = tokenizeContent(t, m.Content)
		if len(m.ToolCalls) > 0 && string(m.ToolCalls) != "null" {
			t = tokenizeJSON(t, m.ToolCalls)
		}
		t = append(t, tokenEnd)
	}
	turn("assistant")
	return t
}

func tokenizeJSON(t []uint32, raw json.RawMessage) []uint32 {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return t
	}
	return tokenize(t, b.String())
}

// tokenizeContent takes a string or an array of parts, of text or of media.
func tokenizeContent(t []uint32, raw json.RawMessage) []uint32 {
	var text string
	if len(raw) == 0 || json.Unmarshal(raw, &text) == nil {
		return tokenize(t, text)
	}
	var parts []map[string]json.RawMessage
	if json.Unmarshal(raw, &parts) != nil {
		return tokenizeJSON(t, raw)
	}
	for _, p := range parts {
		if s := p["text"]; json.Unmarshal(s, &text) == nil {
			t = tokenize(t, text)
			continue
		}
		t = tokenizeMedium(t, p)
	}
	return t
}

// chatDialect is how /v1/chat/completions answers.
type chatDialect struct{ chunks }

func (c *chatDialect) open(*events) {}

func (c *chatDialect) start(w *events) {
	for _, j := range c.g.call.jobs {
		c.event(w)
		w.data = append(w.data, `{"index":`...)
		w.data = strconv.AppendInt(w.data, int64(j.index), 10)
		w.data = append(w.data, `,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]`...)
		w.appendRunningUsage(0, true)
		w.data = append(w.data, `,"prompt_token_ids":`...)
		w.appendTokens(c.g.tokenIDs, c.g.prompts[0]...)
		w.data = append(w.data, `,"prompt_text":null}`...)
		w.send()
	}
}

func (c *chatDialect) delta(w *events, d *delta) {
	c.event(w)
	w.data = append(w.data, `{"index":`...)
	w.data = strconv.AppendInt(w.data, int64(d.job.index), 10)
	if d.job.tool == nil {
		w.data = append(w.data, `,"delta":{"content":`...)
		w.data = appendJSON(w.data, d.text)
		w.data = append(w.data, '}')
	} else {
		w.appendToolDelta(d)
	}
	w.data = append(w.data, `,"logprobs":`...)
	if c.g.logprobs && d.piece != "" {
		w.data = appendChatLogprobs(w.data, []delta{*d}, c.g.topLogprobs)
	} else {
		w.data = append(w.data, "null"...)
	}
	w.data = append(w.data, `,"finish_reason":`...)
	if d.finish == "stop" && d.job.tool != nil && !d.job.tool.named {
		w.data = append(w.data, `"tool_calls"`...)
	} else {
		w.appendFinish(d)
	}
	if d.finish != "" {
		w.appendStopReason(d)
	}
	c.close(w, d)
}

// chatChoice is a choice of an answer in one piece.
type chatChoice struct {
	Index         int             `json:"index"`
	Message       chatAnswer      `json:"message"`
	Logprobs      json.RawMessage `json:"logprobs"`
	FinishReason  string          `json:"finish_reason"`
	StopReason    *string         `json:"stop_reason"`
	TokenIDs      []uint32        `json:"token_ids"`
	RoutedExperts *[]struct{}     `json:"routed_experts"`
}

type chatAnswer struct {
	Role         string         `json:"role"`
	Content      string         `json:"content"`
	Refusal      *string        `json:"refusal"`
	Annotations  *struct{}      `json:"annotations"`
	Audio        *struct{}      `json:"audio"`
	FunctionCall *struct{}      `json:"function_call"`
	ToolCalls    []chatToolCall `json:"tool_calls,omitempty"`
	Reasoning    *string        `json:"reasoning"`
}

type chatToolCall struct {
	ID       string           `json:"id"`
	Type     string           `json:"type"`
	Function chatFunctionCall `json:"function"`
}

type chatFunctionCall struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// choice is the answer of a job whose text is given. A call that was cut short is one only if the client named the tool.
func (j *job) choice(text string) chatChoice {
	c := chatChoice{Index: j.index, Message: chatAnswer{Role: "assistant", Content: text}, FinishReason: j.finish, StopReason: j.stopReason()}
	if t := j.tool; t != nil && (t.named || j.finish == "stop") {
		c.Message.Content = ""
		c.Message.ToolCalls = []chatToolCall{{t.id, "function", chatFunctionCall{t.name, text}}}
		if !t.named {
			c.FinishReason = "tool_calls"
		}
	}
	return c
}

func (c *chatDialect) whole(all []output) any {
	choices := make([]chatChoice, len(all))
	for i, j := range c.g.call.jobs {
		choices[i] = j.choice(all[i].text)
		choices[i].TokenIDs = c.g.ids(all[i].tokens)
		if c.g.logprobs {
			choices[i].Logprobs = appendChatLogprobs(nil, all[i].tokens, c.g.topLogprobs)
		}
	}
	return struct {
		ID                string       `json:"id"`
		Object            string       `json:"object"`
		Created           int64        `json:"created"`
		Model             string       `json:"model"`
		Choices           []chatChoice `json:"choices"`
		ServiceTier       *string      `json:"service_tier"`
		SystemFingerprint string       `json:"system_fingerprint"`
		Usage             wholeUsage   `json:"usage"`
		PromptLogprobs    *struct{}    `json:"prompt_logprobs"`
		PromptTokenIDs    []uint32     `json:"prompt_token_ids"`
		PromptText        *string      `json:"prompt_text"`
		KVTransferParams  *struct{}    `json:"kv_transfer_params"`
		ECTransferParams  *struct{}    `json:"ec_transfer_params"`
		Metrics           *struct{}    `json:"metrics"`
	}{
		ID: c.g.id, Object: "chat.completion", Created: c.g.created, Model: c.g.model, Choices: choices,
		SystemFingerprint: fingerprint, Usage: c.g.wholeUsage(true), PromptTokenIDs: c.g.promptIDs(0),
	}
}
