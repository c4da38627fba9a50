package openai

import (
	"math/rand/v2"
	"testing"
)

// naiveScan is scanString a byte at a time.
func naiveScan(b []byte, i int) (end int, escaped bool, bad string) {
	for i < len(b) {
		switch c := b[i]; {
		case c == '"':
			return i, escaped, ""
		case c < 0x20:
			return i, escaped, badControl
		case c != '\\':
			i++
		default:
			escaped = true
			n := escapeLen(b[i:])
			if n == 0 {
				return wrongEscape(b, i)
			}
			i += int(n)
		}
	}
	return len(b), escaped, unended
}

// Strings are scanned in blocks as they are byte by byte, whatever stands next to
// what: bytes that differ from the special ones by a bit or by one, and escapes
// across the borders of words.
func TestStringsScannedInBlocks(t *testing.T) {
	alphabet := []string{
		"\x00", "\x1f", " ", "!", "#", "[", "]", "\x7f", "\x80", "\x82", "\x9f", "\xa0", "\xa2", "\xdc", "\xff", "a",
		`"`, `\\`, `\"`, `\n`, `\u0041`, `\uD83d`, `\x`, `\u00g0`, `\`,
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for n := range 200_000 {
		// Mostly plain bytes, so that blocks are passed before something stands out.
		b = b[:0]
		for size := n % 120; len(b) < size; {
			if rnd.IntN(30) > 0 {
				b = append(b, alphabet[8+rnd.IntN(8)]...)
			} else {
				b = append(b, alphabet[rnd.IntN(len(alphabet))]...)
			}
		}
		end, escaped, bad := scanString(b, 0)
		wantEnd, wantEscaped, wantBad := naiveScan(b, 0)
		if end != wantEnd || escaped != wantEscaped || bad != wantBad {
			t.Fatalf("%q: got %d %v %q, want %d %v %q", b, end, escaped, bad, wantEnd, wantEscaped, wantBad)
		}
		first := 0
		for first < len(b) && b[first] >= 0x20 && b[first] != '"' && b[first] != '\\' {
			first++
		}
		if got := special(b, 0); got != first {
			t.Fatalf("%q: special at %d, want %d", b, got, first)
		}
		if got := plain(b, 0); got > first || got+32 <= first {
			t.Fatalf("%q: plain up to %d, the first special is at %d", b, got, first)
		}
	}
}
