package prefix

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
)

func text(s ...string) []Span {
	var spans []Span
	for _, t := range s {
		spans = append(spans, Span{Data: []byte(t)})
	}
	return spans
}

func chain(seed uint64, spans []Span) []uint64 {
	c, _, _ := AppendChain(nil, seed, spans)
	return c
}

// prose returns n bytes that do not repeat.
func prose(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "sentence %d. ", i)
	}
	return b.String()[:n]
}

// reference is AppendChain the slow way: it writes the stream down and cuts it.
func reference(seed uint64, spans []Span) (chain []uint64, digest uint64) {
	var stream []byte
	for _, s := range spans {
		if s.Media {
			stream = binary.LittleEndian.AppendUint64(stream, xxhash.Sum64(s.Data))
			stream = append(stream, mediaEnd)
			continue
		}
		stream = append(append(stream, s.Data...), textEnd)
	}
	h, at := seed, 0
	size := func() int { return 256 << bits.Len(uint(at>>14)) } // 256 bytes up to 16 KiB, 512 up to 32 KiB …
	for len(stream) >= size() && at < 4<<20 {
		n := size()
		h = Link(h, xxhash.Sum64(stream[:n]))
		chain = append(chain, h)
		stream = stream[n:]
		at += n
	}
	if len(chain) == MaxChunks {
		stream = nil
	}
	return chain, Link(h, xxhash.Sum64(stream))
}

func TestOffset(t *testing.T) {
	for i, want := range map[int]int{0: 0, 1: 256, 63: 63 * 256, 64: 16 << 10, 65: 16<<10 + 512, 96: 32 << 10, 97: 32<<10 + 1024, MaxChunks: 4 << 20} {
		if got := Offset(i); got != want {
			t.Errorf("chunk %d begins at %d, want %d", i, got, want)
		}
	}
	for i := range MaxChunks {
		if size, at := Offset(i+1)-Offset(i), Offset(i); size < ChunkSize || size > max(ChunkSize, at/octaveChunks) {
			t.Fatalf("chunk %d, at %d, has %d bytes", i, at, size)
		}
	}
}

func TestAppendChainLengths(t *testing.T) {
	long := prose(10_000)
	for _, tt := range []struct {
		name   string
		spans  []Span
		chunks int
		text   int
	}{
		{"nothing", nil, 0, 0},
		{"empty span", text(""), 0, 0},
		{"one byte short, with its separator", text(long[:ChunkSize-2]), 0, ChunkSize - 2},
		{"separator fills the chunk", text(long[:ChunkSize-1]), 1, ChunkSize - 1},
		{"one chunk and a rest", text(long[:ChunkSize+1]), 1, ChunkSize + 1},
		{"spans share a chunk", text(long[:100], long[100:200], long[200:300]), 1, 300},
		{"many empty spans", text(make([]string, 2*ChunkSize)...), 2, 0},
		{"media counts as 9 bytes", []Span{{Data: []byte(long), Media: true}, {Data: []byte(long[:ChunkSize-10])}}, 1, ChunkSize - 10},
		{"long", text(long), 39, 10_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _, n := AppendChain(nil, 1, tt.spans)
			if len(c) != tt.chunks || n != tt.text {
				t.Errorf("%d chunks of %d text bytes, want %d of %d", len(c), n, tt.chunks, tt.text)
			}
		})
	}
}

func TestLongerPromptKeepsItsChain(t *testing.T) {
	system, question, answer := prose(5000), prose(700), prose(1500)
	turn1 := chain(7, text(system, question))
	turn2 := chain(7, text(system, question, answer, "and then?"))
	if len(turn1) < 20 || !slices.Equal(turn1, turn2[:len(turn1)]) {
		t.Error("the second turn's chain does not continue the first's")
	}
}

func TestWhatTellsPromptsApart(t *testing.T) {
	p := prose(1000)
	image := func(s string) []Span { return append([]Span{{Data: []byte(s), Media: true}}, text(p)...) }
	variants := map[string][]Span{
		"whole":              text(p),
		"boundary moved":     text(p[:3], p[3:]),
		"boundary elsewhere": text(p[:4], p[4:]),
		"empty span":         text("", p),
		"image":              image("image"),
		"other image":        image("other image"),
		"image as text":      append(text("image"), text(p)...),
		"first byte":         text("S" + p[1:]),
	}
	seen := map[uint64]string{}
	for name, spans := range variants {
		h := chain(1, spans)[0]
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %q share their first chunk", name, other)
		}
		seen[h] = name
	}
	if chain(1, text(p))[0] == chain(2, text(p))[0] {
		t.Error("seeds do not tell prompts apart")
	}
	a, da, _ := AppendChain(nil, 1, text("hello"))
	b, db, _ := AppendChain(nil, 1, text("hullo"))
	if len(a)+len(b) != 0 || da == db {
		t.Error("short prompts share their digest")
	}
}

