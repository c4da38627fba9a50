package scrape

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/picker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ms = time.Millisecond

// endpoints makes n endpoints of one pool.
func endpoints(n int) []*picker.Endpoint {
	p := picker.NewPool(picker.Config{})
	var specs []picker.Spec
	for i := range n {
		specs = append(specs, picker.Spec{Address: fmt.Sprintf("10.0.0.%d:8000", i)})
	}
	p.SetEndpoints(specs)
	return p.Endpoints()
}

// engine is a made-up one: it notes what it is asked and answers as told.
type engine struct {
	mu    sync.Mutex
	start time.Time
	asked []ask
	// answer says what to do; nil: a page with one request running.
	answer func(ctx context.Context, path string) (int, string, error)
}

type ask struct {
	at   time.Duration // since start
	path string
}

const onePage = "vllm:num_requests_running 1\n"

func newEngine() *engine { return &engine{start: time.Now()} }

func (e *engine) get(ctx context.Context, path string, buf []byte) (int, []byte, error) {
	e.mu.Lock()
	e.asked = append(e.asked, ask{time.Since(e.start), path})
	answer := e.answer
	e.mu.Unlock()
	if answer == nil {
		return 200, append(buf, onePage...), nil
	}
	status, page, err := answer(ctx, path)
	return status, append(buf, page...), err
}

func (e *engine) answers(f func(ctx context.Context, path string) (int, string, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = f
}

// since returns what was asked since the last call.
func (e *engine) since() []ask {
	e.mu.Lock()
	defer e.mu.Unlock()
	asked := e.asked
	e.asked = nil
	return asked
}

// pagesAsked leaves out what was asked beside a scrape that took long.
func pagesAsked(asked []ask) []ask {
	return slices.DeleteFunc(asked, func(a ask) bool { return a.path != "/metrics" })
}

func scrapes(asked []ask) int { return len(pagesAsked(asked)) }

// pauses returns the time between one ask and the next.
func pauses(asked []ask) (d []time.Duration) {
	for i := 1; i < len(asked); i++ {
		d = append(d, asked[i].at-asked[i-1].at)
	}
	return d
}

// logged collects log lines without their times.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines returns what was logged since the last call.
func (l *logged) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return strings.FieldsFunc(l.b.String(), func(r rune) bool { return r == '\n' })
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// pass lets fake time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestScraperReadsOverHTTP(t *testing.T) {
	real := page(t, "vllm-0.32.txt")
	asked := make(chan string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.URL.Path:
		case <-r.Context().Done():
		}
		w.Write(real)
	}))
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()
	get := func(ctx context.Context, path string, buf []byte) (int, []byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, nil)
		if err != nil {
			return 0, buf, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, buf, err
		}
		defer resp.Body.Close()
		b := bytes.NewBuffer(buf)
		_, err = io.Copy(b, resp.Body)
		return resp.StatusCode, b.Bytes(), err
	}

	e := endpoints(1)[0]
	origin := time.Now()
	now := func() time.Duration { return time.Since(origin) }
	s := New(Config{Settings: Settings{Interval: ms}, Now: now})
	defer s.Close()
	s.Sync([]Target{{[]*picker.Endpoint{e}, get}})
	for range 3 { // when it is asked again, the page before has been taken in
		if path := <-asked; path != "/metrics" {
			t.Errorf("asked for %s", path)
		}
	}
	if l := e.Load(now()); l.Capacity != 32*32768 || l.ScrapeAge < 0 || l.ScrapeFailures != 0 {
		t.Errorf("load %+v", l)
	}
}

func TestScrapesAreSpreadAndRegular(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		s := New(Config{})
		defer s.Close()
		engines := make([]*engine, n)
		var targets []Target
		for i, e := range endpoints(n) {
			engines[i] = newEngine()
			targets = append(targets, Target{[]*picker.Endpoint{e}, engines[i].get})
		}
		s.Sync(targets)
		pass(time.Second - 1)
		inSlot := make([]int, 10) // of 10 ms
		for i, e := range engines {
			asked := e.since()
			if len(asked) != 10 {
				t.Fatalf("endpoint %d: asked %d times in a second", i, len(asked))
			}
			for _, p := range pauses(asked) {
				if p != 100*ms {
					t.Fatalf("endpoint %d: a pause of %v", i, p)
				}
			}
			inSlot[asked[0].at/(10*ms)]++
		}
		if most := slices.Max(inSlot); most > n/4 {
			t.Errorf("scrapes in each tenth of the interval: %v", inSlot)
		}
	})
}

func TestSlowScrapesMissBeatsAndNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine()
		e.answers(func(context.Context, string) (int, string, error) {
			time.Sleep(350 * ms)
			return 200, onePage, nil
		})
		s := New(Config{})
		defer s.Close()
		s.Sync([]Target{{[]*picker.Endpoint{endpoints(1)[0]}, e.get}})
		pass(4 * time.Second)
		asked := e.since()
		if len(asked) < 9 {
			t.Fatalf("asked %d times", len(asked))
		}
		for _, p := range pauses(asked) {
			if p != 400*ms {
				t.Errorf("a pause of %v", p)
			}
		}
	})
}

func TestFailuresAreToldOnceAndBackOff(t *testing.T) {
	tests := map[string]struct {
		answer func(ctx context.Context, path string) (int, string, error)
		took   time.Duration
		log    string
	}{
		"error": {
			func(context.Context, string) (int, string, error) {
				return 0, "", errors.New("connect: connection refused")
			}, 0,
			`level=WARN msg="cannot read metrics: routing by own counts" endpoint=10.0.0.0:8000 path=/metrics err="connect: connection refused"`,
		},
		"status": {
			func(context.Context, string) (int, string, error) { return 404, onePage, nil }, 0,
			`level=WARN msg="cannot read metrics: routing by own counts" endpoint=10.0.0.0:8000 path=/metrics err="status 404"`,
		},
		"no answer": {
			func(ctx context.Context, _ string) (int, string, error) { <-ctx.Done(); return 0, "", ctx.Err() }, time.Second,
			`level=WARN msg="cannot read metrics: routing by own counts" endpoint=10.0.0.0:8000 path=/metrics err="context deadline exceeded"`,
		},
		"too large": {
			func(context.Context, string) (int, string, error) {
				return 200, strings.Repeat(onePage, maxPage/len(onePage)+1), nil
			}, 0,
			`level=WARN msg="cannot read metrics: routing by own counts" endpoint=10.0.0.0:8000 path=/metrics err="the page is larger than 4194304 bytes"`,
		},
		"no engine": {
			func(context.Context, string) (int, string, error) { return 200, "process_start_time_seconds 1\n", nil }, 0,
			`level=WARN msg="no vLLM metrics on the page: routing by own counts" endpoint=10.0.0.0:8000 path=/metrics`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, ep, log := newEngine(), endpoints(1)[0], &logged{}
				s := New(Config{Log: log.logger()})
				defer s.Close()
				s.Sync([]Target{{[]*picker.Endpoint{ep}, e.get}})
				pass(time.Second)
				if lines := log.lines(); len(lines) != 0 {
					t.Errorf("logged while all is well: %q", lines)
				}

				e.since()
				e.answers(test.answer)
				pass(10 * time.Second)
				asked := pagesAsked(e.since())
				want := []time.Duration{200 * ms, 400 * ms, 800 * ms, time.Second, time.Second, time.Second}
				if test.took != 0 { // each beat that a scrape takes part in is missed
					want = []time.Duration{1200 * ms, 1200 * ms, 1600 * ms, 2 * time.Second}
				}
				if got := pauses(asked); len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
					t.Errorf("pauses %v, want %v", got, want)
				}
				if lines := log.lines(); !slices.Equal(lines, []string{test.log}) {
					t.Errorf("logged %q\nwant %q", lines, test.log)
				}
				if l := ep.Load(10 * time.Second); l.ScrapeFailures < len(want) || !l.Stale || l.EjectedUntil != 0 {
					t.Errorf("after failures: %+v", l)
				}

				e.answers(nil)
				pass(3 * time.Second)
				if got := pauses(e.since()); got[len(got)-1] != 100*ms {
					t.Errorf("pauses after it came back: %v", got)
				}
				if lines := log.lines(); !slices.Equal(lines, []string{`level=INFO msg="metrics are back" endpoint=10.0.0.0:8000 path=/metrics`}) {
					t.Errorf("logged %q", lines)
				}
				if l := ep.Load(13 * time.Second); l.ScrapeFailures != 0 {
					t.Errorf("after it came back: %d failures", l.ScrapeFailures)
				}
			})
		})
	}
}

func TestEjectedEndpointIsProbedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := time.Now()
		now := func() time.Duration { return time.Since(origin) }
		e, ep := newEngine(), endpoints(1)[0]
		s := New(Config{Now: now, Log: (&logged{}).logger()})
		defer s.Close()
		s.Sync([]Target{{[]*picker.Endpoint{ep}, e.get}})
		pass(time.Second)

		// Refused again and again: ejected for 1, 2, 4, 8, 16 s.
		e.answers(func(context.Context, string) (int, string, error) { return 503, "", nil })
		for range 5 {
			for ep.Ejected(now()) {
				pass(100 * ms)
			}
			ep.Eject(now())
		}
		e.since()
		pass(5 * time.Second)
		asked := e.since()
		for _, a := range asked {
			if a.path != "/health" {
				t.Fatalf("asked an ejected endpoint for %s", a.path)
			}
		}
		got := pauses(asked)
		if len(got) < 4 || got[len(got)-1] != time.Second {
			t.Errorf("pauses between probes: %v", got)
		}
		if !ep.Ejected(now()) {
			t.Fatal("readmitted by a status 503")
		}

		e.answers(nil)
		pass(time.Second)
		asked = e.since()
		if ep.Ejected(now()) {
			t.Error("not readmitted")
		}
		if len(asked) < 2 || asked[0].path != "/health" || asked[1] != (ask{asked[0].at, "/metrics"}) {
			t.Errorf("asked %v, want a probe and a scrape in the same turn", asked)
		}

		// The next time begins with short pauses again.
		e.answers(func(context.Context, string) (int, string, error) { return 503, "", nil })
		ep.Eject(now())
		pass(900 * ms)
		if got := pauses(e.since()); len(got) < 2 || got[0] != 200*ms || got[1] != 400*ms {
			t.Errorf("pauses after another ejection: %v", got)
		}
	})
}

// A connection that is refused takes the endpoint out until a probe succeeds; a
// scrape that fails in any other way does not.
func TestRefusedConnectionEjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := time.Now()
		now := func() time.Duration { return time.Since(origin) }
		e, ep := newEngine(), endpoints(1)[0]
		s := New(Config{Now: now, Log: slog.New(slog.DiscardHandler)})
		defer s.Close()
		s.Sync([]Target{{[]*picker.Endpoint{ep}, e.get}})
		for _, tt := range []struct {
			err  error
			want bool
		}{
			{os.ErrDeadlineExceeded, false},
			{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, false},
			{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, true},
			{nil, false},
		} {
			e.answers(func(context.Context, string) (int, string, error) {
				if tt.err != nil {
					return 0, "", tt.err
				}
				return 200, onePage, nil
			})
			pass(5 * time.Second)
			if got := ep.Ejected(now()); got != tt.want {
				t.Errorf("after %v: ejected %v", tt.err, got)
			}
		}
	})
}

// An engine that answers nothing is silent within 1.1 s, and until it answers anything. One whose page of metrics hangs, of
// whatever time-out, is not: its health is there. Nor is one whose page is an error.
func TestSilence(t *testing.T) {
	hang := func(ctx context.Context, _ string) (int, string, error) {
		<-ctx.Done()
		return 0, "", fmt.Errorf("GET: %w", context.Cause(ctx))
	}
	tests := map[string]struct {
		timeout time.Duration
		answer  func(ctx context.Context, path string) (int, string, error)
		silent  bool
	}{
		"frozen":                      {time.Second, hang, true},
		"frozen, little patience":     {50 * ms, hang, true},
		"frozen, much patience":       {time.Minute, hang, true},
		"hanging page":                {time.Second, healthy(hang), false},
		"hanging page, much patience": {time.Minute, healthy(hang), false},
		"page gone":                   {time.Second, func(context.Context, string) (int, string, error) { return 404, "", nil }, false},
		"reset":                       {time.Second, func(context.Context, string) (int, string, error) { return 0, "", syscall.ECONNRESET }, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				origin := time.Now()
				now := func() time.Duration { return time.Since(origin) }
				e, ep := newEngine(), endpoints(1)[0]
				s := New(Config{Settings: Settings{Timeout: test.timeout}, Now: now, Log: slog.New(slog.DiscardHandler)})
				defer s.Close()
				s.Sync([]Target{{[]*picker.Endpoint{ep}, e.get}})
				pass(time.Second)
				e.answers(test.answer)
				pass(1100 * ms)
				for range 100 { // ten seconds
					if ep.Silent(now()) != test.silent {
						t.Fatalf("silent %v after %v", !test.silent, now()-time.Second)
					}
					pass(100 * ms)
				}
				e.answers(nil)
				pass(test.timeout + 2*time.Second)
				if ep.Silent(now()) {
					t.Error("silent though it answers")
				}
			})
		})
	}
}

