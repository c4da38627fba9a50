package mock

import (
	"encoding/json"
	"strconv"
)

// responses is POST /v1/responses. Nothing is stored, as in vLLM unless it is told to.
func (x *exchange) responses() {
	faults, ok := x.begin()
	if !ok {
		return
	}
	d, e := x.readResponse()
	if e != nil {
		x.s.count(&x.s.counts.Refused)
		x.fail(e)
		return
	}
	d.g.faults = faults
	d.g.run(d)
}

// responseItem is an item of the input: a message, a call of a tool, or what the tool returned.
type responseItem struct {
	Type      string          `json:"type"`
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	CallID    string          `json:"call_id"`
	Name      string          `json:"name"`
	Arguments string          `json:"arguments"`
	Output    json.RawMessage `json:"output"`
}

// message is the item as a chat completion has it.
func (i *responseItem) message() chatMessage {
	switch i.Type {
	case "function_call":
		calls, _ := marshal([]chatToolCall{{i.CallID, "function", chatFunctionCall{i.Name, i.Arguments}}})
		return chatMessage{Role: "assistant", ToolCalls: calls}
	case "function_call_output":
		return chatMessage{Role: "tool", ToolCallID: i.CallID, Content: i.Output}
	}
	return chatMessage{Role: i.Role, Content: i.Content}
}

// readInput makes a conversation of the instructions and the input, which is a text or a list of items.
func (f *fields) readInput() (messages []chatMessage) {
	if s := f.text("instructions"); s != "" {
		messages = append(messages, chatMessage{Role: "system", Content: json.RawMessage(quote(s))})
	}
	raw := f.get("input")
	var text string
	var items []responseItem
	switch {
	case raw == nil:
		f.missing("input")
	case json.Unmarshal(raw, &text) == nil:
		messages = append(messages, chatMessage{Role: "user", Content: raw})
	case json.Unmarshal(raw, &items) == nil:
		for i := range items {
			messages = append(messages, items[i].message())
		}
	default:
		f.add("input", "string_type", "Input should be a valid string", pythonValue(raw))
	}
	return messages
}

func (x *exchange) readResponse() (*responseDialect, *apiError) {
	f, e := x.parse()
	if e != nil {
		return nil, e
	}
	messages := f.readInput()
	g := x.sampling(f, "resp_")
	g.id = "resp_" + randomID() // whatever X-Request-Id says
	g.params.stop = f.texts("stop")
	g.limits(f, "max_output_tokens")
	g.tools.tools = f.readTools()
	f.readToolChoice(&g.tools)
	g.tools.settled = len(messages) > 0 && messages[len(messages)-1].Role == "tool"
	if text := f.object("text"); text != nil {
		if format := text.object("format"); format != nil {
			if t := format.text("type"); t == "json_schema" || t == "json_object" {
				g.format = json.RawMessage(`{}`)
				if s := format.get("schema"); s != nil {
					g.format = s
				}
			}
		}
	}
	d := &responseDialect{g: g, item: randomID()}
	d.object.read(f)
	previous := f.text("previous_response_id")
	if e := f.err(); e != nil {
		return nil, e
	}
	if previous != "" {
		param := "response_id"
		return nil, &apiError{Message: "Response with id '" + previous + "' not found.", Type: "invalid_request_error", Param: &param, Code: 404}
	}
	if e := g.tools.check(f.get("tool_choice") != nil && len(g.tools.tools) > 0); e != nil {
		return nil, e
	}
	g.prompts = [][]uint32{chatTemplate(f.get("tools"), messages)}
	return d, g.check()
}

// pythonFloat is written with a point, always.
type pythonFloat float64

func (f pythonFloat) MarshalJSON() ([]byte, error) { return appendFloat(nil, float64(f)), nil }

// responseObject is a response, under way or complete.
type responseObject struct {
	ID                 string            `json:"id"`
	CreatedAt          int64             `json:"created_at"`
	IncompleteDetails  *incompleteReason `json:"incomplete_details"`
	Instructions       json.RawMessage   `json:"instructions"`
	Metadata           json.RawMessage   `json:"metadata"`
	Model              string            `json:"model"`
	Object             string            `json:"object"`
	Output             []any             `json:"output"`
	ParallelToolCalls  bool              `json:"parallel_tool_calls"`
	Temperature        pythonFloat       `json:"temperature"`
	ToolChoice         json.RawMessage   `json:"tool_choice"`
	Tools              json.RawMessage   `json:"tools"`
	TopP               pythonFloat       `json:"top_p"`
	Background         bool              `json:"background"`
	MaxOutputTokens    int               `json:"max_output_tokens"`
	MaxToolCalls       json.RawMessage   `json:"max_tool_calls"`
	PreviousResponseID *string           `json:"previous_response_id"`
	Prompt             json.RawMessage   `json:"prompt"`
	Reasoning          json.RawMessage   `json:"reasoning"`
	ServiceTier        string            `json:"service_tier"`
	Status             string            `json:"status"`
	Text               json.RawMessage   `json:"text"`
	TopLogprobs        *int              `json:"top_logprobs"`
	Truncation         string            `json:"truncation"`
	Usage              *responseUsage    `json:"usage"`
	User               json.RawMessage   `json:"user"`
	PresencePenalty    pythonFloat       `json:"presence_penalty"`
	FrequencyPenalty   pythonFloat       `json:"frequency_penalty"`
	KVTransferParams   *struct{}         `json:"kv_transfer_params"`
	ECTransferParams   *struct{}         `json:"ec_transfer_params"`
	InputMessages      *struct{}         `json:"input_messages"`
	OutputMessages     *struct{}         `json:"output_messages"`
}

