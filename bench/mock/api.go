package mock

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	version     = "0.32.0"
	fingerprint = "vllm-" + version + "-da5bd386"
)

// route is a path of the API.
type route struct {
	method  string
	handle  func(x *exchange)
	measure bool // it appears in the http_* metrics
}

// table lists the API. A family of endpoints is a file.
func (s *Server) table() map[string]route {
	table := map[string]route{
		"/v1/chat/completions":        {http.MethodPost, (*exchange).chatCompletions, true},
		"/v1/completions":             {http.MethodPost, (*exchange).completions, true},
		"/v1/responses":               {http.MethodPost, (*exchange).responses, true},
		"/v1/messages":                {http.MethodPost, (*exchange).messages, true},
		"/v1/messages/count_tokens":   {http.MethodPost, (*exchange).countTokens, true},
		"/v1/embeddings":              {http.MethodPost, (*exchange).embeddings, true},
		"/pooling":                    {http.MethodPost, (*exchange).pooling, true},
		"/classify":                   {http.MethodPost, (*exchange).classify, true},
		"/score":                      {http.MethodPost, (*exchange).score, true},
		"/v1/score":                   {http.MethodPost, (*exchange).score, true},
		"/rerank":                     {http.MethodPost, (*exchange).rerank, true},
		"/v1/rerank":                  {http.MethodPost, (*exchange).rerank, true},
		"/v2/rerank":                  {http.MethodPost, (*exchange).rerank, true},
		"/tokenize":                   {http.MethodPost, (*exchange).tokenize, true},
		"/detokenize":                 {http.MethodPost, (*exchange).detokenize, true},
		"/v1/audio/transcriptions":    {http.MethodPost, (*exchange).transcriptions, true},
		"/v1/audio/translations":      {http.MethodPost, (*exchange).translations, true},
		"/v1/realtime":                {http.MethodGet, (*exchange).realtime, false},
		"/v1/chat/completions/render": {http.MethodPost, (*exchange).render, true},
		"/v1/completions/render":      {http.MethodPost, (*exchange).render, true},
		"/v1/models":                  {http.MethodGet, (*exchange).models, true},
		"/health":                     {http.MethodGet, (*exchange).health, false},
		"/ping":                       {http.MethodGet, (*exchange).health, true},
		"/version":                    {http.MethodGet, (*exchange).version, false},
		"/load":                       {http.MethodGet, (*exchange).load, false},
		"/metrics":                    {http.MethodGet, (*exchange).metrics, false},
	}
	if s.cfg.LoraUpdates {
		table["/v1/load_lora_adapter"] = route{http.MethodPost, (*exchange).loadAdapter, true}
		table["/v1/unload_lora_adapter"] = route{http.MethodPost, (*exchange).unloadAdapter, true}
	}
	return table
}

// serve answers one request.
func (x *exchange) serve() {
	path := x.req.URL.Path
	r, known := x.s.routes[path]
	handler, measured := path, r.measure
	switch {
	case strings.HasPrefix(path, "/v1/") && !x.authorized():
		x.answer(http.StatusUnauthorized, "application/json", []byte(`{"error":"Unauthorized"}`))
	case !known:
		handler, measured = "none", true
		x.answer(http.StatusNotFound, "application/json", []byte(`{"detail":"Not Found"}`))
	case r.method != x.req.Method:
		handler, measured = "none", true
		x.answer(http.StatusMethodNotAllowed, "application/json", []byte(`{"detail":"Method Not Allowed"}`), field{"allow", r.method})
	default:
		r.handle(x)
	}
	if measured {
		x.s.mu.Lock()
		x.s.http.observe(handler, x.req.Method, x.status, int(max(0, x.req.ContentLength)), x.sent, time.Since(x.begun))
		x.s.mu.Unlock()
	}
}

func (x *exchange) authorized() bool {
	return x.s.cfg.APIKey == "" || x.req.Header.Get("Authorization") == "Bearer "+x.s.cfg.APIKey
}

// apiError is an error body: {"error":{"message","type","param","code"}}.
type apiError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

func (x *exchange) fail(e *apiError) {
	body, _ := marshal(struct {
		Error *apiError `json:"error"`
	}{e})
	x.answer(e.Code, "application/json", body)
}

// failAnthropic answers with an error body of Anthropic's API.
func (x *exchange) failAnthropic(e *apiError) {
	body, _ := marshal(struct {
		Type  string `json:"type"`
		Error any    `json:"error"`
	}{"error", struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	}{e.Type, e.Message}})
	x.answer(e.Code, "application/json", body)
}

func badRequest(param, format string, args ...any) *apiError {
	return &apiError{Message: fmt.Sprintf(format, args...), Type: "BadRequestError", Param: &param, Code: http.StatusBadRequest}
}

func (s *Server) unknownModel(name string) *apiError {
	param := "model"
	aliases := s.cfg.Model
	for _, a := range s.loaded() {
		aliases += ", " + a.name
	}
	return &apiError{
		Message: fmt.Sprintf("The model `%s` does not exist. Valid aliases: %s.", name, aliases),
		Type:    "NotFoundError", Param: &param, Code: http.StatusNotFound,
	}
}

// marshal is json.Marshal without the escaping of <, > and &.
func marshal(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return []byte(strings.TrimSuffix(b.String(), "\n")), err
}

// quote returns s as a JSON string.
func quote(s string) string {
	b, _ := marshal(s)
	return string(b)
}

func (x *exchange) answerJSON(v any, extra ...field) {
	body, err := marshal(v)
	if err != nil {
		panic(err) // only our own types come here
	}
	x.answer(http.StatusOK, "application/json", body, extra...)
}
