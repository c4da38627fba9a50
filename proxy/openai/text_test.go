package openai

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"
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
		end, escaped, bad := scanString(b, 0, math.MaxInt)
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

// Strings that are scanned with vectors and without end at the same byte, for the same reason.
func TestVectorsAgree(t *testing.T) {
	if !vectors {
		t.Skip("this machine has no vectors that scanString uses")
	}
	pieces := []string{`\\`, `\"`, `\n`, `\u00e9`, `\ud83d\ude00`, `\x`, `\`, `"`, "\x1f", "é", "plain text of some length ", strings.Repeat("a", 61), `\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\`}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		var b []byte
		for n := random.IntN(400); len(b) < n; {
			p := random.IntN(len(pieces))
			if 4 < p && p < 9 && random.IntN(20) > 0 { // what ends it is rare
				p = 10
			}
			b = append(b, pieces[p]...)
		}
		sameScan(t, b)
	}
}

func FuzzVectorsAgree(f *testing.F) {
	f.Add([]byte(strings.Repeat(`\"`, 100)), uint8(1))
	f.Add([]byte(strings.Repeat(`x`, 63)+`\`+strings.Repeat(`\`, 70)+`" and more, up to where vectors are of use: 64 bytes behind it and beyond`), uint8(64))
	f.Fuzz(func(t *testing.T, b []byte, shift uint8) {
		sameScan(t, append(bytes.Repeat([]byte(" "), int(shift)), b...))
	})
}

// A string that is scanned piece by piece is the one that is scanned at once.
func TestPiecesAgree(t *testing.T) {
	had := vectors
	defer func() { vectors = had }()
	pieces := []string{`\\`, `\"`, `\n`, `\u00e9`, `\ud83d\ude00`, "é", "plain text of some length ", strings.Repeat("a", 61), `\\\\\\\\\\\\\\\\\\\\\\\\`}
	random := rand.New(rand.NewPCG(1, 2))
	rests := 0
	for i := range 20_000 {
		var b []byte
		for n := 64 + random.IntN(1000); len(b) < n; {
			b = append(b, pieces[random.IntN(len(pieces))]...)
		}
		if b = append(b, '"'); i%4 == 0 {
			b[len(b)/2] = "\x1f\"\\"[random.IntN(3)]
		}
		end, escaped, bad := scanString(b, 0, math.MaxInt)
		vectors = had && i%2 == 0
		s := scanner{body: b, pos: -1, next: random.IntN(100)}
		s.yield = func() bool {
			rests++
			s.next = s.pos + 1 + random.IntN(200)
			return true
		}
		got := s.str()
		if s.reason != bad || bad == "" && got != (text{0, end, escaped}) || bad != "" && s.at != end {
			t.Fatalf("%q: got %v, %q at %d, want an end at %d, escaped %v, %q", b, got, s.reason, s.at, end, escaped, bad)
		}
		vectors = had
	}
	if rests < 20_000 {
		t.Errorf("%d rests: nothing was shown", rests)
	}
}

func sameScan(t *testing.T, b []byte) {
	end, escaped, bad := scanString(b, 0, math.MaxInt)
	wantEnd, wantEscaped, wantBad := scanWords(b, 0, math.MaxInt)
	if end != wantEnd || escaped != wantEscaped || bad != wantBad {
		t.Fatalf("%q: ends at %d, escaped %v, %q; without vectors at %d, %v, %q", b, end, escaped, bad, wantEnd, wantEscaped, wantBad)
	}
}
