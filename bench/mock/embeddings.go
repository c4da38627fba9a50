package mock

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
)

// Pooling requests take an engine the prefill of their prompts. No vLLM serves them and completions with the same model; this one
// does, so that one server is enough for a test. Their shapes are those of vllm/entrypoints/pooling; they were not captured.

const (
	defaultDimensions = 384
	maxDimensions     = 4096
)

// pooledDialect is how the APIs answer that give numbers for prompts: never in a stream.
type pooledDialect struct{ answer func() any }

func (p *pooledDialect) open(*events)          {}
func (p *pooledDialect) start(*events)         {}
func (p *pooledDialect) delta(*events, *delta) {}
func (p *pooledDialect) end(*events)           {}
func (p *pooledDialect) whole([]output) any    { return p.answer() }

// pooled runs a request for numbers. read reads its fields, sets the generation's prompts and returns what the answer will be.
func (x *exchange) pooled(idPrefix string, read func(f *fields, g *generation) (answer func() any)) {
	faults, ok := x.begin()
	if !ok {
		return
	}
	f, e := x.parse()
	if e != nil {
		x.s.count(&x.s.counts.Refused)
		x.fail(e)
		return
	}
	g := x.sampling(f, idPrefix)
	g.stream = false
	answer := read(f, g)
	if e = f.err(); e == nil {
		e = g.check()
	}
	if e != nil {
		g.refuse(e)
		return
	}
	g.limit = 1 // the engine produces a token and nobody looks at it
	g.faults = faults
	g.run(&pooledDialect{answer})
}

// pooledUsage counts the tokens of the prompts.
func (g *generation) pooledUsage() wholeUsage {
	n := g.usage().prompt
	return wholeUsage{PromptTokens: n, TotalTokens: n}
}

// readPooled reads the prompts of a pooling request: an input of any kind that a completion takes, or a conversation.
func (f *fields) readPooled(g *generation) {
	var messages []chatMessage
	input, conversation := f.get("input"), f.get("messages")
	var ok bool
	switch {
	case input != nil:
		if g.prompts, ok = readPrompts(input); !ok {
			f.add("input", "string_type", "Input should be a valid string", pythonValue(input))
		}
	case conversation == nil:
		f.missing("input")
		f.missing("messages")
	case json.Unmarshal(conversation, &messages) != nil:
		f.add("messages", "list_type", "Input should be a valid list", pythonValue(conversation))
	default:
		g.prompts = [][]uint32{chatTemplate(nil, messages)}
	}
}

// readEncoding reads how vectors are written and how long they are.
func (f *fields) readEncoding() (encode func(prompt []uint32) any) {
	dimensions := f.integer("dimensions", defaultDimensions)
	if dimensions < 1 || dimensions > maxDimensions {
		f.add("dimensions", "value_error", "Value error, dimensions out of range", pythonValue(f.get("dimensions")))
		dimensions = 1
	}
	switch format := f.text("encoding_format"); format {
	case "", "float":
		return func(p []uint32) any { return embed(p, dimensions) }
	case "base64":
		return func(p []uint32) any {
			var b []byte
			for _, v := range embed(p, dimensions) {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
			}
			return base64.StdEncoding.EncodeToString(b)
		}
	default:
		f.add("encoding_format", "literal_error", "Input should be float or base64", pythonString(format))
		return nil
	}
}

// embed makes a vector of length 1 of tokens. Each token votes on the sign of each dimension, so texts that share words are near each
// other.
func embed(tokens []uint32, dimensions int) []float64 {
	votes := make([]int32, dimensions)
	for _, t := range tokens {
		g := newGenerator(uint64(t))
		var bits uint64
		for i := range votes {
			if i%64 == 0 {
				bits = g.random()
			}
			votes[i] += int32(bits&1)*2 - 1
			bits >>= 1
		}
	}
	var square float64
	for _, v := range votes {
		square += float64(v) * float64(v)
	}
	vector := make([]float64, dimensions)
	if square == 0 {
		vector[0] = 1
		return vector
	}
	for i, v := range votes {
		vector[i] = float64(float32(float64(v) / math.Sqrt(square)))
	}
	return vector
}

// cosine is how near two vectors of length 1 are.
func cosine(a, b []float64) (sum float64) {
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

// embedding is a vector in an answer.
type embedding struct {
	Index     int    `json:"index"`
	Object    string `json:"object"`
	Embedding any    `json:"embedding"`
}

// pooledAnswer is what the APIs of a list of numbers have in common.
type pooledAnswer[T any] struct {
	ID      string     `json:"id"`
	Object  string     `json:"object"`
	Created int64      `json:"created"`
	Model   string     `json:"model"`
	Data    []T        `json:"data"`
	Usage   wholeUsage `json:"usage"`
}

// list makes an answer of one element for each of n.
func list[T any](g *generation, n int, element func(i int) T) any {
	a := pooledAnswer[T]{g.id, "list", g.created, g.model, make([]T, n), g.pooledUsage()}
	for i := range a.Data {
		a.Data[i] = element(i)
	}
	return a
}

// embeddings is POST /v1/embeddings.
func (x *exchange) embeddings() {
	x.pooled("embd-", func(f *fields, g *generation) func() any {
		f.readPooled(g)
		encode := f.readEncoding()
		return func() any {
			return list(g, len(g.prompts), func(i int) embedding { return embedding{i, "embedding", encode(g.prompts[i])} })
		}
	})
}

// pooling is POST /pooling.
func (x *exchange) pooling() {
	type pooledData struct {
		Index  int    `json:"index"`
		Object string `json:"object"`
		Data   any    `json:"data"`
	}
	x.pooled("pooling-", func(f *fields, g *generation) func() any {
		f.readPooled(g)
		encode := f.readEncoding()
		return func() any {
			return list(g, len(g.prompts), func(i int) pooledData { return pooledData{i, "pooling", encode(g.prompts[i])} })
		}
	})
}

// classify is POST /classify. There are two classes.
func (x *exchange) classify() {
	type class struct {
		Index      int        `json:"index"`
		Label      string     `json:"label"`
		Probs      [2]float64 `json:"probs"`
		NumClasses int        `json:"num_classes"`
	}
	x.pooled("classify-", func(f *fields, g *generation) func() any {
		f.readPooled(g)
		return func() any {
			return list(g, len(g.prompts), func(i int) class {
				p := float64(float32(1 / (1 + math.Exp(-8*embed(g.prompts[i], 64)[0]))))
				c := class{Index: i, Label: "LABEL_0", Probs: [2]float64{p, 1 - p}, NumClasses: 2}
				if p < .5 {
					c.Label = "LABEL_1"
				}
				return c
			})
		}
	})
}
