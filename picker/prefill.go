package picker

// Prompts that one endpoint computes for another: which one would, and when that pays.

// DefaultRemotePrefill is a Request.RemotePrefill below which moving a prompt's cache is more trouble than its computing: 512 tokens
// take an H100 13 ms with an 8B model, no more than two hops of the network and of an engine's HTTP server.
const DefaultRemotePrefill = 512

// choosePrefill finds the endpoint that would have computed the prompt soonest, of those that do that for others and are neither ejected nor silent.
// What it does besides does not count: it has few requests to delay, since they leave with their first token. It weighs them behind c, and
// gives c back as it was, perhaps with more room.
func (p *Pool) choosePrefill(c []Candidate, m *measure) []Candidate {
	m.prefill = Candidate{}
	if m.request.RemotePrefill <= 0 {
		return c
	}
	at, set := len(c), *p.prefills.Load()
	m.beginSearch(len(set))
	for _, e := range set {
		if !e.Ejected(m.now) && !e.Silent(m.now) {
			c = m.add(c, e)
		}
	}
	m.weigh(c, at)
	best := &m.prefill
	for i := range c[at:] {
		x := &c[at+i]
		x.Score = x.firstToken() + x.Speed*x.Adapter
		if best.Endpoint == nil || x.Score < best.Score || x.Score == best.Score && x.Endpoint.Rank(m.request.Hash) > best.Endpoint.Rank(m.request.Hash) {
			best = x
		}
	}
	m.prefill = *best
	m.best = 0 // of those that are picked among
	return c[:at]
}

// firstToken is in how many seconds the first token is expected, adapters aside.
func (c *Candidate) firstToken() float64 {
	if c.Remote {
		return c.prefill
	}
	return c.Speed * (c.Queued + c.Uncached)
}

// remoteCosts are the parts of the score of a candidate whose prompt another endpoint computes: the time until that is there, and what its
// decoding costs the requests that the candidate has. These are not delayed by the prompt, and nothing waits in the candidate's own queue.
func (p *Pool) remoteCosts(c *Candidate) Costs {
	costs := Costs{Prompt: c.prefill, Adapter: c.Speed * c.Adapter, Pressure: 1}
	if p.has(Interference) && p.has(DecodeShare) {
		costs.Inflicted = c.Speed * interference * c.InFlight * decodeTokens
	}
	if p.has(KVBarrier) {
		costs.Pressure = 1 / (1 - kvBarrier*c.KV)
	}
	costs.Price = 1 + c.Premium
	costs.FirstToken = costs.Prompt + costs.Adapter
	return costs
}

// remote is that score.
func (p *Pool) remote(c *Candidate) float64 {
	costs := p.remoteCosts(c)
	return (costs.Prompt + costs.Adapter + costs.Inflicted) * costs.Pressure * costs.Price
}

// scoreAs is a candidate's score, by whoever was to compute its prompt.
func (p *Pool) scoreAs(c *Candidate) float64 {
	if c.Remote {
		return p.remote(c)
	}
	return p.score(c)
}

// decidePrefill says whether another endpoint is to compute the candidate's prompt, of which local is the score if none does, and gives the
// score of that. One could: prefill is not 0.
func (p *Pool) decidePrefill(c *Candidate, local float64) float64 {
	remote := p.remote(c)
	if p.has(PrefillWorth) && remote >= local {
		return local
	}
	c.Remote = true
	return remote
}

// Prefill returns the endpoint that computes the prompt for the one that the request goes to; nil: that one does.
func (l *Lease) Prefill() *Endpoint {
	if l.prefill == nil {
		return nil
	}
	return l.prefill.e
}

// promise makes n the number of tokens that the request is expected to generate.
func (l *Lease) promise(n int64) {
	l.e.promised.Add(n - l.output)
	l.output = n
}
