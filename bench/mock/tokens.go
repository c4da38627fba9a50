package mock

import (
	"encoding/json"
	"slices"
	"sync"
)

// maxVocabulary bounds how many tokens' texts are remembered.
const maxVocabulary = 1 << 16

// vocabulary knows the texts of tokens: the words answers are made of, and whatever was tokenized on request. It is safe for use by
// several goroutines.
type vocabulary struct {
	mu    sync.Mutex
	texts map[uint32]string
}

func newVocabulary() *vocabulary {
	v := &vocabulary{texts: map[uint32]string{
		tokenBOS: "<|begin|>", tokenHeader: "<|role|>", tokenHeaderEnd: "<|/role|>", tokenEnd: "<|end|>", tokenImage: "<|image|>",
	}}
	for _, class := range classes {
		for _, w := range class {
			v.texts[w.id], v.texts[w.spacedID] = w.text, w.spacedText
		}
	}
	return v
}

// learn remembers the tokens of a text.
func (v *vocabulary) learn(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for len(text) > 0 && len(v.texts) < maxVocabulary {
		n := pieceLen(text)
		v.texts[pieceID(text[:n])] = text[:n]
		text = text[n:]
	}
}

// text returns a token's text, and U+FFFD for one that was never seen.
func (v *vocabulary) text(id uint32) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s, ok := v.texts[id]; ok {
		return s
	}
	return "\uFFFD"
}

// tokenize is POST /tokenize, of a prompt or of a conversation.
func (x *exchange) tokenize() {
	f, e := x.parse()
	if e != nil {
		x.fail(e)
		return
	}
	special, strings := f.get("add_special_tokens") == nil || f.boolean("add_special_tokens"), f.boolean("return_token_strs")
	var ids []uint32
	var messages []chatMessage
	switch raw, conversation := f.get("prompt"), f.get("messages"); {
	case raw != nil:
		prompt := f.text("prompt")
		if special {
			ids = append(ids, tokenBOS)
		}
		ids = tokenize(ids, prompt)
		x.s.vocabulary.learn(prompt)
	case conversation == nil:
		f.missing("prompt")
		f.missing("messages")
	case json.Unmarshal(conversation, &messages) != nil:
		f.add("messages", "list_type", "Input should be a valid list", pythonValue(conversation))
	default:
		ids = chatTemplate(f.get("tools"), messages)
		for _, m := range messages {
			x.s.vocabulary.learn(m.Role)
			var text string
			if json.Unmarshal(m.Content, &text) == nil {
				x.s.vocabulary.learn(text)
			}
		}
	}
	if !x.checkModel(f) {
		return
	}
	var texts []string
	if strings {
		for _, id := range ids {
			texts = append(texts, x.s.vocabulary.text(id))
		}
	}
	x.answerJSON(struct {
		Count       int      `json:"count"`
		MaxModelLen int      `json:"max_model_len"`
		Tokens      []uint32 `json:"tokens"`
		TokenStrs   []string `json:"token_strs"`
	}{len(ids), x.s.cfg.MaxModelLen, slices.Concat([]uint32{}, ids), texts})
}

// detokenize is POST /detokenize.
func (x *exchange) detokenize() {
	f, e := x.parse()
	if e != nil {
		x.fail(e)
		return
	}
	var ids []uint32
	if raw := f.get("tokens"); raw == nil {
		f.missing("tokens")
	} else if json.Unmarshal(raw, &ids) != nil {
		f.add("tokens", "list_type", "Input should be a valid list", pythonValue(raw))
	}
	if !x.checkModel(f) {
		return
	}
	var text []byte
	for _, id := range ids {
		text = append(text, x.s.vocabulary.text(id)...)
	}
	x.answerJSON(struct {
		Prompt string `json:"prompt"`
	}{string(text)})
}

// checkModel answers with an error if the request is invalid or its model is not served, and returns false then.
func (x *exchange) checkModel(f *fields) bool {
	model := f.text("model")
	if e := f.err(); e != nil {
		x.fail(e)
		return false
	}
	if _, ok := x.s.hasModel(model); !ok {
		x.fail(x.s.unknownModel(model))
		return false
	}
	return true
}
