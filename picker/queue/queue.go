package queue

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/picker"
)

// Priorities of the criticalities of an InferenceModel, on the scale of InferenceObjectives.
const (
	Critical  = 10
	Standard  = 0
	Sheddable = -10
)

// What the zero values of a Config stand for.
const (
	DefaultRequests      = 5000
	DefaultBytes         = 1 << 30
	DefaultWait          = 30 * time.Second
	DefaultSheddableWait = 500 * time.Millisecond
)

// Config says how much may wait, and for how long. Its zero value works.
type Config struct {
	// Requests is how many may wait; 0: DefaultRequests.
	Requests int
	// Bytes is how many these may hold in memory; 0: DefaultBytes.
	Bytes int64
	// Wait is how long a request may wait; 0: DefaultWait.
	Wait time.Duration
	// SheddableWait is that of priorities below 0; 0: DefaultSheddableWait.
	SheddableWait time.Duration
	// LowerShare is the share of tokens, 0 to 1, that goes to lower priorities while a higher one waits; 0: none, the order is strict.
	LowerShare float64
}

// How busy an endpoint may be. docs/overload.md has the evidence.
var (
	// topRoom is for the highest priority there is. Holding it back helps nobody but whose flow it is not; so it waits only if every
	// endpoint has two steps' worth of prompts before it. What KV cache is left does not matter: engines let requests wait for it.
	topRoom = picker.Room{Queued: 16384, Anywhere: true}
	// outrankedRoom is for others: those of a higher priority find at most about one prompt before them, and few enough decodes that
	// a step is short.
	outrankedRoom = picker.Room{Queued: 1000, KV: 0.45}
)

// How many requests of a band are looked at to find one whose endpoint has room.
const (
	// scan are those whose turn it is. They keep it when others go past them, until their own time is over.
	scan = 4
	// beyond are as many of the others, next time the next ones: what there is never room for, however much of it waits, does not hold up
	// what there is room for.
	beyond = 12
)

// rankMemory is how long a priority outranks lower ones after a request of it has come.
const rankMemory = 10 * time.Second

// A Queue holds back what no endpoint of a pool can start soon. All methods may be called at any time from any goroutine.
type Queue struct {
	pool *picker.Pool

	front atomic.Int64 // the highest priority that waits; nobody: none does. Written with mu held
	top   atomic.Int64 // the highest priority of late,
	seen  atomic.Int64 // and when a request of it came

	owed atomic.Bool // tickets are decided and not given out. Written with mu held

	mu        sync.Mutex // guards what follows
	cfg       Config
	bands     []*band // the highest priority first
	entered   uint64  // tickets so far
	requests  int
	bytes     int64
	deadlines deadlines // of all tickets
	decided   []*Ticket // displaced, to be given out by Wake; owed says whether there are any
	granted   float64   // tokens, since somebody waits,
	lower     float64   // and those of them that were the lower priorities' share
	turns     []*Ticket // reused
}

// nobody is below every priority.
const nobody = math.MinInt64

// New returns an empty queue before a pool.
func New(pool *picker.Pool, cfg Config) *Queue {
	q := &Queue{pool: pool}
	q.front.Store(nobody)
	q.top.Store(nobody)
	q.Set(cfg)
	return q
}

