package openai

import (
	"bytes"
	"sync"
	"unicode/utf8"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// MaxModel is the longest name of a model, in bytes.
const MaxModel = 1024

// Request is what a body says. Its slices lie in the body, or in the Request, and
// are valid until the body is gone or the next Read. The zero value is ready for
// Read, and so is a used one.
type Request struct {
	Kind Kind

	// Model is the name as the server reads it, unescaped; empty when the body
	// names none (vLLM then serves its only model).
	Model []byte
	// Stream tells whether the answer is a stream of events.
	Stream bool
	// StreamOptions tells whether the body has stream_options, whatever they hold,
	// and IncludeUsage whether they ask for the usage.
	StreamOptions, IncludeUsage bool
	// MaxTokens bounds the answer, −1 when the body does not. A server has its own
	// default then: for completions vLLM's is 16.
	MaxTokens int
	// N is how many answers are wanted of each prompt; at least 1.
	N int
	// CacheSalt as it stands in the body, without quotes, still escaped. It is part of
	// the identity of cached blocks.
	CacheSalt []byte

	// Spans are the parts of the prompt in the order in which chat templates use
	// them: tools, documents, system text, then for each message its role, its
	// content and its other members that are not null. Strings are without their
	// quotes and still escaped; token ids are their digits with what stands between.
	// A span may be empty.
	Spans []prefix.Span
	// TextBytes is the sum of the lengths of the spans that are not media.
	TextBytes int
	// Prompts is how many prompts there are: more than one only where an array of
	// them was given.
	Prompts int
	// Tokens is the exact number of tokens of all prompts together when they were
	// given as token ids, else −1.
	Tokens int
	// Media counts the media among the spans.
	Media

	// Yield, unless it is nil, is called every 32 KiB while a body is read: it may take its
	// time, to let others go first. When it gives false, the reading fails. Reset forgets it.
	Yield func() bool

	scan                     scanner
	body                     []byte
	spans                    []prefix.Span          // Spans with room for the head in front
	few                      []prefix.Span          // where spans were before they were many
	many                     *[maxSpans]prefix.Span // where they are then; nil before
	tail                     int                    // where the last span starts in the body, once there are maxSpans
	rest                     []span                 // members of a message that belong behind its content
	head                     [headSpans][]byte
	source                   place // what the prompt was read from
	opening                  int   // spans through the first message of the user; 0: it has not come
	hasModel                 bool
	model                    [2]int // body[model[0]:model[1]] is the value with its quotes, or null, or the text in a form
	hasSalt                  bool
	salt                     [2]int // body[salt[0]:salt[1]] is the value of cache_salt
	modelErr                 string // why the value is none that can be read
	modelBuf                 []byte // Model when it was escaped
	empty                    bool   // the body is {}
	form                     bool   // the body is a form
	maxTokens, maxCompletion int    // −1 without
	brace                    int    // where the closing brace stands, or the closing delimiter of a form
	cut                      bool   // the body is the start of one
	renamed                  []byte // what ReplaceModel puts in the model's place
	askUsage                 bool   // what InjectUsage did
	salted                   []byte // what ReplaceSalt puts in the salt's place
}

const (
	// maxSpans bounds the memory that a body of tiny messages can ask for: what
	// would follow is one span up to the prompt's end, raw.
	maxSpans = 1 << 14
	// fewSpans is how many there is room for in a Request that is kept.
	fewSpans = 512
	// maxRest does the same for the members of one message.
	maxRest = 64
	// maxNesting is how deep the content of a part, such as a tool's result, is
	// read as parts again; deeper it is one raw span.
	maxNesting = 4
)

// span is a range of the body.
type span struct{ start, end int }

// Reset forgets the body, so that a Request kept for later holds on to none of it,
// nor to more than a few kilobytes.
func (r *Request) Reset() {
	r.Yield = nil
	r.blank()
	if r.many != nil {
		manySpans.Put(r.many)
		clear(r.few)
		r.spans, r.few, r.many = r.few[:0], nil, nil
	}
}

// manySpans are rooms for all spans that there can be, for long conversations: growing to that by and by leaves more garbage than
// there is text in them.
var manySpans = sync.Pool{New: func() any { return new([maxSpans]prefix.Span) }}

// push appends a span to fewer than maxSpans.
func (r *Request) push(s prefix.Span) {
	if len(r.spans) == cap(r.spans) && len(r.spans) >= fewSpans {
		r.few, r.many = r.spans, manySpans.Get().(*[maxSpans]prefix.Span)
		r.spans = r.many[:copy(r.many[:], r.few)]
	}
	r.spans = append(r.spans, s)
}

// keep drops all spans but the first n.
func (r *Request) keep(n int) {
	clear(r.spans[n:])
	r.spans = r.spans[:n]
}

// blank forgets all but the memory.
func (r *Request) blank() {
	clear(r.spans)
	spans, few, many, rest, model, renamed, salted, yield := r.spans[:0], r.few, r.many, r.rest[:0], r.modelBuf[:0], r.renamed[:0], r.salted[:0], r.Yield
	*r = Request{} // apart from what follows, so that it is cleared where it lies
	r.spans, r.few, r.many, r.rest, r.modelBuf, r.renamed, r.salted, r.Yield = spans, few, many, rest, model, renamed, salted, yield
}

// Read reads the JSON body of a request of that kind. The error is an *[Error]; nothing
// of the Request is to be used then. The body must not change while r is in use.
func (r *Request) Read(kind Kind, body []byte) error {
	r.begin(kind, body)
	r.walk()
	if s := &r.scan; s.failed() {
		return &Error{Offset: s.at, Reason: s.reason}
	}
	if r.modelErr != "" {
		return &Error{Offset: r.model[0], Param: "model", Reason: r.modelErr}
	}
	r.end()
	return nil
}

// walk reads the body. What is wrong with it is the scanner's to say.
func (r *Request) walk() {
	s := &r.scan
	if bytes.HasPrefix(s.body, byteOrderMark) {
		s.pos = len(byteOrderMark)
	}
	if s.peek() != '{' {
		if s.pos == len(s.body) {
			s.fail(s.pos, "it is empty")
		} else {
			s.fail(s.pos, "it is not a JSON object")
		}
		return
	}
	s.open()
	r.empty = true
	for key, ok := s.member(); ok; key, ok = s.member() {
		r.empty = false
		r.member(key)
	}
	r.brace = s.pos - 1
	if s.peek(); !s.failed() && s.pos < len(s.body) {
		s.fail(s.pos, "something follows the JSON object")
	}
}

var byteOrderMark = []byte("\xef\xbb\xbf")

func (r *Request) begin(kind Kind, body []byte) {
	r.blank()
	if r.spans == nil {
		r.spans = make([]prefix.Span, 0, 16)
	}
	r.Kind, r.MaxTokens, r.maxTokens, r.maxCompletion, r.N, r.Tokens = kind, -1, -1, -1, 1, -1
	r.body, r.source = body, placeNone
	r.spans = r.spans[:headSpans]
	r.scan.reset(body)
	if r.Yield != nil {
		r.scan.yield, r.scan.next = r.Yield, yieldEvery
	}
}

// end puts the head in front of the spans.
func (r *Request) end() {
	from := headSpans
	for i := headSpans - 1; i >= 0; i-- {
		if len(r.head[i]) > 0 {
			from--
			r.spans[from] = prefix.Span{Data: r.head[i]}
		}
	}
	r.Spans = r.spans[from:]
	for i := range r.Spans {
		if !r.Spans[i].Media {
			r.TextBytes += len(r.Spans[i].Data)
		}
	}
	// vLLM prefers max_completion_tokens; max_tokens is the older name.
	if r.MaxTokens = r.maxCompletion; r.MaxTokens < 0 {
		r.MaxTokens = r.maxTokens
	}
	if r.N < 1 {
		r.N = 1
	}
	if r.Prompts == 0 {
		r.Prompts = 1
	}
}

// maxAnswers is how many answers are counted at most.
const maxAnswers = 1024

// Answers is how many answers are wanted: N to each prompt, 1024 at most.
func (r *Request) Answers() int {
	return min(min(r.N, maxAnswers)*min(r.Prompts, maxAnswers), maxAnswers)
}

// MaxGenerated bounds the tokens of all Answers together, each of MaxTokens at most; −1
// when the body does not.
func (r *Request) MaxGenerated() int {
	if r.MaxTokens < 0 {
		return r.MaxTokens
	}
	return min(r.MaxTokens, 1<<30) * r.Answers()
}

// Opening is what a conversation begins with and keeps in every turn: the messages
// through the first that is the user's, or all of the prompt where none is. Tools and
// documents, which a client may give anew with each turn, and system text that is not
// among the messages do not belong to it. Whole is false if the body is only the start
// of one, and ends inside of it.
func (r *Request) Opening() (spans []prefix.Span, whole bool) {
	if len(r.spans) < headSpans { // nothing was read
		return nil, true
	}
	if r.opening > 0 {
		return r.spans[headSpans:r.opening], true
	}
	return r.spans[headSpans:], !r.cut
}

// member reads the value of one member of the body.
func (r *Request) member(key []byte) {
	s := &r.scan
	switch string(key) {
	case "model":
		r.readModel()
	case "stream":
		r.Stream = laxBool(s.word())
	case "stream_options":
		r.StreamOptions = true
		r.IncludeUsage = s.streamOptions()
	case "max_tokens":
		r.maxTokens = s.int()
	case "max_completion_tokens":
		if r.Kind == Chat {
			r.maxCompletion = s.int()
		} else {
			s.skip()
		}
	case "max_output_tokens":
		if r.Kind == Responses {
			r.maxTokens = s.int()
		} else {
			s.skip()
		}
	case "n":
		r.N = s.int()
	case "cache_salt":
		s.peek()
		start := s.pos
		r.CacheSalt = s.inner()
		r.salt, r.hasSalt = [2]int{start, s.pos}, true
	default:
		r.prompt(key)
	}
}

// readModel reads the value of a member named model. Whether it can be used is
// judged at the end: a later one replaces it.
func (r *Request) readModel() {
	s := &r.scan
	r.Model, r.hasModel, r.modelErr = nil, false, ""
	s.peek()
	start := s.pos
	if s.peek() != '"' {
		if !s.null() {
			s.skip()
			r.modelErr = "the model must be a string"
		}
		r.model = [2]int{start, start}
		if r.hasModel = r.modelErr == "" && !s.failed(); r.hasModel {
			r.model[1] = s.pos
		}
		return
	}
	t := s.str()
	if s.failed() {
		return
	}
	r.model, r.hasModel = [2]int{start, s.pos}, true
	r.Model = s.body[t.start:t.end]
	ok := true
	if t.escaped {
		r.modelBuf, ok = appendUnescaped(r.modelBuf[:0], r.Model, MaxModel)
		r.Model = r.modelBuf
	}
	switch {
	case len(r.Model) > MaxModel:
		r.modelErr = "the name of the model is too long"
	case !ok || !utf8.Valid(r.Model):
		r.modelErr = "the name of the model is not valid Unicode"
	}
}

// streamOptions tells whether the value asks for the usage.
func (s *scanner) streamOptions() (usage bool) {
	if s.peek() != '{' {
		s.skip()
		return false
	}
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		if string(key) == "include_usage" {
			usage = laxBool(s.word())
		} else {
			s.skip()
		}
	}
	return usage
}