// An engine that was out of reach for a moment is not passed over for an interval, however long that is.
func TestSilenceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := time.Now()
		now := func() time.Duration { return time.Since(origin) }
		e, ep := newEngine(), endpoints(1)[0]
		e.answers(func(ctx context.Context, _ string) (int, string, error) {
			<-ctx.Done()
			return 0, "", fmt.Errorf("GET: %w", context.Cause(ctx))
		})
		s := New(Config{Settings: Settings{Interval: time.Hour, Timeout: time.Second}, Now: now, Log: slog.New(slog.DiscardHandler)})
		defer s.Close()
		s.Sync([]Target{{[]*picker.Endpoint{ep}, e.get}})
		pass(3 * time.Second)
		if !ep.Silent(now()) {
			t.Fatal("not silent though it answers nothing")
		}
		e.answers(nil)
		pass(3 * time.Second)
		if ep.Silent(now()) {
			t.Error("silent though it would answer")
		}
	})
}

// healthy has an engine answer for its health whatever else it does.
func healthy(answer func(context.Context, string) (int, string, error)) func(context.Context, string) (int, string, error) {
	return func(ctx context.Context, path string) (int, string, error) {
		if path == "/health" {
			return 200, "", nil
		}
		return answer(ctx, path)
	}
}

func TestEjectionIsNoticedWhateverTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := time.Now()
		now := func() time.Duration { return time.Since(origin) }
		e, ep := newEngine(), endpoints(1)[0]
		s := New(Config{Settings: Settings{Interval: time.Hour}, Now: now})
		defer s.Close()
		s.Sync([]Target{{[]*picker.Endpoint{ep}, e.get}})
		pass(time.Minute)
		if n := len(e.since()); n != 1 {
			t.Errorf("scraped %d times in the first minute of an hour", n)
		}
		for range 5 {
			ep.Eject(now())
			for ep.Ejected(now()) {
				pass(100 * ms)
			}
		}
		// Probed back, and looked at: it may have started anew.
		if asked := e.since(); len(asked) < 2 || asked[0].path != "/health" || asked[1] != (ask{asked[0].at, "/metrics"}) {
			t.Errorf("asked %v", asked)
		}
	})
}

func TestSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eps := endpoints(2)
		a, b, other := newEngine(), newEngine(), newEngine()
		var cut error
		var ended int
		b.answers(healthy(func(ctx context.Context, _ string) (int, string, error) {
			<-ctx.Done()
			cut = context.Cause(ctx)
			time.Sleep(ms) // its connection takes its time to close
			ended++
			return 0, "", ctx.Err()
		}))
		log := &logged{}
		s := New(Config{Settings: Settings{Timeout: time.Hour}, Log: log.logger()})
		s.Sync([]Target{{[]*picker.Endpoint{eps[0]}, a.get}, {[]*picker.Endpoint{eps[1]}, b.get}, {[]*picker.Endpoint{eps[0]}, other.get}})
		pass(time.Second)
		if len(a.since()) != 10 || scrapes(b.since()) != 1 || len(other.since()) != 0 {
			t.Error("not asked as often as they should be")
		}
		// The one that stays goes on as it was, the other is left at once.
		for range 1000 {
			s.Sync([]Target{{[]*picker.Endpoint{eps[0]}, other.get}})
		}
		synctest.Wait()
		if cut != context.Canceled {
			t.Errorf("the scrape of an endpoint that has gone: %v", cut)
		}
		pass(time.Second)
		if n := len(a.since()); n != 10 || scrapes(b.since()) != 0 || len(other.since()) != 0 {
			t.Errorf("after Sync: %d", n)
		}
		if l := eps[1].Load(0); l.ScrapeFailures != 0 {
			t.Errorf("a scrape cut short counts as %d failures", l.ScrapeFailures)
		}
		s.Sync(nil)
		pass(time.Second)
		if n := len(a.since()); n != 0 {
			t.Errorf("asked %d times after it has gone", n)
		}
		b.since()
		s.Sync([]Target{{[]*picker.Endpoint{eps[1]}, b.get}})
		pass(time.Second)
		if n := scrapes(b.since()); n != 1 {
			t.Errorf("asked %d times after it was back", n)
		}
		s.Close() // in the middle of a scrape
		if ended != 2 {
			t.Errorf("%d scrapes have ended when Close returns, want 2", ended)
		}
		s.Sync([]Target{{[]*picker.Endpoint{eps[0]}, a.get}})
		pass(time.Second)
		if n := len(a.since()); n != 0 {
			t.Errorf("asked %d times after Close", n)
		}
		s.Close()
		if lines := log.lines(); len(lines) != 0 {
			t.Errorf("logged %q", lines)
		}
	})
}

func TestSettingsChangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine()
		s := New(Config{Settings: Settings{Interval: time.Hour}})
		defer s.Close()
		s.Sync([]Target{{[]*picker.Endpoint{endpoints(1)[0]}, e.get}})
		pass(time.Minute)
		e.since()
		s.Set(Settings{Interval: 10 * ms, Path: "/m"})
		s.Set(Settings{Interval: 50 * ms, Path: "/m"})
		pass(time.Second)
		asked := e.since()
		if len(asked) != 20 || asked[0].path != "/m" || asked[0].at > time.Minute+50*ms {
			t.Errorf("asked %d times, first %v", len(asked), asked[0])
		}
		// The same once more changes no rhythm.
		for range 100 {
			s.Set(Settings{Interval: 50 * ms, Path: "/m"})
			pass(10 * ms)
		}
		if n := len(e.since()); n != 20 {
			t.Errorf("asked %d times while the settings stayed", n)
		}
	})
}

// A scrape costs its context and what the endpoint makes of it, never its page.
func TestScrapeAllocatesNoPages(t *testing.T) {
	real := page(t, "vllm-0.32.txt")
	l := &loop{
		Target: Target{
			Engines: endpoints(1),
			Get: func(_ context.Context, _ string, buf []byte) (int, []byte, error) {
				return 200, append(buf, real...), nil
			},
		},
		scraper: New(Config{}),
		samples: make([]picker.Sample, 1),
	}
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			l.due = time.Time{}
			l.turn(context.Background())
		}
	})
	// The race detector has pools drop some of what they are given.
	if n := result.AllocedBytesPerOp(); n > int64(len(real)) {
		t.Errorf("%d bytes allocated", n)
	}
	t.Logf("%v a turn, %d allocations of %d bytes", time.Duration(result.NsPerOp()), result.AllocsPerOp(), result.AllocedBytesPerOp())
}

// A server of several engines has one page, which is read once for all of them.
func TestEnginesShareAPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := picker.NewPool(picker.Config{})
		p.SetEndpoints([]picker.Spec{{Address: "10.0.0.1:8000", Engine: "0"}, {Address: "10.0.0.1:8000", Engine: "1"}, {Address: "10.0.0.1:8000", Engine: "2"}})
		e := newEngine()
		e.answers(func(context.Context, string) (int, string, error) {
			return 200, "vllm:num_requests_running{engine=\"0\"} 5\nvllm:num_requests_running{engine=\"1\"} 9\n", nil
		})
		log := &logged{}
		s := New(Config{Log: log.logger()})
		defer s.Close()
		eps := p.Endpoints()
		s.Sync([]Target{{eps, e.get}})
		pass(time.Second)
		if n := len(e.since()); n != 10 {
			t.Errorf("asked %d times in ten intervals", n)
		}
		for i, want := range []float64{5, 9} {
			load := eps[i].Load(0)
			if got, _ := load.Scrape.Get(picker.Running); got != want {
				t.Errorf("engine %d runs %v, want %v", i, got, want)
			}
		}
		if l := eps[2].Load(0); l.ScrapeAge >= 0 || l.ScrapeFailures != 10 {
			t.Errorf("the engine that is not there: %+v", l)
		}
		if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "engines=2 ranks=3") {
			t.Errorf("logged %q", lines)
		}

		// It goes and comes back as a whole, by one probe at a time.
		e.answers(func(context.Context, string) (int, string, error) { return 0, "", syscall.ECONNREFUSED })
		pass(time.Second)
		for _, ep := range eps {
			if !ep.Ejected(s.now()) {
				t.Errorf("%s is not ejected", ep.Name())
			}
		}
		e.answers(nil)
		pass(2 * time.Second)
		for _, ep := range eps {
			if ep.Ejected(s.now()) {
				t.Errorf("%s is still ejected", ep.Name())
			}
		}
	})
}
