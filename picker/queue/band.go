package queue

import (
	"container/heap"
	"math"
	"time"
)

const (
	// rateMemory is how many seconds of a backlog a band's rate remembers.
	rateMemory = 10
	// ratePrior is how many tokens are taken to have drained at once before anything has.
	ratePrior = 1 << 14
)

// A band is what waits with one priority. Flows take turns by the virtual clock of WF²Q+ (Bennett and Zhang, "Hierarchical Packet Fair
// Queueing Algorithms", 1997): each request of a flow begins, in virtual time, when the one before it ends, and the earliest beginning is
// next. Costs are tokens. A flow that was away begins now: it has no claim to what it did not ask for.
type band struct {
	priority int
	n        int     // tickets
	tokens   float64 // their costs
	held     int64   // bytes
	virtual  float64 // time: tokens that each flow could have had
	flows    map[uint64]*flow
	ready    ready // those that have a ticket
	looked   int   // where in ready turns is to go on

	// How fast it drains while anybody waits.
	since   time.Duration // up to when it was counted, or the beginning of the backlog
	seconds float64       // in which something waited, fading
	drained float64       // tokens that were let go then, fading
}

// A flow is who shares with others.
type flow struct {
	id         uint64
	head, tail *Ticket
	looked     *Ticket // where turns is to go on if it is the only flow; nil: after the first ones
	begins     float64 // the head, in virtual time; without one: what was served last ended
	place      int     // in the band's ready
}

func newBand(priority int) *band { return &band{priority: priority, flows: make(map[uint64]*flow)} }

// push appends a ticket to its flow.
func (b *band) push(t *Ticket, now time.Duration) {
	if b.n == 0 {
		b.since = now
	}
	b.n++
	b.tokens += t.cost
	b.held += t.request.Held
	f := b.flows[t.request.Flow]
	if f == nil {
		b.forget()
		f = &flow{id: t.request.Flow}
		b.flows[f.id] = f
	}
	t.flow = f
	if f.tail == nil {
		f.begins = max(f.begins, b.virtual)
		f.head, f.tail = t, t
		heap.Push(&b.ready, f)
		return
	}
	t.prev, f.tail.next = f.tail, t
	f.tail = t
}

// turns appends to dst the tickets to look at, the first of each flow, or those of the only flow: as many as first says whose turn it is,
// then as many as others says of the rest, who come round from call to call.
func (b *band) turns(dst []*Ticket, first, others int) []*Ticket {
	if len(b.ready) == 1 {
		return b.ready[0].turns(dst, first, others)
	}
	first = min(first, len(b.ready))
	for _, f := range b.ready[:first] {
		dst = append(dst, f.head)
	}
	for range min(others, len(b.ready)-first) {
		if b.looked < first || b.looked >= len(b.ready) {
			b.looked = first
		}
		dst = append(dst, b.ready[b.looked].head)
		b.looked++
	}
	return dst
}

// turns is that of a band whose only flow it is.
func (f *flow) turns(dst []*Ticket, first, others int) []*Ticket {
	t := f.head
	for ; t != nil && first > 0; t = t.next {
		dst = append(dst, t)
		first--
	}
	if t == nil || f.looked == nil || f.looked.number < t.number {
		f.looked = t
	}
	for ; f.looked != nil && others > 0; f.looked = f.looked.next {
		dst = append(dst, f.looked)
		others--
	}
	return dst
}

// last is the ticket that came last. There must be one.
func (b *band) last() *Ticket {
	t := b.ready[0].tail
	for _, f := range b.ready {
		if f.tail.number > t.number {
			t = f.tail
		}
	}
	return t
}

// grant counts a ticket as served.
func (b *band) grant(t *Ticket, now time.Duration) {
	b.virtual = max(b.virtual+t.cost/float64(len(b.ready)), b.ready[0].begins)
	t.flow.begins += t.cost
	b.pass(now)
	b.drained += t.cost
}

// pass counts the time in which something has waited, and fades what came before.
func (b *band) pass(now time.Duration) {
	took := (now - b.since).Seconds()
	keep := math.Exp(-took / rateMemory)
	b.seconds = b.seconds*keep + took
	b.drained *= keep
	b.since = now
}

// remove takes a ticket out, wherever it is.
func (b *band) remove(t *Ticket, now time.Duration) {
	f := t.flow
	if f.looked == t {
		f.looked = t.next
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		f.head = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		f.tail = t.prev
	}
	t.prev, t.next = nil, nil
	b.n--
	b.tokens -= t.cost
	b.held -= t.request.Held
	switch {
	case f.head == nil:
		heap.Remove(&b.ready, f.place)
		if f.begins <= b.virtual {
			delete(b.flows, f.id)
		}
	default:
		heap.Fix(&b.ready, f.place)
	}
	if b.n == 0 { // nobody waits: nobody is behind
		b.pass(now)
		b.tokens, b.virtual = 0, 0
		clear(b.flows)
	}
}

// forget drops flows that are owed nothing any more, now and then.
func (b *band) forget() {
	if len(b.flows) < 64+2*len(b.ready) {
		return
	}
	for id, f := range b.flows {
		if f.head == nil && f.begins <= b.virtual {
			delete(b.flows, id)
		}
	}
}

// drain is how long it will take until so many tokens beyond those that wait have been served, at the rate of late.
func (b *band) drain(now time.Duration, more float64) time.Duration {
	took := b.seconds
	if b.n > 0 {
		took += (now - b.since).Seconds()
	}
	s := took / (b.drained + ratePrior) * (b.tokens + more)
	return time.Duration(min(s, 1e6) * float64(time.Second))
}

// before says whose turn it is first; among equals who came first. Both must have a ticket.
func (f *flow) before(o *flow) bool {
	return f.begins < o.begins || f.begins == o.begins && f.head.number < o.head.number
}

// ready are flows by the beginning of their next ticket, as container/heap wants them.
type ready []*flow

func (r ready) Len() int           { return len(r) }
func (r ready) Less(i, j int) bool { return r[i].before(r[j]) }
func (r ready) Swap(i, j int) {
	r[i], r[j] = r[j], r[i]
	r[i].place, r[j].place = i, j
}

func (r *ready) Push(f any) {
	f.(*flow).place = len(*r)
	*r = append(*r, f.(*flow))
}

func (r *ready) Pop() any {
	last := len(*r) - 1
	f := (*r)[last]
	(*r)[last] = nil
	*r = (*r)[:last]
	return f
}
