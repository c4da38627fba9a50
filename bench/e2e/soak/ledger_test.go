//go:build e2e

package soak_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A harm is a time in which requests on an engine may fail through no fault of the proxy.
type harm struct {
	pod      int
	from, to time.Time // to: zero while it lasts
}

// grace is for what takes its time after a fault has ended, such as a reset that is on its way.
const grace = time.Second

// A tally is what became of the requests that began during one kind of fault.
type tally struct {
	times                               int
	requests, answered, left, cut, sent int // sent: again
	violations                          int
	ttft                                []float64
}

// ledger holds every request to what its client was owed.
type ledger struct {
	t       *testing.T
	journal *journal

	mu      sync.Mutex
	now     string // the fault in force, or the last one
	harms   []*harm
	tallies map[string]*tally
	broken  map[string]int // violations by kind
	shown   int
}

func newLedger(t *testing.T, j *journal) *ledger {
	return &ledger{t: t, journal: j, tallies: map[string]*tally{}, broken: map[string]int{}}
}

// begin notes that a fault begins; on pod, if that is no less than 0, requests may fail by it.
func (l *ledger) begin(name string, pod int) *harm {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = name
	l.tally(name).times++
	h := &harm{pod: pod, from: time.Now()}
	if pod >= 0 {
		l.harms = append(l.harms, h)
	}
	return h
}

func (l *ledger) end(h *harm) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.to = time.Now()
}

func (l *ledger) tally(name string) *tally {
	if l.tallies[name] == nil {
		l.tallies[name] = &tally{}
	}
	return l.tallies[name]
}

// harmed tells whether a pod was, between two times; l.mu is held.
func (l *ledger) harmed(pod int, from, to time.Time) bool {
	return slices.ContainsFunc(l.harms, func(h *harm) bool {
		return h.pod == pod && h.from.Before(to) && (h.to.IsZero() || h.to.Add(grace).After(from))
	})
}

// enter judges a request.
func (l *ledger) enter(q *question, o *outcome) {
	deliveries := l.journal.take(o.id)
	l.mu.Lock()
	defer l.mu.Unlock()
	y := l.tally(cmp.Or(l.now, "none"))
	y.requests++
	if o.ttft > 0 {
		y.ttft = append(y.ttft, o.ttft.Seconds())
	}
	breach := func(kind string) {
		y.violations++
		l.broken[kind]++
		if l.shown++; l.shown <= 20 {
			var where []string
			for _, d := range deliveries {
				where = append(where, fmt.Sprintf("pod %d at %v, begun %v, harmed %v", d.pod, d.at.Sub(o.start).Round(time.Millisecond), d.begun.Load(), l.harmed(d.pod, d.at, o.end)))
			}
			l.t.Errorf("%s: %s during %q, %v: status %d, stream %v, %d of %d bytes, %v; came to %s", kind, o.id, l.now, o.end.Sub(o.start).Round(time.Millisecond),
				o.status, o.stream, len(o.text), len(q.text), o.err, strings.Join(where, "; "))
		}
	}
	begun, unharmed := 0, 0
	cut := false // on a harmed pod, in the middle of its answer
	for _, d := range deliveries {
		harmed := l.harmed(d.pod, d.at, o.end)
		if d.begun.Load() {
			begun++
			cut = harmed
		}
		if !harmed {
			unharmed++
		}
	}
	if len(deliveries) > 1 {
		y.sent++
	}
	if begun > 1 {
		breach("answered twice")
	}
	switch {
	case o.done && o.text == q.text:
		y.answered++
	case o.done || !strings.HasPrefix(q.text, o.text):
		breach("wrong answer")
	case o.left:
		y.left++
	case cut, len(deliveries) > 1 && unharmed == 0:
		// Its pod failed in the middle of its answer, or two in a row did before.
		y.cut++
	case begun > 0:
		breach("cut")
	default:
		breach("lost")
	}
}

// table is the ledger for people.
func (l *ledger) table() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	b.WriteString("| fault | times | requests | answered | left by the client | cut on a harmed pod | sent again | violations | TTFT p50 s | p90 s |\n|---|---|---|---|---|---|---|---|---|---|\n")
	var sum tally
	names := make([]string, 0, len(l.tallies))
	for name := range l.tallies {
		names = append(names, name)
	}
	slices.Sort(names)
	row := func(name string, y *tally) {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | %d | %.2f | %.2f |\n", name, y.times, y.requests, y.answered, y.left, y.cut, y.sent, y.violations, quantile(y.ttft, 0.5), quantile(y.ttft, 0.9))
	}
	for _, name := range names {
		y := l.tallies[name]
		row(name, y)
		sum.times += y.times
		sum.requests += y.requests
		sum.answered += y.answered
		sum.left += y.left
		sum.cut += y.cut
		sum.sent += y.sent
		sum.violations += y.violations
		sum.ttft = append(sum.ttft, y.ttft...)
	}
	row("**all**", &sum)
	b.WriteString("\n")
	for _, kind := range []string{"lost", "cut", "answered twice", "wrong answer"} {
		fmt.Fprintf(&b, "%s: %d. ", kind, l.broken[kind])
	}
	b.WriteString("\n")
	return b.String()
}

// quantile is that of values, which it sorts; 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}
