// Package sim is a laboratory for routing policies in virtual time.
//
// A run plays a workload (bench/workload) against a fleet of engines (bench/engine) through a policy, event by event: a client sends
// a request when it is due, a replica of the router picks a pod, the request reaches the pod a little later, the engine's steps
// produce its tokens. The policy called fairway is the package picker itself, as it ships. The others are written here from what
// their authors publish of them; they are our readings, not their code.
//
// A router knows what a real one knows: its own requests and what came of them, gauges as old as its last scrape, and the prompt's
// bytes, from which it can tell the tokens to ±10 %. Replicas share nothing. Only the oracle sees the engines.
//
// A run is a pure function of its Config: the same one gives the same result, whatever the machine and its load. It belongs to one
// goroutine; several runs may go on at once.
package sim

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/picker"
)

// dispatchDelay is from a router's pick to the engine's queue: the network, and the engine's HTTP server.
const dispatchDelay = 10 * time.Millisecond

// defaultTransfer is what moving a token's KV to another engine takes: 131,072 bytes (an 8B Llama in bfloat16) at 200 Gbit/s.
const defaultTransfer = 5243 * time.Nanosecond

// Config says what to simulate. Workload, Policy, Fleet and Measure are required.
type Config struct {
	Workload *workload.Workload
	Policy   string          // one of Policies
	Fleet    []engine.Config // the pods at the beginning
	Replicas int             // of the router; each request goes to any of them. 0: 1
	Warmup   time.Duration   // requests due before then are played and not measured
	Measure  time.Duration   // how long requests are measured; those under way then are played to their end
	Seed     uint64          // of what policies and clients draw by lot

	Scrape        time.Duration // between scrapes of a pod; 0: as the policy's authors do; < 0: no metrics at all
	NonStreaming  bool          // answers come whole: a router does not see first tokens
	NoCacheReport bool          // engines do not report cached tokens in their answers
	Churn         time.Duration // so often a pod leaves and, half of that later, a new one joins; 0: never

	// Prefill is how many pods, the last of Fleet, compute prompts for the others and nothing else. A request goes to one of the others,
	// which may have one of these compute its prompt: its engine's API server is asked, and the KV sent from engine to engine.
	// Only the policy fairway does that.
	Prefill       int
	RemotePrefill int           // from how many uncached tokens on; as picker.Request has it
	Transfer      time.Duration // of a token's KV; 0: at 200 Gbit/s

	Without picker.Term // what Fairway leaves out
	NoQueue bool        // Fairway sends every request at once

	SLO   SLO       // what requests should get
	Asked bool      // Fairway is told of the SLO
	Costs []float64 // what a second of each pod costs, in turn; nil: each costs 1
	Share float64   // of what a pod computes because another has it cached, what counts for the cheapest oracle's prices
	Slack float64   // by how many times the cheapest oracle may exceed the SLO by its own reckoning; 0: 1

	// Before is what the steps of the Fleet's engines take until Change: what was learned of them is wrong then. nil: as they are.
	Before []engine.Cost
	Change time.Duration

	tolerated int // first tokens that may come later than sustainedTTFT before the run is given up; 0: any number
}

// errUnsustained says that a run was given up: more requests than tolerated were late.
var errUnsustained = errors.New("sim: the fleet does not keep up")

// A Record is one measured request.
type Record struct {
	Criticality  string        // of the request; "": Standard
	TTFT         time.Duration // from when it was due to its first token
	TPOT         time.Duration // mean time of each token after the first; 0 if there is none
	E2E          time.Duration // from when it was due to its last token
	Gap          time.Duration // the longest between two of its tokens
	Remote       bool          // another pod computed its prompt
	PromptTokens int
	CachedTokens int // where the prompt was computed
	OutputTokens int
	AdapterLoads int // for it

	Cost      float64       // by how many seconds it made its engine's steps longer, times what a second there costs
	Took      time.Duration // from the pick to the first token; 0: it did not stream, or the policy is not of package picker
	Predicted time.Duration // as that predicted it
	Each      time.Duration // what it predicted for each token after the first; 0: nothing
	Pod       int           // index in the order in which pods came
}

