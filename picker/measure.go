package picker

import (
	"maps"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

const (
	// defaultBytesPerToken is English text under a current tokenizer.
	defaultBytesPerToken = 4.0
	// textPrior is how many tokens the prior counts for, textHorizon how many the memory holds.
	textPrior   = 4096
	textHorizon = 1 << 18
	// minTextBytes: in shorter prompts the chat template's own tokens outweigh the text.
	minTextBytes = 512
	// maxModels bounds what is learned by name; further names share the pool's mean.
	maxModels = 256

	// maxTokens is beyond any prompt; it keeps sums far from overflow.
	maxTokens = 1 << 27
)

// measure is a request in tokens, for the duration of one pick.
type measure struct {
	request  *Request
	now      time.Duration
	tokens   float64 // of the whole prompt, at least 1
	perChunk float64 // tokens in prefix.ChunkSize bytes of the chain
	speed    float64 // the pool's mean
	foreign  float64 // tokens that a request of someone else waits with
	others   float64 // requests of other replicas for each of ours
	known    uint64  // the last chunk that any endpoint holds; 0: none. Only if the endpoint chosen is the prompt's home
	adapter  uint64  // hash of the adapter's name; 0: none
	guess    int     // chunks that the endpoint weighed last holds
}

func (p *Pool) measure(r *Request, now time.Duration) measure {
	m := measure{request: r, now: now}
	m.tokens = float64(clampTokens(r.Bytes))/p.bytesPerToken(r.Model) + float64(clampTokens(r.Tokens))
	m.tokens = min(max(m.tokens, 1), maxTokens)
	m.perChunk = m.tokens * prefix.ChunkSize / float64(max(r.Bytes, prefix.Offset(len(r.Chain)), prefix.ChunkSize))
	m.speed = p.meanSpeed()
	if p.has(Mirror) {
		m.others = p.others.perOwn()
	}
	if known := *p.adapters.Load(); len(known) > 0 {
		if key := prefix.Seed(r.Model); known[key] {
			m.adapter = key
		}
	}
	m.foreign = p.uncached.mean(defaultUncached, 1)
	return m
}

// cached is how many tokens of the prompt its leading chunks are. vLLM computes the last token in any case.
func (m *measure) cached(chunks int) float64 {
	return min(float64(prefix.Offset(chunks)/prefix.ChunkSize)*m.perChunk, m.tokens-1)
}

func clampTokens(n int) int { return min(max(n, 0), maxTokens) }

func (p *Pool) bytesPerToken(model string) float64 {
	mean := p.text.mean(defaultBytesPerToken, textPrior)
	if r := (*p.models.Load())[model]; r != nil {
		mean = r.mean(mean, textPrior)
	}
	return min(max(mean, 0.25), 64)
}

// learnText counts a prompt of so many bytes and tokens.
func (p *Pool) learnText(model string, bytes, tokens int) {
	if bytes < minTextBytes || tokens <= 0 {
		return
	}
	p.text.add(float64(bytes), float64(tokens), textHorizon)
	r := (*p.models.Load())[model]
	if r == nil {
		if r = p.addModel(model); r == nil {
			return
		}
	}
	r.add(float64(bytes), float64(tokens), textHorizon)
}

func (p *Pool) addModel(model string) *ratio {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.models.Load()
	if r := old[model]; r != nil || len(old) >= maxModels {
		return r
	}
	next := make(map[string]*ratio, len(old)+1)
	for k, v := range old {
		next[k] = v
	}
	r := new(ratio)
	next[strings.Clone(model)] = r // the name may lie in a request's buffer
	p.models.Store(&next)
	return r
}

// meanSpeed is what a pod's speed is taken to be while it has shown little: seconds a prompt token.
func (p *Pool) meanSpeed() float64 { return p.speed.mean(defaultSpeed, speedPoolPrior) }

// learnAdapters notes which models are adapters.
func (p *Pool) learnAdapters(keys []uint64) {
	known := *p.adapters.Load()
	for _, k := range keys {
		if !known[k] {
			p.mu.Lock()
			defer p.mu.Unlock()
			old := *p.adapters.Load()
			next := maps.Clone(old)
			for _, k := range keys {
				if len(next) < maxAdapters {
					next[k] = true
				}
			}
			p.adapters.Store(&next)
			return
		}
	}
}
