//go:build e2e && linux

package vllm_test

import (
	"regexp"
	"slices"
	"strings"
)

// exchanges are the requests that are compared: good ones of every API, and each way to go wrong.
func exchanges() []exchange {
	return slices.Concat(chats(), otherAPIs(), refused(), plainHTTP())
}

const (
	chatPath       = "/v1/chat/completions"
	completionPath = "/v1/completions"
	hi             = `"messages":[{"role":"user","content":"hi"}]`
	few            = `"temperature":0,"max_tokens":4`
)

// fingerprint is told in the last event of a stream, which is the usage event when usage is asked for. Fairway asks
// for it where the client does not say, and withholds that event: the fingerprint goes with it.
var fingerprint = regexp.MustCompile(`,"system_fingerprint":"[^"]*"`)

func chats() []exchange {
	long := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 40)
	return []exchange{
		{name: "chat", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat sampled with a seed", target: chatPath, body: `{"model":"tiny",` + hi + `,"seed":7,"temperature":1,"max_tokens":8}`},
		{name: "chat stream", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"stream":true}`, without: fingerprint},
		{name: "chat stream with usage", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"stream":true,"stream_options":{"include_usage":true}}`},
		{name: "chat stream without usage", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"stream":true,"stream_options":{"include_usage":false}}`},
		{name: "chat stream with usage in each event", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
		{name: "chat stream with no options", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"stream":true,"stream_options":{}}`, without: fingerprint},
		{name: "chat stream with null options", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"stream":true,"stream_options":null}`, without: fingerprint},
		{name: "chat logprobs", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"logprobs":true,"top_logprobs":2}`},
		{name: "chat stream logprobs", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"logprobs":true,"top_logprobs":1,"stream":true}`, without: fingerprint},
		{name: "chat two choices", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"n":2,"seed":1}`},
		{name: "chat stream two choices", target: chatPath, body: `{"model":"tiny",` + hi + `,"temperature":0,"max_tokens":1,"n":2,"stream":true}`, without: fingerprint},
		{name: "chat token ids", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"return_token_ids":true}`},
		{name: "chat priority", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"priority":5}`},
		{name: "chat cache salt", target: chatPath, body: `{"model":"tiny","messages":[{"role":"user","content":"` + long + `"}],` + few + `,"cache_salt":"mine"}`},
		{name: "chat cached", target: chatPath, body: `{"model":"tiny","messages":[{"role":"system","content":"` + long + `"},{"role":"user","content":"hi"}],` + few + `}`},
		{name: "chat unknown field", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"no_such_field":1}`},
		{name: "chat no model", target: chatPath, body: `{` + hi + `,` + few + `}`},
		{name: "chat adapter", target: chatPath, body: `{"model":"adapter-1",` + hi + `,` + few + `}`},
		{name: "chat stop", target: chatPath, body: `{"model":"tiny",` + hi + `,"temperature":0,"max_tokens":64,"stop":["e"]}`},
		{name: "chat structured", target: chatPath, body: `{"model":"tiny",` + hi + `,"temperature":0,"max_tokens":8,"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}}}}`},
		{name: "chat parts", target: chatPath, body: `{"model":"tiny","messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"text","text":"there"}]}],` + few + `}`},
		{name: "chat escapes", target: chatPath, body: `{"model":"t\u0069ny","messages":[{"role":"user","content":"\ud83d\ude00 \"quoted\"\n\u00e9é"}],` + few + `}`},
		{name: "chat keys in another order", target: chatPath, body: " {\n \"max_tokens\" : 4 ,\r\n\t\"temperature\":0, \"messages\" : [ {\"content\":\"hi\", \"role\":\"user\"} ] , \"model\":\"tiny\" }\n"},
		{name: "chat tools", target: chatPath, body: `{"model":"tiny",` + hi + `,` + few + `,"tool_choice":"none","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}]}`},
		{name: "chat assistant turns", target: chatPath, body: `{"model":"tiny","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"42"}],` + few + `}`},
		{name: "chat load report", target: chatPath, fields: []string{"endpoint-load-metrics-format: TEXT"}, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat load report in JSON", target: chatPath, fields: []string{"endpoint-load-metrics-format: JSON"}, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat with a query", target: chatPath + "?a=b&c=%20", body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat body in chunks", target: chatPath, chunked: true, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat expects 100", target: chatPath, fields: []string{"Expect: 100-continue"}, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat HTTP 1.0", target: chatPath, http10: true, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat from another origin", target: chatPath, fields: []string{"Origin: https://app.test"}, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "chat accepts gzip", target: chatPath, fields: []string{"Accept-Encoding: gzip"}, body: `{"model":"tiny",` + hi + `,` + few + `}`},
	}
}