// Result is what a run has measured.
type Result struct {
	Records  []Record
	Refused  int           // requests that no engine of the fleet could ever hold
	Refusals []string      // the criticality of each request that the router refused
	Start    time.Duration // when the first of the records may have been due
	Window   time.Duration // in which the records were due
	End      time.Duration // when the last request ended
	Engines  []engine.Stats
	Speeds   []float64 // what a policy of package picker had learned of the pods in service by the end of the window, in seconds a prompt token

	givenUp bool
}

// pod is one engine and what surrounds it.
type pod struct {
	engine   *engine.Engine
	stepping bool
	prefill  bool // it computes prompts for others
	started  time.Duration
	free     time.Duration // when its present step ends
	queued   int           // true uncached tokens on their way to it or in it, whose first token has not come; see simulation.truth
	requests int           // on their way to it or in it
}

type simulation struct {
	cfg      Config
	ctx      context.Context
	now      time.Duration
	agenda   agenda
	rng      *rand.Rand
	pods     []*pod
	live     []int // indices of pods in service
	routers  []router
	sessions func() (workload.Session, bool)
	coming   workload.Session // begins next
	under    int              // requests under way
	longest  int              // tokens that every engine can hold
	late     int              // measured requests whose first token came later than sustainedTTFT
	truth    bool             // a policy looks at it: pods' queued is kept
	result   Result

	// Reused between requests.
	segments []workload.Segment
	blocks   []uint64
}

// Run simulates. It fails if the Config makes no sense; if ctx ends first, its error is ctx's and there is no result.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	make, err := policyNamed(cfg.Policy)
	switch {
	case err != nil:
		return nil, err
	case cfg.Workload == nil:
		return nil, errors.New("sim: Config.Workload is missing")
	case len(cfg.Fleet) == 0 || len(cfg.Fleet) > maxPods:
		return nil, fmt.Errorf("sim: a fleet of %d pods: it must have 1 to %d", len(cfg.Fleet), maxPods)
	case cfg.Measure <= 0:
		return nil, errors.New("sim: Config.Measure is not above zero: nothing would be measured")
	case cfg.Prefill < 0 || cfg.Prefill >= len(cfg.Fleet) || cfg.Prefill > 0 && cfg.Policy != "fairway":
		return nil, errors.New("sim: Config.Prefill leaves no pod to send requests to, or the policy knows no such pods")
	}
	if cfg.Transfer == 0 {
		cfg.Transfer = defaultTransfer
	}
	cfg.Replicas = max(cfg.Replicas, 1)
	s := &simulation{cfg: cfg, ctx: ctx, rng: rand.New(rand.NewPCG(cfg.Seed, 0x51AB))}
	next, stop := iter.Pull(cfg.Workload.Sessions())
	defer stop()
	s.sessions = next
	for i := range cfg.Replicas {
		s.routers = append(s.routers, make.new(s, rand.New(rand.NewPCG(cfg.Seed, uint64(i+1)))))
	}
	interval := make.scrape
	if cfg.Scrape != 0 {
		interval = max(cfg.Scrape, 0)
	}
	s.cfg.Scrape = interval
	for _, e := range cfg.Fleet {
		s.join(e)
	}
	for i, c := range cfg.Before {
		s.pods[i].engine.SetCost(c)
	}
	if len(cfg.Before) > 0 {
		s.agenda.add(event{at: cfg.Change, kind: costsChange})
	}
	if cfg.Churn > 0 {
		s.agenda.add(event{at: cfg.Churn, kind: podLeaves})
	}
	s.nextSession()
	if err := s.loop(); err != nil {
		return nil, err
	}
	s.result.Start, s.result.Window, s.result.End = cfg.Warmup, cfg.Measure, s.now
	for _, p := range s.pods {
		s.result.Engines = append(s.result.Engines, p.engine.Stats())
	}
	return &s.result, nil
}

// end is when the last request may be due.
func (s *simulation) end() time.Duration { return s.cfg.Warmup + s.cfg.Measure }

