package account

import (
	"cmp"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultReceipts is how many receipts are kept unless told otherwise.
	DefaultReceipts = 1024
	// MaxCandidates is how many candidates a receipt keeps: the best of them, where a pool has more endpoints.
	MaxCandidates = 64
	// maxTried is how many failed attempts a receipt keeps.
	maxTried = 8
	// maxText bounds what a receipt keeps of a stranger's words, in bytes.
	maxText = 256
)

// Pick is what was weighed when an endpoint was chosen, the last time if the request was tried more than once. Its zero value is
// that of a request for which nothing was weighed.
type Pick struct {
	Prefill string // the endpoint that computes the prompt for the one that was chosen; empty: that one does

	At            time.Duration // since the request's head
	Queued        time.Duration // how long all choices took: the time in the queue
	PredictedTTFT time.Duration // after At; 0: not predicted
	PredictedTPOT time.Duration // of each token after the first, in the mean; 0: not predicted
	DecidedBy     string        // what the choice turned on, a picker.Factor
	Weighed       int           // endpoints; Candidates has the best of them
	Chosen, Next  int           // in Candidates; −1: it is not there
	Candidates    []Candidate
	Tried         []Attempt // endpoints that failed before
	Shadow        Shadow
}

// Reset makes p the zero value, and keeps the memory it has.
func (p *Pick) Reset() {
	clear(p.Candidates)
	clear(p.Tried)
	*p = Pick{Chosen: -1, Next: -1, Candidates: p.Candidates[:0], Tried: p.Tried[:0]}
}

// Fail notes that an endpoint failed the request, at so long after its head.
func (p *Pick) Fail(endpoint string, at time.Duration, why error) {
	if len(p.Tried) < maxTried {
		p.Tried = append(p.Tried, Attempt{endpoint, at, clip(why.Error())})
	}
}

// Candidate is an endpoint as the picker saw it. The parts of its score are in seconds: their sum times Pressure times Price is Score.
type Candidate struct {
	Endpoint string
	Score    float64 // the lowest wins

	Queue     float64 // computing what is queued there before the prompt
	Prompt    float64 // computing what of the prompt is not cached there
	Adapter   float64 // bringing the LoRA adapter to the GPU
	Inflicted float64 // the delay of the requests already there, as far as it counts
	Pressure  float64 // by how much it is dearer because the KV cache is filling, 1 or more
	Price     float64 // and because of what the endpoint costs; 1 if that does not count

	HitTokens       float64 // of the prompt, believed to be cached
	UncachedTokens  float64 // of the prompt, to be computed
	QueuedTokens    float64 // uncached tokens of requests before it
	Requests        float64 // on the endpoint, others' included
	KV              float64 // 0..1 of the KV cache in use
	SecondsPerToken float64
	Home            bool // where the replicas agree to send a prompt that nobody has cached
}

// Shadow is what a second policy made of the same candidates. Its zero value: none was asked.
type Shadow struct {
	Policy   string
	Endpoint string // where it would have sent the request
	Agrees   bool   // that is where it went
	// FirstToken is when the first token was to be expected there, and Chosen the same of where the request went, in seconds from the
	// choice; what the first is longer by is the policy's regret.
	FirstToken, Chosen float64
}

// Attempt is an endpoint that failed a request before it answered.
type Attempt struct {
	Endpoint string
	At       time.Duration // since the request's head
	Why      string
}

// receipts are the records of the last exchanges, in a ring. It has as much memory as they need at most: a record that is written over
// leaves its own to the next.
type receipts struct {
	slots []slot
	n     atomic.Uint64 // exchanges so far
}

// slot is one place in the ring.
type slot struct {
	mu  sync.Mutex
	seq uint64 // of the exchange, from 1; 0: empty
	rec Record
}

// add keeps a copy of rec.
func (r *receipts) add(rec *Record) {
	if len(r.slots) == 0 {
		return
	}
	seq := r.n.Add(1)
	s := &r.slots[(seq-1)%uint64(len(r.slots))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seq > seq {
		return // the ring went round meanwhile
	}
	s.seq = seq
	candidates, tried := s.rec.Pick.Candidates, s.rec.Pick.Tried
	s.rec = *rec
	s.rec.Pick.Candidates = append(candidates[:0], rec.Pick.Candidates...)
	s.rec.Pick.Tried = append(tried[:0], rec.Pick.Tried...)
	for _, text := range s.rec.texts() {
		*text = clip(*text)
	}
}

// clip bounds a text, and lets go of what it was cut from.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.Clone(strings.ToValidUTF8(s[:maxText], "")) + "…"
}

