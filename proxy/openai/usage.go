package openai

import "bytes"

// Usage is what an answer says of the tokens it took. A figure that it does not
// say is −1.
type Usage struct {
	// Prompt is all tokens of the prompt, cached or not.
	Prompt int
	// Completion is the tokens generated so far.
	Completion int
	Total      int
	// Cached is how many tokens of the prompt were found in the cache. vLLM says it
	// only with --enable-prompt-tokens-details, and in streams only at the end.
	Cached int
}

// unsaid is the usage of an answer that has said nothing.
var unsaid = Usage{-1, -1, -1, -1}

// read reads a usage object and tells whether it was one. What it does not say
// stays: in the messages API the figures come in parts.
//
// The names are those of chat and completions (prompt_tokens), of responses
// (input_tokens), and of messages, where input_tokens leaves out what was read from
// the cache or written to it.
func (u *Usage) read(s *scanner) bool {
	if s.peek() != '{' {
		s.skip()
		return false
	}
	said, uncached := unsaid, 0
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		switch string(key) {
		case "prompt_tokens", "input_tokens":
			said.Prompt = s.count()
		case "completion_tokens", "output_tokens":
			said.Completion = s.count()
		case "total_tokens":
			said.Total = s.count()
		case "prompt_tokens_details", "input_tokens_details":
			if cached := s.cachedTokens(); cached >= 0 {
				said.Cached = cached
			}
		case "cache_read_input_tokens":
			said.Cached = s.count()
			uncached += max(said.Cached, 0)
		case "cache_creation_input_tokens":
			uncached += max(s.count(), 0)
		default:
			s.skip()
		}
	}
	if s.failed() {
		return false
	}
	if said.Prompt >= 0 {
		said.Prompt += uncached
	}
	keep(&u.Prompt, said.Prompt)
	keep(&u.Completion, said.Completion)
	keep(&u.Total, said.Total)
	keep(&u.Cached, said.Cached)
	return said != unsaid
}

func keep(old *int, said int) {
	if said >= 0 {
		*old = said
	}
}

// cachedTokens reads prompt_tokens_details.
func (s *scanner) cachedTokens() int {
	cached := -1
	if s.peek() != '{' {
		s.skip()
		return cached
	}
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		if string(key) == "cached_tokens" {
			cached = s.count()
		} else {
			s.skip()
		}
	}
	return cached
}

// count reads a number of tokens, −1 when the value is no such number.
func (s *scanner) count() int {
	const limit = 1 << 53
	n := 0
	raw := s.raw()
	for _, c := range raw {
		if c < '0' || '9' < c || n > limit {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	if len(raw) == 0 {
		return -1
	}
	return n
}

// maxUsage is more than the usage object of an answer takes.
const maxUsage = 4096

// Body watches a JSON answer that passes, whole or in pieces, for its usage: the object
// under the key "usage" of the outermost object; the last one counts. It judges nothing
// else of the text. Call Reset before the first piece.
type Body struct {
	Usage Usage

	depth    int
	inString bool
	escape   bool // the last byte was a backslash in a string
	value    bool // behind "usage" and its colon
	capture  bool // inside the usage object

	word  [8]byte // how the last string at depth 1 starts
	nword int     // its length, or more than word holds

	object []byte // the usage object so far
	long   bool   // it is longer than maxUsage, and not read
	scan   scanner
}

// Reset makes b ready for another answer.
func (b *Body) Reset() {
	b.Usage = unsaid
	b.depth, b.nword = 0, 0
	b.inString, b.escape, b.value, b.capture = false, false, false, false
}

var usageKey = []byte(`"usage"`)

// Whole is Reset and Pass of an answer that is all there. It looks only at what follows
// the key, as a rule: if all that is open there closes and leaves nothing open, it is the
// outermost object that the key is in. Of what is no JSON it may say otherwise than Pass.
func (b *Body) Whole(p []byte) {
	b.Reset()
	at := bytes.Index(p, usageKey)
	if at < 0 {
		return
	}
	if at > 0 && p[at-1] != '\\' && !bytes.Contains(p[at+len(usageKey):], usageKey) {
		b.depth = 1
		if b.Pass(p[at:]); b.depth == 0 && !b.inString {
			return
		}
		b.Reset()
	}
	b.Pass(p)
}

// Pass reads the next piece.
func (b *Body) Pass(p []byte) {
	from := 0 // where in p the part of the usage object starts that is not kept yet
	for i := 0; i < len(p); {
		if b.inString {
			i = b.passString(p, i)
			continue
		}
		c := p[i]
		i++
		switch kinds[c] {
		case white:
		case other:
			b.value = false
		case quote:
			b.inString, b.value, b.nword = true, false, 0
		case colon:
			b.value = b.depth == 1 && b.nword == len("usage") && string(b.word[:len("usage")]) == "usage"
		case opening:
			if b.value && c == '{' {
				b.capture, b.object, b.long = true, b.object[:0], false
				from = i - 1
			}
			b.value = false
			b.depth++
		case closing:
			b.value = false
			if b.depth--; b.depth <= 1 && b.capture {
				b.capture = false
				b.keep(p[from:i])
				b.readUsage()
			}
		}
	}
	if b.capture {
		b.keep(p[from:])
	}
}

// What a byte outside of strings is.
const (
	other = iota // a part of a value, or a comma
	white        // between values
	quote
	colon
	opening
	closing
)

var kinds = [256]uint8{' ': white, '\t': white, '\n': white, '\r': white, '"': quote, ':': colon, '{': opening, '[': opening, '}': closing, ']': closing}

// passString goes on in a string, to behind its closing quote if it is there.
func (b *Body) passString(p []byte, i int) int {
	from := i // of what is not noted yet
	if b.escape {
		b.escape = false
		i++
	}
	for i < len(p) {
		end := special(p, i)
		if end == len(p) {
			i = end
			break
		}
		i = end + 1
		if p[end] == '"' {
			b.inString = false
			b.note(p[from:end])
			return i
		}
		if p[end] == '\\' {
			if i == len(p) {
				b.escape = true
				break
			}
			i++
		}
	}
	b.note(p[from:i])
	return i
}

// note remembers how a string at depth 1 starts.
func (b *Body) note(part []byte) {
	if b.depth == 1 && b.nword < len(b.word) {
		b.nword += copy(b.word[b.nword:], part)
	}
}

// keep appends a part of the usage object.
func (b *Body) keep(part []byte) {
	if b.long = b.long || len(b.object)+len(part) > maxUsage; !b.long {
		b.object = append(b.object, part...)
	}
}

func (b *Body) readUsage() {
	if b.long {
		return
	}
	b.scan.reset(b.object)
	b.Usage.read(&b.scan)
}
