package sim

import (
	"math/rand/v2"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
)

// shipped is a replica of the proxy as package picker makes it: every policy of that package runs here as it ships.
type shipped struct {
	sim       *simulation
	pool      *picker.Pool
	endpoints [maxPods]*picker.Endpoint

	queue *queue.Queue  // nil: nobody waits
	self  int32         // which replica this is
	due   time.Duration // of the earliest event that looks after the queue
}

func newShipped(s *simulation, p picker.Policy) *shipped {
	f := &shipped{sim: s, self: int32(len(s.routers))}
	f.pool = picker.NewPool(picker.Config{Policy: p, Without: s.cfg.Without, Freed: f.freed})
	return f
}

func newFairway(s *simulation, _ *rand.Rand) router {
	f := newShipped(s, nil)
	if !s.cfg.NoQueue {
		f.queue = queue.New(f.pool, queue.Config{})
	}
	return f
}

func newRoundRobin(s *simulation, _ *rand.Rand) router   { return newShipped(s, new(picker.RoundRobin)) }
func newLeastRequest(s *simulation, _ *rand.Rand) router { return newShipped(s, picker.LeastRequest{}) }

func (f *shipped) setPods(live []int) {
	specs := make([]picker.Spec, len(live))
	for i, p := range live {
		specs[i] = picker.Spec{Address: podName(p), Owner: p, Cost: f.sim.costOf(p)}
		if f.sim.pods[p].prefill {
			specs[i].Role = picker.Prefill
		}
	}
	f.pool.SetEndpoints(specs)
	for _, e := range f.pool.All() {
		f.endpoints[e.Owner().(int)] = e
	}
}

func podName(p int) string { return "pod-" + string(rune('0'+p/10)) + string(rune('0'+p%10)) }

func (f *shipped) pick(r *request, now time.Duration) int {
	r.asked = picker.Request{
		Chain: r.chain, Hash: r.digest, Bytes: r.bytes, Model: r.model, MaxTokens: r.limit, Stream: r.stream,
		Priority: priorities[r.criticality], Flow: r.flow, RemotePrefill: f.sim.cfg.RemotePrefill,
	}
	if slo := f.sim.cfg.SLO; f.sim.cfg.Asked {
		slo = slo.withDefaults()
		r.asked.SLO = picker.SLO{FirstToken: r.intended + slo.TTFT, PerToken: slo.TPOT}
	}
	if f.queue == nil {
		l, err := f.pool.Pick(&r.asked, now)
		return f.chosen(r, l, err)
	}
	l, t, err := f.queue.Offer(&r.asked, func() any { return r }, now)
	if t == nil {
		return f.chosen(r, l, err)
	}
	f.wake(now)
	return waits
}

// priorities are those of criticalities.
var priorities = map[string]int{"Critical": queue.Critical, "Sheddable": queue.Sheddable}

// chosen is the pod of a lease, or refused.
func (f *shipped) chosen(r *request, l picker.Lease, err error) int {
	if _, ok := err.(*queue.Refusal); ok {
		return refused
	} else if err != nil {
		panic(err) // there is always a pod in service
	}
	r.lease, r.picked = l, f.sim.now
	if e := l.Prefill(); e != nil {
		r.prefillPod = int32(e.Owner().(int))
	}
	return l.Endpoint().Owner().(int)
}

// freed is called when a pod may have become less busy.
func (f *shipped) freed() {
	if f.queue != nil && f.queue.Waiting() {
		f.wake(f.sim.now)
	}
}

// wake sends what the queue lets go, and sees to it that the queue is looked after in time.
func (f *shipped) wake(now time.Duration) {
	decided := f.queue.Wake(nil, now)
	for _, t := range decided {
		l, err := t.Lease()
		f.sim.send(t.Owner.(*request), f.chosen(t.Owner.(*request), l, err))
	}
	if at, ok := f.queue.Next(); ok && (f.due <= now || at < f.due) {
		f.due = at
		f.sim.agenda.add(event{at: at, kind: queueDue, replica: f.self})
	}
}

func (f *shipped) first(r *request, now time.Duration) {
	r.lease.FirstToken(now)
}

func (f *shipped) end(r *request, now time.Duration) {
	cached := r.seq.Cached
	if f.sim.cfg.NoCacheReport {
		cached = -1
	}
	r.lease.Usage(r.seq.PromptTokens, cached, r.seq.Generated)
	r.lease.End(now, picker.Done)
}

func (f *shipped) observe(pod int, st *engine.Stats, now time.Duration) {
	var s picker.Sample
	s.Set(picker.Running, float64(st.Running))
	s.Set(picker.Waiting, float64(st.Waiting))
	s.Set(picker.KVUsage, st.KVUsage)
	s.Set(picker.PromptComputed, float64(st.PromptTokens-st.PromptTokensCached))
	s.Set(picker.Generated, float64(st.GenerationTokens))
	s.Set(picker.PrefixQueries, float64(st.PrefixQueries))
	s.Set(picker.PrefixHits, float64(st.PrefixHits))
	s.Set(picker.Preemptions, float64(st.Preemptions))
	s.Set(picker.BlockSize, engine.BlockSize)
	s.Set(picker.NumBlocks, float64(f.sim.pods[pod].engine.Config().Blocks))
	if n := f.sim.pods[pod].engine.Config().MaxLoras; n > 1 {
		s.Set(picker.MaxLoras, float64(n))
		for name := range f.sim.pods[pod].engine.RunningAdapters {
			s.AddAdapter([]byte(name))
		}
	}
	s.Set(picker.StartTime, f.sim.pods[pod].started.Seconds())
	f.endpoints[pod].Observe(s, now)
}
