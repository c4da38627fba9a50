// Package scrape keeps the picker's endpoints informed: it reads each engine's
// metrics page a few times a second, and probes endpoints that were ejected
// until they are back.
//
// It promises that a scrape which fails does no harm: the endpoint falls back
// to the proxy's own counts, and the reason is logged once, when the state
// changes. Only where nobody takes the connection is the endpoint left alone, as
// by a request. One endpoint is never asked for its metrics twice at the same time,
// and a slow or silent one delays no other. Where they take long it is asked for its
// health beside: an engine that answers neither is silent to the picker.
//
// Of a server with several engines, each an endpoint, the page is read once and
// split among them.
//
// Each server has one goroutine, (*loop).run, which owns the loop's state.
// The set of loops is guarded by Scraper.mu, the settings are one immutable
// value behind an atomic pointer.
package scrape

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/picker"
)

// Settings say how engines are asked. The zero value works.
type Settings struct {
	// Interval between two scrapes of one endpoint; zero: 100 ms.
	Interval time.Duration
	// Timeout of one scrape or probe; zero: 1 s.
	Timeout time.Duration
	// Path of the metrics page; empty: /metrics.
	Path string
}

func (s Settings) withDefaults() *Settings {
	if s.Interval <= 0 {
		s.Interval = 100 * time.Millisecond
	}
	if s.Timeout <= 0 {
		s.Timeout = time.Second
	}
	if s.Path == "" {
		s.Path = "/metrics"
	}
	return &s
}

// Config is what a Scraper is made of. The zero value works.
type Config struct {
	Settings
	// Now is the clock of the picker's pools: monotonic time since an origin
	// that is theirs. Nil: time since New.
	Now func() time.Duration
	// Log is told when an endpoint's metrics fail or come back. Nil:
	// slog.Default().
	Log *slog.Logger
}

// Target is a server and the way to it.
type Target struct {
	// Engines are its endpoints: one, or as many as it has data-parallel ranks, in
	// their order.
	Engines []*picker.Endpoint
	// Get fetches a page by the transport that requests to the server take,
	// and appends its body to buf. It returns when ctx is done.
	Get func(ctx context.Context, path string, buf []byte) (status int, body []byte, err error)
}

// Scraper scrapes a set of endpoints. Its methods may be called from any
// goroutine.
type Scraper struct {
	// Fixed.
	now func() time.Duration
	log *slog.Logger

	settings atomic.Pointer[Settings] // never nil

	mu     sync.Mutex                 // guards what follows
	loops  map[*picker.Endpoint]*loop // by the first of their engines
	closed bool

	running sync.WaitGroup // one for each loop that has not returned
}

// New returns a Scraper that scrapes nothing yet.
func New(c Config) *Scraper {
	s := &Scraper{now: c.Now, log: c.Log, loops: make(map[*picker.Endpoint]*loop)}
	if s.now == nil {
		origin := time.Now()
		s.now = func() time.Duration { return time.Since(origin) }
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.settings.Store(c.Settings.withDefaults())
	return s
}

// Set changes the settings. Each endpoint is scraped by them within the new
// interval, or within a second if that is longer.
func (s *Scraper) Set(settings Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := settings.withDefaults()
	if *s.settings.Swap(next) == *next {
		return
	}
	for _, l := range s.loops {
		select {
		case l.changed <- struct{}{}:
		default: // it has yet to see the last change
		}
	}
}

// Sync makes targets the set that is scraped. A server whose engines stay, by
// their pointers, keeps its rhythm, its state and its Get. One that has gone is left
// at once, in the middle of a scrape if need be. After Close it does nothing.
func (s *Scraper) Sync(targets []Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	gone := s.loops
	s.loops = make(map[*picker.Endpoint]*loop, len(targets))
	for _, t := range targets {
		first := t.Engines[0]
		if s.loops[first] != nil {
			continue // named twice
		}
		l := gone[first]
		if l != nil && slices.Equal(l.Engines, t.Engines) {
			delete(gone, first)
		} else {
			l = s.start(t)
		}
		s.loops[first] = l
	}
	for _, l := range gone {
		l.stop()
	}
}

// start starts a loop. The caller holds mu.
func (s *Scraper) start(t Target) *loop {
	ctx, stop := context.WithCancel(context.Background())
	l := &loop{
		Target:  t,
		scraper: s,
		stop:    stop,
		changed: make(chan struct{}, 1),
		samples: make([]picker.Sample, len(t.Engines)),
		shown:   len(t.Engines),
	}
	s.running.Go(func() { l.run(ctx) })
	return l
}

// Close stops scraping and waits until every scrape has ended.
func (s *Scraper) Close() {
	s.mu.Lock()
	s.closed = true
	for _, l := range s.loops {
		l.stop()
	}
	clear(s.loops)
	s.mu.Unlock()
	s.running.Wait()
}
