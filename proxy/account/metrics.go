package account

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxModels bounds the values of the model label; further names count as
	// "other".
	maxModels  = 256
	otherModel = "other"
	// maxModelName bounds one of them, in bytes.
	maxModelName = 128
)

// Buckets of histograms.
var (
	seconds = prometheus.ExponentialBuckets(0.005, 2, 16) // 5 ms to 164 s
	// of what was seen over what was predicted
	predictionRatios = []float64{.1, .2, .35, .5, .7, .8, .9, 1, 1.1, 1.2, 1.4, 2, 3, 5, 10}

	// Those that OpenTelemetry advises (semantic conventions for generative AI, metrics of model servers).
	genAIDuration = []float64{.01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
	genAIFirst    = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}
	genAIEach     = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5}
)

// Phases in which a client can leave.
const (
	phaseReading   = "reading"   // before it was known where to send the request
	phaseQueued    = "queued"    // before an endpoint was chosen
	phaseWaiting   = "waiting"   // before the answer's head
	phaseStreaming = "streaming" // in the middle of the answer
)

// metrics counts Records. Children of the vectors are looked up once and kept, to be found without a lock; what is known by name is
// bounded by the World (pools) and by maxModels.
type metrics struct {
	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	ttft      *prometheus.HistogramVec
	perToken  *prometheus.HistogramVec
	queued    *prometheus.HistogramVec
	tokens    *prometheus.CounterVec
	predicted *prometheus.CounterVec
	ttftRatio *prometheus.HistogramVec
	tpotRatio *prometheus.HistogramVec
	slo       *prometheus.CounterVec
	hitError  *prometheus.HistogramVec
	picks     *prometheus.CounterVec
	shadows   *prometheus.CounterVec
	shadowed  *prometheus.CounterVec
	retries   *prometheus.CounterVec
	prefills  *prometheus.CounterVec
	gone      *prometheus.CounterVec
	shed      *prometheus.CounterVec

	genDuration *prometheus.HistogramVec
	genFirst    *prometheus.HistogramVec
	genEach     *prometheus.HistogramVec

	tcpConnections *prometheus.CounterVec
	tcpBytes       *prometheus.CounterVec

	// Never changed once stored.
	series atomic.Pointer[map[seriesKey]*modelSeries]
	models atomic.Pointer[map[string]bool] // names that have a label value of their own

	mu    sync.Mutex // guards what follows, and whatever is added to the others and to what they hold
	pools map[string]*poolSeries
}

// seriesKey is what children are kept by.
type seriesKey struct {
	pool, model string // labels
	operation   string
}

// modelSeries are the children of one pool, model and operation.
type modelSeries struct {
	pool                      *poolSeries
	ttft, perToken            prometheus.Observer
	prompt, cached, generated prometheus.Counter
	willPrompt, willHit       prometheus.Counter
	genFirst, genEach         prometheus.Observer // nil without an operation
	outcomes                  few[outcome, prometheus.Counter]
	genDurations              few[string, prometheus.Observer] // by error_type
}

// poolSeries are the children of one pool.
type poolSeries struct {
	duration, queued, ttftRatio, tpotRatio, hitError prometheus.Observer
	ttftSLO, tpotSLO                                 kept
	retries, prefills                                prometheus.Counter
	shadows                                          few[string, *shadowSeries]      // by policy
	picks                                            few[string, prometheus.Counter] // by what decided
}

// kept are the children of a pool and an objective.
type kept struct{ met, missed prometheus.Counter }

func (k *kept) count(met bool) {
	if met {
		k.met.Inc()
	} else {
		k.missed.Inc()
	}
}

// shadowSeries are the children of a pool and a policy that is its shadow.
type shadowSeries struct{ agrees, differs, chosen, shadow prometheus.Counter }

type outcome struct {
	code   int
	reason string
}

