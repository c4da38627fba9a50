package openai

import "bytes"

// Renamer gives the model of an answer another name while the answer passes in
// pieces, however it is cut: the one that its client knows. Renamed is the string
// under the key "model" of the outermost object, and of an object under its keys
// "response" and "message", as events of responses and messages have it. Nothing else
// is touched: what looks like it in generated text is inside a string, its quotes
// escaped. What is not JSON passes as it is. Call Reset before the first piece.
type Renamer struct {
	name   []byte // with its quotes
	events bool

	field int  // of events: how much of dataField the line has shown; −1: it is another line
	empty bool // the line has shown nothing yet, but for a carriage return

	depth    int
	envelope bool // depth 2 is an object that has a model of its own
	key      renamerKey
	inString bool
	escape   bool // the last byte was a backslash in a string
	dropping bool // the string is the one that name has replaced

	word  [9]byte // how the last string starts
	nword int
}

// renamerKey is the key whose value comes next.
type renamerKey uint8

const (
	noKey renamerKey = iota
	modelKey
	envelopeKey
)

const dataField = "data:"

// beyond is a depth at which nothing is looked for.
const beyond = 1 << 30

// Reset makes r ready for another answer, a stream of events or one JSON document,
// whose model is to be called name.
func (r *Renamer) Reset(name string, events bool) {
	*r = Renamer{name: AppendQuoted(r.name[:0], name), events: events, empty: true}
}

// Pass reads the next piece and appends to dst what is to be sent in its place: parts
// of p, and the name. Nothing is held back. The segments are valid until the next
// call.
func (r *Renamer) Pass(dst [][]byte, p []byte) [][]byte {
	from := 0 // p[from:] is not in dst yet
	for i := 0; i < len(p); {
		switch {
		case r.inString:
			i = r.passString(p, i)
			if r.dropping {
				from, r.dropping = i, r.inString
			}
			continue
		case r.events && r.field < len(dataField):
			i = r.passField(p, i)
			continue
		}
		if r.passByte(p[i]) {
			dst = append(appendSome(dst, p[from:i]), r.name)
			r.dropping, from = true, i+1
		}
		i++
	}
	return appendSome(dst, p[from:])
}

// passField goes on in a line of an event, to its data or to the next line.
func (r *Renamer) passField(p []byte, i int) int {
	for ; i < len(p) && r.field >= 0 && r.field < len(dataField); i++ {
		switch c := p[i]; {
		case c == dataField[r.field]:
			r.field++
			r.empty = false
		case c == '\n':
			r.endLine()
		case c == '\r' && r.empty && r.field == 0:
		default:
			r.field, r.empty = -1, false
		}
	}
	if r.field >= 0 {
		return i
	}
	end := bytes.IndexByte(p[i:], '\n')
	if end < 0 {
		return len(p)
	}
	r.endLine()
	return i + end + 1
}

// endLine begins another line. An empty one ends the event.
func (r *Renamer) endLine() {
	if r.empty {
		r.depth, r.envelope, r.key = 0, false, noKey
	}
	r.field, r.empty = 0, true
}

// passString goes on in a string, to behind its closing quote if it is there.
func (r *Renamer) passString(p []byte, i int) int {
	if r.escape {
		r.escape = false
		i = r.passEscaped(p, i)
	}
	for i < len(p) {
		end := special(p, i)
		r.note(p[i:end])
		if end == len(p) {
			return end
		}
		i = end + 1
		switch c := p[end]; {
		case c == '"':
			r.inString = false
			return i
		case c == '\\':
			r.note(p[end:i])
			if i == len(p) {
				r.escape = true
				return i
			}
			i = r.passEscaped(p, i)
		case c == '\n' && r.events: // a string goes on in no other line: this is no JSON
			r.inString, r.depth, r.envelope = false, beyond, false
			return end
		}
	}
	return i
}

// passEscaped goes on behind a backslash.
func (r *Renamer) passEscaped(p []byte, i int) int {
	if p[i] == '\n' && r.events {
		return i
	}
	r.note(p[i : i+1])
	return i + 1
}

// note remembers how a string starts.
func (r *Renamer) note(part []byte) { r.nword += copy(r.word[r.nword:], part) }

// passByte goes on outside of strings, and tells whether the string starts here that
// the name replaces.
func (r *Renamer) passByte(c byte) (replace bool) {
	key := r.key
	switch c {
	case '\n':
		if r.events {
			r.endLine()
		}
		return false
	case ' ', '\t', '\r':
		return false
	case ':':
		r.key = r.keyOf(r.word[:r.nword])
		return false
	case '"':
		r.inString, r.nword = true, 0
	case '{', '[':
		r.envelope = r.envelope || c == '{' && key == envelopeKey
		r.depth++
	case '}', ']':
		r.depth = max(r.depth-1, 0)
		r.envelope = r.envelope && r.depth >= 2
	}
	r.key = noKey
	return c == '"' && key == modelKey
}

// keyOf tells what the key before a colon means where it stands.
func (r *Renamer) keyOf(word []byte) renamerKey {
	switch string(word) {
	case "model":
		if r.depth == 1 || r.depth == 2 && r.envelope {
			return modelKey
		}
	case "response", "message":
		if r.depth == 1 {
			return envelopeKey
		}
	}
	return noKey
}
