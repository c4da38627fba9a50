package account

import (
	"cmp"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// DefaultReceipts is how many receipts are kept unless told otherwise.
	DefaultReceipts = 1024
	// MaxCandidates is how many candidates a receipt keeps: the best of them, where a pool has more endpoints. Nobody reads a hundred
	// rows, and every stream holds its own until it ends.
	MaxCandidates = 16
	// maxTried is how many failed attempts a receipt keeps.
	maxTried = 8
	// maxText bounds what a receipt keeps of a stranger's words, in bytes.
	maxText = 256
)

// ByEndpointPicker is what a choice turned on that the pool's own endpoint picker made.
const ByEndpointPicker = "endpoint_picker"

// Pick is what was weighed when an endpoint was chosen, the last time if the request was tried more than once. Its zero value is
// that of a request for which nothing was weighed.
type Pick struct {
	Prefill string // the endpoint that computes the prompt for the one that was chosen; empty: that one does

	At            time.Duration // since the request's head
	Queued        time.Duration // how long all choices took: the time in the queue
	PredictedTTFT time.Duration // after At; 0: not predicted
	PredictedTPOT time.Duration // of each token after the first, in the mean; 0: not predicted
	DecidedBy     string        // what the choice turned on: a picker.Factor, or ByEndpointPicker
	Weighed       int           // endpoints; Candidates has the best of them
	Chosen, Next  int           // in Candidates; −1: it is not there
	Candidates    []Candidate
	Tried         []Attempt // endpoints that failed before
	Shadow        Shadow
}

// Fail notes that an endpoint failed the request, at so long after its head.
func (p *Pick) Fail(endpoint string, at time.Duration, why error) {
	if len(p.Tried) < maxTried {
		p.Tried = append(p.Tried, Attempt{endpoint, at, clip(why.Error())})
	}
}

