package account

import (
	"strconv"
	"unicode"
	"unicode/utf8"
)

func appendInt(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }

// What a character of ASCII needs.
const (
	bare   = 1 << iota // neither quotes around it nor an escape
	quoted             // no escape in quotes
)

var chars = func() (t [256]uint8) {
	for c := ' '; c < 0x7f; c++ {
		switch c {
		case '"', '\\':
		case ' ', '=':
			t[c] = quoted
		default:
			t[c] = bare | quoted
		}
	}
	return t
}()

// plain tells whether text may stand in a line without quotes.
func plain(s string) bool {
	for i := range len(s) {
		if chars[s[i]]&bare == 0 {
			return false
		}
	}
	return s != ""
}

// appendQuoted writes a JSON string (RFC 8259 section 7). Whatever is no text that can be printed is escaped, and what is no UTF-8 is
// replaced by U+FFFD, so that no reader takes a line for two, or for more than it says.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if chars[c]&quoted != 0 {
			i++
			continue
		}
		size := 1
		r := rune(c)
		if c >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(s[i:])
			if unicode.IsPrint(r) && r != utf8.RuneError {
				i += size
				continue
			}
		}
		b = append(b, s[start:i]...)
		b = appendEscaped(b, r)
		i += size
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

func appendEscaped(b []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(b, '\\', byte(r))
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	if r > 0xffff { // a surrogate pair
		r -= 0x10000
		return appendUnit(appendUnit(b, 0xd800+r>>10), 0xdc00+r&0x3ff)
	}
	return appendUnit(b, r)
}

func appendUnit(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
