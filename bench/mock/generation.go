package mock

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/fairway-proxy/fairway/bench/engine"
)

const (
	maxChoices  = 128 // bounds n
	maxLogprobs = 20  // bounds top_logprobs
)

// generation is a request for an answer, whatever API it came through: what it asks for, and how it goes.
type generation struct {
	x      *exchange
	faults Faults
	params params
	seed   uint64
	salt   string

	model     string // as the answer names it
	adapter   string
	rank      int // the engine that is to serve it; −1: any
	limit     int // max_tokens; 0: none given
	limitName string
	mayEnd    bool // prose may end before its limit; otherwise it fills it, which makes the length of answers the client's choice

	stream       bool
	includeUsage bool // a last event with the usage
	everyUsage   bool // and on every event
	tokenIDs     bool // return_token_ids
	logprobs     bool // how likely each token was
	topLogprobs  int  // and so many of those that were likeliest
	orca         bool // the answer may carry a load report

	tools  toolUse
	format json.RawMessage // schema of a JSON answer; nil: prose
	fail   func(*apiError) // how the API says what is wrong

	prompts [][]uint32
	call    *call
	id      string
	created int64
}

// dialect is how an API says what a generation does.
type dialect interface {
	open(w *events)            // the head of a stream is sent, and nothing has been produced
	start(w *events)           // its first output is there
	delta(w *events, d *delta) // a job has produced
	end(w *events)             // all jobs have ended
	whole(all []output) any    // the answer in one piece; outputs by choice
}

// output is all that a job has said.
type output struct {
	text   string
	tokens []delta // only if the answer mentions tokens
}

// sampling reads the fields that all APIs share.
func (x *exchange) sampling(f *fields, idPrefix string) *generation {
	g := &generation{x: x, fail: x.fail, created: x.begun.Unix(), params: params{n: 1}}
	g.seed = uint64(f.integer("seed", 0))
	g.salt = f.text("cache_salt")
	g.model = f.text("model")
	g.stream = f.boolean("stream")
	if f.isPrefill() {
		x.s.count(&x.s.counts.Prefills)
	}
	id := x.req.Header.Get("X-Request-Id")
	if id == "" {
		id = randomID()
	}
	g.id = idPrefix + id
	return g
}

// limits reads how long the answer may be from the first of the named fields that is given.
func (g *generation) limits(f *fields, names ...string) {
	for _, name := range names {
		if f.get(name) != nil {
			g.limitName, g.limit = name, f.integer(name, 0)
			return
		}
	}
}

// completionFields reads the fields that OpenAI's two completion APIs share.
func (g *generation) completionFields(f *fields) {
	g.params.n, g.params.stop = f.integer("n", 1), f.texts("stop")
	g.tokenIDs = f.boolean("return_token_ids")
	g.orca = true
	g.limits(f, "max_completion_tokens", "max_tokens")
	if o := f.object("stream_options"); o != nil {
		g.includeUsage = o.boolean("include_usage")
		g.everyUsage = g.includeUsage && o.boolean("continuous_usage_stats")
	}
	if g.x.s.cfg.ForceUsage {
		g.includeUsage, g.everyUsage = true, true
	}
}

// check says why vLLM would refuse the request, in its order: model, limits, length.
func (g *generation) check() *apiError {
	s := g.x.s
	var ok bool
	if g.adapter, ok = s.hasModel(g.model); !ok {
		return s.unknownModel(g.model)
	}
	if g.model == "" {
		g.model = s.cfg.Model
	}
	longest := s.cfg.MaxModelLen
	g.rank = -1
	rank, err := strconv.Atoi(g.x.req.Header.Get("X-Data-Parallel-Rank"))
	if err == nil {
		g.rank = rank
	}
	switch {
	case err == nil && (rank < 0 || rank >= len(s.drivers)):
		return &apiError{Message: fmt.Sprintf("data_parallel_rank %d is out of range [0, %d).", rank, len(s.drivers)), Type: "BadRequestError", Code: http.StatusBadRequest}
	case g.limitName != "" && g.limit < 1:
		return badRequest(g.limitName, "%s must be at least 1, got %d. (parameter=%s, value=%d)", g.limitName, g.limit, g.limitName, g.limit)
	case g.limit > longest:
		return badRequest(g.limitName, "%s=%d cannot be greater than max_model_len=%d. Please request fewer output tokens. (parameter=%s, value=%d)",
			g.limitName, g.limit, longest, g.limitName, g.limit)
	case g.params.n < 1:
		return badRequest("n", "n must be at least 1, got %d. (parameter=n, value=%d)", g.params.n, g.params.n)
	case g.params.n > maxChoices:
		return badRequest("n", "n must be at most %d, got %d. (parameter=n, value=%d)", maxChoices, g.params.n, g.params.n)
	case g.topLogprobs > maxLogprobs:
		return badRequest("logprobs", "Requested sample logprobs of %d, which is greater than max allowed: %d (parameter=logprobs, value=%d)",
			g.topLogprobs, maxLogprobs, g.topLogprobs)
	case len(g.prompts) == 0:
		return badRequest("prompt", "You must provide at least one prompt.")
	}
	for _, p := range g.prompts {
		switch {
		case len(p) == 0:
			return badRequest("prompt", "The decoder prompt cannot be empty")
		case len(p) >= longest:
			return badRequest("input_tokens", "This model's maximum context length is %d tokens. However, your prompt contains at least %d input "+
				"tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "+
				"(parameter=input_tokens, value=%d)", longest, longest+1, longest+1)
		case len(p)+g.limit > longest:
			return badRequest("input_tokens", "This model's maximum context length is %d tokens. However, you requested %d output tokens and your "+
				"prompt contains at least %d input tokens, for a total of at least %d tokens. Please reduce the length of the input prompt or "+
				"the number of requested output tokens. (parameter=input_tokens, value=%d)", longest, g.limit, len(p), len(p)+g.limit, len(p))
		}
	}
	return nil
}

