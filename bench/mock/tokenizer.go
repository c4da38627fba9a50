package mock

import "github.com/cespare/xxhash/v2"

// The tokenizer cuts text from left to right into words of at most six letters with the space before them, numbers of at most three
// digits, runs of one white-space byte, and single bytes of anything else: about four bytes a token for prose. A piece depends on
// nothing after it but its own extent, so the tokens of a prefix are a prefix of the tokens, save for the last one.

const (
	maxLetters = 6
	maxDigits  = 3
	maxSpaces  = 16
)

// Tokens that no text has.
const (
	tokenBOS uint32 = iota
	tokenHeader
	tokenHeaderEnd
	tokenEnd
	tokenImage
	textTokens // the first that text may have
)

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= 0x80 }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isSpace(c byte) bool  { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// run counts the leading bytes of s, at most limit, that ok accepts.
func run(s string, limit int, ok func(byte) bool) int {
	n := 0
	for n < len(s) && n < limit && ok(s[n]) {
		n++
	}
	return n
}

// pieceLen is the length of the first token of s, which is not empty.
func pieceLen(s string) int {
	switch c := s[0]; {
	case c == ' ' && len(s) > 1 && isLetter(s[1]):
		return 1 + run(s[1:], maxLetters, isLetter)
	case isLetter(c):
		return run(s, maxLetters, isLetter)
	case isDigit(c):
		return run(s, maxDigits, isDigit)
	case isSpace(c):
		return run(s, maxSpaces, func(b byte) bool { return b == c })
	}
	return 1
}

// pieceID is a token's number: 31 bits of the hash of its text.
func pieceID(piece string) uint32 {
	return max(uint32(xxhash.Sum64String(piece)&0x7fff_ffff), textTokens)
}

// countTokens returns how many tokens text has.
func countTokens(text string) (n int) {
	for ; len(text) > 0; n++ {
		text = text[pieceLen(text):]
	}
	return n
}

// tokenize appends the tokens of text to dst.
func tokenize(dst []uint32, text string) []uint32 {
	for len(text) > 0 {
		n := pieceLen(text)
		dst = append(dst, pieceID(text[:n]))
		text = text[n:]
	}
	return dst
}
