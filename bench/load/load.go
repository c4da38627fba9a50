// Package load plays a workload over real sockets against any server that speaks OpenAI's chat completions, and measures what its
// users would see.
//
// The load is open: a conversation starts when the workload says so, however slow the server is, and every latency counts from the
// moment at which its request was due, so that a server that stalls is charged for the requests that had to wait (no coordinated
// omission). Within a conversation a question follows the answer before it, as people do; its prompt holds the answers that were
// really received. How late the player itself was is measured too (Result.SendLag): figures with a large lag are figures of an
// overloaded player.
//
// Run is one goroutine a conversation, none of which outlives it. What they measure is gathered behind one mutex.
package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/bench/workload"
)

// Config says what to play against what. URL and Workload are required.
type Config struct {
	URL      string             // of the server: http://host:port, with or without a path and the final /v1
	Model    string             // "": the first that the server lists at /v1/models
	Workload *workload.Workload // who asks what, when
	Duration time.Duration      // requests due later are not sent; answers under way are awaited. 0: until ctx ends
	Warmup   time.Duration      // requests due before then are sent and not measured; it is part of Duration
	RampTo   float64            // requests a second at the end of Duration: from the workload's rate it goes there in a straight line; 0: it stays
	Timeout  time.Duration      // a request that has not ended by then, from when it was due, fails; 0: none

	Label     string      // what the runs that belong together are called in reports; it is passed on
	Header    http.Header // sent with every request, as Authorization
	OmitUsage bool        // do not ask for usage in streams, as most clients do not: hit rates are unknown then
	Explain   bool        // ask which endpoint served (x-fairway-explain: 1)
	IgnoreEOS bool        // ask for answers of exactly the workload's length (vLLM's ignore_eos)

	// Objectives names, for each of the workload's criticalities (workload.Criticalities), the InferenceObjective that its
	// requests ask for (x-gateway-inference-objective). Where it has none they ask for none.
	Objectives map[string]string

	SLO SLO // what a good answer is

	Transport http.RoundTripper // nil: HTTP/1.1, and HTTP/2 over TLS where offered, with as many connections as it takes
	Progress  *Progress         // counted up during Run; nil: nobody looks
	OnRecord  func(Record)      // called when a request has ended, never by two goroutines at once; nil: nobody listens
}

// SLO is what a request must keep to count for Result.Goodput.
type SLO struct {
	TTFT time.Duration // at most, from when it was due to its first token; 0: as DefaultSLO
	TPOT time.Duration // at most, mean time of each token after the first; 0: as DefaultSLO
}

// DefaultSLO is an answer that begins at once and is written faster than people read.
var DefaultSLO = SLO{TTFT: time.Second, TPOT: 100 * time.Millisecond}

func (s SLO) withDefaults() SLO {
	if s.TTFT == 0 {
		s.TTFT = DefaultSLO.TTFT
	}
	if s.TPOT == 0 {
		s.TPOT = DefaultSLO.TPOT
	}
	return s
}

// Progress is what has happened so far. It may be read at any time.
type Progress struct {
	Sent         atomic.Int64 // requests
	Done         atomic.Int64 // requests that ended, well or not
	Failed       atomic.Int64 // requests that ended otherwise than well; the cancelled are not among them
	Tokens       atomic.Int64 // events with content received
	PromptTokens atomic.Int64 // as told in usage
	CachedTokens atomic.Int64 // as told in usage
}

// lead is how long before it is due a conversation's first request is written out.
const lead = 50 * time.Millisecond

// Run plays the workload until its end, and returns what it measured. It fails if cfg makes no sense, or if the model has to be
// asked for and the server does not tell. Requests that fail are no failure of Run. Nor is ctx's end: what is under way is given up,
// and Result says Interrupted.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	base, err := baseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	switch {
	case cfg.Workload == nil:
		return nil, errors.New("load: Config.Workload is missing")
	case cfg.RampTo != 0 && cfg.Duration <= 0:
		return nil, errors.New("load: a ramp needs a Duration")
	}
	cfg.SLO = cfg.SLO.withDefaults()
	if cfg.Progress == nil {
		cfg.Progress = new(Progress)
	}
	c := &client{transport: cfg.Transport, base: base, header: cfg.Header, explain: cfg.Explain}
	if c.transport == nil {
		t := newTransport()
		defer t.CloseIdleConnections()
		c.transport = t
	}
	if cfg.Model == "" {
		if cfg.Model, err = c.firstModel(ctx); err != nil {
			return nil, err
		}
	}
	p := newPlayer(cfg, c)
	p.play(ctx)
	return p.result(ctx.Err() != nil), nil
}

// CheckURL reports what is wrong with a server's URL, as Run would.
func CheckURL(s string) error {
	_, err := baseURL(s)
	return err
}

// baseURL checks a server's URL and cuts what the client adds.
func baseURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("target %q is no URL of a server; it looks like http://127.0.0.1:8080", s)
	}
	u.RawQuery, u.Fragment = "", ""
	return strings.TrimSuffix(strings.TrimSuffix(u.String(), "/"), "/v1"), nil
}

// player is one Run.
type player struct {
	cfg    Config
	client *client
	start  time.Time // what all times of records count from

	mu      sync.Mutex
	records []Record
	skipped int                  // turns that were not asked because one before them failed
	classes map[string]histogram // times to first token by criticality, if the workload has any

	ttft, interToken, tpot, e2e, sendLag histogram
}