// prepare makes the jobs: n for each prompt.
func (g *generation) prepare() {
	g.call = newCall()
	for i, tokens := range g.prompts {
		same := &siblings{left: g.params.n}
		for k := range g.params.n {
			j := &job{call: g.call, index: i*g.params.n + k, siblings: same}
			j.seq.Owner = j
			j.prompt(tokens, g.adapter, g.salt)
			seed := g.x.s.cfg.Seed ^ g.seed*0x9E3779B97F4A7C15 ^ uint64(j.root) ^ uint64(k)<<32
			for _, t := range j.partial[:j.filled] {
				seed = seed*0x100000001B3 ^ uint64(t)
			}
			seed = xxhash.Sum64([]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24),
				byte(seed >> 32), byte(seed >> 40), byte(seed >> 48), byte(seed >> 56)})
			j.gen = newGenerator(seed)
			j.params = g.params
			j.params.maxTokens = g.limit
			if g.limit == 0 {
				j.params.maxTokens = g.x.s.cfg.MaxModelLen - len(tokens)
			}
			g.plan(j, seed)
			g.call.jobs = append(g.call.jobs, j)
		}
	}
}

// plan decides what a job will say and how much of it.
func (g *generation) plan(j *job, seed uint64) {
	length := j.params.maxTokens
	j.gen.script, j.tool = g.scripted(seed)
	if j.gen.script != "" {
		length = countTokens(j.gen.script)
		j.natural = length <= j.params.maxTokens
	} else if g.limit == 0 || g.mayEnd {
		length = naturalLength(seed)
		j.natural = length <= j.params.maxTokens
	}
	j.seq.OutputTokens = min(length, j.params.maxTokens)
}

// naturalLength is how long an answer is that nobody limits: 16 to 400 tokens, short ones more often.
func naturalLength(seed uint64) int {
	a, b := seed%385, seed>>20%385
	return 16 + int(min(a, b)) + int(max(a, b)-min(a, b))/8
}

// run answers the request in the given dialect.
func (g *generation) run(d dialect) {
	x := g.x
	g.prepare()
	on := x.s.driverFor(g.rank)
	if !g.prefillElsewhere(on) {
		g.lost()
		return
	}
	ok, err := on.submit(g.call, x.s.cfg.MaxQueued)
	defer on.leave(g.call)
	switch {
	case err != nil:
		g.refuse(&apiError{Message: err.Error(), Type: "BadRequestError", Code: http.StatusBadRequest})
	case !ok:
		g.refuse(&apiError{
			Message: "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
			Type:    "Service Unavailable", Code: http.StatusServiceUnavailable,
		})
	case g.stream:
		g.runStream(d)
	default:
		g.runWhole(d)
	}
}

func (g *generation) refuse(e *apiError) {
	g.x.s.count(&g.x.s.counts.Refused)
	g.fail(e)
}

// await waits for output, and returns false when the client has gone.
func (g *generation) await(buf []delta) ([]delta, bool) {
	for {
		select {
		case <-g.call.notify:
			// What a signal stands for may have been taken with the one before.
			if buf = g.call.take(buf); len(buf) > 0 {
				return buf, true
			}
		case <-g.x.c.in.gone:
			return nil, false
		}
	}
}

