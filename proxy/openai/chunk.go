package openai

import "bytes"

// chunk reads the JSON of one event, and tells whether it brings the usage and
// nothing else: no choices. One walk serves all of the APIs, whose members do not
// clash:
//
//	chat         choices[].delta.{content, reasoning, tool_calls, …}, choices[].finish_reason, usage
//	completions  choices[].text
//	responses    delta: "…"   response.usage   response.error
//	messages     delta.{text, thinking, partial_json}   message.usage   usage
//	any          error
//
// Being a walk over the JSON's own structure, it is not deceived by generated text
// that looks like a member: that is inside a string, its quotes escaped. What is
// not JSON changes nothing.
func (e *Events) chunk(data []byte) (usageOnly bool) {
	if e.FirstToken && ordinary(data) {
		return false
	}
	s := &e.scan
	s.reset(data)
	if s.peek() != '{' {
		return false
	}
	usage, noChoices := false, false
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		switch string(key) {
		case "choices":
			noChoices = e.choices() == 0
		case "usage":
			usage = e.Usage.read(s)
		case "delta":
			e.delta()
		case "error":
			e.Failed = s.given() || e.Failed
		case "object", "type":
			// {"object":"error","message":…} is how servers older than vLLM 0.10 say it.
			e.Failed = string(s.word()) == "error" || e.Failed
		case "response", "message":
			e.envelope()
		default:
			s.skip()
		}
	}
	return usage && noChoices && !s.failed()
}

var (
	choicesKey = []byte(`"choices":[`)
	unfinished = []byte(`"finish_reason":null`)
)

// ordinary tells whether an event is one choice of chat or completions that goes on,
// as nearly all are, without walking it: no object comes before the choice, it has
// not finished, and no object, such as the usage or an error, follows. Neither key
// can be matched inside of a string, where its quotes would be escaped. False only
// means that it has to be walked.
func ordinary(data []byte) bool {
	if len(data) == 0 || data[0] != '{' {
		return false
	}
	choice := 1 + bytes.IndexByte(data[1:], '{')
	if !bytes.HasSuffix(data[:choice], choicesKey) {
		return false
	}
	rest := data[choice:]
	end := bytes.Index(rest, unfinished)
	return end >= 0 && bytes.IndexByte(rest[end:], '{') < 0
}

// choices reads the choices and gives their number, −1 when they are no array.
func (e *Events) choices() (n int) {
	s := &e.scan
	if s.peek() != '[' {
		s.skip()
		return -1
	}
	s.open()
	for s.more(']') {
		n++
		e.choice()
	}
	return n
}

func (e *Events) choice() {
	s := &e.scan
	if s.peek() != '{' {
		s.skip()
		return
	}
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		switch string(key) {
		case "delta":
			e.delta()
		case "text":
			e.FirstToken = s.filled() || e.FirstToken
		case "finish_reason":
			switch string(s.word()) {
			case "abort":
				e.Aborted = true
			case "error":
				e.Failed = true
			}
		default:
			s.skip()
		}
	}
}

// delta looks for the first token in what an event adds.
func (e *Events) delta() {
	s := &e.scan
	switch c := s.peek(); {
	case e.FirstToken || c != '{' && c != '"':
		s.skip()
		return
	case c == '"':
		e.FirstToken = s.filled()
		return
	}
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		switch string(key) {
		case "content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call", "audio",
			"text", "thinking", "partial_json":
			e.FirstToken = s.filled() || e.FirstToken
		default:
			s.skip()
		}
	}
}

// envelope reads what responses and messages wrap: a whole answer as it stands.
func (e *Events) envelope() {
	s := &e.scan
	if s.peek() != '{' {
		s.skip()
		return
	}
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		switch string(key) {
		case "usage":
			e.Usage.read(s)
		case "error":
			e.Failed = s.given() || e.Failed
		default:
			s.skip()
		}
	}
}

// given passes over a value and tells whether it is something else than null.
func (s *scanner) given() bool {
	if s.null() {
		return false
	}
	s.skip()
	return !s.failed()
}

// filled passes over a value and tells whether it is a string, an array or an
// object that holds something.
func (s *scanner) filled() bool {
	switch s.peek() {
	case '"', '[', '{':
		return len(s.raw()) > 2
	}
	s.skip()
	return false
}
