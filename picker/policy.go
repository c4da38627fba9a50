package picker

import (
	"math"
	"sync/atomic"
)

// A Candidate is an endpoint as one request sees it: the terms of its score.
type Candidate struct {
	// Two cache lines of what every score is made of come first: pools may have a thousand candidates.

	Endpoint *Endpoint
	Depth    int     // leading chunks of the prompt alive in its cache
	Hit      float64 // tokens of the prompt that it need not compute
	Uncached float64 // tokens of the prompt that it has to compute, at least 1
	Queued   float64 // Q: uncached tokens sent to it whose first token has not come
	InFlight float64 // n: requests on it, others' included
	Adapter  float64 // what bringing its LoRA adapter to the GPU costs, in prompt tokens
	Again    float64 // tokens that will have to be computed again because what is computed here takes their place
	KV       float64 // 0..1 of its KV cache in use
	Speed    float64 // seconds a prompt token
	Forgiven float64 // tokens of Uncached that do not count, because it is the home
	Premium  float64 // by how much its score is higher for Cost, as a share; 0 where the request has an SLO, since its price decides then
	Score    float64 // what the policy made of it; the lowest wins
	prefill  float64 // seconds until another endpoint would have computed its prompt; 0: none would
	window   int64   // tokens that the pod can allocate before it drops what was freed last
	Remote   bool    // another endpoint is to compute its prompt
	Home     bool    // where the replicas agree to send this prompt while nobody has it
	Meets    bool    // it is predicted to give a request with an SLO what that asks for
	out      bool    // not in the running, whatever its score

	Cost     float64 // what a second of it costs
	seen     int64   // our own part of Queued, as read
	left     float64 // of Queued, what has not been computed yet
	capacity float64 // tokens of its KV cache
	taken    int64   // tokens of it that are in use by what we have in flight, or promised to that

	// Of a request with an SLO.
	FirstToken float64 // seconds until its first token, as predicted
	PerToken   float64 // seconds that each further token takes, as predicted
}

// full is how full the KV cache would be with the request, 0 to 1 or more: what is in use, or promised to what is in flight, and what it takes.
func (c *Candidate) full(m *measure) float64 {
	return max(c.KV, float64(c.taken)/c.capacity) + (c.Uncached+m.output)/c.capacity
}

// A Policy chooses among candidates. It is called by many goroutines at once, with at least one candidate, in the order of
// the endpoints; it may write Home, Forgiven and Score, must return a valid index, and keeps neither argument.
type Policy interface {
	Choose(c []Candidate, r *Request) int
}

const (
	// interference is the share of this request's delay that counts for each request already there. It works from 0.03 to
	// 0.3; at 0 pods melt.
	interference = 0.1
	// decodeTokens is what a request costs its neighbours beyond its prompt, in prompt tokens: its decoding. 1,000
	// loses long contexts, 16,000 shared prefixes.
	decodeTokens = 2000
	// kvBarrier makes a pod dearer as its KV cache fills: five times when full.
	kvBarrier = 0.8
	// tieBand: scores are equal that differ from the lowest by at most so much of the prompt's own part of it, because speeds and
	// token counts are not known better. Without it an idle pool would send every cold prompt to the pod that happened to measure
	// fastest. A share of the whole score would be more than a queue is long on a pod with many requests.
	tieBand = 0.1

	// Where caches have no room for copies, every copy pushes out what is needed, until all pods compute everything. They have room where
	// pods do not compute much that they held once, or that another holds unused: each token to be computed counts for againWorth times
	// the share of such tokens, but for no more than mostAgain more.
	againWorth = 200
	mostAgain  = 16
	// againPrior and againHorizon: how many tokens computed the prior (none of them such) counts for, and how many the
	// memory holds.
	againPrior   = 1 << 20
	againHorizon = 1 << 20

	// invested is the share that counts in a request's price of what it has to compute because another endpoint has it cached: those
	// who come after it find it. If all of it did, whoever is dear and has a prefix once would keep it.
	invested = 0.3
	// priceBand: prices are equal that differ from the lowest by at most that share.
	priceBand = 0.1
)

// A Term is a part of the score, or of what feeds it.
type Term uint16

// The terms, each of which docs/routing.md shows the worth of.
const (
	Interference  Term = 1 << iota // the delay inflicted on the requests already there
	DecodeShare                    // what a request costs its neighbours beyond its prompt
	KVBarrier                      // a pod is dearer as its KV cache fills
	EvictionClock                  // what the index holds ages as the pod computes
	LearnedSpeed                   // pods of a pool differ in speed
	AdapterCost                    // what bringing a LoRA adapter to the GPU costs
	NearTies                       // the prompt's hash decides among scores that hardly differ
	Homes                          // replicas agree on where prompts go that they have not seen
	Mirror                         // what other replicas have sent since the last scrape is like what we have
	Copies                         // where caches have no room for copies, what is not cached is dearer
	HomeSpread                     // endpoints whose KV caches have been in use get fewer homes
	PrefillWorth                   // a prompt is computed elsewhere only if that is worth it, not whenever it is long enough
)

func (p *Pool) has(t Term) bool { return p.cfg.Without&t == 0 }

// fairway is the default policy: see the package comment.
type fairway struct{ pool *Pool }

