package openai

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// text is a string value: body[start:end] lies between the quotes.
type text struct {
	start, end int
	escaped    bool // holds a backslash
}

// str reads the string whose opening quote is here.
func (s *scanner) str() text {
	start := s.pos + 1
	end, escaped, bad := scanString(s.body, start, s.next)
	if bad != "" {
		if bad == goesOn {
			end, escaped, bad = s.goOn(end, escaped)
		}
		if bad != "" {
			s.fail(end, bad)
			return text{start: start, end: start}
		}
	}
	s.pos = end + 1
	return text{start, end, escaped}
}

// goOn is for a string of which scanString has found no end up to there.
func (s *scanner) goOn(from int, had bool) (end int, escaped bool, bad string) {
	for end, escaped, bad = from, had, goesOn; bad == goesOn; {
		s.pos = end
		if s.rest(); s.failed() {
			return end, escaped, s.reason
		}
		var more bool
		end, more, bad = scanString(s.body, end, s.next)
		escaped = escaped || more
	}
	return end, escaped, bad
}

// strSoFar is str, and of a string that goes on behind the end of the text what there
// is of it.
func (s *scanner) strSoFar() text {
	t := s.str()
	if s.cut() {
		t.end = len(s.body)
	}
	return t
}

// Eight bytes of a string are looked at together. Three kinds mean something: the
// quote, the backslash, and the control characters, which RFC 8259 forbids. x^0x02
// maps the quote (0x22) to 0x20 and keeps 0x00–0x1f among themselves, so that one
// comparison "below 0x21" finds quotes and control characters.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// suspect is zero under highs if and only if none of the eight bytes is special.
// The borrow of a subtraction makes the bits above the lowest hit unreliable.
func suspect(x uint64) uint64 {
	return ((x ^ 0x02*ones) - 0x21*ones | ((x ^ '\\'*ones) - ones)) &^ x
}

// specials has the high bit of each special byte, and no other.
func specials(x uint64) uint64 {
	quote := (x ^ 0x02*ones) &^ highs
	slash := (x ^ '\\'*ones) &^ highs
	return ^((quote+(0x80-0x21)*ones)&(slash+(0x80-0x01)*ones) | x) & highs
}

// special finds the first special byte from i on; len(b) without one.
func special(b []byte, i int) int {
	for ; len(b)-i >= 8; i += 8 {
		if hit := specials(binary.LittleEndian.Uint64(b[i:])); hit != 0 {
			return i + bits.TrailingZeros64(hit)>>3
		}
	}
	for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= 0x20 {
		i++
	}
	return i
}

// plain passes over whole blocks of 32 bytes that hold nothing special.
func plain(b []byte, i int) int {
	for ; len(b)-i >= 32; i += 32 {
		block := b[i : i+32 : i+32]
		if (suspect(binary.LittleEndian.Uint64(block))|suspect(binary.LittleEndian.Uint64(block[8:]))|
			suspect(binary.LittleEndian.Uint64(block[16:]))|suspect(binary.LittleEndian.Uint64(block[24:])))&highs != 0 {
			break
		}
	}
	return i
}

const (
	unended    = "a string does not end"
	badEscape  = "invalid escape in a string"
	badControl = "control character in a string (it must be escaped)"
	goesOn     = "nothing is wrong so far"
)

// What passAVX2 found.
const (
	passedInEscape = 1 << iota // the byte it stopped at is escaped by the one before
	passedEscapes              // it passed backslashes
	passedStopped              // the byte it stopped at is why; otherwise it has come to the end
)

// scanString finds the quote that ends the string whose first byte is b[i]. When
// the string is malformed, bad says why and end where. If it is longer than up to b[stop], bad
// may be goesOn, and end where it goes on.
func scanString(b []byte, i, stop int) (end int, escaped bool, bad string) {
	// Most strings are short: keys, roles, names.
	for short := min(i+32, len(b)-7); i < short; i += 8 {
		if hit := specials(binary.LittleEndian.Uint64(b[i:])); hit != 0 {
			i += bits.TrailingZeros64(hit) >> 3
			if b[i] == '"' {
				return i, false, ""
			}
			break
		}
	}
	for vectors && len(b)-i >= 64 {
		if i >= stop {
			return i, escaped, goesOn
		}
		at, found := passAVX2(b[i:min(len(b), max(stop, i+64))])
		i += at
		escaped = escaped || found&passedEscapes != 0
		switch {
		case found&passedInEscape != 0:
			i--
			if found&passedStopped == 0 {
				continue
			}
			size := escapeLen(b[i:])
			if size == 0 {
				return wrongEscape(b, i)
			}
			i += int(size)
			for i < stop && len(b)-i >= 6 && b[i] == '\\' && b[i+1] == 'u' && hex4(b[i+2:]) >= 0 {
				i += 6 // text that is not Latin, as Python's json writes it
			}
		case found&passedStopped == 0:
		case b[i] == '"':
			return i, escaped, ""
		default:
			return i, escaped, badControl
		}
	}
	end, more, bad := scanWords(b, i, stop)
	return end, escaped || more, bad
}