// Candidate is an endpoint as the picker saw it. The parts of its score are in seconds: their sum times Pressure times Price is Score.
// Seven digits of each are enough to explain it, and many are kept.
type Candidate struct {
	Endpoint string
	Score    float32 // the lowest wins

	Queue     float32 // computing what is queued there before the prompt
	Prompt    float32 // computing what of the prompt is not cached there
	Adapter   float32 // bringing the LoRA adapter to the GPU
	Inflicted float32 // the delay of the requests already there, as far as it counts
	Pressure  float32 // by how much it is dearer because the KV cache is filling, 1 or more
	Price     float32 // and because of what the endpoint costs; 1 if that does not count

	HitTokens       float32 // of the prompt, believed to be cached
	UncachedTokens  float32 // of the prompt, to be computed
	QueuedTokens    float32 // uncached tokens of requests before it
	Requests        float32 // on the endpoint, others' included
	KV              float32 // 0..1 of the KV cache in use
	SecondsPerToken float32
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

// receipts are what is kept of the last exchanges, in a ring. It has as much memory as they need at most: one that is written over leaves its
// own to the next.
type receipts struct {
	mu    sync.Mutex // guards what slots hold. Taken once for many receipts: while what was written is on its way to memory, a lock waits for all of it
	slots []slot
}

// slot is one place in the ring.
type slot struct {
	seq uint64 // of the exchange, from 1; 0: empty
	kept
}

// kept is what a receipt has of a Record, and no more: the ring goes round as fast as requests come, and what it takes of a processor's
// cache others have to do without.
type kept struct {
	id, method, path, model, pool, endpoint, criticality, decidedBy string

	candidates []Candidate
	rare       *rarity // its memory stays; what is in it counts if isRare
	trace      [16]byte

	start                                                    int64 // nanoseconds since 1970
	duration, ttft, at, queued, predictedTTFT, predictedTPOT time.Duration

	promptTokens, cachedTokens, completionTokens, predictedTokens, predictedHit int32

	status, retries, weighed int32
	chosen, next             int8 // in candidates
	streamed, isRare         bool
}

// rarity is what few receipts have.
type rarity struct {
	reason, shed, prefill string
	tried                 []Attempt
	shadow                Shadow
}

// keep makes k what there is to keep of rec. What a stranger may have worded is clipped.
func (k *kept) keep(rec *Record) {
	p := &rec.Pick
	k.id, k.method, k.path, k.model = clip(rec.ID), clip(rec.Method), clip(rec.Path), clip(rec.Model)
	k.pool, k.endpoint, k.criticality, k.decidedBy = rec.Pool, rec.Endpoint, rec.Criticality, p.DecidedBy
	k.candidates = append(k.candidates[:0], p.Candidates...)
	k.trace = rec.Trace.ID
	k.start, k.duration, k.ttft = rec.Start.UnixNano(), rec.Duration, rec.TTFT
	k.at, k.queued, k.predictedTTFT, k.predictedTPOT = p.At, p.Queued, p.PredictedTTFT, p.PredictedTPOT
	k.promptTokens, k.cachedTokens, k.completionTokens = small(rec.PromptTokens), small(rec.CachedTokens), small(rec.CompletionTokens)
	k.predictedTokens, k.predictedHit = small(rec.PredictedTokens), small(rec.PredictedHit)
	k.status, k.retries, k.weighed = small(rec.Status), small(rec.Retries), small(p.Weighed)
	k.chosen, k.next, k.streamed = int8(p.Chosen), int8(p.Next), rec.Streamed
	k.isRare = rec.Reason != "" || rec.Shed != "" || p.Prefill != "" || len(p.Tried) > 0 || p.Shadow.Policy != ""
	if k.isRare {
		k.keepRare(rec)
	}
}

func (k *kept) keepRare(rec *Record) {
	if k.rare == nil {
		k.rare = new(rarity)
	}
	r, p := k.rare, &rec.Pick
	r.reason, r.shed, r.prefill, r.shadow = clip(rec.Reason), rec.Shed, p.Prefill, p.Shadow
	r.tried = append(r.tried[:0], p.Tried...)
}

// rarely gives what few have, which is nothing if it has nothing of it.
func (k *kept) rarely() *rarity {
	if k.isRare {
		return k.rare
	}
	return new(rarity)
}

// small is a count as receipts have it.
func small(n int) int32 { return int32(min(n, math.MaxInt32)) }

// add keeps what there is of some records.
func (r *receipts) add(all []held) {
	if len(r.slots) == 0 {
		return
	}
	r.mu.Lock()
	for i := range all {
		h := &all[i]
		s := &r.slots[(h.seq-1)%uint64(len(r.slots))]
		if s.seq > h.seq {
			continue // the ring went round meanwhile
		}
		s.seq = h.seq
		s.keep(&h.Record)
	}
	r.mu.Unlock()
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

func (q *Query) wants(k *kept) bool {
	return (q.ID == "" || q.ID == k.id) && (q.Model == "" || q.Model == k.model) && (q.Pool == "" || q.Pool == k.pool) &&
		(q.Endpoint == "" || q.Endpoint == k.endpoint || slices.ContainsFunc(k.rarely().tried, func(a Attempt) bool { return a.Endpoint == q.Endpoint }))
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
	newest := r.settle()
	for back := range min(newest, uint64(len(ring.slots))) {
		s := &ring.slots[(newest-1-back)%uint64(len(ring.slots))]
		ring.mu.Lock() // not for all at once, which would take long
		if s.seq != 0 && q.wants(&s.kept) {
			all = append(all, s.receipt(r.replica))
		}
		ring.mu.Unlock()
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

func (s *slot) receipt(replica string) Receipt {
	rare := s.rarely()
	r := Receipt{
		Receipt: s.id + "@" + replica, ID: s.id, Replica: replica, Seq: s.seq, Time: time.Unix(0, s.start),
		Method: s.method, Path: s.path, Model: s.model, Pool: s.pool, Endpoint: s.endpoint, Prefill: rare.prefill, Stream: s.streamed,
		Code: int(s.status), Reason: rare.reason, Criticality: s.criticality, Shed: rare.shed, Retries: int(s.retries), Duration: s.duration.Seconds(), Queued: s.queued.Seconds(),
		Predicted: Outcome{PromptTokens: known(s.predictedTokens), CachedTokens: known(s.predictedHit), TTFT: after(s.predictedTTFT), TPOT: after(s.predictedTPOT)},
		Actual:    Outcome{PromptTokens: known(s.promptTokens), CachedTokens: known(s.cachedTokens), CompletionTokens: known(s.completionTokens)},
		DecidedBy: s.decidedBy, Weighed: int(s.weighed),
	}
	if s.trace != [16]byte{} {
		r.TraceID = hex.EncodeToString(s.trace[:])
	}
	if s := &rare.shadow; s.Policy != "" {
		r.Shadow = &ShadowReceipt{s.Policy, s.Endpoint, s.FirstToken - s.Chosen}
	}
	if s.ttft > 0 {
		r.Actual.TTFT = after(s.ttft - s.at)
	}
	if each, ok := perToken(s.duration, s.ttft, int(s.completionTokens)); ok {
		r.Actual.TPOT = after(each)
	}
	if s.at > 0 {
		r.Picked = after(s.at)
	}
	for _, a := range rare.tried {
		r.Tried = append(r.Tried, FailedAttempt{a.Endpoint, a.At.Seconds(), a.Why})
	}
	for i := range s.candidates {
		c := &s.candidates[i]
		r.Candidates = append(r.Candidates, CandidateReceipt{
			Endpoint: c.Endpoint, Chosen: i == int(s.chosen), Score: decimal(c.Score),
			Queue: decimal(c.Queue), Prompt: decimal(c.Prompt), Adapter: decimal(c.Adapter), Inflicted: decimal(c.Inflicted),
			Pressure: decimal(c.Pressure), Price: decimal(c.Price),
			HitTokens: decimal(c.HitTokens), UncachedTokens: decimal(c.UncachedTokens), QueuedTokens: decimal(c.QueuedTokens),
			Requests: decimal(c.Requests), KV: decimal(c.KV), SecondsPerToken: decimal(c.SecondsPerToken), Home: c.Home,
		})
	}
	if s.chosen != s.next && s.chosen >= 0 && s.next >= 0 {
		next := &r.Candidates[s.next]
		margin := next.Score - r.Candidates[s.chosen].Score
		r.Next, r.Margin = next.Endpoint, &margin
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
	return r
}

// decimal is the number with the fewest digits that f is the nearest to.
func decimal(f float32) float64 {
	var text [32]byte
	d, _ := strconv.ParseFloat(string(strconv.AppendFloat(text[:0], float64(f), 'g', -1, 32)), 64)
	return d
}

// known is a count, nil if nobody told.
func known(n int32) *int {
	if n < 0 {
		return nil
	}
	count := int(n)
	return &count
}

// after is a time in seconds, nil if it did not come.
func after(d time.Duration) *float64 {
	if d <= 0 {
		return nil
	}
	s := d.Seconds()
	return &s
}
