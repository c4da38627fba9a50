package account

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// What is told of a request is written up a while later, together with others: it waits on a desk, of which each processor has its own
// as a rule, until there are batch requests, somebody asks, or the access log is due. What the telling needs, code and memory, then
// comes into the processor's cache once for all of them.

const (
	batch = 32
	// maxDesks bounds how many there are: each takes as much memory as all series do.
	maxDesks = 8
)

// desks are where Records wait.
type desks struct {
	all  []*desk
	next atomic.Uint32
	idle sync.Pool     // of *desk, so that a processor gets the one it had before; each may be there more than once
	seen atomic.Uint64 // exchanges so far
}

func (ds *desks) init() {
	for range min(runtime.GOMAXPROCS(0), maxDesks) {
		ds.all = append(ds.all, &desk{tally: newTally()})
	}
	ds.idle.New = func() any { return ds.all[ds.next.Add(1)%uint32(len(ds.all))] }
}

// take gives a desk, locked.
func (ds *desks) take() *desk {
	d := ds.idle.Get().(*desk)
	if !d.mu.TryLock() { // another processor has the same: not for long
		d = ds.idle.New().(*desk)
		d.mu.Lock()
	}
	return d
}

// desk is where Records wait.
type desk struct {
	mu      sync.Mutex // guards what follows
	records [batch]held
	n       int // of records

	tally   tally
	lines   []byte // laid out last
	last    last
	laidOut int      // of records, while settle goes through them
	_       [64]byte // so that no two share a cache line
}

// held is a Record that waits.
type held struct {
	Record
	seq uint64 // of the exchange, from 1
}

// put leaves a record on a desk. What its model counts under is settled at once: those that come later, and wait elsewhere, are told of
// before it perhaps.
func (r *Recorder) put(rec *Record) {
	r.metrics.models.learn(rec)
	d := r.desks.take()
	h := &d.records[d.n]
	d.n++
	h.seq = r.desks.seen.Add(1)
	h.copy(rec)
	if d.n == batch {
		r.tell(d)
		for i := range d.records {
			r.layOut(d, &d.records[i])
		}
		r.clear(d)
	}
	d.mu.Unlock()
	r.desks.idle.Put(d)
}

// settle tells of all records that wait, and says how many there have been.
func (r *Recorder) settle() (seen uint64) {
	all := r.desks.all
	for _, d := range all {
		d.mu.Lock()
		r.tell(d)
	}
	for { // their lines, in order
		var next *desk
		for _, d := range all {
			if d.laidOut < d.n && (next == nil || d.records[d.laidOut].seq < next.records[next.laidOut].seq) {
				next = d
			}
		}
		if next == nil {
			break
		}
		r.layOut(all[0], &next.records[next.laidOut])
		next.laidOut++
	}
	seen = r.desks.seen.Load()
	for _, d := range all {
		r.clear(d)
		d.mu.Unlock()
	}
	return seen
}

// tell counts the records on a desk, and keeps their receipts.
func (r *Recorder) tell(d *desk) {
	all := d.records[:d.n]
	for i := range all {
		d.tally.of(&all[i].Record, &r.metrics.models).count(&all[i].Record)
	}
	r.receipts.add(all)
}

// layOut makes the line of a record, on a desk.
func (r *Recorder) layOut(d *desk, h *held) {
	if r.log != nil {
		line := line{d.lines, r.log.format}
		line.access(&h.Record, &d.last)
		d.lines = line.b
	}
}

// clear makes place at a desk for others, once the records there are told of.
func (r *Recorder) clear(d *desk) {
	d.n, d.laidOut = 0, 0
	if len(d.lines) > 0 {
		r.log.add(d.lines)
		d.lines = d.lines[:0]
	}
}