// Query says which receipts are wanted: those that are like all of its fields that are not empty.
type Query struct {
	ID       string // the request's, with or without @ and the name of the replica
	Model    string
	Pool     string
	Endpoint string // that answered, or failed
	Limit    int    // at most so many; 0: all
}

func (q *Query) wants(rec *Record) bool {
	return (q.ID == "" || q.ID == rec.ID) && (q.Model == "" || q.Model == rec.Model) && (q.Pool == "" || q.Pool == rec.Pool) &&
		(q.Endpoint == "" || q.Endpoint == rec.Endpoint || slices.ContainsFunc(rec.Pick.Tried, func(a Attempt) bool { return a.Endpoint == q.Endpoint }))
}

// Receipts gives the receipts that q wants, the newest first.
func (r *Recorder) Receipts(q Query) []Receipt {
	if id, replica, named := strings.Cut(q.ID, "@"); named {
		if replica != r.replica {
			return nil
		}
		q.ID = id
	}
	var all []Receipt
	ring := &r.receipts
	newest := ring.n.Load()
	for back := range min(newest, uint64(len(ring.slots))) {
		s := &ring.slots[(newest-1-back)%uint64(len(ring.slots))]
		s.mu.Lock()
		if s.seq != 0 && q.wants(&s.rec) {
			all = append(all, newReceipt(&s.rec, s.seq, r.replica))
		}
		s.mu.Unlock()
		if q.Limit > 0 && len(all) == q.Limit {
			break
		}
	}
	return all
}

// Replica is the name of this process among those that serve the same.
func (r *Recorder) Replica() string {
	if r == nil {
		return ""
	}
	return r.replica
}