func (g *generation) runWhole(d dialect) {
	all := make([]output, len(g.call.jobs))
	parts := make([][]byte, len(g.call.jobs))
	var buf []delta
	for left := len(g.call.jobs); left > 0; {
		var ok bool
		if buf, ok = g.await(buf); !ok {
			g.lost()
			return
		}
		for i := range buf {
			k := buf[i].job.index
			parts[k] = append(parts[k], buf[i].text...)
			if buf[i].piece != "" && (g.tokenIDs || g.logprobs) {
				all[k].tokens = append(all[k].tokens, buf[i])
			}
			if buf[i].finish != "" {
				left--
			}
		}
	}
	for i, p := range parts {
		all[i].text = string(p)
	}
	var report []field
	if g.orca {
		report = g.x.orca()
	}
	g.finish(func() { g.x.answerJSON(d.whole(all), report...) })
}

func (g *generation) runStream(d dialect) {
	x := g.x
	x.startStream()
	w := &events{g: g}
	if d.open(w); !w.flush() {
		g.lost()
		return
	}
	var buf []delta
	for left, first := len(g.call.jobs), true; left > 0; {
		var ok bool
		if buf, ok = g.await(buf); !ok {
			g.lost()
			return
		}
		if first {
			d.start(w)
			first = false
		}
		for i := range buf {
			d.delta(w, &buf[i])
			if buf[i].finish != "" {
				left--
			}
		}
		if left == 0 && !w.cut {
			d.end(w)
		}
		if left == 0 && !w.cut {
			x.c.out = append(x.c.out, "0\r\n\r\n"...)
			g.finish(x.write)
			return
		}
		if !w.flush() {
			g.lost()
			return
		}
	}
}

// finish writes the end of an answer, and counts it first, so that whoever has the whole answer finds it counted.
func (g *generation) finish(write func()) {
	u := g.usage()
	g.x.s.countAnswered(u, 1)
	if write(); g.x.err != nil {
		g.x.s.countAnswered(u, -1)
		g.lost()
	}
}

// lost counts an answer whose client has gone.
func (g *generation) lost() {
	g.x.keepAlive = false
	g.x.s.count(&g.x.s.counts.Aborted)
}

// events writes a stream's events, each in a chunk of its own.
type events struct {
	g    *generation
	data []byte // scratch
	sent int
	cut  bool // a fault: nothing more is said
}

// send writes what is in data as one event.
func (w *events) send() {
	if w.cut {
		return
	}
	w.data = append(w.data, "\n\n"...)
	w.g.x.chunk(w.data)
	w.sent++
	if c := w.g.faults.CutAfter; c > 0 && w.sent == c {
		w.cut = true
	}
}

// flush sends the events so far, and returns false when there can be no more.
func (w *events) flush() bool {
	x := w.g.x
	if len(x.c.out) > 0 {
		x.write()
	}
	if w.cut {
		x.c.reset()
		x.err = errCut
	}
	return x.err == nil
}

// usage counts tokens, as vLLM reports them.
type usage struct {
	prompt, completion, cached, created int
}

// usage is that of the whole call. It may be asked for when every job has ended.
func (g *generation) usage() usage {
	var u usage
	for i, p := range g.prompts {
		u.prompt += len(p)
		cached := g.call.jobs[i*g.params.n].seq.Cached
		u.cached += cached
		u.created += len(p)/engine.BlockSize*engine.BlockSize - cached
	}
	for _, j := range g.call.jobs {
		u.completion += j.seq.Generated
	}
	return u
}

// begin runs what every request for an answer goes through, faults included, and returns false if it has been dealt with.
func (x *exchange) begin() (Faults, bool) {
	x.s.countReceived(x.req.Header.Get("X-Request-Id"))
	f := x.s.presentFaults()
	if f.OnRequest != nil {
		f.OnRequest(x.req, x.body)
	}
	if f.HeaderDelay > 0 {
		t := time.NewTimer(f.HeaderDelay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-x.c.in.gone:
			x.keepAlive = false
			x.s.count(&x.s.counts.Aborted)
			return f, false
		}
	}
	switch {
	case f.Garbage:
		x.keepAlive = false
		x.c.out = append(x.c.out[:0], "\x00\x01 this is not HTTP\r\n\r\n"...)
		x.write()
		return f, false
	case f.Status != 0:
		x.s.count(&x.s.counts.Refused)
		x.fail(&apiError{Message: "fault", Type: http.StatusText(f.Status), Code: f.Status})
		return f, false
	}
	return f, true
}