// Choose returns the candidate with the lowest score.
func (f fairway) Choose(c []Candidate, r *Request) int {
	deepest, common := depths(c)
	if f.pool.has(Homes) {
		f.pool.others.forgive(c, r, deepest, common)
	}
	if r.SLO != (SLO{}) {
		narrow(c)
	}
	lowest, least := -1, 0.0
	s := f.pool.scale()
	for i := range c {
		x := &c[i]
		x.Score = s.score(x)
		if x.prefill != 0 {
			x.Score = f.pool.decidePrefill(x, x.Score)
		}
		if !x.out && (lowest < 0 || x.Score < least) {
			lowest, least = i, x.Score
		}
	}
	limit := f.pool.tieLimit(&c[lowest])
	depth := c[lowest].Depth // a cold pod never ties with a warm one: the prompt would be computed and kept twice
	return rendezvous(c, nextChunk(r, deepest), limit, depth)
}

// depths returns how many leading chunks of the prompt are cached where most are, and how many are common: cached at as many endpoints as
// copyPlaces, or at all where there are fewer.
func depths(c []Candidate) (deepest, common int) {
	var most [copyPlaces]int // the highest first
	for i := range c {
		d := c[i].Depth
		for k := range most {
			if d > most[k] {
				d, most[k] = most[k], d
			}
		}
	}
	return most[0], most[min(len(c), copyPlaces)-1]
}

// nextChunk is what tells a prompt from others that have so many leading chunks in common with it: those that share the next one share the key.
func nextChunk(r *Request, depth int) uint64 {
	if depth < len(r.Chain) {
		return r.Chain[depth]
	}
	return r.Hash
}

// narrow leaves in the running the endpoints that are predicted to meet the SLO, and where they differ in cost the cheapest of these for
// the request; all, if none meets it.
func narrow(c []Candidate) {
	cheapest, priced, least := math.Inf(1), false, c[0].Uncached
	for i := range c {
		priced = priced || c[i].Cost != c[0].Cost
		least = min(least, c[i].Uncached)
	}
	for i := range c {
		if c[i].Meets {
			cheapest = min(cheapest, c[i].price(least))
		}
	}
	if math.IsInf(cheapest, 1) {
		return
	}
	for i := range c {
		c[i].out = !c[i].Meets || priced && c[i].price(least) > cheapest*(1+priceBand)
	}
}

// price is what the request costs at the endpoint: what a second there costs, times how long it computes the prompt and decodes the answer,
// all of it dearer as its KV cache fills, since that pushes out what others would find. least is how many tokens of the prompt have to be computed where most are cached.
func (c *Candidate) price(least float64) float64 {
	return c.Cost * c.Speed * (least + invested*(c.Uncached-least) + c.Adapter + decodeTokens) / (1 - kvBarrier*c.KV)
}

// frontier is the last of depth leading chunks of a chain; 0: there is none.
func frontier(chain []uint64, depth int) uint64 {
	if depth == 0 {
		return 0
	}
	return chain[depth-1]
}

// tieLimit is the score up to which others are as good as the candidate with the lowest.
func (p *Pool) tieLimit(lowest *Candidate) float64 {
	if !p.has(NearTies) {
		return lowest.Score
	}
	return lowest.Score + tieBand*lowest.Speed*lowest.Uncached*(1+lowest.Premium)
}

// A scale is what scores are made with: interference, decodeTokens and kvBarrier, each 0 where it is left out.
type scale struct{ interference, decode, barrier float64 }

func (p *Pool) scale() (s scale) {
	if p.has(DecodeShare) {
		s.decode = decodeTokens
	}
	if p.has(Interference) {
		s.interference = interference
	}
	if p.has(KVBarrier) {
		s.barrier = kvBarrier
	}
	return s
}

func (s scale) score(c *Candidate) float64 {
	work := c.Uncached - c.Forgiven + c.Adapter
	cost := c.Queued + work + c.Again + s.interference*c.InFlight*(work+s.decode)
	return c.Speed * (cost / (1 - s.barrier*c.KV)) * (1 + c.Premium)
}

func (p *Pool) score(c *Candidate) float64 { return p.scale().score(c) }

// anyDepth is a depth that stands for all.
const anyDepth = -1

// rendezvous returns the candidate that ranks highest for key among those in the running whose score is no higher than limit, and that hold so
// many chunks. Everyone who sees the same endpoints finds the same one, and an endpoint that comes or goes moves only its own keys.
func rendezvous(c []Candidate, key uint64, limit float64, depth int) int {
	best, rank := 0, uint64(0)
	for i := range c {
		if c[i].Score <= limit && !c[i].out && (depth == anyDepth || c[i].Depth == depth) {
			if r := c[i].Endpoint.Rank(key); r >= rank {
				best, rank = i, r
			}
		}
	}
	return best
}

// RoundRobin takes the endpoints in turn.
type RoundRobin struct{ turn atomic.Uint64 }

// Choose returns the next candidate.
func (p *RoundRobin) Choose(c []Candidate, _ *Request) int {
	return int((p.turn.Add(1) - 1) % uint64(len(c)))
}

// LeastRequest takes the endpoint with the fewest requests in flight.
type LeastRequest struct{}

// Choose returns the candidate with the fewest requests; equals share by the prompt's hash.
func (LeastRequest) Choose(c []Candidate, r *Request) int {
	fewest := c[0].InFlight
	for i := range c {
		c[i].Score, c[i].out = c[i].InFlight, false
		fewest = min(fewest, c[i].InFlight)
	}
	return rendezvous(c, r.Hash, fewest, anyDepth)
}
