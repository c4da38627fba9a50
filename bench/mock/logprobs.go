package mock

import "strconv"

// ids are the ids of an answer's tokens, if they were asked for.
func (g *generation) ids(tokens []delta) []uint32 {
	if !g.tokenIDs {
		return nil
	}
	ids := make([]uint32, len(tokens))
	for i := range tokens {
		ids[i] = tokens[i].token
	}
	return ids
}

// promptIDs are the ids of a prompt's tokens, if they were asked for.
func (g *generation) promptIDs(i int) []uint32 {
	if !g.tokenIDs {
		return nil
	}
	return g.prompts[i]
}

// alternative returns what else a token could have been, and how likely: rank 0 is the token itself.
func alternative(d *delta, rank int) (piece string, logprob float64) {
	logprob = -float64(d.token%1250)/1000 - float64(rank)/2
	if rank == 0 {
		return d.piece, logprob
	}
	words := classes['n']
	return words[(int(d.token)+rank)%len(words)].spacedText, logprob
}

// appendLogprob appends the members of a token's object.
func appendLogprob(b []byte, piece string, logprob float64) []byte {
	b = append(appendJSON(append(b, `"token":`...), piece), `,"logprob":`...)
	b = append(appendFloat(b, logprob), `,"bytes":[`...)
	for i := range len(piece) {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(piece[i]), 10)
	}
	return append(b, ']')
}

// appendChatLogprobs appends the logprobs of a chat completion.
func appendChatLogprobs(b []byte, tokens []delta, top int) []byte {
	b = append(b, `{"content":[`...)
	for i := range tokens {
		if i > 0 {
			b = append(b, ',')
		}
		piece, logprob := alternative(&tokens[i], 0)
		b = append(appendLogprob(append(b, '{'), piece, logprob), `,"top_logprobs":[`...)
		for rank := range top {
			if rank > 0 {
				b = append(b, ',')
			}
			piece, logprob := alternative(&tokens[i], rank)
			b = append(appendLogprob(append(b, '{'), piece, logprob), '}')
		}
		b = append(b, "]}"...)
	}
	return append(b, "]}"...)
}

// appendCompletionLogprobs appends the logprobs of a completion, whose first token begins at offset. Their shape is that of
// vllm/entrypoints/openai/completion/protocol.py; it was not captured.
func appendCompletionLogprobs(b []byte, tokens []delta, top, offset int) []byte {
	list := func(name string, element func(d *delta)) {
		b = append(append(append(b, '"'), name...), `":[`...)
		for i := range tokens {
			if i > 0 {
				b = append(b, ',')
			}
			element(&tokens[i])
		}
		b = append(b, ']')
	}
	b = append(b, '{')
	list("text_offset", func(d *delta) {
		b = strconv.AppendInt(b, int64(offset), 10)
		offset += len(d.piece)
	})
	b = append(b, ',')
	list("token_logprobs", func(d *delta) {
		_, logprob := alternative(d, 0)
		b = appendFloat(b, logprob)
	})
	b = append(b, ',')
	list("tokens", func(d *delta) { b = appendJSON(b, d.piece) })
	b = append(b, ',')
	list("top_logprobs", func(d *delta) {
		b = append(b, '{')
		for rank := range max(1, top) {
			piece, logprob := alternative(d, rank)
			if rank > 0 {
				b = append(b, ',')
			}
			b = append(appendJSON(b, piece), ':')
			b = appendFloat(b, logprob)
		}
		b = append(b, '}')
	})
	return append(b, '}')
}