// Set changes the configuration, from the next request on.
func (q *Queue) Set(cfg Config) {
	if cfg.Requests == 0 {
		cfg.Requests = DefaultRequests
	}
	if cfg.Bytes == 0 {
		cfg.Bytes = DefaultBytes
	}
	if cfg.Wait == 0 {
		cfg.Wait = DefaultWait
	}
	if cfg.SheddableWait == 0 {
		cfg.SheddableWait = DefaultSheddableWait
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.cfg = cfg
}

// Offer gives a request its lease, if there is room for it and nobody waits who comes first. Otherwise it gives a ticket, whose Owner is
// what owner makes, and Wake has to be called next; or an error: a *Refusal, or one of Pick's. The request must not change while
// it waits. One that has had its lease, and needs another endpoint, does not wait again.
func (q *Queue) Offer(r *picker.Request, owner func() any, now time.Duration) (l picker.Lease, t *Ticket, err error) {
	if r.Waited {
		r.Room, r.Until = picker.Room{}, 0
		l, err = q.pool.Pick(r, now)
		if err == picker.ErrSLO {
			err = q.refusal(r.Priority, Unmet, now)
		}
		return
	}
	q.note(r.Priority, now)
	if front := q.front.Load(); int64(r.Priority) > front {
		l, err = q.pick(r, q.room(r.Priority, now), now)
		switch err {
		case nil:
			if front != nobody {
				q.passed(r)
			}
			return
		case picker.ErrTooLate:
			err = q.refusal(r.Priority, TooLate, now)
			return
		case picker.ErrSLO:
			err = q.refusal(r.Priority, Unmet, now)
			return
		case picker.ErrNoRoom:
		default:
			return
		}
	}
	t, err = q.enter(r, owner, now)
	return
}

// room is how busy an endpoint may be for a request of that priority.
func (q *Queue) room(priority int, now time.Duration) picker.Room {
	if q.outranked(priority, now) {
		return outrankedRoom
	}
	return topRoom
}

// outranked says whether a request of a higher priority has come lately.
func (q *Queue) outranked(priority int, now time.Duration) bool {
	return int64(priority) < q.top.Load() && int64(now)-q.seen.Load() < int64(rankMemory)
}

// pick picks if there is room.
func (q *Queue) pick(r *picker.Request, room picker.Room, now time.Duration) (l picker.Lease, err error) {
	r.Room = room
	l, err = q.pool.Pick(r, now)
	r.Waited = err == nil
	return
}

// passed counts a request that went past those who wait.
func (q *Queue) passed(r *picker.Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.requests > 0 {
		q.granted += q.pool.Tokens(r)
	}
}

// note remembers that a request of that priority has come.
func (q *Queue) note(priority int, now time.Duration) {
	top, age := q.top.Load(), int64(now)-q.seen.Load()
	if int64(priority) < top && age < int64(rankMemory) {
		return
	}
	if int64(priority) != top {
		q.top.Store(int64(priority))
		q.seen.Store(int64(now))
	} else if age > int64(rankMemory/64) {
		q.seen.Store(int64(now))
	}
}

// enter gives a request a place, or refuses it.
func (q *Queue) enter(r *picker.Request, owner func() any, now time.Duration) (*Ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.band(r.Priority)
	t := &Ticket{Owner: owner(), request: r, band: b, number: q.entered, cost: q.pool.Tokens(r)}
	q.entered++
	wait := b.drain(now, t.cost)
	t.until, t.late = now+q.cfg.Wait, TimedOut
	if r.Priority < 0 {
		t.until, t.late = now+q.cfg.SheddableWait, Saturated
		if slo := r.SLO.FirstToken; slo > 0 && slo < t.until {
			t.until, t.late = slo, Unmet
		}
	}
	if r.Until > 0 && r.Until < t.until {
		t.until, t.late = r.Until, TooLate
	}
	if now+wait > t.until && t.late != TimedOut {
		return nil, &Refusal{t.late, wait}
	}
	if !q.fits(r) {
		return nil, &Refusal{Full, wait}
	}
	for q.requests >= q.cfg.Requests || q.bytes+r.Held > q.cfg.Bytes {
		q.displace(now)
	}
	b.push(t, now)
	heap.Push(&q.deadlines, t)
	q.requests++
	q.bytes += r.Held
	q.front.Store(max(q.front.Load(), int64(r.Priority)))
	return t, nil
}

// fits says whether there is a place for a request, or would be if nobody of a lower priority waited.
func (q *Queue) fits(r *picker.Request) bool {
	requests, bytes := q.requests, q.bytes
	for i := len(q.bands) - 1; i >= 0 && q.bands[i].priority < r.Priority; i-- {
		requests -= q.bands[i].n
		bytes -= q.bands[i].held
	}
	return requests < q.cfg.Requests && bytes+r.Held <= q.cfg.Bytes
}

// displace refuses the last of the lowest priority that waits. Somebody must.
func (q *Queue) displace(now time.Duration) {
	for _, b := range slices.Backward(q.bands) {
		if b.n > 0 {
			t := b.last()
			q.refuse(t, Full, now)
			q.decided = append(q.decided, t)
			q.owed.Store(true)
			return
		}
	}
}

// refuse takes a ticket out and says why.
func (q *Queue) refuse(t *Ticket, why Reason, now time.Duration) {
	t.err = &Refusal{why, t.band.drain(now, 0)}
	q.remove(t, now)
}

// remove takes a ticket out.
func (q *Queue) remove(t *Ticket, now time.Duration) {
	t.out = true
	t.band.remove(t, now)
	heap.Remove(&q.deadlines, t.place)
	q.requests--
	q.bytes -= t.request.Held
	front := int64(nobody)
	if first, _ := q.firstTwo(); first != nil {
		front = int64(first.priority)
	} else {
		q.granted, q.lower = 0, 0
	}
	q.front.Store(front)
}

// Leave gives a ticket's place up: its client has gone. It says false, and does nothing, if the ticket is decided already; its Lease is
// then to be ended.
func (q *Queue) Leave(t *Ticket, now time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.out {
		return false
	}
	q.remove(t, now)
	return true
}

// Waiting says whether anybody waits, or has been decided and not been given out.
func (q *Queue) Waiting() bool { return q.front.Load() != nobody || q.owed.Load() }

// Len is how many wait: of priorities above 0, of 0 and below.
func (q *Queue) Len() (critical, standard, sheddable int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range q.bands {
		switch {
		case b.priority > 0:
			critical += b.n
		case b.priority == 0:
			standard += b.n
		default:
			sheddable += b.n
		}
	}
	return critical, standard, sheddable
}

// Next is when Wake has to be called at the latest, though nothing happens: a ticket's time is over then. ok is false if nobody waits.
func (q *Queue) Next() (at time.Duration, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.deadlines) == 0 {
		return 0, false
	}
	return q.deadlines[0].until, true
}

