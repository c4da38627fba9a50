package mock

import (
	"encoding/json"
	"slices"
)

// tool is a function the model may call.
type tool struct {
	name   string
	schema json.RawMessage // of its arguments; nil: any object
}

// toolUse says which tools there are and whether one must be called. The mode is OpenAI's tool_choice: "auto", "required", "none" or
// "named", for which name is set.
type toolUse struct {
	tools   []tool
	mode    string
	name    string
	settled bool // the conversation ends with a tool's result, so that "auto" answers in words
}

// toolCall is the call an answer consists of.
type toolCall struct {
	id    string
	name  string
	named bool // the client chose it
}

// choose returns the tool an answer calls, or nil. "auto" calls one for every second seed.
func (u *toolUse) choose(seed uint64) *tool {
	if len(u.tools) == 0 {
		return nil
	}
	any := &u.tools[seed>>32%uint64(len(u.tools))]
	switch {
	case u.mode == "named":
		i := slices.IndexFunc(u.tools, func(t tool) bool { return t.name == u.name })
		return &u.tools[i] // readTools has checked that it is there
	case u.mode == "required":
		return any
	case u.mode == "auto" && !u.settled && seed&1 == 0:
		return any
	}
	return nil
}

// check says why vLLM would refuse the tool choice (vllm/entrypoints/openai/chat_completion/protocol.py, check_tool_usage).
func (u *toolUse) check(chosen bool) *apiError {
	switch {
	case chosen && u.mode != "none" && len(u.tools) == 0:
		return badRequest("tool_choice", "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)")
	case u.mode == "named" && !slices.ContainsFunc(u.tools, func(t tool) bool { return t.name == u.name }):
		return badRequest("tool_choice", "The tool specified in `tool_choice` does not match any of the specified `tools` (parameter=tool_choice)")
	}
	return nil
}

// functionChoice is a tool_choice of chat completions (its function is nested) or of responses (it is flat).
type functionChoice struct {
	Name     string `json:"name"`
	Function struct {
		Name string `json:"name"`
	} `json:"function"`
}

// readToolChoice reads OpenAI's tool_choice: a word or a function.
func (f *fields) readToolChoice(u *toolUse) {
	u.mode = "auto"
	raw := f.get("tool_choice")
	if raw == nil {
		return
	}
	var named functionChoice
	switch {
	case json.Unmarshal(raw, &u.mode) == nil:
		if !slices.Contains([]string{"auto", "required", "none"}, u.mode) {
			f.add("tool_choice", "literal_error", "Input should be none, auto or required", pythonValue(raw))
		}
	case json.Unmarshal(raw, &named) == nil && named.Name+named.Function.Name != "":
		u.mode, u.name = "named", named.Name+named.Function.Name
	default:
		f.add("tool_choice", "model_type", "Input should be a valid dictionary or instance", pythonValue(raw))
	}
}

// readTools reads the tools of a chat completion, whose functions are nested, or of a response or a message, which are flat.
func (f *fields) readTools() (tools []tool) {
	raw := f.get("tools")
	if raw == nil {
		return nil
	}
	type function struct {
		Name        string          `json:"name"`
		Parameters  json.RawMessage `json:"parameters"`
		InputSchema json.RawMessage `json:"input_schema"`
	}
	var list []struct {
		function
		Function function `json:"function"`
	}
	if json.Unmarshal(raw, &list) != nil {
		f.add("tools", "list_type", "Input should be a valid list", pythonValue(raw))
		return nil
	}
	for _, t := range list {
		fn := t.function
		if fn.Name == "" {
			fn = t.Function
		}
		schema := fn.Parameters
		if schema == nil {
			schema = fn.InputSchema
		}
		if fn.Name != "" { // the others are built in and run by the server
			tools = append(tools, tool{fn.Name, schema})
		}
	}
	return tools
}

// readFormat reads what a chat completion's answer must look like: a JSON schema, or nil for prose.
func (f *fields) readFormat() json.RawMessage {
	if o := f.object("structured_outputs"); o != nil && o.get("json") != nil {
		return o.get("json")
	}
	o := f.object("response_format")
	if o == nil {
		return nil
	}
	switch o.text("type") {
	case "json_object":
		return json.RawMessage(`{}`)
	case "json_schema":
		if s := o.object("json_schema"); s != nil && s.get("schema") != nil {
			return s.get("schema")
		}
		f.add("response_format", "missing", "Field required", pythonValue(f.get("response_format")))
	}
	return nil
}

// scripted returns what an answer must say word for word, which is a tool's arguments or a JSON document, and "" if it may say
// anything.
func (g *generation) scripted(seed uint64) (script string, call *toolCall) {
	if t := g.tools.choose(seed); t != nil {
		return example(t.schema, seed), &toolCall{id: "chatcmpl-tool-" + randomID(), name: t.name, named: g.tools.mode == "named"}
	}
	if g.format != nil {
		return example(g.format, seed), nil
	}
	return "", nil
}
