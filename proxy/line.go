package proxy

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
)

// line is a pool's queue in real time: a request that waits is a goroutine that is
// parked on its ticket.
type line struct {
	queue   *queue.Queue
	off     atomic.Bool // by configuration: nobody waits
	ticking atomic.Bool // a timer looks after those who wait
}

// lineTick is how often the queue is looked at while anybody waits, beside the times
// when an endpoint becomes less busy.
const lineTick = 20 * time.Millisecond

// newLine makes a pool with a queue before it.
func newLine(config picker.Config) (*line, *picker.Pool) {
	l := new(line)
	config.Freed = l.freed
	p := picker.NewPool(config)
	l.queue = queue.New(p, queue.Config{})
	return l, p
}

// set puts a configuration in force.
func (l *line) set(c Queue) {
	l.off.Store(c.Off)
	l.queue.Set(queue.Config{Requests: c.Requests, Bytes: c.Bytes, Wait: c.Wait, SheddableWait: c.SheddableWait, LowerShare: c.LowerShare})
}

// ticket makes what tells a goroutine that its ticket is decided.
func ticket() any { return make(chan struct{}) }

// lease gives a request, which comes at r.Now, its endpoint as soon as it is its turn, or says why it does
// not get one: a *queue.Refusal, one of Pick's errors, or that of ctx.
func (l *line) lease(ctx context.Context, r *picker.Request) (lease picker.Lease, err error) {
	r.Waited = r.Waited || l.off.Load()
	var t *queue.Ticket
	if lease, t, err = l.queue.Offer(r, ticket, r.Now); t == nil {
		return
	}
	return l.wait(ctx, r, t)
}

// wait gives a request that has a ticket its endpoint.
func (l *line) wait(ctx context.Context, r *picker.Request, t *queue.Ticket) (lease picker.Lease, err error) {
	l.wake()
	l.tick()
	decided := t.Owner.(chan struct{})
	defer func() { r.Now = Now() }()
	select {
	case <-decided:
		return t.Lease()
	case <-ctx.Done():
	}
	if l.queue.Leave(t, Now()) {
		return picker.Lease{}, ctx.Err()
	}
	<-decided
	if lease, err = t.Lease(); err == nil {
		lease.End(Now(), picker.NeverSent)
	}
	return picker.Lease{}, ctx.Err()
}

// freed is called when an endpoint may have become less busy.
func (l *line) freed() {
	if l.queue != nil && l.queue.Waiting() {
		l.wake()
	}
}

// wake tells those whose ticket is decided.
func (l *line) wake() {
	for _, t := range l.queue.Wake(nil, Now()) {
		close(t.Owner.(chan struct{}))
	}
}

// tick has the queue looked after until nobody waits.
func (l *line) tick() {
	if l.ticking.CompareAndSwap(false, true) {
		time.AfterFunc(lineTick, l.ticked)
	}
}

func (l *line) ticked() {
	l.wake()
	l.ticking.Store(false)
	if l.queue.Waiting() {
		l.tick()
	}
}

// QueueState is how many requests wait for a pool, by what they are worth: of
// priorities above 0, of 0 and below.
type QueueState struct {
	Pool                          string
	Critical, Standard, Sheddable int
}

// Queues lists the queues of the World in force.
func (s *Server) Queues() []QueueState {
	v := s.serving.Load()
	if v == nil {
		return nil
	}
	var all []QueueState
	for _, p := range v.pools {
		state := QueueState{Pool: p.name}
		state.Critical, state.Standard, state.Sheddable = p.line.queue.Len()
		all = append(all, state)
	}
	return all
}