// loop plays events until the time is over and every request has ended.
func (s *simulation) loop() error {
	for n := 0; len(s.agenda.events) > 0; n++ {
		if n&0xFFF == 0 && s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		e := s.agenda.next()
		if e.at >= s.end() {
			s.noteSpeeds()
			if s.under == 0 {
				return nil
			}
		}
		s.now = e.at
		switch e.kind {
		case sessionBegins:
			conv := s.coming
			s.due(s.newRequest(&conv, conv.Resume, s.now))
			s.nextSession()
		case requestDue:
			s.due(e.request)
		case requestArrives:
			s.arrive(int(e.request.pod), &e.request.seq)
		case promptArrives:
			s.arrive(int(e.request.prefillPod), &e.request.prompt)
		case stepEnds:
			s.commit(int(e.pod))
			if s.cfg.tolerated > 0 && s.late > s.cfg.tolerated {
				return errUnsustained
			}
		case scrapeDue:
			s.scrape(e)
		case queueDue:
			s.routers[e.replica].(*shipped).freed()
		case costsChange:
			for i, e := range s.cfg.Fleet {
				s.pods[i].engine.SetCost(e.Cost)
			}
		case podLeaves:
			s.leave()
		case podJoins:
			s.join(s.cfg.Fleet[len(s.pods)%len(s.cfg.Fleet)])
			s.agenda.add(event{at: s.now + s.cfg.Churn - s.cfg.Churn/2, kind: podLeaves})
		}
	}
	return nil
}

// noteSpeeds keeps, once, what was learned of the pods.
func (s *simulation) noteSpeeds() {
	f, ok := s.routers[0].(*shipped)
	if !ok || s.result.Speeds != nil {
		return
	}
	for _, e := range f.pool.Endpoints() {
		s.result.Speeds = append(s.result.Speeds, e.Load(s.now).Speed)
	}
}

// nextSession enters the next conversation, if it begins in time.
func (s *simulation) nextSession() {
	var ok bool
	if s.coming, ok = s.sessions(); ok && s.coming.Start < s.end() {
		s.agenda.add(event{at: s.coming.Start, kind: sessionBegins})
	}
}

// due picks a pod for a request that a client sends now.
func (s *simulation) due(r *request) {
	r.measured = s.now >= s.cfg.Warmup && s.now < s.end()
	if r.seq.PromptTokens+r.seq.OutputTokens > s.longest {
		if r.measured {
			s.result.Refused++
		}
		return // as vLLM answers 400; the conversation ends
	}
	if s.cfg.Replicas > 1 {
		r.replica = int32(s.rng.IntN(s.cfg.Replicas))
	}
	s.under++
	s.send(r, s.routers[r.replica].pick(r, s.now))
}

// send sends a request on its way to the pod, or to where else the router said.
func (s *simulation) send(r *request, pod int) {
	switch pod {
	case waits:
		return
	case refused:
		s.under--
		if r.measured {
			s.result.Refusals = append(s.result.Refusals, r.criticality)
		}
		return // the conversation ends
	}
	r.pod = int32(pod)
	p := s.pods[r.pod]
	p.requests++
	if s.truth {
		r.uncached = max(1, r.seq.PromptTokens-p.engine.CachedPrefix(&r.seq))
		p.queued += r.uncached
	}
	kind := requestArrives
	if r.prefillPod >= 0 {
		kind = promptArrives
	}
	s.agenda.add(event{at: s.now + dispatchDelay, kind: kind, request: r})
}

// arrive hands a request, or the computing of its prompt, to an engine.
func (s *simulation) arrive(pod int, seq *engine.Sequence) {
	p := s.pods[pod]
	if err := p.engine.Submit(seq, s.now); err != nil {
		panic(fmt.Sprintf("sim: %v", err)) // it has a length that fits, and is submitted once
	}
	if !p.stepping {
		s.plan(pod)
	}
}

// transfer sends the KV of a prompt that has been computed elsewhere to the pod that waits for it: of what that has not got.
func (s *simulation) transfer(r *request) {
	r.seq.Transferred = r.seq.PromptTokens
	missing := r.seq.PromptTokens - s.pods[r.pod].engine.CachedPrefix(&r.seq)
	s.agenda.add(event{at: s.now + time.Duration(missing)*s.cfg.Transfer + dispatchDelay, kind: requestArrives, request: r})
}

// plan starts a pod's next step, if it has anything to do.
func (s *simulation) plan(pod int) {
	p := s.pods[pod]
	took, ok := p.engine.Plan(s.now)
	p.stepping = ok
	if ok {
		p.free = s.now + took
		s.agenda.add(event{at: p.free, kind: stepEnds, pod: int32(pod)})
	}
}

