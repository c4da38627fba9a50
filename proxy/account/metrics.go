package account

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

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

// What most requests count in.
var (
	familyRequests = counters("fairway_requests_total",
		"Requests ended, by pool, model, status code and reason (empty: answered in full).", "pool", "model", "code", "reason")
	familyDuration = histograms("fairway_request_duration_seconds",
		"Time from a request's head to the end of its answer.", seconds, "pool")
	familyTTFT = histograms("fairway_time_to_first_token_seconds",
		"Time from a streaming request's head to its first token.", seconds, "pool", "model")
	familyPerToken = histograms("fairway_time_per_output_token_seconds",
		"Mean time between the tokens of a stream after its first, observed once for each stream whose tokens the engine counted.", prometheus.ExponentialBuckets(0.001, 2, 12), "pool", "model")
	familyQueued = histograms("fairway_queue_seconds",
		"Time that a request waited for an endpoint to be chosen, all attempts together.", prometheus.ExponentialBuckets(0.0005, 4, 10), "pool")
	familyTokens = counters("fairway_tokens_total",
		"Tokens as the engines counted them: prompt (all), cached (those of the prompt found in the prefix cache), completion.", "pool", "model", "kind")
	familyPredicted = counters("fairway_predicted_tokens_total",
		"Tokens as the picker estimated them: prompt, cached.", "pool", "model", "kind")
	familyTTFTRatio = histograms("fairway_ttft_prediction_ratio",
		"Time from the choice of an endpoint to the first token, over what the picker predicted for it.", predictionRatios, "pool")
	familyTPOTRatio = histograms("fairway_tpot_prediction_ratio",
		"Mean time between the tokens of a stream after its first, over what the picker predicted for it.", predictionRatios, "pool")
	familySLO = counters("fairway_slo_requests_total",
		"Streams that ended with a first token and were to keep a service level objective, of their own or of their pool: by objective (ttft, tpot) and by whether they kept it.", "pool", "objective", "met")
	familyHitError = histograms("fairway_hit_prediction_error_tokens",
		"Tokens of a prompt that the picker believed to be cached, less those that the engine found cached.", []float64{-16384, -4096, -1024, -256, -64, -16, 0, 16, 64, 256, 1024, 4096, 16384}, "pool")
	familyPicks = counters("fairway_picks_total",
		"Endpoints chosen, by what decided between the chosen and the next best.", "pool", "decided_by")
	familyShadows = counters("fairway_shadow_picks_total",
		"Choices among several endpoints that a second policy was asked about (shadow), by whether it agrees.", "pool", "policy", "agrees")
	familyShadowed = counters("fairway_shadow_first_token_seconds_total",
		"When the first token was expected, the sum over the choices of fairway_shadow_picks_total: at the endpoint chosen, and at the one that the second policy (shadow) would have chosen. What that is more by is its regret.", "pool", "policy", "at")
	familyRetries = counters("fairway_retries_total",
		"Further endpoints tried for requests whose first one failed before it answered.", "pool")
	familyPrefills = counters("fairway_remote_prefills_total",
		"Requests whose prompt was computed by another endpoint than the one they went to (role prefill or both).", "pool")
	familyGenDuration = histograms("gen_ai_server_request_duration_seconds",
		"OpenTelemetry's gen_ai.server.request.duration, as seen from the proxy.", genAIDuration, "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type")
	familyGenFirst = histograms("gen_ai_server_time_to_first_token_seconds",
		"OpenTelemetry's gen_ai.server.time_to_first_token, as seen from the proxy.", genAIFirst, "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
	familyGenEach = histograms("gen_ai_server_time_per_output_token_seconds",
		"OpenTelemetry's gen_ai.server.time_per_output_token, as seen from the proxy.", genAIEach, "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
)

// Phases in which a client can leave.
const (
	phaseReading   = "reading"   // before it was known where to send the request
	phaseQueued    = "queued"    // before an endpoint was chosen
	phaseWaiting   = "waiting"   // before the answer's head
	phaseStreaming = "streaming" // in the middle of the answer
)

// provider is the value of gen_ai_provider_name: the engines speak vLLM's API.
const provider = "vllm"

// metrics counts Records: what most of them count in, on desks, in tallies, which are added up when somebody asks; what is rarer, in
// vectors. What is told apart by name is bounded by the Worlds of the last hour (pools) and by maxModels.
type metrics struct {
	models modelNames

	gone, shed               *prometheus.CounterVec
	tcpConnections, tcpBytes *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := new(metrics)
	m.models.known.Store(&map[string]bool{})
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	m.gone = counter("fairway_clients_gone_total",
		"Requests whose client left or was cut off before it had its answer, by phase: reading (the request), queued, waiting (for the answer), streaming.", "pool", "phase")
	m.shed = counter("fairway_shed_total",
		"Requests refused that could have been served at another time, by what they are worth (critical, standard, sheddable: a priority above 0, of 0, below) and why: saturated, queue_full, queue_timeout, deadline, over_budget, slo.", "pool", "criticality", "reason")
	m.tcpConnections = counter("fairway_tcp_connections_total",
		"Connections passed on unread that have ended, by pool and reason (empty: both sides ended them).", "pool", "reason")
	m.tcpBytes = counter("fairway_tcp_bytes_total",
		"Bytes passed on unread: received from clients, sent to clients.", "pool", "direction")
	return m
}

// done counts what is rare of an exchange.
func (m *metrics) done(rec *Record) {
	if rec.Shed != "" {
		m.shed.WithLabelValues(rec.Pool, rec.Criticality, rec.Shed).Inc()
	}
	if rec.Reason == ClientGone || rec.Reason == ClientTimeout || rec.Reason == Stopped {
		m.gone.WithLabelValues(rec.Pool, phase(rec)).Inc()
	}
}

// perToken is the mean time between the tokens of a stream after its first.
func perToken(duration, ttft time.Duration, tokens int) (time.Duration, bool) {
	if ttft <= 0 || tokens < 2 {
		return 0, false
	}
	return max(duration-ttft, 0) / time.Duration(tokens-1), true
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

// modelNames are those that have a label value of their own.
type modelNames struct {
	known atomic.Pointer[map[string]bool] // never changed once stored
	mu    sync.Mutex                      // held while one is added
}

// learn gives the model of an exchange a label value of its own if an engine answered to that name.
func (n *modelNames) learn(rec *Record) {
	name := rec.Model
	if known := *n.known.Load(); known[name] || rec.Status/100 != 2 || name == "" || len(name) > maxModelName || !utf8.ValidString(name) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	known := *n.known.Load()
	if known[name] || len(known) >= maxModels {
		return
	}
	next := maps.Clone(known)
	next[strings.Clone(name)] = true
	n.known.Store(&next)
}

// label is the label value of a name.
func (n *modelNames) label(name string) string {
	if name == "" || (*n.known.Load())[name] {
		return name
	}
	return otherModel
}

// doneTCP counts a connection that was passed on unread.
func (m *metrics) doneTCP(rec *Record) {
	m.tcpConnections.WithLabelValues(rec.Pool, rec.Reason).Inc()
	m.tcpBytes.WithLabelValues(rec.Pool, "received").Add(float64(rec.BytesIn))
	m.tcpBytes.WithLabelValues(rec.Pool, "sent").Add(float64(rec.BytesOut))
}