// scanWords is scanString for any machine. Prose is passed in blocks of 32 bytes, 8 to
// 10 GB/s; source code, with an escape every few bytes, in words of eight whose
// escapes are taken off one by one, which costs no second load and so is 2 GB/s
// rather than 1.4.
func scanWords(b []byte, i, stop int) (end int, escaped bool, bad string) {
	const words = 16 // how many words to go on with before trying blocks again
	for len(b)-i > 8 {
		if i >= stop {
			return i, escaped, goesOn
		}
		i = plain(b[:min(len(b), stop)], i)
		for turn := min(i+8*words, len(b)-8); i < turn; {
			next := i + 8
			for hit := specials(binary.LittleEndian.Uint64(b[i:])); hit != 0; {
				n := bits.TrailingZeros64(hit)
				at := i + n>>3
				switch {
				case b[at] == '"':
					return at, escaped, ""
				case b[at] != '\\':
					return at, escaped, badControl
				}
				escaped = true
				if size := escapeSizes[b[at+1]]; size != 2 {
					if size = escapeLen(b[at:]); size == 0 {
						return wrongEscape(b, at)
					}
					next = at + int(size)
					break
				}
				if n == 63 {
					next++
					break
				}
				hit &^= 0x8080 << (n - 7) // the backslash and what it escapes
			}
			i = next
		}
	}
	for i < len(b) {
		switch c := b[i]; {
		case c == '"':
			return i, escaped, ""
		case c == '\\':
			escaped = true
			size := escapeLen(b[i:])
			if size == 0 {
				return wrongEscape(b, i)
			}
			i += int(size)
		case c < 0x20:
			return i, escaped, badControl
		default:
			i++
		}
	}
	return len(b), escaped, unended
}

// escapeSizes has how long an escape is, by the byte behind the backslash.
var escapeSizes = [256]uint8{'"': 2, '\\': 2, '/': 2, 'b': 2, 'f': 2, 'n': 2, 'r': 2, 't': 2, 'u': 6}

// escapeLen is the length of the escape b starts with, 0 if it is none.
func escapeLen(b []byte) uint8 {
	if len(b) < 2 {
		return 0
	}
	size := escapeSizes[b[1]]
	if size == 6 && (len(b) < 6 || hex4(b[2:6]) < 0) {
		return 0
	}
	return size
}

func wrongEscape(b []byte, at int) (end int, escaped bool, bad string) {
	if len(b)-at < 6 {
		return len(b), true, unended
	}
	return at, true, badEscape
}

// hex4 is the value of four hexadecimal digits, negative if they are none.
func hex4(b []byte) rune {
	_ = b[3]
	return rune(hexDigits[b[0]])<<12 | rune(hexDigits[b[1]])<<8 | rune(hexDigits[b[2]])<<4 | rune(hexDigits[b[3]])
}

// hexDigits has what each byte is worth as a hexadecimal digit, −1 if it is none.
var hexDigits = func() (values [256]int8) {
	for c := range values {
		values[c] = -1
	}
	for i, c := range []byte("0123456789abcdefABCDEF") {
		values[c] = int8(i)
		if i > 0xf {
			values[c] -= 6
		}
	}
	return values
}()

// appendUnescaped appends what the inside of a scanned string stands for, and
// tells whether that is Unicode text: not so for half a surrogate pair. It stops
// once more than limit bytes were appended.
func appendUnescaped(dst, raw []byte, limit int) ([]byte, bool) {
	have := len(dst)
	for i := 0; i < len(raw) && len(dst)-have <= limit; {
		c := raw[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		i += 2
		switch c = raw[i-1]; c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(raw[i:])
			i += 4
			if utf16.IsSurrogate(r) {
				if len(raw)-i < 6 || raw[i] != '\\' || raw[i+1] != 'u' {
					return dst, false
				}
				if r = utf16.DecodeRune(r, hex4(raw[i+2:])); r == utf8.RuneError {
					return dst, false
				}
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, c)
		}
	}
	return dst, true
}
