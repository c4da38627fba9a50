package mock

// A generator writes English-looking sentences, one token at a time. The same seed gives the same text, and every token it yields
// is one the tokenizer would find in that text, so an answer that comes back in the next turn's prompt is recognised.
type generator struct {
	rng    uint64
	shape  string // the sentence under way: a word class a letter
	at     int    // position in shape
	spaced bool   // something was written before
	script string // what is still to be written word for word, instead of sentences
}

// word is a token of the vocabulary: how it is written first in a text and after other words.
type word struct {
	text, spacedText string
	id, spacedID     uint32
}

// shapes are what sentences look like.
var shapes = []string{"Danvdn.", "Dnvpdan.", "Dnvan,cdnvdn.", "Pdan,dnvdan.", "Danvd.", "Dnpdnvdan.", "Dnvdn:dan,dancdn.", "Dnvl."}

var classes = map[byte][]word{
	'D': words("The", "A", "Each", "This", "Every", "One", "That", "No", "Any", "Our"),
	'P': words("In", "After", "Before", "Under", "With", "For", "Near", "Behind"),
	'd': words("the", "a", "each", "this", "every", "one", "that", "our", "any", "its"),
	'a': words("quiet", "large", "small", "early", "bright", "simple", "steady", "narrow", "warm", "recent", "plain", "useful", "common", "open"),
	'n': words("model", "river", "answer", "city", "engine", "letter", "garden", "signal", "number", "window", "reader", "train", "result",
		"market", "story", "method", "bridge", "table", "winter", "doctor"),
	'v': words("holds", "finds", "makes", "keeps", "shows", "meets", "leaves", "brings", "needs", "helps", "turns", "moves", "reads"),
	'p': words("near", "under", "behind", "within", "after", "beside", "across", "above"),
	'c': words("and", "but", "so", "while", "yet", "or"),
	'l': words("slowly", "well", "again", "often", "early", "there", "alone", "twice"),
	'.': marks("."), ',': marks(","), ':': marks(":"),
}

func words(list ...string) []word {
	ws := make([]word, len(list))
	for i, w := range list {
		ws[i] = word{w, " " + w, pieceID(w), pieceID(" " + w)}
	}
	return ws
}

func marks(m string) []word { return []word{{m, m, pieceID(m), pieceID(m)}} }

func newGenerator(seed uint64) generator { return generator{rng: seed} }

// random is splitmix64.
func (g *generator) random() uint64 {
	g.rng += 0x9E3779B97F4A7C15
	z := g.rng
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// next returns the next token and its text.
func (g *generator) next() (id uint32, text string) {
	if g.script != "" {
		n := pieceLen(g.script)
		text, g.script = g.script[:n], g.script[n:]
		return pieceID(text), text
	}
	r := g.random()
	if g.at == len(g.shape) {
		g.shape, g.at = shapes[r%uint64(len(shapes))], 0
		r >>= 16
	}
	class := classes[g.shape[g.at]]
	w := class[r%uint64(len(class))]
	g.at++
	if !g.spaced {
		g.spaced = true
		return w.id, w.text
	}
	return w.spacedID, w.spacedText
}