// few has a handful of values by what tells them apart, the commonest first as a rule: looking through them takes less time than
// hashing. Readers need no lock.
type few[K comparable, V any] struct {
	all atomic.Pointer[[]pair[K, V]] // never changed once stored
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

// get gives the zero value for what is not there.
func (f *few[K, V]) get(key K) (v V) {
	if all := f.all.Load(); all != nil {
		for i := range *all {
			if e := &(*all)[i]; e.key == key {
				return e.value
			}
		}
	}
	return v
}

// add adds what is not there yet. One at a time may.
func (f *few[K, V]) add(key K, value V) {
	var next []pair[K, V]
	if all := f.all.Load(); all != nil {
		next = slices.Clone(*all)
	}
	next = append(next, pair[K, V]{key, value})
	f.all.Store(&next)
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{pools: make(map[string]*poolSeries)}
	m.series.Store(&map[seriesKey]*modelSeries{})
	m.models.Store(&map[string]bool{})
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		reg.MustRegister(v)
		return v
	}
	m.requests = counter("fairway_requests_total",
		"Requests ended, by pool, model, status code and reason (empty: answered in full).", "pool", "model", "code", "reason")
	m.duration = histogram("fairway_request_duration_seconds",
		"Time from a request's head to the end of its answer.", seconds, "pool")
	m.ttft = histogram("fairway_time_to_first_token_seconds",
		"Time from a streaming request's head to its first token.", seconds, "pool", "model")
	m.perToken = histogram("fairway_time_per_output_token_seconds",
		"Mean time between the tokens of a stream after its first, observed once for each stream whose tokens the engine counted.",
		prometheus.ExponentialBuckets(0.001, 2, 12), "pool", "model")
	m.queued = histogram("fairway_queue_seconds",
		"Time that a request waited for an endpoint to be chosen, all attempts together.", prometheus.ExponentialBuckets(0.0005, 4, 10), "pool")
	m.tokens = counter("fairway_tokens_total",
		"Tokens as the engines counted them: prompt (all), cached (those of the prompt found in the prefix cache), completion.", "pool", "model", "kind")
	m.predicted = counter("fairway_predicted_tokens_total",
		"Tokens as the picker estimated them: prompt, cached.", "pool", "model", "kind")
	m.ttftRatio = histogram("fairway_ttft_prediction_ratio",
		"Time from the choice of an endpoint to the first token, over what the picker predicted for it.",
		predictionRatios, "pool")
	m.tpotRatio = histogram("fairway_tpot_prediction_ratio",
		"Mean time between the tokens of a stream after its first, over what the picker predicted for it.", predictionRatios, "pool")
	m.slo = counter("fairway_slo_requests_total",
		"Streams that ended with a first token and were to keep a service level objective, of their own or of their pool: by objective (ttft, tpot) and by whether they kept it.", "pool", "objective", "met")
	m.hitError = histogram("fairway_hit_prediction_error_tokens",
		"Tokens of a prompt that the picker believed to be cached, less those that the engine found cached.",
		[]float64{-16384, -4096, -1024, -256, -64, -16, 0, 16, 64, 256, 1024, 4096, 16384}, "pool")
	m.picks = counter("fairway_picks_total",
		"Endpoints chosen, by what decided between the chosen and the next best.", "pool", "decided_by")
	m.shadows = counter("fairway_shadow_picks_total",
		"Choices among several endpoints that a second policy was asked about (shadow), by whether it agrees.", "pool", "policy", "agrees")
	m.shadowed = counter("fairway_shadow_first_token_seconds_total",
		"When the first token was expected, the sum over the choices of fairway_shadow_picks_total: at the endpoint chosen, and at the one that the second policy (shadow) would have chosen. What that is more by is its regret.", "pool", "policy", "at")
	m.retries = counter("fairway_retries_total",
		"Further endpoints tried for requests whose first one failed before it answered.", "pool")
	m.prefills = counter("fairway_remote_prefills_total",
		"Requests whose prompt was computed by another endpoint than the one they went to (role prefill or both).", "pool")
	m.gone = counter("fairway_clients_gone_total",
		"Requests whose client left or was cut off before it had its answer, by phase: reading (the request), queued, waiting (for the answer), streaming.", "pool", "phase")

	m.shed = counter("fairway_shed_total",
		"Requests refused that could have been served at another time, by what they are worth (critical, standard, sheddable: a priority above 0, of 0, below) and why: saturated, queue_full, queue_timeout, deadline, over_budget, slo.", "pool", "criticality", "reason")

	m.genDuration = histogram("gen_ai_server_request_duration_seconds",
		"OpenTelemetry's gen_ai.server.request.duration, as seen from the proxy.", genAIDuration, "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type")
	m.genFirst = histogram("gen_ai_server_time_to_first_token_seconds",
		"OpenTelemetry's gen_ai.server.time_to_first_token, as seen from the proxy.", genAIFirst, "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
	m.genEach = histogram("gen_ai_server_time_per_output_token_seconds",
		"OpenTelemetry's gen_ai.server.time_per_output_token, as seen from the proxy.", genAIEach, "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

	m.tcpConnections = counter("fairway_tcp_connections_total",
		"Connections passed on unread that have ended, by pool and reason (empty: both sides ended them).", "pool", "reason")
	m.tcpBytes = counter("fairway_tcp_bytes_total",
		"Bytes passed on unread: received from clients, sent to clients.", "pool", "direction")
	return m
}

// provider is the value of gen_ai_provider_name: the engines speak vLLM's API.
const provider = "vllm"

// done counts an exchange.
func (m *metrics) done(rec *Record) {
	s, ended, picked, genDuration := m.of(rec)
	ended.Inc()
	s.pool.duration.Observe(rec.Duration.Seconds())
	if genDuration != nil {
		genDuration.Observe(rec.Duration.Seconds())
	}
	if rec.TTFT > 0 {
		s.firstToken(rec)
	}
	addTokens(s.prompt, rec.PromptTokens)
	addTokens(s.cached, rec.CachedTokens)
	addTokens(s.generated, rec.CompletionTokens)
	addTokens(s.willPrompt, rec.PredictedTokens)
	addTokens(s.willHit, rec.PredictedHit)
	if rec.Pick.Prefill != "" {
		s.pool.prefills.Inc()
	} else if rec.CachedTokens >= 0 && rec.PredictedHit >= 0 {
		s.pool.hitError.Observe(float64(rec.PredictedHit - rec.CachedTokens))
	}
	if rec.Pick.At > 0 {
		s.pool.queued.Observe(rec.Pick.Queued.Seconds())
	}
	if picked != nil {
		picked.Inc()
	}
	if rec.Pick.Shadow.Policy != "" {
		m.countShadow(rec.Pool, s.pool, &rec.Pick.Shadow)
	}
	if rec.Retries > 0 {
		s.pool.retries.Add(float64(rec.Retries))
	}
	if rec.Shed != "" {
		m.shed.WithLabelValues(rec.Pool, rec.Criticality, rec.Shed).Inc()
	}
	if rec.Reason == ClientGone || rec.Reason == ClientTimeout {
		m.gone.WithLabelValues(rec.Pool, phase(rec)).Inc()
	}
}

// countShadow counts what a shadow policy made of a choice.
func (m *metrics) countShadow(pool string, in *poolSeries, s *Shadow) {
	c := in.shadows.get(s.Policy)
	if c == nil {
		c = m.newShadow(pool, in, s.Policy)
	}
	if s.Agrees {
		c.agrees.Inc()
	} else {
		c.differs.Inc()
	}
	c.chosen.Add(max(s.Chosen, 0))
	c.shadow.Add(max(s.FirstToken, 0))
}

func (m *metrics) newShadow(pool string, in *poolSeries, policy string) *shadowSeries {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := in.shadows.get(policy)
	if c == nil {
		c = &shadowSeries{
			agrees: m.shadows.WithLabelValues(pool, policy, "true"), differs: m.shadows.WithLabelValues(pool, policy, "false"),
			chosen: m.shadowed.WithLabelValues(pool, policy, "chosen"), shadow: m.shadowed.WithLabelValues(pool, policy, "shadow"),
		}
		in.shadows.add(policy, c)
	}
	return c
}

// firstToken observes what a stream with a first token tells of time.
func (s *modelSeries) firstToken(rec *Record) {
	ttft := rec.TTFT.Seconds()
	s.ttft.Observe(ttft)
	if s.genFirst != nil {
		s.genFirst.Observe(ttft)
	}
	if each, ok := perToken(rec); ok {
		s.perToken.Observe(each.Seconds())
		if p := &rec.Pick; p.PredictedTPOT > 0 {
			s.pool.tpotRatio.Observe(float64(each) / float64(p.PredictedTPOT))
		}
		if rec.WantTPOT > 0 {
			s.pool.tpotSLO.count(each <= rec.WantTPOT)
		}
		if s.genEach != nil {
			s.genEach.Observe(each.Seconds())
		}
	}
	if p := &rec.Pick; p.PredictedTTFT > 0 {
		s.pool.ttftRatio.Observe(float64(rec.TTFT-p.At) / float64(p.PredictedTTFT))
	}
	if rec.WantTTFT > 0 {
		s.pool.ttftSLO.count(rec.TTFT <= rec.WantTTFT)
	}
}

// perToken is the mean time between the tokens of a stream after its first.
func perToken(rec *Record) (time.Duration, bool) {
	if rec.TTFT <= 0 || rec.CompletionTokens < 2 {
		return 0, false
	}
	return max(rec.Duration-rec.TTFT, 0) / time.Duration(rec.CompletionTokens-1), true
}

// phase is where a client left.
func phase(rec *Record) string {
	switch {
	case rec.Pool == "":
		return phaseReading
	case rec.Endpoint == "":
		return phaseQueued
	case rec.Status/100 == 4 && rec.TTFT == 0 && rec.BytesOut == 0: // 499: no answer had begun
		return phaseWaiting
	}
	return phaseStreaming
}

func addTokens(c prometheus.Counter, n int) {
	if n > 0 {
		c.Add(float64(n))
	}
}

// of finds what a record counts in, and makes what is missing. picked and genDuration may be nil.
func (m *metrics) of(rec *Record) (s *modelSeries, ended, picked prometheus.Counter, genDuration prometheus.Observer) {
	o := outcome{rec.Status, rec.Reason}
	failed := errorType(rec)
	all := *m.series.Load()
	s = all[seriesKey{rec.Pool, rec.Model, rec.Operation}]
	if s == nil && rec.Status/100 != 2 && !(*m.models.Load())[rec.Model] { // nor does it become known by this
		s = all[seriesKey{rec.Pool, otherModel, rec.Operation}]
	}
	if s != nil {
		ended, picked, genDuration = s.outcomes.get(o), s.pool.picks.get(rec.Pick.DecidedBy), s.genDurations.get(failed)
		if ended != nil && (picked != nil || rec.Pick.DecidedBy == "") && (genDuration != nil || rec.Operation == "") {
			return s, ended, picked, genDuration
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	key := seriesKey{rec.Pool, m.modelLabel(rec), rec.Operation}
	if s = (*m.series.Load())[key]; s == nil {
		s = m.newSeries(key)
		next := maps.Clone(*m.series.Load())
		next[key] = s
		m.series.Store(&next)
	}
	if ended = s.outcomes.get(o); ended == nil {
		ended = m.requests.WithLabelValues(rec.Pool, key.model, strconv.Itoa(rec.Status), rec.Reason)
		s.outcomes.add(o, ended)
	}
	if by := rec.Pick.DecidedBy; by != "" {
		if picked = s.pool.picks.get(by); picked == nil {
			picked = m.picks.WithLabelValues(rec.Pool, by)
			s.pool.picks.add(by, picked)
		}
	}
	if rec.Operation != "" {
		if genDuration = s.genDurations.get(failed); genDuration == nil {
			genDuration = m.genDuration.WithLabelValues(rec.Operation, provider, key.model, failed)
			s.genDurations.add(failed, genDuration)
		}
	}
	return s, ended, picked, genDuration
}

// errorType is OpenTelemetry's error.type: empty for what went well.
func errorType(rec *Record) string {
	switch {
	case rec.Reason != "":
		return rec.Reason
	case rec.Status >= 500:
		return "5xx"
	case rec.Status >= 400:
		return "4xx"
	}
	return ""
}

// newSeries makes the children of a key. m.mu is held.
func (m *metrics) newSeries(k seriesKey) *modelSeries {
	p := m.pools[k.pool]
	if p == nil {
		p = &poolSeries{
			duration: m.duration.WithLabelValues(k.pool), queued: m.queued.WithLabelValues(k.pool),
			ttftRatio: m.ttftRatio.WithLabelValues(k.pool), tpotRatio: m.tpotRatio.WithLabelValues(k.pool),
			ttftSLO: kept{m.slo.WithLabelValues(k.pool, "ttft", "true"), m.slo.WithLabelValues(k.pool, "ttft", "false")},
			tpotSLO: kept{m.slo.WithLabelValues(k.pool, "tpot", "true"), m.slo.WithLabelValues(k.pool, "tpot", "false")}, hitError: m.hitError.WithLabelValues(k.pool),
			retries: m.retries.WithLabelValues(k.pool), prefills: m.prefills.WithLabelValues(k.pool),
		}
		m.pools[k.pool] = p
	}
	s := &modelSeries{
		pool: p,
		ttft: m.ttft.WithLabelValues(k.pool, k.model), perToken: m.perToken.WithLabelValues(k.pool, k.model),
		prompt: m.tokens.WithLabelValues(k.pool, k.model, "prompt"), cached: m.tokens.WithLabelValues(k.pool, k.model, "cached"),
		generated:  m.tokens.WithLabelValues(k.pool, k.model, "completion"),
		willPrompt: m.predicted.WithLabelValues(k.pool, k.model, "prompt"), willHit: m.predicted.WithLabelValues(k.pool, k.model, "cached"),
	}
	if k.operation != "" {
		s.genFirst = m.genFirst.WithLabelValues(k.operation, provider, k.model)
		s.genEach = m.genEach.WithLabelValues(k.operation, provider, k.model)
	}
	return s
}

// modelLabel bounds the label: only a name that an engine answered to gets one. m.mu is held.
func (m *metrics) modelLabel(rec *Record) string {
	name, known := rec.Model, *m.models.Load()
	switch {
	case name == "" || known[name]:
		return name
	case len(name) > maxModelName || strings.ToValidUTF8(name, "") != name || rec.Status/100 != 2 || len(known) >= maxModels:
		return otherModel
	}
	next := maps.Clone(known)
	next[strings.Clone(name)] = true
	m.models.Store(&next)
	return name
}

// doneTCP counts a connection that was passed on unread.
func (m *metrics) doneTCP(rec *Record) {
	m.tcpConnections.WithLabelValues(rec.Pool, rec.Reason).Inc()
	m.tcpBytes.WithLabelValues(rec.Pool, "received").Add(float64(rec.BytesIn))
	m.tcpBytes.WithLabelValues(rec.Pool, "sent").Add(float64(rec.BytesOut))
}