// commit ends a pod's step, tells the routers, and starts the next one.
func (s *simulation) commit(pod int) {
	p := s.pods[pod]
	step := p.engine.Commit()
	for _, seq := range step.Tokens {
		if r := seq.Owner.(*request); seq == &r.seq {
			if seq.Generated > 1 {
				r.gap = max(r.gap, s.now-r.lastToken)
			}
			r.lastToken = s.now
		}
	}
	for _, seq := range step.First {
		r := seq.Owner.(*request)
		if seq == &r.prompt {
			s.transfer(r)
			continue
		}
		p.queued -= r.uncached
		if r.measured && s.now-r.intended > sustainedTTFT {
			s.late++
		}
		if r.stream {
			s.routers[r.replica].first(r, s.now)
		}
	}
	for _, seq := range step.Finished {
		r := seq.Owner.(*request)
		if seq == &r.prompt {
			continue
		}
		p.requests--
		s.under--
		s.routers[r.replica].end(r, s.now)
		s.finish(r)
	}
	s.plan(pod)
}

// finish keeps the record of a request that has ended, and enters the conversation's next turn.
func (s *simulation) finish(r *request) {
	seq := &r.seq
	if r.measured {
		cost := s.pods[r.pod].engine.Config().Cost
		rec := Record{
			Criticality: r.criticality, Pod: int(r.pod),
			TTFT: seq.FirstToken - r.intended, E2E: seq.Ended - r.intended,
			Gap: r.gap, Remote: r.prefillPod >= 0,
			PromptTokens: seq.PromptTokens, CachedTokens: seq.Cached, OutputTokens: seq.Generated, AdapterLoads: seq.AdapterLoads,
			Cost: s.costOf(int(r.pod)) * cost.Of(seq).Seconds(),
		}
		if r.stream && r.lease.Endpoint() != nil {
			rec.Predicted, rec.Each = r.lease.Predicted()
			rec.Took = seq.FirstToken - r.picked
		}
		if rec.Remote {
			rec.CachedTokens = r.prompt.Cached
		}
		if seq.Generated > 1 {
			rec.TPOT = (seq.Ended - seq.FirstToken) / time.Duration(seq.Generated-1)
		}
		if !r.stream {
			rec.TTFT = rec.E2E
		}
		s.result.Records = append(s.result.Records, rec)
	}
	if next := r.turn + 1; next < len(r.conv.Turns) {
		if due := s.now + r.conv.Turns[next].Think; due < s.end() {
			s.agenda.add(event{at: due, kind: requestDue, request: s.newRequest(r.conv, next, due)})
		}
	}
}

// costOf is what a second of a pod costs.
func (s *simulation) costOf(pod int) float64 {
	if len(s.cfg.Costs) == 0 {
		return 1
	}
	return s.cfg.Costs[pod%len(s.cfg.Costs)]
}

// scrape shows a pod's gauges to a replica.
func (s *simulation) scrape(e event) {
	if !slices.Contains(s.live, int(e.pod)) {
		return
	}
	stats := s.pods[e.pod].engine.Stats()
	s.routers[e.replica].observe(int(e.pod), &stats, s.now)
	e.at += s.cfg.Scrape
	s.agenda.add(e)
}

// join puts a new pod into service.
func (s *simulation) join(cfg engine.Config) {
	index := len(s.pods)
	e := engine.New(cfg)
	place := index % len(s.cfg.Fleet)
	s.pods = append(s.pods, &pod{engine: e, started: s.now, prefill: place >= len(s.cfg.Fleet)-s.cfg.Prefill})
	if s.longest == 0 || e.MaxTokens() < s.longest {
		s.longest = e.MaxTokens()
	}
	s.live = append(s.live, index)
	for i, r := range s.routers {
		r.setPods(s.live)
		if s.cfg.Scrape > 0 {
			phase := time.Duration(s.rng.Int64N(int64(s.cfg.Scrape)))
			s.agenda.add(event{at: s.now + phase, kind: scrapeDue, pod: int32(index), replica: int32(i)})
		}
	}
}

// leave takes the oldest pod out of service. What it has to do it finishes.
func (s *simulation) leave() {
	if len(s.pods) < maxPods && s.now < s.end() {
		s.live = slices.Clone(s.live[1:])
		for _, r := range s.routers {
			r.setPods(s.live)
		}
		s.agenda.add(event{at: s.now + s.cfg.Churn/2, kind: podJoins})
	}
}