func TestSeed(t *testing.T) {
	seeds := []uint64{Seed(), Seed(""), Seed("a"), Seed("b"), Seed("a", "b"), Seed("b", "a"), Seed("ab"), Seed("ab", "")}
	slices.Sort(seeds)
	if len(slices.Compact(seeds)) != 8 {
		t.Error("two seeds are equal")
	}
	if ExtendSeed(Seed("model"), []byte("salt")) != Seed("model", "salt") {
		t.Error("ExtendSeed differs from Seed")
	}
}

func TestNoHashIsZero(t *testing.T) {
	const parent = 12345
	multiplied := uint64(parent)
	multiplied *= multiplier
	sum := ^multiplied // the one sum that would become 0
	if got := Link(parent, sum); got != 1 {
		t.Errorf("Link = %d, want 1", got)
	}
}

func TestAppendChainIsBounded(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), Offset(MaxChunks)/16+100)
	spans := []Span{{Data: big}, {Data: big}}
	c, digest, n := AppendChain([]uint64{42}, 1, spans)
	want, wantDigest := reference(1, spans)
	if c[0] != 42 || !slices.Equal(c[1:], want) || len(want) != MaxChunks || digest != wantDigest {
		t.Errorf("a chain of %d chunks, want what was there and %d", len(c), MaxChunks)
	}
	if n != 2*len(big) {
		t.Errorf("%d text bytes, want all %d", n, 2*len(big))
	}
}

func TestAppendChainDoesNotAllocate(t *testing.T) {
	spans := text(prose(5000), "short", prose(20_000))
	spans = append(spans, Span{Data: []byte(prose(3000)), Media: true})
	dst := make([]uint64, 0, 200)
	if n := testing.AllocsPerRun(100, func() {
		dst, _, _ = AppendChain(dst[:0], Seed("model", "adapter"), spans)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzAppendChain cuts data into spans as cuts says (a length each; odd: media) and compares with the reference.
func FuzzAppendChain(f *testing.F) {
	f.Add([]byte(prose(2000)), []byte{100, 2, 0, 255, 254})
	f.Add([]byte(prose(300)), []byte{})
	f.Add([]byte(prose(40_000)), []byte{100}) // chunks of three sizes, many of them one behind the other
	f.Add([]byte{}, []byte{0, 0, 0})
	f.Add(bytes.Repeat([]byte{textEnd, mediaEnd, 0}, 300), []byte{8, 9, 1})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		var spans []Span
		texts := 0
		for rest := data; ; {
			if len(cuts) == 0 {
				spans = append(spans, Span{Data: rest})
				texts += len(rest)
				break
			}
			n := min(int(cuts[0])*3, len(rest))
			media := cuts[0]%2 == 1
			spans = append(spans, Span{Data: rest[:n], Media: media})
			if !media {
				texts += n
			}
			rest, cuts = rest[n:], cuts[1:]
		}
		want, wantDigest := reference(9, spans)
		got, digest, n := AppendChain(nil, 9, spans)
		if !slices.Equal(got, want) || digest != wantDigest || n != texts {
			t.Fatalf("chain of %d chunks, %d bytes; the reference has %d, %d", len(got), n, len(want), texts)
		}
		if slices.Contains(got, 0) || digest == 0 {
			t.Fatal("a hash is 0")
		}
	})
}

func BenchmarkAppendChain(b *testing.B) {
	for _, kb := range []int{1, 16, 220} {
		b.Run(fmt.Sprintf("%dKB", kb), func(b *testing.B) {
			spans := text(prose(kb*1024/2), prose(kb*1024/2))
			dst := make([]uint64, 0, kb*4)
			b.SetBytes(int64(kb * 1024))
			b.ReportAllocs()
			for b.Loop() {
				dst, _, _ = AppendChain(dst[:0], 1, spans)
			}
		})
	}
}

// A medium is as long in the stream as text of so many tokens, and bounded.
func TestMediaTakeTheirTokens(t *testing.T) {
	for tokens, want := range map[int]int{0: 9, 1: 9, 64: ChunkSize, 1000: 4000, 1 << 30: maxMedium * textBytes} {
		image := []Span{{Data: []byte("image"), Media: true, Tokens: tokens}}
		chain, _, text := AppendChain(nil, 1, image)
		if Offset(len(chain)) > want || Offset(len(chain)+1) <= want || text != 0 {
			t.Errorf("%d tokens: %d chunks of %d bytes, %d of text; want %d", tokens, len(chain), Offset(len(chain)), text, want)
		}
	}
}