func otherAPIs() []exchange {
	const union = "the models of all engines are listed"
	return []exchange{
		{name: "completions", target: completionPath, body: `{"model":"tiny","prompt":"hello there",` + few + `}`},
		{name: "completions stream", target: completionPath, body: `{"model":"tiny","prompt":"hello there",` + few + `,"stream":true}`, without: fingerprint},
		{name: "completions stream with usage", target: completionPath, body: `{"model":"tiny","prompt":"hello there",` + few + `,"stream":true,"stream_options":{"include_usage":true}}`},
		{name: "completions tokens", target: completionPath, body: `{"model":"tiny","prompt":[5,6,7,8,9,10,11,12,13,14],` + few + `}`},
		{name: "completions of several prompts", target: completionPath, body: `{"model":"tiny","prompt":["hello","there"],` + few + `}`},
		{name: "completions echo", target: completionPath, body: `{"model":"tiny","prompt":"hello","echo":true,"logprobs":1,` + few + `}`},
		{name: "completions adapter", target: completionPath, body: `{"model":"adapter-2","prompt":"hello there",` + few + `}`},
		{name: "responses", target: "/v1/responses", body: `{"model":"tiny","input":"hello","temperature":0,"max_output_tokens":4}`},
		{name: "responses stream", target: "/v1/responses", body: `{"model":"tiny","input":"hello","temperature":0,"max_output_tokens":2,"stream":true}`},
		{name: "responses not stored", method: "GET", target: "/v1/responses/resp_0123456789abcdef"},
		{name: "messages", target: "/v1/messages", body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "messages stream", target: "/v1/messages", body: `{"model":"tiny",` + hi + `,` + few + `,"stream":true}`},
		{name: "messages with system", target: "/v1/messages", body: `{"model":"tiny","system":"Be brief.",` + hi + `,` + few + `}`},
		{name: "count tokens", target: "/v1/messages/count_tokens", body: `{"model":"tiny",` + hi + `}`},
		{name: "tokenize", target: "/tokenize", body: `{"model":"tiny","prompt":"hello there"}`},
		{name: "tokenize chat", target: "/tokenize", body: `{"model":"tiny",` + hi + `}`},
		{name: "detokenize", target: "/detokenize", body: `{"model":"tiny","tokens":[5,6,300,400]}`},
		{name: "render", target: "/v1/chat/completions/render", body: `{"model":"tiny",` + hi + `}`},
		{name: "embeddings", target: "/v1/embeddings", body: `{"model":"tiny","input":"hello"}`},
		{name: "rerank", target: "/v1/rerank", body: `{"model":"tiny","query":"hello","documents":["a","b"]}`},
		{name: "score", target: "/v1/score", body: `{"model":"tiny","text_1":"hello","text_2":"there"}`},
		{name: "pooling", target: "/pooling", body: `{"model":"tiny","input":"hello"}`},
		{name: "classify", target: "/classify", body: `{"model":"tiny","input":"hello"}`},
		{name: "models", method: "GET", target: "/v1/models", fairways: union, same: true},
		{name: "models from another origin", method: "GET", target: "/v1/models", fields: []string{"Origin: https://app.test"}, fairways: union, same: true},
		{name: "health", method: "GET", target: "/health"},
		{name: "ping", method: "GET", target: "/ping"},
		{name: "version", method: "GET", target: "/version"},
		{name: "load", method: "GET", target: "/load"},
		{name: "metrics", method: "GET", target: "/metrics", anyBody: true},
		{name: "openapi", method: "GET", target: "/openapi.json"},
	}
}

