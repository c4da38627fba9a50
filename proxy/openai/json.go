package openai

import (
	"math"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects may nest in a value of a body. Python's json
// module, which reads it in vLLM, gives up near its own recursion limit (1,000 by
// default); a tool's schema needs a dozen levels.
const MaxDepth = 1024

// scanner walks one JSON text as Python's json.loads reads it: RFC 8259, and
// besides the literals NaN, Infinity and -Infinity. It builds nothing and does not
// recurse. The first failure is kept and moves pos to the end, so that every loop
// over members or elements ends by itself.
type scanner struct {
	body   []byte
	pos    int
	key    int  // where the last member's key started
	first  bool // the container just opened has shown no member yet
	at     int  // where it failed
	reason string

	next  int         // where yield is called next
	yield func() bool // false: nobody wants to know any more

	keyBuf [longestKey]byte // an escaped key, unescaped
}

// longestKey is more than any key that this package knows has bytes.
const longestKey = 32

func (s *scanner) reset(body []byte) {
	s.body, s.pos, s.key, s.first, s.at, s.reason = body, 0, 0, false, 0, ""
	s.next, s.yield = math.MaxInt, nil
}

// yieldEvery is how many bytes are read between two calls of yield: up to 150 µs.
const yieldEvery = 32 << 10

// rest is for when next has been reached.
func (s *scanner) rest() {
	s.next = s.pos + yieldEvery
	if !s.yield() {
		s.fail(s.pos, "its reading was given up")
	}
}

func (s *scanner) failed() bool { return s.reason != "" }

// cut tells whether all that is wrong is that the text ends: what follows might
// mend it. Every other failure is at a byte that the text has.
func (s *scanner) cut() bool { return s.failed() && s.at == len(s.body) }

func (s *scanner) fail(at int, reason string) {
	if s.reason == "" {
		s.at, s.reason = at, reason
	}
	s.pos = len(s.body)
}

// peek skips white space and gives the byte that follows it, 0 at the end. (A NUL
// in the text is no JSON either.)
func (s *scanner) peek() byte {
	for i := s.pos; i < len(s.body); i++ {
		switch c := s.body[i]; c {
		case ' ', '\t', '\n', '\r':
		default:
			s.pos = i
			return c
		}
	}
	s.pos = len(s.body)
	return 0
}

// open steps into the object or array that starts here.
func (s *scanner) open() {
	s.pos++
	s.first = true
}

// more tells whether another member or element follows in the container that ends
// with the given byte, and stands at it; otherwise the container has been left.
func (s *scanner) more(end byte) bool {
	if s.pos >= s.next {
		s.rest()
	}
	c := s.peek()
	if s.first {
		s.first = false
		if c == end {
			s.pos++
			return false
		}
		return !s.failed()
	}
	switch c {
	case ',':
		s.pos++
		s.peek()
		return true
	case end:
		s.pos++
		return false
	}
	if end == '}' {
		s.unexpected("',' or '}'")
	} else {
		s.unexpected("',' or ']'")
	}
	return false
}

// member is more for objects: it reads the key as well and stands at the value.
// The key is valid until the next call; one too long to be known is nil.
func (s *scanner) member() (key []byte, ok bool) {
	if !s.more('}') {
		return nil, false
	}
	if s.peek() != '"' {
		s.unexpected("a key in double quotes")
		return nil, false
	}
	s.key = s.pos
	t := s.str()
	if s.peek() != ':' {
		s.unexpected("':' after a key")
		return nil, false
	}
	s.pos++
	s.peek()
	raw := s.body[t.start:t.end]
	switch {
	case !utf8.Valid(raw):
		s.fail(s.key, "the key is not valid UTF-8")
		return nil, false
	case t.escaped:
		// An escaped byte takes at most six: `\u006d`.
		if len(raw) > 6*longestKey {
			return nil, true
		}
		key, _ = appendUnescaped(s.keyBuf[:0], raw, longestKey)
		return key, true
	}
	return raw, true
}

// skip passes over one value of any kind.
func (s *scanner) skip() {
	switch c := s.peek(); c {
	case '{', '[':
		s.skipContainer()
	case '"':
		s.str()
	default:
		s.scalar(c)
	}
}

func (s *scanner) skipContainer() {
	var objects [MaxDepth / 64]uint64 // bit d: the container at depth d is an object
	depth := 0
	for {
		// At a value.
		switch c := s.peek(); c {
		case '{', '[':
			if depth == MaxDepth {
				s.fail(s.pos, "nested too deeply")
				return
			}
			if c == '{' {
				objects[depth/64] |= 1 << (depth % 64)
			} else {
				objects[depth/64] &^= 1 << (depth % 64)
			}
			depth++
			s.open()
		case '"':
			s.str()
		default:
			s.scalar(c)
		}
		// Behind a value or an opening bracket: to the next value.
		for more := false; !more; {
			if d := depth - 1; objects[d/64]&(1<<(d%64)) != 0 {
				_, more = s.member()
			} else {
				more = s.more(']')
			}
			if !more {
				depth--
			}
			if depth == 0 || s.failed() {
				return
			}
		}
	}
}

// scalar passes over a number or a literal that starts with c.
func (s *scanner) scalar(c byte) {
	switch c {
	case 't':
		s.literal("true")
	case 'f':
		s.literal("false")
	case 'n':
		s.literal("null")
	case 'N':
		s.literal("NaN")
	case 'I':
		s.literal("Infinity")
	case '-':
		if s.pos+1 < len(s.body) && s.body[s.pos+1] == 'I' {
			s.literal("-Infinity")
			return
		}
		s.number()
	case '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		s.number()
	default:
		s.unexpected("a value")
	}
}

func (s *scanner) literal(word string) {
	n := min(len(word), len(s.body)-s.pos)
	if string(s.body[s.pos:s.pos+n]) != word[:n] {
		s.unexpected("a value")
		return
	}
	if s.pos += n; n < len(word) {
		s.unexpected("a value")
	}
}

func (s *scanner) number() {
	b, i := s.body, s.pos
	if b[i] == '-' {
		i++
	}
	switch {
	case i < len(b) && b[i] == '0':
		i++
	case i < len(b) && '1' <= b[i] && b[i] <= '9':
		i = digits(b, i)
	default:
		s.fail(i, "a number without digits")
		return
	}
	if i < len(b) && b[i] == '.' {
		from := i + 1
		if i = digits(b, from); i == from {
			s.fail(i, "a number without digits after its point")
			return
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		from := i
		if i = digits(b, from); i == from {
			s.fail(i, "a number without digits in its exponent")
			return
		}
	}
	s.pos = i
}

func digits(b []byte, i int) int {
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	return i
}

// unexpected fails for what stands here, naming what should.
func (s *scanner) unexpected(want string) {
	if s.failed() {
		return
	}
	if s.pos >= len(s.body) {
		s.fail(len(s.body), "it ends where "+want+" should follow")
		return
	}
	s.fail(s.pos, "expected "+want)
}
