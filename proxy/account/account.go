// Package account tells what became of an exchange: it counts it, times it,
// writes its line in the access log, and keeps a receipt of why it went where it
// went.
//
// A Record is filled by the one goroutine that runs the exchange and handed
// over once, at its end. A Recorder is safe for concurrent use. What a stranger
// can name (models, paths) never makes metrics grow without bound.
package account

import (
	"cmp"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Unknown marks a count that nobody told.
const Unknown = -1

// Record is what there is to tell of one exchange. Strings are "" and counts
// Unknown (where -1 is possible) when there is nothing to tell.
type Record struct {
	ID     string
	Method string
	Path   string
	// Operation is OpenTelemetry's gen_ai.operation.name; empty for what is none.
	Operation string
	Model     string // as the client named it
	Pool      string
	Endpoint  string // the last one tried
	Remote    string
	Peer      string // the SPIFFE ID of the tunnel's other end
	Service   string // the Service, or the pod, that the tunnel was for
	GRPC      bool
	// Source and Destination are what the addresses of the two ends belong to; nil: not known. They do not change.
	Source, Destination *Workload

	Principal    string // whose the request is: a token's issuer and subject, or the name of a key
	Policy       string // that denied it; "default" when no ALLOW policy matched
	DryRun       bool   // there are policies that are judged and not enforced
	DryRunPolicy string // that would deny it, were dry runs enforced; likewise
	AuditPolicy  string // an AUDIT policy that matched

	Status int
	// Reason is the word for what went wrong: the type of our error answer,
	// or one of the constants below.
	Reason string
	// ByAuthorizer tells that an external authorizer denied it, or could not be asked, rather than a policy of our own.
	ByAuthorizer bool
	// Unanswered tells that the last endpoint tried took the request, or a part of it, and closed without an answer.
	Unanswered bool

	Start    time.Time
	Duration time.Duration
	TTFT     time.Duration // to the first token of a stream; 0: none seen
	WantTTFT time.Duration // what TTFT should be at most; 0: anything
	WantTPOT time.Duration // what each token after the first should take at most, in the mean; 0: anything
	Retries  int
	Streamed bool

	PromptTokens     int
	CachedTokens     int
	CompletionTokens int
	// PredictedTokens and PredictedHit are the picker's estimates of
	// PromptTokens and CachedTokens; Unknown when nothing was picked by prompt.
	PredictedTokens int
	PredictedHit    int

	BytesIn, BytesOut int64

	Criticality string // Critical, Standard or Sheddable; "": it does not wait for its turn
	Shed        string // why it was refused though it could have been served at another time

	Trace Trace

	Pick Pick
}

// copy makes rec the same as another, with memory of its own.
func (rec *Record) copy(other *Record) {
	candidates, tried := rec.Pick.Candidates, rec.Pick.Tried
	*rec = *other
	rec.Pick.Candidates = append(candidates[:0], other.Pick.Candidates...)
	rec.Pick.Tried = append(tried[:0], other.Pick.Tried...)
}

// Reset makes rec that of an exchange of which nothing is known yet, and keeps the
// memory it has.
func (rec *Record) Reset() {
	candidates, tried := rec.Pick.Candidates, rec.Pick.Tried
	clear(tried)
	*rec = Record{} // apart from what follows, so that it is cleared where it lies
	rec.PromptTokens, rec.CachedTokens, rec.CompletionTokens = Unknown, Unknown, Unknown
	rec.PredictedTokens, rec.PredictedHit = Unknown, Unknown
	rec.Pick.Chosen, rec.Pick.Next = -1, -1
	rec.Pick.Candidates, rec.Pick.Tried = candidates[:0], tried[:0]
}

// Reasons that are not the type of an error answer.
const (
	PickerAnswered  = "picker_answered" // the pool's own endpoint picker, in an endpoint's place
	ClientGone      = "client_gone"
	ClientTimeout   = "client_timeout"   // it sent or took nothing for too long, and was cut off
	Stopped         = "stopped"          // it was cut off because the proxy had to stop
	UpstreamCut     = "upstream_cut"     // the answer broke off
	TunnelIdle      = "tunnel_idle"      // neither side of a tunnel said anything in time
	UpstreamAborted = "upstream_aborted" // the engine gave it up, as vLLM does when it is told to end
)

// What a request may be worth: a priority above 0, of 0, or below.
const (
	Critical  = "critical"
	Standard  = "standard"
	Sheddable = "sheddable"
)

// Config says what is told, and to whom. Its zero value works.
type Config struct {
	// Access is the access log; nil: there is none. Who made it closes it.
	Access *Log
	// Tracing says what is told of traces; nil: nothing.
	Tracing *Tracing
	// Receipts is how many receipts are kept; 0: DefaultReceipts, less: none.
	Receipts int
	// Replica is the name of this process among those that serve the same.
	Replica string
}

// Recorder counts and logs Records, and keeps the last as receipts.
type Recorder struct {
	log      *Log // access log; nil: none
	tracing  *Tracing
	replica  string
	desks    desks
	receipts receipts

	metrics  *metrics
	pools    pools
	istio    *istioMetrics
	policies *policyMetrics
}

// New registers the metrics.
func New(reg prometheus.Registerer, c Config) *Recorder {
	r := &Recorder{
		log:      c.Access,
		tracing:  c.Tracing,
		replica:  c.Replica,
		receipts: receipts{slots: make([]slot, max(cmp.Or(c.Receipts, DefaultReceipts), 0))},
		metrics:  newMetrics(reg),
		istio:    newIstioMetrics(reg),
		policies: newPolicyMetrics(reg),
		pools:    pools{gone: make(map[string]time.Time)},
	}
	r.desks.init()
	reg.MustRegister(&tallies{r, time.Now()})
	if r.log != nil {
		r.log.settle = func() { r.settle() }
	}
	return r
}

// Done counts and logs one exchange, and keeps its receipt. It holds nothing of rec. A nil Recorder tells nothing.
func (r *Recorder) Done(rec *Record) {
	if r == nil {
		return
	}
	if r.log != nil {
		r.log.wait()
	}
	r.put(rec)
	if r.log != nil {
		r.log.due()
	}
	r.metrics.done(rec)
	r.istio.done(rec)
	r.policies.count(rec)
	if r.tracing != nil && rec.Trace.Sampled {
		r.tracing.Span(rec)
	}
}

// DoneTCP counts and logs a connection that was passed on unread.
func (r *Recorder) DoneTCP(rec *Record) {
	if r == nil {
		return
	}
	r.metrics.doneTCP(rec)
	r.pools.note(rec.Pool)
	r.policies.count(rec)
	if r.log != nil {
		r.log.connection(rec)
	}
}
