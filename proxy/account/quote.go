package account

import (
	"encoding/binary"
	"strconv"
	"unicode"
	"unicode/utf8"
)

func appendInt(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }

// appendText writes a text as a line has it: as it is if a reader takes it for one word, or else quoted.
func appendText(b []byte, s string, f Format) []byte {
	switch {
	case f == Text && s != "" && plain([]byte(s), ' '+1, '='):
		return append(b, s...)
	case f == JSON && plain([]byte(s), ' ', '"'):
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	return appendQuoted(b, s)
}

// plain tells whether s needs no escape: it is ASCII, from the character first on, and none of ", \, DEL and but.
func plain(s []byte, first, but uint64) bool {
	const all = 0x8080808080808080
	good, n := uint64(all), len(s)
	switch {
	case n >= 8:
		for i := 0; i < n-8; i += 8 {
			good &= allowed(binary.LittleEndian.Uint64(s[i:]), first, but)
		}
		good &= allowed(binary.LittleEndian.Uint64(s[n-8:]), first, but)
	case n >= 4:
		good &= allowed(uint64(binary.LittleEndian.Uint32(s))|uint64(binary.LittleEndian.Uint32(s[n-4:]))<<32, first, but)
	case n > 0:
		good &= allowed(uint64(s[0])*0x010101010101|uint64(s[n/2])<<48|uint64(s[n-1])<<56, first, but)
	}
	return good&all == all
}

// allowed has the top bits of the eight characters in w set if plain takes all of them.
func allowed(w, first, but uint64) uint64 {
	const each = 0x0101010101010101 // times a byte: eight of them
	// A sum with 0x80−n has its top bit if the character is n or more, one with 0x7f if there is any difference.
	return (w + (0x80-first)*each) & (w ^ '"'*each + 0x7f*each) & (w ^ '\\'*each + 0x7f*each) & (w ^ but*each + 0x7f*each) &^ (w + each) &^ w
}

// appendQuoted writes a JSON string (RFC 8259 section 7). Whatever is no text that can be printed is escaped, and what is no UTF-8 is
// replaced by U+FFFD, so that no reader takes a line for two, or for more than it says.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if ' ' <= c && c < 0x7f && c != '"' && c != '\\' {
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
