//go:build e2e

package soak_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// A relay stands before an engine and passes on what comes, byte for byte, as the fault in force
// allows. It sees which request came to which engine.
type relay struct {
	address, engine string
	pod             int
	journal         *journal

	mu       sync.Mutex
	listener net.Listener // nil: nobody listens
	pairs    map[*pair]bool
	fault    fault
	changed  chan struct{} // closed when fault is another
}

// fault is what a relay does to what passes. The zero value is none.
type fault struct {
	hold    bool          // nothing passes
	delay   time.Duration // of every piece
	loss    float64       // share of the pieces that come later by resend
	reset   bool          // answers end by a reset, at their first piece or after it
	garbage bool          // requests are answered with what is not HTTP
	half    bool          // answers end behind their first piece, while the request's side stays open
	metrics string        // scrapes are answered with 404 ("gone"), with bytes that mean nothing ("garbage"), or not at all ("hang")
}

// resend is after how long TCP sends again what was lost: its least retransmission time-out.
const resend = 200 * time.Millisecond

// settle is for what was passed on to be read: a reset destroys what was not.
const settle = 50 * time.Millisecond

// pair is a connection of the proxy and the one that goes on to the engine.
type pair struct {
	front, back *net.TCPConn
	current     atomic.Pointer[delivery]
}

func startRelay(t *testing.T, pod int, engine string, j *journal) *relay {
	t.Helper()
	r := &relay{address: process.FreeAddress(), engine: engine, pod: pod, journal: j, pairs: map[*pair]bool{}, changed: make(chan struct{})}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.close()
		r.set(fault{})
		r.cut()
	})
	return r
}

// open takes connections.
func (r *relay) open() error {
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.listener = l
	r.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(c.(*net.TCPConn))
		}
	}()
	return nil
}

// close refuses connections; those there are stay.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		r.listener.Close()
		r.listener = nil
	}
}

// set puts a fault in force, for connections there are too.
func (r *relay) set(f fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
	close(r.changed)
	r.changed = make(chan struct{})
}

// cut resets every connection.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pairs {
		p.reset()
	}
}

// reset breaks both connections off.
func (p *pair) reset() {
	p.front.SetLinger(0)
	p.front.Close()
	p.back.SetLinger(0)
	p.back.Close()
}

// weather waits for a piece to pass, and tells the fault in force.
func (r *relay) weather() fault {
	for {
		r.mu.Lock()
		f, changed := r.fault, r.changed
		r.mu.Unlock()
		if !f.hold {
			wait := f.delay
			if rand.Float64() < f.loss {
				wait += resend
			}
			time.Sleep(wait)
			return f
		}
		<-changed
	}
}

// pass serves a connection.
func (r *relay) pass(front *net.TCPConn) {
	back, err := net.DialTimeout("tcp", r.engine, 30*time.Second)
	if err != nil {
		front.SetLinger(0)
		front.Close()
		return
	}
	p := &pair{front: front, back: back.(*net.TCPConn)}
	r.mu.Lock()
	r.pairs[p] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.pairs, p)
		r.mu.Unlock()
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.up(p)
	}()
	r.down(p)
	<-done
}

// up passes requests on.
func (r *relay) up(p *pair) {
	defer p.back.Close() // who has gone is not answered
	piece := make([]byte, 64<<10)
	for {
		n, err := p.front.Read(piece)
		if err != nil {
			return
		}
		request := bytes.HasPrefix(piece[:n], []byte("POST /"))
		if request {
			p.current.Store(r.journal.note(r.pod, piece[:n]))
		}
		f := r.weather()
		switch {
		case f.garbage && request:
			p.front.Write([]byte("\x00\x01 this is not HTTP\r\n\r\n"))
			p.front.Close()
			return
		case f.metrics != "" && bytes.HasPrefix(piece[:n], []byte("GET /metrics")):
			switch f.metrics {
			case "gone":
				io.WriteString(p.front, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
			case "garbage":
				io.WriteString(p.front, "HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n"+
					"vllm:num_requests_running{ NaN\nvllm:kv_cache_usage_perc -7e9\n"[:60])
			}
			continue
		}
		if _, err := p.back.Write(piece[:n]); err != nil {
			return
		}
	}
}

// down passes answers on.
func (r *relay) down(p *pair) {
	piece := make([]byte, 64<<10)
	for {
		n, err := p.back.Read(piece)
		if err != nil {
			time.Sleep(settle)
			if err != io.EOF {
				p.front.SetLinger(0)
			}
			p.front.Close()
			return
		}
		f := r.weather()
		d := p.current.Load()
		if f.reset && d != nil && rand.IntN(2) == 0 {
			p.reset()
			return
		}
		if _, err := p.front.Write(piece[:n]); err != nil {
			p.back.Close()
			return
		}
		if d == nil {
			continue
		}
		d.begun.Store(true)
		if f.reset {
			time.Sleep(settle)
			p.reset()
			return
		}
		if f.half {
			p.front.CloseWrite()
			io.Copy(io.Discard, p.back)
			p.front.Close()
			return
		}
	}
}

// A delivery is a request's coming to an engine.
type delivery struct {
	pod   int
	at    time.Time
	begun atomic.Bool // some of the answer went to the proxy
}

// journal knows where requests came to, by their ids.
type journal struct {
	mu   sync.Mutex
	byID map[string][]*delivery
}

func newJournal() *journal { return &journal{byID: map[string][]*delivery{}} }

var idField = []byte("\r\nx-request-id: ")

// note takes down a request by its head.
func (j *journal) note(pod int, head []byte) *delivery {
	d := &delivery{pod: pod, at: time.Now()}
	low := bytes.ToLower(head[:min(len(head), 4096)])
	at := bytes.Index(low, idField)
	if at < 0 {
		return d
	}
	id, _, _ := bytes.Cut(head[at+len(idField):], []byte("\r\n"))
	j.mu.Lock()
	j.byID[string(id)] = append(j.byID[string(id)], d)
	j.mu.Unlock()
	return d
}

// take tells where a request came to, and forgets it.
func (j *journal) take(id string) []*delivery {
	j.mu.Lock()
	defer j.mu.Unlock()
	d := j.byID[id]
	delete(j.byID, id)
	return d
}

// came tells whether a request came to a pod; take has not been called.
func (j *journal) came(id string, pod int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.byID[id], func(d *delivery) bool { return d.pod == pod })
}