type incompleteReason struct {
	Reason string `json:"reason"`
}

// read fills in what a response repeats of its request.
func (r *responseObject) read(f *fields) {
	*r = responseObject{
		Object: "response", Output: []any{}, ParallelToolCalls: true, ServiceTier: "auto", Truncation: "disabled", Status: "in_progress",
		Instructions: f.get("instructions"), Metadata: f.get("metadata"), Tools: f.get("tools"), ToolChoice: f.get("tool_choice"),
		MaxToolCalls: f.get("max_tool_calls"), Prompt: f.get("prompt"), Reasoning: f.get("reasoning"), Text: f.get("text"), User: f.get("user"),
		Temperature: pythonFloat(f.number("temperature", 1)), TopP: pythonFloat(f.number("top_p", 1)),
		PresencePenalty: pythonFloat(f.number("presence_penalty", 0)), FrequencyPenalty: pythonFloat(f.number("frequency_penalty", 0)),
	}
	if f.get("parallel_tool_calls") != nil {
		r.ParallelToolCalls = f.boolean("parallel_tool_calls")
	}
	if s := f.text("service_tier"); s != "" {
		r.ServiceTier = s
	}
	if s := f.text("truncation"); s != "" {
		r.Truncation = s
	}
	switch {
	case r.Tools == nil:
		r.Tools, r.ToolChoice = json.RawMessage(`[]`), json.RawMessage(`"none"`)
	case r.ToolChoice == nil:
		r.ToolChoice = json.RawMessage(`"auto"`)
	}
}

type responseUsage struct {
	InputTokens  int                `json:"input_tokens"`
	Input        responseInputUsage `json:"input_tokens_details"`
	OutputTokens int                `json:"output_tokens"`
	Output       responseOutputUse  `json:"output_tokens_details"`
	TotalTokens  int                `json:"total_tokens"`
}

type responseInputUsage struct {
	Cached        int   `json:"cached_tokens"`
	Written       int   `json:"cache_write_tokens"`
	PerTurn       []int `json:"input_tokens_per_turn"`
	CachedPerTurn []int `json:"cached_tokens_per_turn"`
}

type responseOutputUse struct {
	Reasoning   int   `json:"reasoning_tokens"`
	Tool        int   `json:"tool_output_tokens"`
	PerTurn     []int `json:"output_tokens_per_turn"`
	ToolPerTurn []int `json:"tool_output_tokens_per_turn"`
}

// responseMessage is an item of a response's output that is text.
type responseMessage struct {
	ID      string         `json:"id"`
	Content []responseText `json:"content"`
	Role    string         `json:"role"`
	Status  string         `json:"status"`
	Type    string         `json:"type"`
	Phase   *string        `json:"phase"`
}

type responseText struct {
	Annotations []struct{} `json:"annotations"`
	Text        string     `json:"text"`
	Type        string     `json:"type"`
	Logprobs    []struct{} `json:"logprobs"`
}

// responseCall is an item of a response's output that calls a tool.
type responseCall struct {
	Arguments string    `json:"arguments"`
	CallID    string    `json:"call_id"`
	Name      string    `json:"name"`
	Type      string    `json:"type"`
	ID        string    `json:"id"`
	Async     *bool     `json:"async"`
	Caller    *struct{} `json:"caller"`
	Namespace *string   `json:"namespace"`
	Status    string    `json:"status"`
}

// responseDialect is how /v1/responses answers. The shapes of tool calls are those of vLLM's streaming_events.py and the openai
// package; they were not captured.
type responseDialect struct {
	g        *generation
	object   responseObject
	item     string // id of the one item of the output, without its prefix
	text     []byte // of it
	sequence int
	opened   bool // the item was begun
}

// present is the response as it is now.
func (r *responseDialect) present() *responseObject {
	r.object.ID, r.object.CreatedAt, r.object.Model = r.g.id, r.g.created, r.g.model
	r.object.MaxOutputTokens = r.g.call.jobs[0].params.maxTokens
	return &r.object
}

// itemID is the id of the item, which says what it is.
func (r *responseDialect) itemID() string {
	if r.g.call.jobs[0].tool != nil {
		return "fc_" + r.item
	}
	return "msg_" + r.item
}

