package openai

import (
	"strconv"
	"unicode/utf8"
)

// Error says why a body cannot be read.
type Error struct {
	// Offset is where in the body, in bytes.
	Offset int
	// Param is the member that is wrong, empty when it is the JSON.
	Param string
	// Reason says what is wrong, fit to follow "cannot be read: ".
	Reason string
}

// Error says what is wrong and where.
func (e *Error) Error() string {
	return "the request body cannot be read: " + e.Reason + " (at byte " + strconv.Itoa(e.Offset) + ")"
}

// AppendError appends an error body in OpenAI's form, as vLLM writes it: the code is
// the HTTP status. An empty param is written as null.
func AppendError(dst []byte, status int, typ, message, param string) []byte {
	dst = append(dst, `{"error":{"message":`...)
	dst = AppendQuoted(dst, message)
	dst = append(dst, `,"type":`...)
	dst = AppendQuoted(dst, typ)
	dst = append(dst, `,"param":`...)
	if param == "" {
		dst = append(dst, "null"...)
	} else {
		dst = AppendQuoted(dst, param)
	}
	dst = append(dst, `,"code":`...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	return append(dst, "}}"...)
}

// AppendErrorEvents appends what ends a stream of that kind which failed after its
// head was sent. Chat and completions: the error, and [DONE], as vLLM does.
// Messages: an error event (docs.anthropic.com, "Streaming messages"). Responses: an
// error event too (platform.openai.com, "Streaming events"). If what was sent before
// ends inside an event, the blank line that ends it must be sent first; see
// [Events.Open].
func AppendErrorEvents(dst []byte, kind Kind, status int, typ, message string) []byte {
	switch kind {
	case Messages:
		dst = append(dst, `event: error`+"\n"+`data: {"type":"error","error":{"type":"api_error","message":`...)
		dst = AppendQuoted(dst, message)
		return append(dst, "}}\n\n"...)
	case Responses:
		dst = append(dst, `event: error`+"\n"+`data: {"type":"error","code":`...)
		dst = AppendQuoted(dst, typ)
		dst = append(dst, `,"message":`...)
		dst = AppendQuoted(dst, message)
		return append(dst, `,"param":null}`+"\n\n"...)
	}
	dst = append(dst, "data: "...)
	dst = AppendError(dst, status, typ, message, "")
	return append(dst, "\n\ndata: [DONE]\n\n"...)
}

// AppendQuoted appends s as a JSON string. What is not valid UTF-8 becomes U+FFFD.
func AppendQuoted(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c < 0x20 || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // RuneError is U+FFFD
			i += n
			continue
		}
		i++
	}
	return append(dst, '"')
}
