package openai

import "bytes"

// MaxEvent is the length, in bytes, up to which an event is read. A longer one
// passes unread.
const MaxEvent = 64 << 10

// Events watches a stream of server-sent events (html.spec.whatwg.org, section
// 9.2) that passes in pieces, however it is cut. The fields say what has been seen
// so far; call Reset before the first piece. Lines may end in LF or CRLF, not in a
// CR alone, which no server sends.
type Events struct {
	// Usage is the last that was said.
	Usage Usage
	// Count is how many events with data have passed, withheld ones included.
	Count int
	// FirstToken tells whether an event has brought text, reasoning or a tool call.
	// The event that only says the role does not count.
	FirstToken bool
	// Done tells whether [DONE] has come. Responses and messages end without it.
	Done bool
	// Failed tells whether an event brought an error.
	Failed bool
	// Aborted tells whether a choice ended with finish_reason "abort": the server
	// gave it up, as vLLM does on SIGTERM, although the stream ends in order.
	Aborted bool
	// Withheld is how many events were kept from the client, Unread how many were
	// longer than MaxEvent.
	Withheld, Unread int

	withhold bool
	line     lineState
	long     bool   // inside an event that passes unread
	tail     []byte // the event so far, when it began in an earlier piece
	spare    []byte // what tail was before: the caller may still be sending it
	joined   []byte // data of several lines
	scan     scanner
}

// lineState is what the current line holds so far.
type lineState uint8

const (
	lineEmpty lineState = iota
	lineCR              // a carriage return
	lineText
)

// Reset makes e ready for another stream. With withhold, the event that brings
// nothing but the usage is kept from the client, because the client did not ask for
// it; see [Request.InjectUsage].
func (e *Events) Reset(withhold bool) {
	*e = Events{Usage: unsaid, withhold: withhold, tail: e.tail[:0], spare: e.spare[:0], joined: e.joined[:0]}
}

// Pass reads the next piece and appends to dst what is to be sent on now, in
// order: nearly always p itself. Without withholding it is always p. With it, an
// event whose end has not come is held back, and the event withheld is cut out,
// its blank line included. The segments lie in p or in e, and are valid until the
// next call.
func (e *Events) Pass(dst [][]byte, p []byte) [][]byte {
	from := 0 // p[from:] is not in dst yet
	at := 0   // where in p the current event starts or goes on
	for {
		end := e.blankLine(p, at)
		if end < 0 {
			break
		}
		held := len(e.tail)
		switch usageOnly := e.finish(p[at:end]); {
		case !e.withhold:
		case usageOnly:
			e.Withheld++
			dst = appendSome(dst, p[from:at])
			from = end
		case held > 0:
			dst = append(dst, e.spare[:held])
		}
		at = end
	}
	switch rest := p[at:]; {
	case len(rest) == 0 || e.long:
	case len(e.tail)+len(rest) > MaxEvent:
		if e.withhold && len(e.tail) > 0 {
			dst = append(dst, e.tail)
		}
		e.tail, e.spare = e.spare[:0], e.tail
		e.long = true
	default:
		e.tail = append(e.tail, rest...)
		if e.withhold {
			return appendSome(dst, p[from:at])
		}
	}
	return appendSome(dst, p[from:])
}

func appendSome(dst [][]byte, segment []byte) [][]byte {
	if len(segment) == 0 {
		return dst
	}
	return append(dst, segment)
}

// Rest is what is held back: the start of an event that never ended, if the stream
// ends here. It is valid until the next call.
func (e *Events) Rest() []byte {
	if !e.withhold {
		return nil
	}
	return e.tail
}

// Open tells whether what was sent on ends inside an event, so that an event of
// our own has to be preceded by a blank line.
func (e *Events) Open() bool {
	return e.long || !e.withhold && len(e.tail) > 0
}

// finish takes the last part of an event, or a whole one, reads it, and tells
// whether it is the one that brings nothing but the usage.
func (e *Events) finish(part []byte) (usageOnly bool) {
	if e.long {
		e.long = false
		e.Unread++
		return false
	}
	if len(e.tail) > 0 {
		part = append(e.tail, part...)
		e.tail, e.spare = e.spare[:0], part
	}
	if len(part) > MaxEvent {
		e.Unread++
		return false
	}
	return e.read(part)
}

// read reads an event's data (section 9.2.6 of the standard; other fields say
// nothing that the data does not).
func (e *Events) read(event []byte) (usageOnly bool) {
	var data []byte
	lines := 0
	for len(event) > 0 {
		n := bytes.IndexByte(event, '\n')
		line := bytes.TrimSuffix(event[:n], []byte("\r"))
		event = event[n+1:]
		value, ok := bytes.CutPrefix(line, []byte("data:"))
		if !ok {
			continue
		}
		value = bytes.TrimPrefix(value, []byte(" "))
		switch lines++; lines {
		case 1:
			data = value
		case 2:
			e.joined = append(append(e.joined[:0], data...), '\n')
			fallthrough
		default:
			if lines > 2 {
				e.joined = append(e.joined, '\n')
			}
			e.joined = append(e.joined, value...)
			data = e.joined
		}
	}
	if lines == 0 {
		return false
	}
	e.Count++
	if len(data) < 16 && string(bytes.TrimSpace(data)) == "[DONE]" {
		e.Done = true
		return false
	}
	return e.chunk(data)
}

// blankLine gives where the event ends that p[i:] goes on with, behind its blank
// line; −1 when its end has not come.
func (e *Events) blankLine(p []byte, i int) int {
	for {
		n := bytes.IndexByte(p[i:], '\n')
		if n < 0 {
			break
		}
		blank := e.line == lineEmpty && (n == 0 || n == 1 && p[i] == '\r') || e.line == lineCR && n == 0
		e.line = lineEmpty
		i += n + 1
		if blank {
			return i
		}
	}
	switch rest := p[i:]; {
	case len(rest) == 0:
	case e.line == lineEmpty && string(rest) == "\r":
		e.line = lineCR
	default:
		e.line = lineText
	}
	return -1
}
