package openai

import "bytes"

// Kind is the shape of a request, known from its path.
type Kind uint8

const (
	// Other is a request whose body is not read.
	Other Kind = iota
	Chat
	Completions
	Responses
	Messages
	CountTokens
	Embeddings
	Pooling
	Classify
	Rerank
	Score
	Tokenize
	Transcription
	Translation
)

var kindNames = [...]string{
	Other: "other", Chat: "chat", Completions: "completions", Responses: "responses", Messages: "messages",
	CountTokens: "count_tokens", Embeddings: "embeddings", Pooling: "pooling", Classify: "classify", Rerank: "rerank",
	Score: "score", Tokenize: "tokenize", Transcription: "transcription", Translation: "translation",
}

// String gives the kind's name, fit for a metric label.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "other"
}

// KindOf tells what a request to that path asks for; a query is ignored. The paths
// are those of vLLM's API server. Any method but POST is Other. The path must be as
// the server will see it: nothing is unescaped or normalised here.
func KindOf(method, path []byte) Kind {
	if string(method) != "POST" {
		return Other
	}
	if i := bytes.IndexByte(path, '?'); i >= 0 {
		path = path[:i]
	}
	switch string(path) {
	case "/v1/chat/completions":
		return Chat
	case "/v1/completions":
		return Completions
	case "/v1/responses":
		return Responses
	case "/v1/messages":
		return Messages
	case "/v1/messages/count_tokens":
		return CountTokens
	case "/v1/embeddings":
		return Embeddings
	case "/pooling":
		return Pooling
	case "/classify":
		return Classify
	case "/rerank", "/v1/rerank", "/v2/rerank":
		return Rerank
	case "/score", "/v1/score":
		return Score
	case "/tokenize":
		return Tokenize
	case "/v1/audio/transcriptions":
		return Transcription
	case "/v1/audio/translations":
		return Translation
	}
	return Other
}

// Generates tells whether the answer is generated text.
func (k Kind) Generates() bool {
	return k == Chat || k == Completions || k == Responses || k == Messages
}

// Operation is OpenTelemetry's word for what is asked for (gen_ai.operation.name of the
// semantic conventions for generative AI), empty where it has none.
func (k Kind) Operation() string {
	switch k {
	case Chat, Responses, Messages:
		return "chat"
	case Completions:
		return "text_completion"
	case Embeddings:
		return "embeddings"
	}
	return ""
}

// Form tells whether the body is a form; see [Request.ReadForm].
func (k Kind) Form() bool { return k == Transcription || k == Translation }

// salted tells whether vLLM takes a cache_salt with it: with everything that it keeps
// the KV cache of. (validate_cache_salt in entrypoints/generate/base/protocol.py, and
// who calls it.)
func (k Kind) salted() bool {
	switch k {
	case Other, CountTokens, Tokenize, Transcription, Translation:
		return false
	}
	return true
}

// usageOnRequest tells whether a stream of this kind says its usage only when
// stream_options asks for it. Responses and messages always say it.
func (k Kind) usageOnRequest() bool { return k == Chat || k == Completions }
