package proxy

import (
	"slices"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// What an endpoint can only be told in the head of the request: which of the engines
// behind its address is meant, and which endpoint computes the prompt for it.

const (
	// fieldRank names one of a server's data-parallel engines (vLLM's
	// entrypoints/openai, X-data-parallel-rank).
	fieldRank = "x-data-parallel-rank"
	// fieldPrefiller is host:port of the endpoint that computes the prompt, for llm-d's
	// routing sidecar before the engine that decodes (its pkg/common/routing).
	fieldPrefiller = "x-prefiller-host-port"
)

// steer says in the head which of the endpoint's engines is meant. Where there are
// several, what a client said of it is not passed on: it would go past the picker. It
// also says who computes the prompt, if the endpoint itself does not.
func (x *Exchange) steer(l *picker.Lease) {
	if engine := l.Endpoint().Engine(); engine != "" || x.steered {
		x.steered = x.sayOnly(fieldRank, engine)
	}
	prefiller := ""
	if p := l.Prefill(); p != nil {
		prefiller = p.Address()
	}
	if prefiller != "" || x.prefilled {
		x.prefilled = x.sayOnly(fieldPrefiller, prefiller)
	}
}

// sayOnly gives a field of the head this value, or none if it is empty; it tells which.
func (x *Exchange) sayOnly(name, value string) bool {
	x.head.Fields = message.Delete(x.head.Fields, name)
	if value == "" {
		return false
	}
	x.head.Fields = append(x.head.Fields, message.Field{Name: []byte(name), Value: []byte(value)})
	return true
}

// remotePrefill is from how many uncached tokens on another endpoint may compute the
// prompt: only of requests that llm-d's sidecar has computed elsewhere.
func (x *Exchange) remotePrefill() int {
	switch x.kind {
	case openai.Chat, openai.Completions, openai.Responses:
		return x.serving.remotePrefill
	}
	return 0
}

// reserve takes a lease on an endpoint that somebody else has named, or on another
// engine of its server: they name servers. Who computes the prompt is for them to say.
func (p *pool) reserve(e *picker.Endpoint, r *picker.Request) picker.Lease {
	if e.Engine() != "" {
		among := *r
		among.Exclude = slices.Clone(r.Exclude)
		for _, o := range p.picker.Endpoints() {
			if !o.SameServer(e) {
				among.Exclude = append(among.Exclude, o)
			}
		}
		among.Room, among.Until, among.RemotePrefill = picker.Room{}, 0, 0
		if l, err := p.picker.Pick(&among, Now()); err == nil {
			return l
		}
	}
	return p.picker.Reserve(e, r, Now())
}
