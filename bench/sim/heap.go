package sim

import "time"

// What an event is.
type eventKind uint8

const (
	sessionBegins  eventKind = iota // the next conversation of the workload
	requestDue                      // a client sends a request
	requestArrives                  // a request reaches its engine
	promptArrives                   // it reaches the one that computes its prompt
	stepEnds                        // an engine's step is over
	scrapeDue                       // a replica reads an engine's gauges
	podLeaves                       // the oldest pod is taken out of service
	queueDue                        // a replica's queue has to be looked after
	costsChange                     // the engines become what the fleet says
	podJoins                        // a new pod takes its place
)

// An event happens at a time; of several at the same time, in the order in which they were entered.
type event struct {
	at      time.Duration
	order   uint64
	kind    eventKind
	replica int32
	pod     int32
	request *request
}

// agenda is the heap of events to come, the next one first.
type agenda struct {
	events  []event
	entered uint64
}

func (a *agenda) add(e event) {
	e.order = a.entered
	a.entered++
	a.events = append(a.events, e)
	h := a.events
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !e.before(&h[parent]) {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = e
}

// next takes out the first event. There must be one.
func (a *agenda) next() event {
	h := a.events
	first := h[0]
	last := len(h) - 1
	e := h[last]
	h[last] = event{}
	h = h[:last]
	a.events = h
	for i := 0; last > 0; {
		child := 2*i + 1
		if child < last-1 && h[child+1].before(&h[child]) {
			child++
		}
		if child >= last || !h[child].before(&e) {
			h[i] = e
			break
		}
		h[i] = h[child]
		i = child
	}
	return first
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.order < o.order
}