func newPlayer(cfg Config, c *client) *player {
	return &player{
		cfg: cfg, client: c, start: time.Now(), classes: map[string]histogram{},
		ttft: newHistogram(), interToken: newHistogram(), tpot: newHistogram(), e2e: newHistogram(), sendLag: newHistogram(),
	}
}

// play starts the conversations and returns when the last has ended.
func (p *player) play(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for s := range p.cfg.Workload.Sessions() {
		s.Start = p.ramped(s.Start)
		if p.beyond(s.Start) || !p.sleep(ctx, s.Start-lead) {
			return
		}
		wg.Go(func() { p.converse(ctx, s) })
	}
}

// ramped is when a conversation begins that would begin at the time given if the rate stayed as it is at the beginning.
func (p *player) ramped(at time.Duration) time.Duration {
	if p.cfg.RampTo == 0 {
		return at
	}
	// With the rate a + bt as many have begun after t as with the rate a after t + bt²/2a.
	a := p.cfg.Workload.Params().Rate
	b := (p.cfg.RampTo - a) / p.cfg.Duration.Seconds()
	if b == 0 {
		return at
	}
	root := a*a + 2*a*b*at.Seconds()
	if root < 0 { // a falling rate reaches zero before so many have begun
		return math.MaxInt64
	}
	return time.Duration((math.Sqrt(root) - a) / b * float64(time.Second))
}

// now is the time since the start.
func (p *player) now() time.Duration { return time.Since(p.start) }

// beyond reports whether at is after the end of the load.
func (p *player) beyond(at time.Duration) bool { return p.cfg.Duration > 0 && at >= p.cfg.Duration }

// sleep waits until the time given, and reports whether that came before ctx's end.
func (p *player) sleep(ctx context.Context, until time.Duration) bool {
	if d := until - p.now(); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// converse plays one conversation. A turn that fails ends it, for there is no answer to go on from.
func (p *player) converse(ctx context.Context, s workload.Session) {
	var messages []message
	if len(s.System) > 0 {
		messages = append(messages, message{"system", workload.Text(s.System...)})
	}
	due := s.Start
	for i, turn := range s.Turns {
		messages = append(messages, message{"user", workload.Text(turn.User...)})
		if i < s.Resume {
			messages = append(messages, message{"assistant", workload.Text(turn.Answer)})
			continue
		}
		body := p.body(s.Adapter, messages, turn.Answer.Tokens)
		if p.beyond(due) || !p.sleep(ctx, due) {
			return
		}
		rec := Record{Session: s.ID, Turn: i, Criticality: s.Criticality, Intended: due}
		answer, gaps := p.ask(ctx, body, &rec)
		p.keep(rec, gaps, len(s.Turns)-1-i)
		if rec.Error != "" || i == len(s.Turns)-1 {
			return
		}
		messages = append(messages, message{"assistant", answer})
		due = rec.End + s.Turns[i+1].Think
	}
}

// errTimeout is why a request's context ended that took longer than Config.Timeout.
var errTimeout = errors.New("timed out")

// ask sends one request, which is due now, and returns the answer's text and the times between its events with content.
func (p *player) ask(ctx context.Context, body []byte, rec *Record) (answer string, gaps []time.Duration) {
	var cancel context.CancelFunc
	if p.cfg.Timeout > 0 {
		ctx, cancel = context.WithDeadlineCause(ctx, p.start.Add(rec.Intended+p.cfg.Timeout), errTimeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	defer cancel()
	x := exchange{client: p.client, start: p.start, rec: rec, progress: p.cfg.Progress, cancel: cancel}
	rec.Sent = p.now()
	p.cfg.Progress.Sent.Add(1)
	x.run(ctx, p.cfg.Objectives[rec.Criticality], body)
	return x.answer.String(), x.gaps
}

// keep files what was measured. left is how many turns the conversation still has.
func (p *player) keep(rec Record, gaps []time.Duration, left int) {
	g := p.cfg.Progress
	g.PromptTokens.Add(int64(rec.PromptTokens))
	if rec.CachedTokens != nil {
		g.CachedTokens.Add(int64(*rec.CachedTokens))
	}
	if rec.Failed() {
		g.Failed.Add(1)
	}
	g.Done.Add(1)
	if rec.Intended < p.cfg.Warmup {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.records = append(p.records, rec)
	if rec.Failed() {
		p.skipped += left
	}
	p.sendLag.record(rec.Sent - rec.Intended)
	if c := rec.Criticality; c != "" && p.classes[c] == (histogram{}) {
		p.classes[c] = newHistogram()
	}
	if rec.FirstToken > 0 {
		p.ttft.record(rec.TTFT())
		if rec.Criticality != "" {
			p.classes[rec.Criticality].record(rec.TTFT())
		}
	}
	if rec.Error == "" {
		p.e2e.record(rec.E2E())
		for _, gap := range gaps {
			p.interToken.record(gap)
		}
		if rec.CompletionTokens > 1 {
			p.tpot.record(rec.TPOT())
		}
	}
	if p.cfg.OnRecord != nil {
		p.cfg.OnRecord(rec)
	}
}
