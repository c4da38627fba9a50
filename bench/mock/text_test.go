package mock

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestTokenizerIsPrefixStable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	alphabet := []string{" ", "  ", "\n", "word", "internationalization", "42", "1234567", ".", "({", "é", "漢字", "\t\t", "a"}
	for range 300 {
		text := ""
		for range rng.IntN(30) {
			text += alphabet[rng.IntN(len(alphabet))]
		}
		whole := tokenize(nil, text)
		for i := range len(text) {
			part := tokenize(nil, text[:i])
			if n := len(part) - 1; n > 0 && (n > len(whole) || !slices.Equal(part[:n], whole[:n])) {
				t.Fatalf("the tokens of %q are no prefix of those of %q", text[:i], text)
			}
		}
	}
}

func TestTokensPerByte(t *testing.T) {
	prose := strings.Repeat("The scheduler admits a waiting request only when its whole prompt fits into the blocks that are free at present. ", 20)
	if r := float64(len(prose)) / float64(len(tokenize(nil, prose))); r < 3.5 || r > 5 {
		t.Errorf("%.2f bytes a token", r)
	}
}

// What the generator writes is tokenized into what it said it wrote.
func TestGeneratedTextTokenizesBack(t *testing.T) {
	for seed := range uint64(50) {
		g := newGenerator(seed)
		var ids []uint32
		text := ""
		for range 200 {
			id, piece := g.next()
			ids = append(ids, id)
			text += piece
		}
		if !slices.Equal(tokenize(nil, text), ids) {
			t.Fatalf("seed %d: %q is tokenized otherwise", seed, text)
		}
	}
}

func TestGeneratedTextVaries(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(200) {
		g := newGenerator(seed)
		text := ""
		for range 30 {
			_, piece := g.next()
			text += piece
		}
		seen[text] = true
	}
	if len(seen) != 200 {
		t.Errorf("%d different texts of 200", len(seen))
	}
}

func TestMessageContent(t *testing.T) {
	text := func(s string) []uint32 { return tokenizeContent(nil, []byte(s)) }
	if !slices.Equal(text(`"hi there"`), text(`[{"type":"text","text":"hi there"}]`)) {
		t.Error("a string and a part of text differ")
	}
	a, b := text(`[{"type":"image_url","image_url":{"url":"a"}}]`), text(`[{"type":"image_url","image_url":{"url":"b"}}]`)
	if len(a) != linkedImage || slices.Equal(a, b) {
		t.Error("images are not told apart")
	}
	if len(text("null")) != 0 || len(text("")) != 0 {
		t.Error("no content has tokens")
	}
	if len(text(`{"odd":1}`)) == 0 {
		t.Error("odd content has none")
	}
}

func BenchmarkTokenize(b *testing.B) {
	prose := strings.Repeat("The scheduler admits a waiting request only when its prompt fits. ", 200)
	b.SetBytes(int64(len(prose)))
	b.ReportAllocs()
	var t []uint32
	for b.Loop() {
		t = tokenize(t[:0], prose)
	}
}
