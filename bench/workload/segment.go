package workload

import (
	"math/rand/v2"
	"strings"
)

// Segment is a piece of content: so many tokens of the text that ID stands for. Of two segments with the same ID the shorter is a
// prefix of the longer.
type Segment struct {
	ID     uint64
	Tokens int
}

// Tokens is the length of several segments together.
func Tokens(segs []Segment) int {
	n := 0
	for _, s := range segs {
		n += s.Tokens
	}
	return n
}

// AppendBlocks appends the identities of the full blocks of size tokens that segs make up. Each stands for its block and all before
// it, so two prompts have it in common exactly if they agree up to its end.
func AppendBlocks(dst []uint64, segs []Segment, size int) []uint64 {
	var h uint64
	room := size // in the block under way
	for _, s := range segs {
		for at := 0; at < s.Tokens; {
			n := min(room, s.Tokens-at)
			h = mix(mix(h, s.ID), uint64(at)<<32|uint64(n))
			at += n
			if room -= n; room == 0 {
				dst = append(dst, h)
				room = size
			}
		}
	}
	return dst
}

// Text renders segments as a message: English-looking sentences of about four bytes a token. A token is a word of at most six letters
// with the space before it, or a punctuation mark, as it is, nearly always, to tokenizers trained on English.
func Text(segs ...Segment) string {
	var b strings.Builder
	b.Grow(5 * Tokens(segs))
	for i, s := range segs {
		if i > 0 && s.Tokens > 0 && b.Len() > 0 {
			b.WriteByte(' ')
		}
		write(&b, s)
	}
	return b.String()
}

// write renders one segment.
func write(b *strings.Builder, s Segment) {
	rng := rand.NewPCG(s.ID, 0)
	inSentence, clause := 0, 0 // words so far, words since the last mark
	for i := range s.Tokens {
		r := rng.Uint64()
		dice := r >> 32 & 7
		switch {
		case inSentence > 5 && dice < 2 || inSentence > 14:
			b.WriteByte('.')
			inSentence, clause = 0, 0
			continue
		case clause > 3 && dice == 2:
			b.WriteByte(',')
			clause = 0
			continue
		}
		word := vocabulary[r%uint64(len(vocabulary))]
		if i > 0 {
			b.WriteByte(' ')
		}
		if inSentence == 0 {
			b.WriteByte(word[0] - 'a' + 'A')
			word = word[1:]
		}
		b.WriteString(word)
		inSentence++
		clause++
	}
}

// vocabulary are common words without capitals.
var vocabulary = strings.Fields(`
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what all were we
when your can said there use an each which she do how their if will up other about out many then them these so some her would make
like him into time has look two more write go see number no way could people my than first water been call who oil its now find
long down day did get come made may part over new sound take only little work know place year live me back give most very after
thing our just name good man think say great where help much before line right too mean old any same tell boy follow came
want show also around form three small set put end does well large must big even such turn here why ask went men
read need land home us move try kind hand again off play spell air away animal house point page letter mother answer found study
still learn should world high every near add food own below last school keep tree never start city earth eye light head
under story saw left few while along might close seem next hard open begin life always those both paper group often run`)