// Receipt says why a request went where it went, and what came of it. What is not known is absent. Times are in seconds.
type Receipt struct {
	Receipt string    `json:"receipt"` // ID, @ and Replica: whom to ask for it
	ID      string    `json:"id"`
	Replica string    `json:"replica"`
	Seq     uint64    `json:"seq"` // counts the exchanges of this process
	Time    time.Time `json:"time"`

	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`
	Model    string `json:"model,omitempty"`
	Pool     string `json:"pool,omitempty"`
	Endpoint string `json:"endpoint,omitempty"` // the last one tried
	Prefill  string `json:"prefill,omitempty"`  // the one that computed the prompt for it; empty: it did
	Stream   bool   `json:"stream"`

	Code        int             `json:"code"`
	Reason      string          `json:"reason,omitempty"` // empty: answered in full
	Criticality string          `json:"criticality,omitempty"`
	Shed        string          `json:"shed,omitempty"` // why it was refused though it could have been served at another time
	TraceID     string          `json:"trace_id,omitempty"`
	Retries     int             `json:"retries"`
	Tried       []FailedAttempt `json:"tried,omitempty"`
	Duration    float64         `json:"duration_s"`
	Picked      *float64        `json:"picked_s,omitempty"` // from the request's head to the last choice
	Queued      float64         `json:"queued_s"`           // of that, how long choosing took

	Predicted Outcome `json:"predicted"`
	Actual    Outcome `json:"actual"`

	DecidedBy  string             `json:"decided_by,omitempty"`
	Next       string             `json:"next,omitempty"`     // the runner-up
	Margin     *float64           `json:"margin_s,omitempty"` // by which its score is higher
	Shadow     *ShadowReceipt     `json:"shadow,omitempty"`
	Weighed    int                `json:"weighed"` // endpoints in all
	Candidates []CandidateReceipt `json:"candidates,omitempty"`
}

// Outcome is what was predicted of a request, or what happened. TTFT counts from the choice; TPOT is the mean of each token after
// the first.
type Outcome struct {
	TTFT             *float64 `json:"ttft_s,omitempty"`
	TPOT             *float64 `json:"tpot_s,omitempty"`
	PromptTokens     *int     `json:"prompt_tokens,omitempty"`
	CachedTokens     *int     `json:"cached_tokens,omitempty"`
	CompletionTokens *int     `json:"completion_tokens,omitempty"`
}

// ShadowReceipt is a Shadow: where its policy would have sent the request, and how much later the first token was to be expected there.
type ShadowReceipt struct {
	Policy   string  `json:"policy"`
	Endpoint string  `json:"endpoint"`
	Regret   float64 `json:"regret_s"`
}

// FailedAttempt is an Attempt.
type FailedAttempt struct {
	Endpoint string  `json:"endpoint"`
	At       float64 `json:"at_s"`
	Why      string  `json:"why"`
}

// CandidateReceipt is a Candidate: the chosen one first, the others by their scores.
type CandidateReceipt struct {
	Endpoint  string  `json:"endpoint"`
	Chosen    bool    `json:"chosen"`
	Score     float64 `json:"score_s"`
	Queue     float64 `json:"queue_s"`
	Prompt    float64 `json:"prompt_s"`
	Adapter   float64 `json:"adapter_s"`
	Inflicted float64 `json:"inflicted_s"`
	Pressure  float64 `json:"kv_pressure"`
	Price     float64 `json:"price"`

	HitTokens       float64 `json:"hit_tokens"`
	UncachedTokens  float64 `json:"uncached_tokens"`
	QueuedTokens    float64 `json:"queued_tokens"`
	Requests        float64 `json:"requests"`
	KV              float64 `json:"kv_usage"`
	SecondsPerToken float64 `json:"seconds_per_token"`
	Home            bool    `json:"home"`
}

func newReceipt(rec *Record, seq uint64, replica string) Receipt {
	p := &rec.Pick
	r := Receipt{
		Receipt: rec.ID + "@" + replica, ID: rec.ID, Replica: replica, Seq: seq, Time: rec.Start,
		Method: rec.Method, Path: rec.Path, Model: rec.Model, Pool: rec.Pool, Endpoint: rec.Endpoint, Prefill: p.Prefill, Stream: rec.Streamed,
		Code: rec.Status, Reason: rec.Reason, Criticality: rec.Criticality, Shed: rec.Shed, Retries: rec.Retries, Duration: rec.Duration.Seconds(), Queued: p.Queued.Seconds(),
		Predicted: Outcome{PromptTokens: known(rec.PredictedTokens), CachedTokens: known(rec.PredictedHit), TTFT: after(p.PredictedTTFT), TPOT: after(p.PredictedTPOT)},
		Actual:    Outcome{PromptTokens: known(rec.PromptTokens), CachedTokens: known(rec.CachedTokens), CompletionTokens: known(rec.CompletionTokens)},
		DecidedBy: p.DecidedBy, Weighed: p.Weighed,
	}
	if rec.Trace.On() {
		r.TraceID = hex.EncodeToString(rec.Trace.ID[:])
	}
	if s := &p.Shadow; s.Policy != "" {
		r.Shadow = &ShadowReceipt{s.Policy, s.Endpoint, s.FirstToken - s.Chosen}
	}
	if rec.TTFT > 0 {
		r.Actual.TTFT = after(rec.TTFT - p.At)
	}
	if each, ok := perToken(rec.Duration, rec.TTFT, rec.CompletionTokens); ok {
		r.Actual.TPOT = after(each)
	}
	if p.At > 0 {
		r.Picked = after(p.At)
	}
	for _, a := range p.Tried {
		r.Tried = append(r.Tried, FailedAttempt{a.Endpoint, a.At.Seconds(), a.Why})
	}
	for i := range p.Candidates {
		c := &p.Candidates[i]
		r.Candidates = append(r.Candidates, CandidateReceipt{
			Endpoint: c.Endpoint, Chosen: i == p.Chosen, Score: c.Score,
			Queue: c.Queue, Prompt: c.Prompt, Adapter: c.Adapter, Inflicted: c.Inflicted, Pressure: c.Pressure, Price: c.Price,
			HitTokens: c.HitTokens, UncachedTokens: c.UncachedTokens, QueuedTokens: c.QueuedTokens, Requests: c.Requests,
			KV: c.KV, SecondsPerToken: c.SecondsPerToken, Home: c.Home,
		})
	}
	slices.SortStableFunc(r.Candidates, func(a, b CandidateReceipt) int {
		switch {
		case a.Chosen:
			return -1
		case b.Chosen:
			return 1
		}
		return cmp.Compare(a.Score, b.Score)
	})
	if p.Chosen != p.Next && p.Chosen >= 0 && p.Next >= 0 {
		next := &p.Candidates[p.Next]
		margin := next.Score - p.Candidates[p.Chosen].Score
		r.Next, r.Margin = next.Endpoint, &margin
	}
	return r
}

// known is a count, nil if nobody told.
func known(n int) *int {
	if n < 0 {
		return nil
	}
	return &n
}

// after is a time in seconds, nil if it did not come.
func after(d time.Duration) *float64 {
	if d <= 0 {
		return nil
	}
	s := d.Seconds()
	return &s
}
