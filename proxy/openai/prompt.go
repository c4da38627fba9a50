package openai

import (
	"bytes"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// place is where in the prompt a member of the body goes.
type place uint8

// The first three are indices of Request.head: what stands in front of the
// messages, whatever the order of keys.
const (
	placeTools place = iota
	placeDocuments
	placeSystem
	placeHistory // messages, or the items of responses
	placePrompts // strings or token ids
	placeNone

	headSpans = int(placeHistory)
)

// place tells where the member of that name goes in a request of this kind.
func (k Kind) place(key []byte) place {
	conversation := k == Chat || k == Messages || k == CountTokens || k == Tokenize
	pairs := k == Rerank || k == Score // query against documents
	switch string(key) {
	case "messages":
		if conversation || k == Embeddings || k == Pooling || k == Classify {
			return placeHistory
		}
	case "prompt":
		if k == Completions || k == Tokenize {
			return placePrompts
		}
	case "input":
		switch k {
		case Responses:
			return placeHistory
		case Embeddings, Pooling, Classify:
			return placePrompts
		}
	case "tools":
		if conversation || k == Responses {
			return placeTools
		}
	case "documents":
		if conversation || pairs {
			return placeDocuments
		}
	case "system":
		if k == Messages || k == CountTokens {
			return placeSystem
		}
	case "instructions":
		if k == Responses {
			return placeSystem
		}
	case "query", "queries", "text_1", "data_1":
		if pairs {
			return placeTools
		}
	case "text_2", "data_2", "items":
		if pairs {
			return placeDocuments
		}
	}
	return placeNone
}

// prompt reads a member that may belong to the prompt.
func (r *Request) prompt(key []byte) {
	s := &r.scan
	at := r.Kind.place(key)
	switch at {
	case placeNone:
		s.skip()
		return
	case placeTools, placeDocuments, placeSystem:
		r.readHead(at)
		return
	}
	if s.peek() == 'n' {
		s.skip()
		if r.source == at {
			r.restart(placeNone)
		}
		return
	}
	r.restart(at)
	switch {
	case at == placePrompts:
		r.prompts()
	case s.peek() == '[':
		s.open()
		for s.more(']') {
			if len(r.spans) < maxSpans {
				r.message()
			} else { // it is the last span's, whatever it says
				start := s.pos
				s.skip()
				r.add(start, s.pos, false)
			}
		}
	default:
		r.text() // the input of responses may be a string; others are for the server to judge
	}
}

// readHead reads what stands in front of the messages. The start of a value that
// the body cuts off is of use only if nothing that was read comes behind it.
func (r *Request) readHead(at place) {
	s := &r.scan
	if at == placeSystem {
		r.head[at] = s.system()
	} else {
		r.head[at] = s.soFar()
	}
	if !s.cut() {
		return
	}
	behind := len(r.spans) > headSpans
	for _, later := range r.head[at+1:] {
		behind = behind || len(later) > 0
	}
	if behind {
		r.head[at] = nil
	}
}

// system gives the system text: a string, or raw what follows the first block or
// blocks that vLLM drops from the array (entrypoints/anthropic/serving.py): a header
// of Claude Code with a hash that differs from request to request, which would keep
// prompts apart that the server's cache finds equal.
func (s *scanner) system() []byte {
	if s.peek() != '[' {
		return s.soFar()
	}
	from, dropping := s.pos, true
	s.open()
	for s.more(']') {
		block := s.raw()
		if s.failed() {
			break
		}
		dropping = dropping && bytes.Contains(block, []byte(`"x-anthropic-billing-header`))
		if dropping {
			from = s.pos
		}
	}
	if s.failed() && (dropping || !s.cut()) {
		return nil
	}
	return s.body[from:s.pos]
}

// restart forgets the prompt read so far: of duplicate keys the last wins.
func (r *Request) restart(at place) {
	r.source = at
	r.keep(headSpans)
	r.Media = Media{}
	r.Tokens, r.Prompts = -1, 0
	r.opening = 0
}

// add appends body[start:end] to the spans.
func (r *Request) add(start, end int, media bool) {
	if start >= end {
		return
	}
	if len(r.spans) < maxSpans {
		r.push(prefix.Span{Data: r.body[start:end], Media: media})
		r.tail = start
		return
	}
	if last := &r.spans[maxSpans-1]; end > r.tail+len(last.Data) {
		*last = prefix.Span{Data: r.body[r.tail:end]}
	}
}

// text adds the string that stands here; a value of another kind is passed over.
func (r *Request) text() {
	s := &r.scan
	if s.peek() != '"' {
		s.skip()
		return
	}
	t := s.strSoFar()
	r.add(t.start, t.end, false)
}

// prompts reads a prompt: a string, token ids, or an array of either.
func (r *Request) prompts() {
	s := &r.scan
	if s.peek() != '[' {
		r.Prompts = 1
		r.text()
		return
	}
	s.open()
	tokens, exact := 0, true
	for s.more(']') {
		switch c := s.peek(); {
		case '0' <= c && c <= '9':
			r.Prompts = 1
			tokens += r.ids()
		case c == '[':
			r.Prompts++
			s.open()
			for s.more(']') {
				if c := s.peek(); c < '0' || '9' < c {
					exact = false
					s.skip()
					continue
				}
				tokens += r.ids()
			}
		default:
			r.Prompts++
			exact = false
			r.text()
		}
	}
	if exact && r.Prompts > 0 {
		r.Tokens = tokens
	}
}

// ids adds the run of token ids that starts here as one span and counts them. It
// ends before the closing bracket or before what is no number.
func (r *Request) ids() (n int) {
	s := &r.scan
	start := s.pos
	var end int
	for {
		if n%1024 == 1023 && s.pos >= s.next {
			if s.rest(); s.failed() {
				return 0
			}
		}
		s.number()
		n++
		if s.failed() {
			return 0
		}
		end = s.pos
		if s.peek() != ',' {
			break
		}
		comma := s.pos
		s.pos++
		if c := s.peek(); c < '0' || '9' < c {
			s.pos = comma
			break
		}
	}
	r.add(start, end, false)
	return n
}

// message reads one message, or one item of the input of responses.
func (r *Request) message() {
	s := &r.scan
	if s.peek() != '{' {
		r.text()
		return
	}
	// The role's place is in front, whenever it comes.
	role := len(r.spans)
	if role < maxSpans {
		r.push(prefix.Span{})
		r.tail = s.pos
	}
	before := r.Media
	r.rest = r.rest[:0]
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		switch string(key) {
		case "role":
			name := s.inner()
			if role < maxSpans {
				r.spans[role].Data = name
			}
		case "content":
			r.keep(min(role+1, len(r.spans)))
			r.Media = before
			r.content(0)
		case "output": // of a tool, among the items of responses
			switch s.peek() {
			case '[':
				r.content(0)
			case '{':
				r.part(0)
			default:
				r.other()
			}
		case "result": // of an image's generation there
			r.medium(imageMedium)
		default:
			r.other()
		}
	}
	if s.failed() {
		// Content may go on, and what belongs behind it has to wait. A role that has
		// not come is most likely the user's, whose messages are the long ones.
		if len(r.spans) > role+1 && len(r.spans[role].Data) == 0 {
			r.spans[role].Data = user
		}
		return
	}
	for _, m := range r.rest {
		r.add(m.start, m.end, false)
	}
	if r.opening == 0 && role < maxSpans && bytes.Equal(r.spans[role].Data, user) {
		r.opening = len(r.spans)
	}
}

