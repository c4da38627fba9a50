package scrape

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/fairway-proxy/fairway/picker"
)

const (
	// maxPage bounds a metrics page: one of vLLM has 50 to 100 KB.
	maxPage = 4 << 20
	// slowest is how seldom an endpoint that fails is asked, unless the interval is
	// longer still, or that answers nothing, and how long it may take to notice that
	// one has been ejected.
	slowest = time.Second
	// doubtAfter is how long metrics may take until the engine's health is asked for
	// too: before the picker takes it for silent.
	doubtAfter = picker.Silence / 2
	// healthPath answers 200 when the engine can serve; vLLM, SGLang and
	// TensorRT-LLM agree on it.
	healthPath = "/health"
)

// pages holds buffers for pages, shared by all loops: few of them read at the
// same time.
var pages = sync.Pool{New: func() any { return new([]byte) }}

// condition is what the last scrape made of an endpoint's metrics.
type condition uint8

const (
	untold condition = iota
	reading
	silent // a page without an engine's metrics
	failing
)

// loop asks one server, again and again.
type loop struct {
	Target
	scraper *Scraper
	stop    context.CancelFunc
	changed chan struct{} // the settings have

	// Owned by run.
	due       time.Time // of the next scrape
	failures  int       // scrapes in a row that gave no sample
	mute      bool      // the last scrape had no answer at all
	probes    int       // probes in a row that failed
	condition condition
	samples   []picker.Sample // of the engines
	shown     int             // how many engines the page has told of
}

// run takes turns until ctx is done.
func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(l.offset())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.changed:
			l.due = time.Time{}
			timer.Reset(l.offset())
			continue
		case <-timer.C:
		}
		wait := l.turn(ctx)
		if ctx.Err() != nil {
			return
		}
		timer.Reset(wait)
	}
}

// offset is the part of the interval after which the first scrape comes. It
// depends on the endpoint alone, so that many are not scraped in the same
// instant.
func (l *loop) offset() time.Duration {
	spread := min(l.scraper.settings.Load().Interval, slowest)
	return time.Duration(l.Engines[0].Rank(0) % uint64(spread))
}

// turn does what is to be done now, and returns how long to wait.
func (l *loop) turn(ctx context.Context) time.Duration {
	settings := l.scraper.settings.Load()
	start := time.Now()
	back := false
	if l.ejected() {
		if !l.probe(ctx, settings) {
			l.probes++
			return rest(backoff(min(settings.Interval, slowest), l.probes), time.Since(start))
		}
		back = true
		l.due = time.Time{} // see what came back, before requests go there
	}
	l.probes = 0
	if wait := time.Until(l.due); wait > 0 {
		return min(wait, slowest)
	}
	err := l.scrape(ctx, settings)
	if ctx.Err() != nil {
		return 0 // cut short by stop: says nothing of the endpoint
	}
	l.tell(err, settings)
	if back {
		defer l.readmit() // what the scrape tells goes first
	}
	if err != nil {
		l.failures++
		for _, e := range l.Engines {
			e.ScrapeFailed(l.scraper.now())
		}
		// Nobody listens there: requests need not find out for themselves. A picker whose
		// requests another proxy forwards has no other way to know.
		if errors.Is(err, syscall.ECONNREFUSED) && l.Engines[0].Eject(l.scraper.now()) {
			l.scraper.log.Warn("endpoint does not take connections", "endpoint", l.address(), "error", err)
		}
	} else {
		l.failures = 0
	}
	interval := settings.Interval
	if l.mute { // the picker passes it over until it answers
		interval = min(interval, slowest)
	}
	wait := rest(backoff(interval, l.failures), time.Since(start))
	l.due = time.Now().Add(wait)
	return min(wait, slowest)
}

// address is where the server is.
func (l *loop) address() string { return l.Engines[0].Address() }

// ejected tells whether an engine of the server is.
func (l *loop) ejected() bool {
	now := l.scraper.now()
	return slices.ContainsFunc(l.Engines, func(e *picker.Endpoint) bool { return e.Ejected(now) })
}

// readmit lets requests go to a server whose probe succeeded.
func (l *loop) readmit() {
	back := false
	for _, e := range l.Engines {
		back = e.Readmit() || back
	}
	if back {
		l.scraper.log.Info("endpoint takes connections again", "endpoint", l.address())
	}
}