// output is the item of the output that the text makes.
func (r *responseDialect) output(text, status string) any {
	if t := r.g.call.jobs[0].tool; t != nil {
		return responseCall{Arguments: text, CallID: t.id, Name: t.name, Type: "function_call", ID: r.itemID(), Status: status}
	}
	content := []responseText{}
	if text != "" {
		content = append(content, responseText{[]struct{}{}, text, "output_text", nil})
	}
	return responseMessage{ID: r.itemID(), Content: content, Role: "assistant", Status: status, Type: "message"}
}

// complete is the response when all has been said. An answer that its engine aborted is called completed, as in vLLM.
func (r *responseDialect) complete(text string) *responseObject {
	o := r.present()
	o.Output = []any{r.output(text, "completed")}
	o.Status = "completed"
	if r.g.call.jobs[0].finish == "length" {
		o.Status, o.IncompleteDetails = "incomplete", &incompleteReason{"max_output_tokens"}
	}
	u, none := r.g.usage(), []int{}
	o.Usage = &responseUsage{
		InputTokens: u.prompt, OutputTokens: u.completion, TotalTokens: u.prompt + u.completion,
		Input: responseInputUsage{u.cached, u.created, none, none}, Output: responseOutputUse{0, 0, none, none},
	}
	return o
}

func (r *responseDialect) whole(all []output) any { return r.complete(all[0].text) }

// event sends an event. Its members come in the order of their names: sequence_number, the text of an item that is done, and type
// follow the given ones.
func (r *responseDialect) event(w *events, name string, fields ...string) {
	r.eventOf(w, name, "", fields...)
}

// eventOf is event with members between sequence_number and type.
func (r *responseDialect) eventOf(w *events, name, between string, fields ...string) {
	w.data = append(append(w.data[:0], "event: "...), name...)
	w.data = append(w.data, "\ndata: {"...)
	for _, f := range fields {
		w.data = append(w.data, f...)
	}
	w.data = append(w.data, `,"sequence_number":`...)
	w.data = strconv.AppendInt(w.data, int64(r.sequence), 10)
	w.data = append(w.data, between...)
	w.data = append(w.data, `,"type":"`...)
	w.data = append(w.data, name...)
	w.data = append(w.data, `"}`...)
	w.send()
	r.sequence++
}

// holding sends an event that holds something whole.
func (r *responseDialect) holding(w *events, name, member string, v any, more ...string) {
	b, err := marshal(v)
	if err != nil {
		panic(err) // only our own types come here
	}
	r.event(w, name, append([]string{`"` + member + `":`, string(b)}, more...)...)
}

// The members that say which item and which part of it an event is about.
const (
	inContent = `"content_index":0`
	inOutput  = `"output_index":0`
)

func (r *responseDialect) ofItem() string { return `,"item_id":"` + r.itemID() + `",` }

func (r *responseDialect) open(w *events) {
	for _, name := range []string{"response.created", "response.in_progress"} {
		r.holding(w, name, "response", r.present())
	}
}

func (r *responseDialect) start(*events) {}

// begin opens the item, with the first text there is.
func (r *responseDialect) begin(w *events) {
	r.opened = true
	if r.g.call.jobs[0].tool != nil {
		r.holding(w, "response.output_item.added", "item", struct {
			responseCall
			CreatedBy *string `json:"created_by"`
		}{r.output("", "in_progress").(responseCall), nil}, ","+inOutput)
		return
	}
	r.holding(w, "response.output_item.added", "item", r.output("", "in_progress"), ","+inOutput)
	r.event(w, "response.content_part.added", inContent, r.ofItem(), inOutput,
		`,"part":{"annotations":[],"text":"","type":"output_text","logprobs":[]}`)
}

func (r *responseDialect) delta(w *events, d *delta) {
	if d.text == "" {
		return
	}
	if !r.opened {
		r.begin(w)
	}
	r.text = append(r.text, d.text...)
	if d.job.tool != nil {
		r.event(w, "response.function_call_arguments.delta", `"delta":`, quote(d.text), r.ofItem(), inOutput)
		return
	}
	r.event(w, "response.output_text.delta", inContent, `,"delta":`, quote(d.text), r.ofItem(), `"logprobs":[],`, inOutput)
}

func (r *responseDialect) end(w *events) {
	text := string(r.text)
	if r.opened {
		r.close(w, text)
	}
	done := r.complete(text)
	if !r.opened {
		done.Output = []any{}
	}
	r.holding(w, "response.completed", "response", done)
}

// close ends the item.
func (r *responseDialect) close(w *events, text string) {
	if r.g.call.jobs[0].tool != nil {
		r.event(w, "response.function_call_arguments.done", `"arguments":`, quote(text), r.ofItem(), inOutput)
	} else {
		r.eventOf(w, "response.output_text.done", `,"text":`+quote(text), inContent, r.ofItem(), `"logprobs":[],`, inOutput)
		r.event(w, "response.content_part.done", inContent, r.ofItem(), inOutput,
			`,"part":{"annotations":[],"text":`, quote(text), `,"type":"output_text","logprobs":null}`)
	}
	r.holding(w, "response.output_item.done", "item", r.output(text, "completed"), ","+inOutput)
}
