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
	Unmet                    // no endpoint would give it what its SLO asks for, and its priority is below 0
)

var reasons = [...]string{"saturated", "queue_full", "queue_timeout", "deadline", "over_budget", "slo"}

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

// deadlines are tickets by the time when theirs is over, the next one first, as
// container/heap wants them.
type deadlines []*Ticket

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].until < d[j].until }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

func (d *deadlines) Push(t any) {
	t.(*Ticket).place = len(*d)
	*d = append(*d, t.(*Ticket))
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	t := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return t
}
