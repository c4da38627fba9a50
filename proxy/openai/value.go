package openai

import (
	"bytes"
	"math"
	"strconv"
)

// raw passes over a value and gives its bytes.
func (s *scanner) raw() []byte {
	s.peek()
	start := s.pos
	s.skip()
	if s.failed() {
		return nil
	}
	return s.body[start:s.pos]
}

// inner gives a string without its quotes, another value raw, null as nil.
func (s *scanner) inner() []byte {
	switch {
	case s.peek() == '"':
		t := s.str()
		return s.body[t.start:t.end]
	case s.null():
		return nil
	}
	return s.raw()
}

// soFar is inner, and of a string, an array or an object that goes on behind the end
// of the text what there is of it.
func (s *scanner) soFar() []byte {
	switch s.peek() {
	case '"':
		t := s.strSoFar()
		return s.body[t.start:t.end]
	case '[', '{':
		from := s.pos
		if s.skip(); s.failed() && !s.cut() {
			return nil
		}
		return s.body[from:s.pos]
	}
	return s.inner()
}

// null passes over null, if that is what stands here.
func (s *scanner) null() bool {
	if s.peek() != 'n' {
		return false
	}
	s.literal("null")
	return true
}

// word passes over a value and gives what a short scalar says: a string unescaped,
// other scalars as they stand. It is valid until the next key.
func (s *scanner) word() []byte {
	switch s.peek() {
	case '{', '[':
		s.skip()
		return nil
	case '"':
		t := s.str()
		raw := s.body[t.start:t.end]
		if t.escaped && len(raw) <= 6*longestKey {
			raw, _ = appendUnescaped(s.keyBuf[:0], raw, longestKey)
		}
		return raw
	}
	return s.raw()
}

// int passes over a value and gives the whole number it is for vLLM, −1 when it is
// none or negative.
func (s *scanner) int() int { return laxCount(s.word()) }

// laxCount is the number that a word is for vLLM, −1 when it is none or negative.
func laxCount(word []byte) int {
	n, ok := laxInt(word)
	if !ok || n < 0 {
		return -1
	}
	return n
}

// laxBool reads what pydantic takes for true where a model says bool, as vLLM's do
// (docs.pydantic.dev, "Conversion Table"): a client that writes "stream": 1 gets a
// stream.
func laxBool(word []byte) bool {
	switch string(word) {
	case "true", "1":
		return true
	}
	if len(word) > 4 {
		return false
	}
	for _, yes := range [...]string{"true", "1.0", "on", "t", "y", "yes"} {
		if bytes.EqualFold(word, []byte(yes)) {
			return true
		}
	}
	return false
}

// laxInt reads what pydantic takes for an int: 5, "5" and 5.0.
func laxInt(word []byte) (n int, ok bool) {
	if len(word) == 0 || len(word) > 32 {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(word), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int(f), true
}
