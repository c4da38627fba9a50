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
	// defaultOutput is what a request is taken to generate before any was seen, outputPrior how many requests that counts for, and
	// outputHorizon how many the mean remembers.
	defaultOutput = 200
	outputPrior   = 8
	outputHorizon = 256
	// maxModels bounds what is learned by name; further names share the pool's mean.
	maxModels = 256

	// maxTokens is beyond any prompt; it keeps sums far from overflow.
	maxTokens = 1 << 27
)

// measure is a request in tokens, for the duration of one pick.
type measure struct {
	pool     *Pool
	request  *Request
	now      time.Duration
	tokens   float64   // of the whole prompt, at least 1
	perChunk float64   // tokens in prefix.ChunkSize bytes of the chain
	speed    float64   // the pool's mean
	foreign  float64   // tokens that a request of someone else waits with
	mirrored float64   // how many times what we have sent since a scrape others are taken to have sent
	known    uint64    // the last chunk that is common; 0: none. Only if the endpoint chosen is the prompt's home
	adapter  uint64    // hash of the adapter's name; 0: none
	output   float64   // tokens that it is expected to generate
	again    float64   // tokens to be computed again for each that is computed now
	best     float64   // tokens that are cached where most are
	holder   *Endpoint // where that is; nil: nowhere
	held     int       // in how many chunks

	search *search // into the indexes of many at once; nil: they are few

	prefill Candidate // what would compute the prompt for another; its Score is in how many seconds. No Endpoint: none would
}

// take makes m, which is empty, the measure of a request.
func (m *measure) take(p *Pool, r *Request, now time.Duration) {
	m.pool, m.request, m.now = p, r, now
	m.tokens, m.output = p.size(r)
	m.perChunk = m.tokens * prefix.ChunkSize / float64(max(r.Bytes, prefix.Offset(len(r.Chain)), prefix.ChunkSize))
	m.speed = p.meanSpeed()
	if p.has(Mirror) {
		m.mirrored = p.others.mirrored()
	}
	if known := *p.adapters.Load(); len(known) > 0 {
		if key := prefix.Seed(r.Model); known[key] {
			m.adapter = key
		}
	}
	if p.has(Copies) { // others' picks are not seen, and would not follow
		m.again = min(againWorth*p.repeated.mean(0, againPrior), mostAgain) * max(1-p.others.perOwn(), 0)
	}
	m.foreign = p.uncached.mean(defaultUncached, 1)
}

// repeated is how many tokens the endpoint that is picked computes because there is no room: what it held once, and had to give up (lost), or
// what another holds that no request uses. What requests use elsewhere is in demand, and so will its copy be.
func (m *measure) repeated(c *Candidate, lost int64) float64 {
	n := float64(lost)
	if copied := m.best - c.Hit; copied > n {
		if _, idle := m.holder.index.Age(m.request.Chain[m.held-1], 0); idle {
			n = copied
		}
	}
	return n
}

// cached is how many tokens of the prompt its leading chunks are. vLLM computes the last token in any case.
func (m *measure) cached(chunks int) float64 {
	return min(float64(prefix.Offset(chunks)/prefix.ChunkSize)*m.perChunk, m.tokens-1)
}

func clampTokens(n int) int { return min(max(n, 0), maxTokens) }

// size is how many tokens a request's prompt is taken to have, at least 1, and how many it is expected to generate.
func (p *Pool) size(r *Request) (prompt, output float64) {
	bytesPerToken, output := p.text.mean(defaultBytesPerToken, textPrior), p.output.mean(defaultOutput, outputPrior)
	if l := (*p.models.Load())[r.Model]; l != nil {
		bytesPerToken, output = l.text.mean(bytesPerToken, textPrior), l.output.mean(output, outputPrior)
	}
	prompt = float64(clampTokens(r.Bytes))/min(max(bytesPerToken, 0.25), 64) + float64(clampTokens(r.Tokens))
	output = min(output*float64(max(r.Answers, 1)), maxTokens)
	if r.MaxTokens > 0 {
		output = min(output, float64(r.MaxTokens))
	}
	return min(max(prompt, 1), maxTokens), output
}

// Tokens is what a request is expected to cost: its prompt, and what its answers will take as those of its model have of late, at most
// what it asks for.
func (p *Pool) Tokens(r *Request) float64 {
	prompt, output := p.size(r)
	return prompt + output
}

// learnModel counts what a request of that model turned out to be: a prompt of so many bytes and tokens, so many tokens generated for
// each answer; below 0: nobody said.
func (p *Pool) learnModel(model string, bytes, tokens, generated int) {
	hasText := bytes >= minTextBytes && tokens > 0
	if !hasText && generated < 0 {
		return
	}
	l := (*p.models.Load())[model]
	if l == nil {
		l = p.addModel(model)
	}
	if hasText {
		p.text.add(float64(bytes), float64(tokens), textHorizon)
		if l != nil {
			l.text.add(float64(bytes), float64(tokens), textHorizon)
		}
	}
	if generated >= 0 {
		p.output.add(float64(generated), 1, outputHorizon)
		if l != nil {
			l.output.add(float64(generated), 1, outputHorizon)
		}
	}
}

func (p *Pool) addModel(model string) *learned {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.models.Load()
	if l := old[model]; l != nil || len(old) >= maxModels {
		return l
	}
	next := make(map[string]*learned, len(old)+1)
	for k, v := range old {
		next[k] = v
	}
	l := new(learned)
	next[strings.Clone(model)] = l // the name may lie in a request's buffer
	p.models.Store(&next)
	return l
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