// Wake appends to dst the tickets that are decided: those who had to make room, those whose time is over, those whose turn has come and
// who have room. Each is given out once. It is to be called after an Offer that gave a ticket, and when an endpoint may have become
// less busy (picker.Config.Freed).
func (q *Queue) Wake(dst []*Ticket, now time.Duration) []*Ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	dst = append(dst, q.decided...)
	clear(q.decided)
	q.decided = q.decided[:0]
	q.owed.Store(false)
	for len(q.deadlines) > 0 && q.deadlines[0].until <= now {
		t := q.deadlines[0]
		q.refuse(t, t.late, now)
		dst = append(dst, t)
	}
	for {
		t := q.grant(now)
		if t == nil {
			return dst
		}
		dst = append(dst, t)
	}
}

// grant takes out the ticket whose turn it is, if it has room; nil: it has none, or nobody waits.
func (q *Queue) grant(now time.Duration) *Ticket {
	first, next := q.firstTwo()
	if first == nil {
		return nil
	}
	lower := next
	if lower == nil && q.outranked(first.priority, now) {
		lower = first
	}
	if lower != nil && q.lower < q.cfg.LowerShare*q.granted { // its share is not for others to outrank
		if t := q.grantOf(lower, topRoom, now); t != nil {
			q.lower += t.cost
			return t
		}
	}
	return q.grantOf(first, q.room(first.priority, now), now)
}

// grantOf takes out the first ticket of b that has room, of those whose turn it is, or else of some others.
func (q *Queue) grantOf(b *band, room picker.Room, now time.Duration) *Ticket {
	q.turns = b.turns(q.turns[:0], scan, beyond)
	full := false // no endpoint has room, whatever the request, if alike
	for _, t := range q.turns {
		alike := t.request.SLO == (picker.SLO{}) && len(t.request.Exclude) == 0 // nothing sets it apart but its prompt
		if full && alike {
			continue
		}
		l, err := q.pick(t.request, room, now)
		switch err {
		case picker.ErrNoRoom:
			full = full || alike && room.Anywhere && room.KV == 0
			continue
		case picker.ErrTooLate:
			q.refuse(t, TooLate, now)
			return t
		case picker.ErrSLO:
			q.refuse(t, Unmet, now)
			return t
		case nil:
			b.grant(t, now)
			q.granted += t.cost
		}
		t.lease, t.err = l, err
		q.remove(t, now)
		return t
	}
	return nil
}

// refusal is that of a request which no endpoint would serve in time although nobody is before it.
func (q *Queue) refusal(priority int, why Reason, now time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return &Refusal{why, q.band(priority).drain(now, 0)}
}

// firstTwo are the highest bands that have tickets; nil for none.
func (q *Queue) firstTwo() (first, next *band) {
	for _, b := range q.bands {
		if b.n == 0 {
			continue
		}
		if first != nil {
			return first, b
		}
		first = b
	}
	return first, nil
}

// maxBands bounds how many priorities are remembered while none of their requests waits.
const maxBands = 32

// band returns the band of a priority.
func (q *Queue) band(priority int) *band {
	below := func(b *band, priority int) int { return cmp.Compare(priority, b.priority) }
	i, found := slices.BinarySearchFunc(q.bands, priority, below)
	if found {
		return q.bands[i]
	}
	if len(q.bands) >= maxBands {
		q.bands = slices.DeleteFunc(q.bands, func(b *band) bool { return b.n == 0 })
		i, _ = slices.BinarySearchFunc(q.bands, priority, below)
	}
	q.bands = slices.Insert(q.bands, i, newBand(priority))
	return q.bands[i]
}
