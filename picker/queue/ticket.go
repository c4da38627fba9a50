package queue

import (
	"fmt"
	"time"

	"github.com/fairway-proxy/fairway/picker"
)

// A Ticket is a request's place in the queue. Once Wake has given it out it says what became of the request.
type Ticket struct {
	// Owner is what Offer was given to make.
	Owner any

	request *picker.Request
	band    *band
	flow    *flow
	next    *Ticket // of the flow
	prev    *Ticket
	number  uint64        // of all tickets
	until   time.Duration // when its time is over
	late    Reason        // for being refused then
	cost    float64       // tokens: the prompt and what it is expected to generate
	place   int           // in the queue's deadlines
	out     bool          // decided, or left

	lease picker.Lease
	err   error
}

// Lease is what the ticket was given, or why it was refused. It may be asked once, after Wake has given the ticket out.
func (t *Ticket) Lease() (picker.Lease, error) { return t.lease, t.err }

// Reason is why a request was refused.
type Reason uint8

const (
	Saturated  Reason = iota // no endpoint has room, and its priority is below 0
	Full                     // as many wait as may, of this priority or a higher one
	TimedOut                 // it has waited for as long as it may
	TooLate                  // it could not be served by the time its client wants
	OverBudget               // whose it is has had its tokens
)

var reasons = [...]string{"saturated", "queue_full", "queue_timeout", "deadline", "over_budget"}

func (r Reason) String() string { return reasons[r] }

// A Refusal says that a request has to be made again later.
type Refusal struct {
	Reason Reason
	// RetryAfter is how long those of the same priority who wait now will take to be gone, at the present rate; or until the budget allows
	// as much.
	RetryAfter time.Duration
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("queue: refused (%s), come again in %s", r.Reason, r.RetryAfter)
}

// deadlines are tickets by the time when theirs is over, the next one first: a binary heap.
type deadlines []*Ticket

func (d *deadlines) push(t *Ticket) {
	*d = append(*d, t)
	t.place = len(*d) - 1
	d.up(t.place)
}

func (d *deadlines) remove(t *Ticket) {
	h := *d
	i, last := t.place, len(h)-1
	h[i] = h[last]
	h[i].place = i
	h[last] = nil
	*d = h[:last]
	if i < last {
		d.down(i)
		d.up(i)
	}
}

func (d deadlines) up(i int) {
	for i > 0 && d[i].until < d[(i-1)/2].until {
		d.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (d deadlines) down(i int) {
	for {
		child := 2*i + 1
		if child+1 < len(d) && d[child+1].until < d[child].until {
			child++
		}
		if child >= len(d) || d[child].until >= d[i].until {
			return
		}
		d.swap(i, child)
		i = child
	}
}

func (d deadlines) swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}
