package mock

import (
	"cmp"
	"encoding/json"
	"slices"
)

// scoreDimensions is how finely texts are told apart.
const scoreDimensions = 256

// scoreInput is one side of a comparison: a text, or the content parts of a message.
type scoreInput struct {
	raw    json.RawMessage
	tokens []uint32
}

// readScored reads one or several texts from the first of the named fields that is given.
func (f *fields) readScored(names ...string) (inputs []scoreInput) {
	for _, name := range names {
		raw := f.get(name)
		if raw == nil {
			continue
		}
		all := []json.RawMessage{raw}
		if raw[0] == '[' {
			all = nil
			json.Unmarshal(raw, &all)
		}
		for _, one := range all {
			content := one
			var object struct{ Content json.RawMessage }
			if json.Unmarshal(one, &object) == nil && object.Content != nil {
				content = object.Content
			}
			inputs = append(inputs, scoreInput{one, tokenizeContent(nil, content)})
		}
		return inputs
	}
	f.missing(names[0])
	return nil
}

// pair makes a prompt for each pair of a query and a document, which come 1:1, 1:N or N:N.
func (g *generation) pair(queries, documents []scoreInput) *apiError {
	if len(queries) != len(documents) && len(queries) != 1 {
		return badRequest("input", "Input lengths must be either 1:1, 1:N or N:N")
	}
	for i, d := range documents {
		g.prompts = append(g.prompts, slices.Concat([]uint32{tokenBOS}, queries[i%len(queries)].tokens, []uint32{tokenEnd}, d.tokens, []uint32{tokenEnd}))
	}
	return nil
}

// score is how much a document has to do with a query, from 0 to 1.
func score(query, document scoreInput) float64 {
	return float64(float32((1 + cosine(embed(query.tokens, scoreDimensions), embed(document.tokens, scoreDimensions))) / 2))
}

// score is POST /score.
func (x *exchange) score() {
	type data struct {
		Index  int     `json:"index"`
		Object string  `json:"object"`
		Score  float64 `json:"score"`
	}
	x.pooled("score-", func(f *fields, g *generation) func() any {
		queries := f.readScored("queries", "text_1", "data_1")
		documents := f.readScored("documents", "text_2", "data_2", "items")
		if len(f.errs) == 0 {
			f.refused = g.pair(queries, documents)
		}
		return func() any {
			return list(g, len(documents), func(i int) data { return data{i, "score", score(queries[i%len(queries)], documents[i])} })
		}
	})
}

// rerankResult is a document and how much it has to do with the query.
type rerankResult struct {
	Index    int            `json:"index"`
	Document rerankDocument `json:"document"`
	Score    float64        `json:"relevance_score"`
}

type rerankDocument struct {
	Text       *string         `json:"text"`
	MultiModal json.RawMessage `json:"multi_modal"`
}

// rerank is POST /rerank.
func (x *exchange) rerank() {
	type usage struct {
		PromptTokens int `json:"prompt_tokens"`
		TotalTokens  int `json:"total_tokens"`
	}
	x.pooled("score-", func(f *fields, g *generation) func() any {
		query, documents := f.readScored("query"), f.readScored("documents")
		top := f.integer("top_n", 0)
		if len(f.errs) == 0 {
			f.refused = g.pair(query, documents)
		}
		return func() any {
			results := make([]rerankResult, len(documents))
			for i, d := range documents {
				results[i] = rerankResult{Index: i, Score: score(query[0], d)}
				if json.Unmarshal(d.raw, &results[i].Document.Text) != nil {
					var object struct{ Content json.RawMessage }
					json.Unmarshal(d.raw, &object)
					results[i].Document = rerankDocument{MultiModal: object.Content}
				}
			}
			slices.SortStableFunc(results, func(a, b rerankResult) int { return cmp.Compare(b.Score, a.Score) })
			if top > 0 {
				results = results[:min(top, len(results))]
			}
			n := g.usage().prompt
			return struct {
				ID      string         `json:"id"`
				Model   string         `json:"model"`
				Usage   usage          `json:"usage"`
				Results []rerankResult `json:"results"`
			}{g.id, g.model, usage{n, n}, results}
		}
	})
}