// refused are requests that the engine refuses.
func refused() []exchange {
	const unreadable = "a body that is not JSON cannot be routed; Fairway says at which byte"
	tooLong := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 1500)
	return []exchange{
		{name: "bad JSON", target: chatPath, body: `{"model":"tiny","messages":[{"role":"user","content":"hi"`, fairways: unreadable},
		{name: "no body", target: chatPath, fairways: unreadable},
		{name: "not an object", target: chatPath, body: `[1,2]`, fairways: unreadable},
		{name: "bad JSON for completions", target: completionPath, body: `{"prompt":`, fairways: unreadable},
		{name: "wrong type of max_tokens", target: chatPath, body: `{"model":"tiny",` + hi + `,"max_tokens":"x"}`},
		{name: "wrong type of messages", target: chatPath, body: `{"model":"tiny","messages":"hi"}`},
		{name: "wrong type of a message", target: chatPath, body: `{"model":"tiny","messages":["hi"]}`},
		{name: "wrong type of content", target: chatPath, body: `{"model":"tiny","messages":[{"role":"user","content":5}]}`},
		{name: "wrong type of model", target: chatPath, body: `{"model":5,` + hi + `}`, fairways: "a request is routed by its model, which must be a name"},
		{name: "wrong type of stream", target: chatPath, body: `{"model":"tiny",` + hi + `,"stream":"perhaps"}`},
		{name: "wrong type of prompt", target: completionPath, body: `{"model":"tiny","prompt":{"a":1}}`},
		{name: "no messages", target: chatPath, body: `{"model":"tiny"}`},
		{name: "empty messages", target: chatPath, body: `{"model":"tiny","messages":[]}`},
		{name: "no prompt", target: completionPath, body: `{"model":"tiny"}`},
		{name: "negative max_tokens", target: chatPath, body: `{"model":"tiny",` + hi + `,"max_tokens":-1}`},
		{name: "too many max_tokens", target: chatPath, body: `{"model":"tiny",` + hi + `,"max_tokens":100000}`},
		{name: "too hot", target: chatPath, body: `{"model":"tiny",` + hi + `,"temperature":-3}`},
		{name: "too long", target: chatPath, body: `{"model":"tiny","messages":[{"role":"user","content":"` + tooLong + `"}]}`},
		{name: "too long stream", target: chatPath, body: `{"model":"tiny","messages":[{"role":"user","content":"` + tooLong + `"}],"stream":true}`},
		{name: "unknown model", target: chatPath, body: `{"model":"nope",` + hi + `}`},
		{name: "unknown model stream", target: chatPath, body: `{"model":"nope",` + hi + `,"stream":true}`},
		{name: "unknown model for completions", target: completionPath, body: `{"model":"nope","prompt":"hi"}`},
		{name: "unknown model for messages", target: "/v1/messages", body: `{"model":"nope",` + hi + `,"max_tokens":4}`},
		{name: "unknown model for responses", target: "/v1/responses", body: `{"model":"nope","input":"hi"}`},
		{name: "stream options without a stream", target: chatPath, body: `{"model":"tiny",` + hi + `,"stream_options":{"include_usage":true}}`},
		{name: "tools without a parser", target: chatPath, body: `{"model":"tiny",` + hi + `,"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"tool_choice":"auto"}`},
		{name: "bad schema", target: chatPath, body: `{"model":"tiny",` + hi + `,"response_format":{"type":"json_schema"}}`},
		{name: "wrong content type", target: chatPath, noType: true, fields: []string{"Content-Type: text/plain"}, body: `{"model":"tiny",` + hi + `}`},
		{name: "no content type", target: chatPath, noType: true, body: `{"model":"tiny",` + hi + `}`},
		{name: "bad rank", target: chatPath, fields: []string{"X-data-parallel-rank: 7"}, body: `{"model":"tiny",` + hi + `,` + few + `}`},
		{name: "transcription", target: "/v1/audio/transcriptions", noType: true, fields: []string{"Content-Type: multipart/form-data; boundary=b"},
			body: "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n--b--\r\n"},
	}
}

func plainHTTP() []exchange {
	return []exchange{
		{name: "unknown route", method: "GET", target: "/nope"},
		{name: "unknown route posted to", target: "/v1/nope", body: `{"model":"tiny"}`},
		{name: "GET of chat", method: "GET", target: chatPath},
		{name: "PUT of chat", method: "PUT", target: chatPath, body: `{"model":"tiny",` + hi + `}`},
		{name: "DELETE of chat", method: "DELETE", target: chatPath},
		{name: "PATCH of chat", method: "PATCH", target: chatPath, body: `{}`},
		{name: "an unknown method", method: "BREW", target: chatPath},
		{name: "POST to models", target: "/v1/models", body: `{}`},
		{name: "HEAD of models", method: "HEAD", target: "/v1/models"},
		{name: "HEAD of health", method: "HEAD", target: "/health"},
		{name: "HEAD of an unknown route", method: "HEAD", target: "/nope"},
		{name: "OPTIONS of chat", method: "OPTIONS", target: chatPath},
		{name: "preflight", method: "OPTIONS", target: chatPath, fields: []string{
			"Origin: https://app.test", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"}},
		{name: "a slash too many", target: chatPath + "/", body: `{"model":"tiny",` + hi + `}`},
		{name: "two slashes", method: "GET", target: "//v1/models", plain: "/v1/models"},
		{name: "an escaped path", method: "GET", target: "/v1%2Fmodels"},
		{name: "an escaped letter", method: "GET", target: "/v1/m%6fdels"},
		{name: "dots", method: "GET", target: "/v1/../health", plain: "/health"},
		{name: "GET with a body", method: "GET", target: "/version", body: `{"a":1}`},
	}
}
