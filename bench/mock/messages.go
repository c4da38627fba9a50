package mock

import (
	"encoding/json"
	"strconv"
)

// messages is POST /v1/messages: Anthropic's API, which vLLM translates to chat completions and back
// (vllm/entrypoints/anthropic/serving.py).
func (x *exchange) messages() {
	faults, ok := x.begin()
	if !ok {
		return
	}
	g, e := x.readMessages(true)
	if e != nil {
		x.s.count(&x.s.counts.Refused)
		x.fail(e)
		return
	}
	if e := g.check(); e != nil {
		g.refuse(e)
		return
	}
	g.faults = faults
	g.run(&messageDialect{g: g})
}

// countTokens is POST /v1/messages/count_tokens. It costs the engine nothing.
func (x *exchange) countTokens() {
	g, e := x.readMessages(false)
	if e != nil {
		x.fail(e)
		return
	}
	if _, ok := x.s.hasModel(g.model); !ok {
		g.fail(x.s.unknownModel(g.model))
		return
	}
	n := len(g.prompts[0])
	type original struct {
		InputTokens int `json:"original_input_tokens"`
	}
	x.answerJSON(struct {
		InputTokens int      `json:"input_tokens"`
		Context     original `json:"context_management"`
	}{n, original{n}})
}

// contentBlock is a part of a message.
type contentBlock struct {
	Type      string          `json:"type"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID string          `json:"tool_use_id"`
	Content   json.RawMessage `json:"content"`
}

// chatMessages makes a chat completion's messages of one of Anthropic's: calls of tools leave its content, and each result of a tool
// becomes a message of its own, before the rest.
func chatMessages(m chatMessage) (all []chatMessage) {
	var blocks []json.RawMessage
	if json.Unmarshal(m.Content, &blocks) != nil {
		return []chatMessage{m}
	}
	var rest []json.RawMessage
	var calls []chatToolCall
	for _, raw := range blocks {
		var b contentBlock
		json.Unmarshal(raw, &b)
		switch b.Type {
		case "tool_use":
			arguments, _ := marshal(b.Input)
			calls = append(calls, chatToolCall{b.ID, "function", chatFunctionCall{b.Name, string(arguments)}})
		case "tool_result":
			all = append(all, chatMessage{Role: "tool", ToolCallID: b.ToolUseID, Content: b.Content})
		default:
			rest = append(rest, raw)
		}
	}
	if len(rest) == 0 && len(calls) == 0 {
		return all
	}
	one := chatMessage{Role: m.Role}
	if len(rest) > 0 {
		one.Content, _ = json.Marshal(rest)
	}
	if len(calls) > 0 {
		one.ToolCalls, _ = marshal(calls)
	}
	return append(all, one)
}

// readMessages reads a request for an answer, or for the number of its tokens.
func (x *exchange) readMessages(answer bool) (*generation, *apiError) {
	f, e := x.parse()
	if e != nil {
		return nil, e
	}
	var given, messages []chatMessage
	if f.get("model") == nil {
		f.missing("model")
	}
	if raw := f.get("messages"); raw == nil {
		f.missing("messages")
	} else if json.Unmarshal(raw, &given) != nil {
		f.add("messages", "list_type", "Input should be a valid list", pythonValue(raw))
	}
	if raw := f.get("system"); raw != nil {
		messages = append(messages, chatMessage{Role: "system", Content: raw})
	}
	for _, m := range given {
		messages = append(messages, chatMessages(m)...)
	}
	g := x.sampling(f, "chatcmpl-")
	g.fail = x.failAnthropic
	g.mayEnd = true // this API demands a limit of everybody
	g.params.stop = f.texts("stop_sequences")
	g.tools.tools = f.readTools()
	f.readAnthropicChoice(&g.tools)
	g.tools.settled = len(messages) > 0 && messages[len(messages)-1].Role == "tool"
	if answer {
		g.limits(f, "max_tokens")
		switch {
		case f.get("max_tokens") == nil:
			f.missing("max_tokens")
		case g.limit <= 0 && len(f.errs) == 0:
			f.add("max_tokens", "value_error", "Value error, max_tokens must be positive", strconv.Itoa(g.limit))
		}
	}
	if o := f.object("output_config"); o != nil {
		if format := o.object("format"); format != nil {
			g.format = format.get("schema")
		}
	}
	if e := f.err(); e != nil {
		return nil, e
	}
	if e := g.tools.check(false); e != nil {
		return nil, e
	}
	g.prompts = [][]uint32{chatTemplate(f.get("tools"), messages)}
	return g, nil
}

// readAnthropicChoice reads Anthropic's tool_choice.
func (f *fields) readAnthropicChoice(u *toolUse) {
	u.mode = "auto"
	o := f.object("tool_choice")
	if o == nil {
		return
	}
	switch o.text("type") {
	case "any":
		u.mode = "required"
	case "none":
		u.mode = "none"
	case "tool":
		u.mode, u.name = "named", o.text("name")
	}
}

// messageUsage counts tokens: those read from the cache and written to it are not among the input's.
type messageUsage struct {
	Input         int  `json:"input_tokens"`
	Output        int  `json:"output_tokens"`
	CacheCreation *int `json:"cache_creation_input_tokens,omitempty"`
	CacheRead     *int `json:"cache_read_input_tokens,omitempty"`
}

// messageDialect is how /v1/messages answers.
type messageDialect struct {
	g      *generation
	opened bool // the content block was begun
}

func (m *messageDialect) usage() messageUsage {
	u := m.g.usage()
	if m.g.x.s.cfg.HideCachedTokens {
		return messageUsage{Input: u.prompt, Output: u.completion}
	}
	return messageUsage{u.prompt - u.cached - u.created, u.completion, &u.created, &u.cached}
}

// stopReason translates the reason of the end; nil for an answer that its engine aborted.
func (j *job) messageStop() (reason, sequence *string) {
	word := ""
	switch {
	case j.finish == "length":
		word = "max_tokens"
	case j.finish != "stop":
		return nil, nil
	case j.stoppedBy != "":
		word, sequence = "stop_sequence", &j.stoppedBy
	case j.tool != nil:
		word = "tool_use"
	default:
		word = "end_turn"
	}
	return &word, sequence
}

type textBlock struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type toolBlock struct {
	Type  string          `json:"type"`
	ID    string          `json:"id"`
	Name  string          `json:"name"`
	Input json.RawMessage `json:"input"`
}

func (m *messageDialect) whole(all []output) any {
	text := all[0].text
	j := m.g.call.jobs[0]
	var block any = textBlock{"text", text}
	if j.tool != nil && json.Valid([]byte(text)) {
		block = toolBlock{"tool_use", j.tool.id, j.tool.name, json.RawMessage(text)}
	}
	reason, sequence := j.messageStop()
	return struct {
		ID           string       `json:"id"`
		Type         string       `json:"type"`
		Role         string       `json:"role"`
		Content      []any        `json:"content"`
		Model        string       `json:"model"`
		StopReason   *string      `json:"stop_reason,omitempty"`
		StopSequence *string      `json:"stop_sequence,omitempty"`
		Usage        messageUsage `json:"usage"`
	}{m.g.id, "message", "assistant", []any{block}, m.g.model, reason, sequence, m.usage()}
}

// event sends an event of the given members.
func (m *messageDialect) event(w *events, name string, members ...string) {
	w.data = append(append(w.data[:0], "event: "...), name...)
	w.data = append(append(w.data, "\ndata: {\"type\":\""...), name...)
	w.data = append(w.data, '"')
	for _, s := range members {
		w.data = append(w.data, s...)
	}
	w.data = append(w.data, '}')
	w.send()
}

func (m *messageDialect) open(*events) {}

func (m *messageDialect) start(w *events) {
	m.event(w, "message_start", `,"message":{"id":`, quote(m.g.id), `,"type":"message","role":"assistant","content":[],"model":`, quote(m.g.model),
		`,"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":`, strconv.Itoa(len(m.g.prompts[0])), `,"output_tokens":0}}`)
}

func (m *messageDialect) delta(w *events, d *delta) {
	if d.text == "" {
		return
	}
	t := d.job.tool
	if !m.opened {
		m.opened = true
		block := `{"type":"text","text":""}`
		if t != nil {
			block = `{"type":"tool_use","id":"` + t.id + `","name":` + quote(t.name) + `,"input":{}}`
		}
		m.event(w, "content_block_start", `,"content_block":`, block, `,"index":0`)
	}
	kind, member := "text_delta", "text"
	if t != nil {
		kind, member = "input_json_delta", "partial_json"
	}
	m.event(w, "content_block_delta", `,"delta":{"type":"`, kind, `","`, member, `":`, quote(d.text), `},"index":0`)
}

func (m *messageDialect) end(w *events) {
	if m.opened {
		m.event(w, "content_block_stop", `,"index":0`)
	}
	reason, sequence := m.g.call.jobs[0].messageStop()
	delta, _ := marshal(struct {
		StopReason   *string `json:"stop_reason"`
		StopSequence *string `json:"stop_sequence"`
	}{reason, sequence})
	usage, _ := marshal(m.usage())
	m.event(w, "message_delta", `,"delta":`, string(delta), `,"usage":`, string(usage))
	m.event(w, "message_stop")
}
