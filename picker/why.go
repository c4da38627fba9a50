package picker

// A Factor is what a pick turned on: of all in which the chosen endpoint and the next best differ, what would have helped that one most.
type Factor uint8

const (
	Nothing   Factor = iota // there was no other endpoint to choose
	Cache                   // what of the prompt is cached
	Queue                   // the tokens queued before it
	Requests                // the requests that it would have delayed
	KV                      // how full the KV cache is
	Speed                   // the learned speed
	Adapter                 // where the LoRA adapter is
	HomePod                 // where the replicas agree to send a prompt that nobody has
	Price                   // what its time costs
	Objective               // which is predicted to meet the request's SLO
	Hash                    // nothing of these: scores are as good as equal, and the prompt's hash decides
	ByPolicy                // a policy other than the package's own, which gives no scores to compare
	numFactors
)

var factorNames = [numFactors]string{"nothing", "cache", "queue", "requests", "kv", "speed", "adapter", "home", "cost", "slo", "hash", "policy"}

// String is the word for it in metrics and receipts.
func (f Factor) String() string {
	if f < numFactors {
		return factorNames[f]
	}
	return "unknown"
}

// Costs are the parts of a candidate's score, in seconds: their sum times Pressure times Price is the score of the package's own policy.
type Costs struct {
	Queue      float64 // computing what is queued before the prompt
	Prompt     float64 // computing what of the prompt is not cached; another endpoint's queue and work if that computes it
	Adapter    float64 // bringing the LoRA adapter to the GPU
	Inflicted  float64 // the delay of others, as far as it counts: of the requests already there, and of those whose cached prompts this one pushes out
	Pressure   float64 // by how much all of it is dearer because the KV cache is filling: 1 when it is empty
	Price      float64 // and because of what the endpoint costs, where that counts: 1 if it does not
	FirstToken float64 // Queue, Prompt and Adapter: when the first token is expected
}

// Costs gives the parts of a candidate's score.
func (p *Pool) Costs(c *Candidate) Costs {
	if c.Remote {
		return p.remoteCosts(c)
	}
	prompt, pressure, inflicted := c.Uncached-c.Forgiven, 1.0, c.Again
	if p.has(Interference) {
		work := prompt + c.Adapter
		if p.has(DecodeShare) {
			work += decodeTokens
		}
		inflicted += interference * c.InFlight * work
	}
	if p.has(KVBarrier) {
		pressure = 1 / (1 - kvBarrier*c.KV)
	}
	return Costs{
		Queue: c.Speed * c.Queued, Prompt: c.Speed * prompt, Adapter: c.Speed * c.Adapter, Inflicted: c.Speed * inflicted,
		Pressure: pressure, Price: 1 + c.Premium, FirstToken: c.Speed * (c.Queued + c.Uncached + c.Adapter),
	}
}

// Why tells what a pick turned on, by the candidates that it left and the endpoint that it chose: where in c that one is, the next
// best (−1 if it was the only one), and what decided between them.
func (p *Pool) Why(c []Candidate, picked *Endpoint) (chosen, next int, f Factor) {
	chosen, next = -1, -1
	for i := range c {
		switch {
		case c[i].Endpoint == picked:
			chosen = i
		case next < 0 || c[i].Score < c[next].Score:
			next = i
		}
	}
	if chosen < 0 || next < 0 {
		return chosen, next, Nothing
	}
	if _, own := p.cfg.Policy.(fairway); !own {
		return chosen, next, ByPolicy
	}
	return chosen, next, p.factor(&c[chosen], &c[next])
}

// factor is what decided for a and against b.
func (p *Pool) factor(a, b *Candidate) Factor {
	if b.out && b.Score < a.Score {
		if b.Meets {
			return Price
		}
		return Objective
	}
	lowest := a
	if b.Score < a.Score {
		lowest = b
	}
	if limit := p.tieLimit(lowest); a.Depth == b.Depth && a.Score <= limit && b.Score <= limit {
		return Hash
	}
	best, most := Hash, 0.0
	consider := func(f Factor, gain float64) {
		if gain > most {
			best, most = f, gain
		}
	}
	alike := func(f Factor, differ bool, change func(*Candidate)) {
		if differ { // as they do in little, as a rule
			c := *b
			change(&c)
			consider(f, b.Score-p.scoreAs(&c))
		}
	}
	alike(Cache, a.Uncached != b.Uncached || a.Again != b.Again, func(c *Candidate) { c.Uncached, c.Again = a.Uncached, a.Again })
	alike(Queue, a.Queued != b.Queued, func(c *Candidate) { c.Queued = a.Queued })
	alike(Requests, a.InFlight != b.InFlight, func(c *Candidate) { c.InFlight = a.InFlight })
	alike(KV, a.KV != b.KV, func(c *Candidate) { c.KV = a.KV })
	alike(Speed, a.Speed != b.Speed, func(c *Candidate) { c.Speed = a.Speed })
	alike(Adapter, a.Adapter != b.Adapter, func(c *Candidate) { c.Adapter = a.Adapter })
	alike(Price, a.Premium != b.Premium, func(c *Candidate) { c.Premium = a.Premium })
	if a.Home {
		c := *a
		c.Forgiven = 0
		consider(HomePod, p.scoreAs(&c)-a.Score)
	}
	return best
}
