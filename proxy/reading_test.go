package proxy

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newReader gives a reader of a request that ends with ctx.
func newReader(ctx context.Context, s *Server) *reader {
	return &reader{x: &Exchange{server: s, progress: progress{ctx: ctx}}}
}

// A large body that takes long is not read all the time, and lets another be read.
func TestReadingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{readers: make(chan struct{}, 1)}
		r := newReader(t.Context(), s)
		if !r.begin() {
			t.Fatal("it does not begin")
		}
		next := newReader(t.Context(), s)
		var began time.Time
		go func() {
			next.begin()
			began = time.Now()
			next.end()
		}()
		synctest.Wait()
		start := time.Now()
		if !r.yield() || !began.IsZero() {
			t.Errorf("it yields after no time; another began at %v", began)
		}
		time.Sleep(stretch)
		if !r.yield() {
			t.Error("it was given up")
		}
		if took := time.Since(start); took != 2*stretch || !began.Equal(start.Add(took)) {
			t.Errorf("it went on after %v, another began after %v; want both after %v", took, began.Sub(start), 2*stretch)
		}
		if r.end(); len(s.readers) != 0 {
			t.Error("it has not ended")
		}
	})
}

// Who is gone is not read on, and leaves no reader behind.
func TestReadingEndsWithTheRequest(t *testing.T) {
	for _, when := range []string{"before", "in the pause", "behind it"} {
		synctest.Test(t, func(t *testing.T) {
			s := &Server{readers: make(chan struct{}, 1)}
			ctx, cancel := context.WithCancel(t.Context())
			r := newReader(ctx, s)
			if when == "before" {
				s.readers <- struct{}{}
				cancel()
				if r.begin() {
					t.Error("it was read")
				}
				<-s.readers
				return
			}
			r.begin()
			went := make(chan bool)
			time.Sleep(stretch)
			go func() { went <- r.yield() }()
			synctest.Wait()
			if when == "behind it" {
				go func() { s.readers <- struct{}{} }() // another, which does not end
				time.Sleep(stretch)
				synctest.Wait()
			}
			cancel()
			if <-went {
				t.Error("it was read on")
			}
			if r.end(); when == "behind it" {
				<-s.readers
			}
			if len(s.readers) != 0 {
				t.Error("a reader has not ended")
			}
		})
	}
}

// A body that takes many stretches is read as another is.
func TestLongReading(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	m := post("/v1/chat/completions", `{"x":[`+strings.Repeat("1,", 500_000)+`1],`+chat(false, 1, "hello")[1:])
	s.Handle(m)
	if m.answer.Status != 200 || len(s.readers) != 0 {
		t.Errorf("status %d, %s; %d readers have not ended", m.answer.Status, m.written.String(), len(s.readers))
	}
}