var user = []byte("user")

// other keeps a member of a message, key and all, for behind the content. Null is
// what clients send back for what an answer did not have; templates ignore it.
func (r *Request) other() {
	s := &r.scan
	start := s.key
	if s.null() {
		return
	}
	s.skip()
	if s.failed() {
		return
	}
	if len(r.rest) < maxRest {
		r.rest = append(r.rest, span{start, s.pos})
	} else {
		r.rest[maxRest-1].end = s.pos
	}
}

// content reads the content of a message, or of a part of one.
func (r *Request) content(nesting int) {
	s := &r.scan
	switch c := s.peek(); {
	case c == '[':
		s.open()
		for s.more(']') {
			r.part(nesting)
		}
	case c == '{':
		start := s.pos
		s.skip()
		r.add(start, s.pos, false)
	default:
		r.text()
	}
}

// part reads one part of a content: text, a medium, a tool's use or result.
func (r *Request) part(nesting int) {
	s := &r.scan
	if s.peek() != '{' {
		r.text()
		return
	}
	s.open()
	said := -1             // the span of its text
	referred := fileMedium // what a file's id is of
	for key, ok := s.member(); ok; key, ok = s.member() {
		start := s.key
		switch string(key) {
		case "type":
			if string(s.word()) == "input_image" {
				referred = imageMedium
			}
		case "cache_control":
			// It moves from part to part between the turns of one conversation.
			s.skip()
		case "text":
			n := len(r.spans)
			if s.peek() == '"' && said >= 0 {
				t := s.strSoFar()
				r.spans[said].Data = s.body[t.start:t.end]
			} else if r.text(); len(r.spans) > n {
				said = n
			}
		case "image_url", "image", "input_image", "image_pil", "image_embeds", "source":
			r.medium(imageMedium)
		case "input_audio", "audio_url", "audio", "audio_embeds":
			r.medium(audioMedium)
		case "video_url", "video", "input_video":
			r.medium(videoMedium)
		case "file", "file_data", "file_url":
			r.medium(fileMedium)
		case "file_id":
			r.medium(referred)
		case "content":
			if nesting < maxNesting {
				r.content(nesting + 1)
				continue
			}
			fallthrough
		default:
			if s.null() {
				continue
			}
			s.skip()
			if !s.failed() {
				r.add(start, s.pos, false)
			}
		}
	}
}
