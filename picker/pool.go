package picker

import (
	"cmp"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

var (
	// ErrNoEndpoints says that the pool is empty.
	ErrNoEndpoints = errors.New("picker: the pool has no endpoints")
	// ErrExcluded says that every endpoint of the pool is on the request's Exclude list: all have been tried.
	ErrExcluded = errors.New("picker: every endpoint of the pool has been tried")
	// ErrNoRoom says that the endpoint of choice has more to do than the request's Room allows.
	ErrNoRoom = errors.New("picker: the endpoint of choice has no room")
	// ErrTooLate says that the first token would come after the request's Until.
	ErrTooLate = errors.New("picker: the first token would come too late")
	// ErrSLO says that no endpoint is predicted to give a request, whose priority is below 0, what its SLO asks for.
	ErrSLO = errors.New("picker: no endpoint is predicted to meet what the request asks for")
)

// Config is fixed for a Pool's life. Its zero value works.
type Config struct {
	// Replicas is how many proxies share the pool's endpoints. 0: it is learned from scrapes, so that it has to be told only where
	// there are none.
	Replicas int
	// Policy chooses among endpoints; nil means the package's own.
	Policy Policy
	// StaleAfter is the age at which a scrape counts no more; 0 means 2 s.
	StaleAfter time.Duration
	// IndexBytes bounds each endpoint's index; 0 means prefix.DefaultMaxBytes.
	IndexBytes int
	// IndexSecret is the prefix.Index.Secret of each endpoint's index. The same one, such as 0, makes picks repeatable.
	IndexSecret uint64
	// Freed is called, from any goroutine, when an endpoint may have become less busy: after a first token, an end, a scrape, a change
	// of the set. nil: nobody waits for that.
	Freed func()
	// Without are terms that the package's own policy leaves out, to measure what each is worth.
	Without Term
}

// A Pool picks among interchangeable endpoints. All methods may be called at any time from any goroutine.
type Pool struct {
	cfg Config

	set      atomic.Pointer[[]*Endpoint] // those that may be picked; never nil, never changed once stored
	prefills atomic.Pointer[[]*Endpoint] // those that compute prompts for others; likewise
	all      atomic.Pointer[[]*Endpoint] // likewise

	census atomic.Pointer[prefix.Census] // which of all may hold a chunk; nil: they are few

	mu sync.Mutex // serialises SetEndpoints, growth of models and what makes another census

	// Learned over all endpoints, the prior for those that have learned nothing yet.
	speed    ratio // seconds a prompt token
	uncached ratio // uncached tokens a request
	learned
	repeated  ratio // tokens computed because there was no room, of all computed
	others    others
	forecasts forecasts

	models   atomic.Pointer[map[string]*learned] // by name; copied to add one
	adapters atomic.Pointer[map[uint64]bool]     // hashes of the models that are adapters; copied to add
}

// learned is what requests have turned out to be, of all models or of one.
type learned struct {
	text   ratio // bytes a token
	output ratio // tokens generated a request
}

// A Role is what an endpoint does of a request.
type Role uint8

const (
	Serve   Role = iota // all of it, unless somebody else computes the prompt
	Both                // likewise, and it computes prompts for others
	Prefill             // it computes prompts for others, and is never picked for a request of its own
)

// String is the word for it, llm-d's.
func (r Role) String() string { return [...]string{"decode", "both", "prefill"}[r] }

// A Spec says which endpoint: its identity is address, UID, engine and role. The endpoint's state (index, leases, speed, ejection)
// survives every SetEndpoints that still contains its identity.
type Spec struct {
	Address string // as the transport wants it
	UID     string // the pod's, if known: a new pod on an old address is another endpoint
	// Engine tells apart the engines of one server, such as vLLM's data-parallel ranks: each is an endpoint, with a cache, a
	// load and a speed of its own. Empty: the server has one.
	Engine string
	Role   Role

	// Owner is the caller's own handle for the endpoint, such as the connections to it; part of the identity, so it must be
	// comparable and stay the same. Endpoint.Owner gives it back.
	Owner any

	// Cost is what a second of the endpoint costs, in relation to others of the pool; 0: 1. It is not part of the identity.
	Cost float64
}

// identity is the spec without what may change while the endpoint stays the same.
func (s Spec) identity() Spec {
	s.Cost = 0
	return s
}

// A Request is what a pick needs to know. Its slices and strings may lie in buffers; they must not change until the
// lease has ended.
type Request struct {
	Chain     []uint64 // of prefix.AppendChain
	Hash      uint64   // the digest of prefix.AppendChain: shares equals among endpoints
	Bytes     int      // of the prompt's text, as prefix.AppendChain counts them
	Tokens    int      // prompt tokens known beyond Bytes: token ids, estimates for media
	Model     string   // whose bytes a token are learned
	MaxTokens int      // completion tokens of all answers at most; 0: not said
	Answers   int      // how many are generated; 0: one
	Stream    bool     // the first token will be seen, and reported to Lease.FirstToken
	// RemotePrefill is from how many uncached tokens on another endpoint may compute the prompt for the one that is picked
	// (llm-d's prefix-based-pd-decider: nonCachedTokens); 0: none ever does.
	RemotePrefill int
	Exclude       []*Endpoint // never picked: already tried

	// Candidates, if not nil, is where a pick leaves its candidates as the policy saw them, in the memory that is there: Pool.Why
	// tells what they decided.
	Candidates *[]Candidate

	Now time.Duration // when it was last known what time it is: when it is asked for, and again after a wait

	// What package queue goes by.
	Priority int           // the higher one first; below 0: refused rather than kept waiting
	Flow     uint64        // whose it is: flows of one priority share what there is for it
	Held     int64         // bytes of memory, while it waits
	Until    time.Duration // when a first token is of no use any more; 0: never
	SLO      SLO           // what it should get; a priority below 0 is refused if no endpoint is predicted to give it
	Waited   bool          // it has had its turn, or needs none; the queue sets it
	Room     Room          // the queue sets it: how busy the endpoint may be
}

// A Room is how busy an endpoint may be for a request to be sent there now, rather than to wait. The zero value: as busy as it likes.
// An endpoint that has no request has room for any.
type Room struct {
	Queued   float64 // uncached tokens whose first token has not come, at most; 0: any number
	KV       float64 // 0..1 of the KV cache in use or promised, with what the request will take, at most; 0: all of it
	Anywhere bool    // it is enough if an endpoint has room, whether or not it is the one of choice
}

// admits says whether the request may be sent to the endpoint chosen among c: nil, or ErrSLO, ErrNoRoom or ErrTooLate.
func (m *measure) admits(c []Candidate, chosen *Candidate) error {
	r := m.request
	if r.SLO != (SLO{}) && r.Priority < 0 && len(r.Exclude) == 0 && !anyMeets(c) {
		return ErrSLO
	}
	if r.Room != (Room{}) && !m.hasRoom(chosen) {
		if !r.Room.Anywhere {
			return ErrNoRoom
		}
		i := 0
		for i < len(c) && !m.hasRoom(&c[i]) {
			i++
		}
		if i == len(c) {
			return ErrNoRoom
		}
	}
	if r.Until > 0 && m.now+seconds(chosen.firstToken()) > r.Until {
		return ErrTooLate
	}
	return nil
}

func anyMeets(c []Candidate) bool {
	for i := range c {
		if c[i].Meets {
			return true
		}
	}
	return false
}

func (m *measure) hasRoom(c *Candidate) bool {
	room := &m.request.Room
	return c.InFlight < 1 ||
		(room.Queued == 0 || c.Queued <= room.Queued) && (room.KV == 0 || c.full(m) <= room.KV)
}

// NewPool returns a pool without endpoints.
func NewPool(cfg Config) *Pool {
	if cfg.StaleAfter <= 0 {
		cfg.StaleAfter = 2 * time.Second
	}
	p := &Pool{cfg: cfg}
	p.others.told = cfg.Replicas
	if cfg.Policy == nil {
		p.cfg.Policy = fairway{p}
	}
	for _, set := range []*atomic.Pointer[[]*Endpoint]{&p.set, &p.prefills, &p.all} {
		set.Store(&[]*Endpoint{})
	}
	p.models.Store(&map[string]*learned{})
	p.adapters.Store(&map[uint64]bool{})
	return p
}

// SetEndpoints replaces the set of endpoints as a whole. A spec that occurs twice counts once. Leases on endpoints that
// have gone end as usual.
func (p *Pool) SetEndpoints(specs []Spec) {
	defer p.freed()
	p.mu.Lock()
	defer p.mu.Unlock()
	known := make(map[Spec]*Endpoint, len(specs))
	for _, e := range *p.all.Load() {
		known[e.spec] = e
	}
	all, next, prefills := make([]*Endpoint, 0, len(specs)), make([]*Endpoint, 0, len(specs)), []*Endpoint{}
	taken := make(map[Spec]bool, len(specs))
	for _, s := range specs {
		id := s.identity()
		if taken[id] {
			continue
		}
		taken[id] = true
		e := known[id]
		if e == nil {
			e = newEndpoint(p, id)
		}
		e.setCost(cmp.Or(s.Cost, 1))
		all = append(all, e)
		if s.Role != Prefill {
			next = append(next, e)
		}
		if s.Role != Serve {
			prefills = append(prefills, e)
		}
	}
	for _, e := range *p.all.Load() {
		if !taken[e.spec] {
			e.index.Join(nil)
		}
	}
	p.all.Store(&all)
	p.prefills.Store(&prefills)
	p.set.Store(&next)
	p.count()
}

// minCensus is how many endpoints a pool has at least that takes a census: of fewer, looking into one index after the other costs less
// than having the census know of every chunk that comes and goes.
const minCensus = 32

// count has all endpoints take part in a census that suits them. The caller holds mu.
func (p *Pool) count() {
	all, bytes := *p.all.Load(), 0
	for _, e := range all {
		bytes += e.index.Size()
	}
	c := p.census.Load()
	switch {
	case len(all) < minCensus:
		c = nil
	case c == nil || !c.Suits(len(all), bytes/len(all)):
		c = prefix.NewCensus(len(all), bytes/len(all), p.cfg.IndexSecret)
	}
	for _, e := range all {
		e.index.Join(c)
	}
	p.census.Store(c)
}

// freed tells whoever waits that an endpoint may have become less busy. No lock may be held.
func (p *Pool) freed() {
	if p.cfg.Freed != nil {
		p.cfg.Freed()
	}
}

// Endpoints returns those of the current set that requests may go to, in the order it was given. It must not be changed.
func (p *Pool) Endpoints() []*Endpoint { return *p.set.Load() }

// All returns the whole current set, those that only compute prompts for others included. It must not be changed.
func (p *Pool) All() []*Endpoint { return *p.all.Load() }

// scratch is what a pick needs for its duration.
type scratch struct {
	c []Candidate
	m measure
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// Pick chooses an endpoint and reserves it in the same step, and if that pays another one that computes the prompt for it. Endpoints that
// are silent are used only when all are, those that are ejected only when there is no other, the one ejected longest ago first. The error
// is ErrNoEndpoints, ErrExcluded, ErrSLO, ErrNoRoom or ErrTooLate.
//
// now is monotonic time since an origin of the caller's choice, the same in every call.
func (p *Pool) Pick(r *Request, now time.Duration) (l Lease, err error) {
	s := scratches.Get().(*scratch)
	s.m.take(p, r, now)
	into := r.Candidates
	if into == nil {
		into = &s.c
	}
	c := (*into)[:0]
	l, c, err = p.pick(c, &s.m)
	*into = c
	clear(s.c)
	s.m = measure{}
	scratches.Put(s)
	return l, err
}

// Reserve takes a lease on an endpoint that somebody else has chosen.
func (p *Pool) Reserve(e *Endpoint, r *Request, now time.Duration) (l Lease) {
	var m measure
	m.take(p, r, now)
	c := [...]Candidate{{Endpoint: e}}
	e.burden(&c[0], &m)
	m.weigh(c[:], 0)
	if r.Candidates != nil {
		*r.Candidates = append((*r.Candidates)[:0], c[0])
	}
	e.reserve(&l, &c[0], &m, true)
	return l
}

// Explain appends to dst the candidates for a request as the policy sees them now, and reserves nothing.
func (p *Pool) Explain(dst []Candidate, r *Request, now time.Duration) []Candidate {
	at := len(dst)
	var m measure
	m.take(p, r, now)
	dst, err := p.candidates(dst, &m)
	if err == nil {
		p.cfg.Policy.Choose(dst[at:], r)
	}
	return dst
}

// attempts bounds how often a pick that lost a race is made again.
const attempts = 4

// pick gathers candidates into memory that is there, chooses and reserves. If the chosen endpoint's queue has changed since
// it was looked at, another pick may have chosen it at the same instant: the choice is made again, so that simultaneous
// picks see each other. After a few attempts it is taken as it is.
func (p *Pool) pick(into []Candidate, m *measure) (l Lease, c []Candidate, err error) {
	c = into
	for attempt := 1; ; attempt++ {
		if c, err = p.candidates(c[:0], m); err != nil {
			return
		}
		chosen := &c[p.cfg.Policy.Choose(c, m.request)]
		if err = m.admits(c, chosen); err != nil {
			return
		}
		if chosen.Home {
			_, common := depths(c)
			m.known = frontier(m.request.Chain, common)
		}
		if chosen.Endpoint.reserve(&l, chosen, m, attempt == attempts) {
			return
		}
	}
}

// candidates appends every endpoint that may be picked, with its terms. If all are silent, more likely than not it is we who hear
// nothing, and none is passed over for it.
func (p *Pool) candidates(c []Candidate, m *measure) ([]Candidate, error) {
	set := *p.set.Load()
	if len(set) == 0 {
		return c, ErrNoEndpoints
	}
	var refuge *Endpoint // ejected longest ago
	silent := false
	c = p.choosePrefill(c, m)
	m.beginSearch(len(set))
	at := len(c)
	for _, e := range set {
		if excluded(m.request.Exclude, e) {
			continue
		}
		if e.Ejected(m.now) {
			if refuge == nil || e.ejectedAt.Load() < refuge.ejectedAt.Load() {
				refuge = e
			}
			continue
		}
		if e.Silent(m.now) {
			silent = true
			continue
		}
		c = m.add(c, e)
	}
	if len(c) == at && silent {
		for _, e := range set {
			if !excluded(m.request.Exclude, e) && !e.Ejected(m.now) {
				c = m.add(c, e)
			}
		}
		if len(c) == at {
			m.endSearch()
			return p.candidates(c, m) // somebody has ejected them in this very moment
		}
	}
	if len(c) == at {
		if refuge == nil {
			m.endSearch()
			return c, ErrExcluded
		}
		c = m.add(c, refuge)
	}
	m.weigh(c, at)
	return c, nil
}

func excluded(list []*Endpoint, e *Endpoint) bool {
	for _, x := range list {
		if x == e {
			return true
		}
	}
	return false
}