// backoff doubles interval with each failure, up to slowest.
func backoff(interval time.Duration, failures int) time.Duration {
	for ; failures > 0 && interval < slowest; failures-- {
		interval = min(2*interval, slowest)
	}
	return interval
}

// rest is what is left of the period that a turn has taken a part of: turns
// that take longer than a period miss beats rather than follow at once.
func rest(period, took time.Duration) time.Duration {
	return period - took%period
}

// errNoEngine says that a page was none of an engine.
var errNoEngine = errors.New("no engine metrics on the page")

// scrape reads the metrics page once and tells the engines.
func (l *loop) scrape(ctx context.Context, settings *Settings) error {
	now := l.scraper.now()
	for _, e := range l.Engines {
		e.Asked(now)
	}
	defer l.doubt(ctx, settings)()
	engines := len(l.Engines)
	err := l.get(ctx, settings.Timeout, settings.Path, func(page []byte) error {
		if len(page) > maxPage {
			return fmt.Errorf("the page is larger than %d bytes", maxPage)
		}
		found := false
		if l.Engines[0].Engine() == "" {
			found = Scan(page, &l.samples[0])
		} else {
			engines = ScanEngines(page, l.samples)
			found = engines > 0
		}
		if !found {
			return errNoEngine
		}
		return nil
	})
	l.mute = unanswered(err)
	if err != nil {
		return err
	}
	now = l.scraper.now()
	for i, e := range l.Engines {
		if e.Engine() == "" || l.samples[i] != (picker.Sample{}) {
			e.Observe(l.samples[i], now)
		} else {
			e.ScrapeFailed(now)
		}
	}
	if engines != l.shown && engines != len(l.Engines) {
		l.scraper.log.Warn("the metrics page tells of another number of engines than ranks are configured", "endpoint", l.address(),
			"engines", engines, "ranks", len(l.Engines))
	}
	l.shown = engines
	return nil
}

// doubt asks for the engine's health if its metrics are not there soon, or were not the
// last time: a page may hang while all the rest is well. end ends that.
func (l *loop) doubt(ctx context.Context, settings *Settings) (end func()) {
	wait := doubtAfter
	if l.mute {
		wait = 0
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	timer := time.AfterFunc(wait, func() {
		defer close(done)
		l.probe(ctx, settings)
	})
	return func() {
		cancel()
		if !timer.Stop() {
			<-done
		}
	}
}

// unanswered tells whether a question failed because nothing came.
func unanswered(err error) bool {
	late, ok := errors.AsType[net.Error](err)
	return ok && late.Timeout() || errors.Is(err, context.Canceled)
}

// probe reports whether the engine says that it can serve.
func (l *loop) probe(ctx context.Context, settings *Settings) bool {
	return l.get(ctx, settings.Timeout, healthPath, func([]byte) error { return nil }) == nil
}

// get fetches a page and lets read see it if its status is 200. read keeps
// nothing of it.
func (l *loop) get(ctx context.Context, timeout time.Duration, path string, read func(page []byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	buf := pages.Get().(*[]byte)
	defer pages.Put(buf)
	status, page, err := l.Get(ctx, path, (*buf)[:0])
	if cap(page) <= maxPage {
		*buf = page
	}
	if !unanswered(err) {
		for _, e := range l.Engines {
			e.Answered()
		}
	}
	switch {
	case err != nil:
		return err
	case status != http.StatusOK:
		return fmt.Errorf("status %d", status)
	}
	return read(page)
}

// tell logs how a scrape went if that is news.
func (l *loop) tell(err error, settings *Settings) {
	was := l.condition
	switch {
	case err == nil:
		l.condition = reading
	case errors.Is(err, errNoEngine):
		l.condition = silent
	default:
		l.condition = failing
	}
	if l.condition == was {
		return
	}
	log := l.scraper.log.With("endpoint", l.address(), "path", settings.Path)
	switch l.condition {
	case reading:
		if was == untold {
			log.Debug("reading metrics")
		} else {
			log.Info("metrics are back")
		}
	case silent:
		log.Warn("no vLLM metrics on the page: routing by own counts")
	case failing:
		log.Warn("cannot read metrics: routing by own counts", "err", err)
	}
}
