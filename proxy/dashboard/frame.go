package dashboard

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/fairway-proxy/fairway/proxy/account"
)

// window is over how many points rates and quantiles are taken.
const window = 10

// Point is one of the curves' points: rates and quantiles over the last ten
// seconds. What cannot be told is null.
type Point struct {
	Time     int64    `json:"t"` // milliseconds since 1970
	Requests *float64 `json:"rps"`
	Failed   *float64 `json:"fps"` // a second; likewise
	Shed     *float64 `json:"sps"`
	TTFT50   *float64 `json:"p50"` // seconds
	TTFT90   *float64 `json:"p90"`
	Hit      *float64 `json:"hit"` // share of prompt tokens that engines found in their caches
	Live     float64  `json:"live"`
	Queued   float64  `json:"queued"` // requests that wait for an endpoint
	// When the first token was expected, in seconds, where choices went, and where a shadow policy would have had them go.
	Ours   *float64 `json:"ours"`
	Shadow *float64 `json:"shadow"`
}

// Frame is what a page shows at one time.
type Frame struct {
	Version  string  `json:"version"`
	Replica  string  `json:"replica"`
	NotReady string  `json:"not_ready"` // why; empty: it is
	Uptime   float64 `json:"uptime_s"`

	Now      Point         `json:"now"`
	Totals   Totals        `json:"totals"`
	Models   []ModelLine   `json:"models"`
	Queues   []QueueLine   `json:"queues"`
	Shadows  []ShadowLine  `json:"shadows"`
	Pods     any           `json:"pods"`
	Receipts []receiptLine `json:"receipts"`
}

// Totals are since the process started.
type Totals struct {
	Requests   float64 `json:"requests"`
	Failed     float64 `json:"failed"`
	Gone       float64 `json:"gone"` // given up by their clients
	Shed       float64 `json:"shed"` // refused for want of room, not failed
	Retries    float64 `json:"retries"`
	Prompt     float64 `json:"prompt_tokens"`
	Cached     float64 `json:"cached_tokens"`
	Completion float64 `json:"completion_tokens"`
}

// ModelLine is the traffic of one model in one pool.
type ModelLine struct {
	Pool     string   `json:"pool"`
	Model    string   `json:"model"`
	Requests float64  `json:"requests"`
	Failed   float64  `json:"failed"`
	Rate     *float64 `json:"rps"`
}

// QueueLine is what becomes of a pool's requests of one criticality when there is not enough for all.
type QueueLine struct {
	Pool        string             `json:"pool"`
	Criticality string             `json:"criticality"`
	Waiting     float64            `json:"waiting"`
	Shed        map[string]float64 `json:"shed"` // since the process started, by reason
	Rate        *float64           `json:"sps"`  // of them all, a second
}

// shed is all that was, whatever the reason.
func (q *QueueLine) shed() (all float64) {
	for _, n := range q.Shed {
		all += n
	}
	return all
}

// ShadowLine is what a shadow policy makes of a pool's choices: counts and sums since the process started, and its regret, by
// how much later it expects a first token than our choice has it, the mean over the last ten seconds.
type ShadowLine struct {
	Pool    string   `json:"pool"`
	Policy  string   `json:"policy"`
	Choices float64  `json:"choices"`
	Agrees  float64  `json:"agrees"`
	Ours    float64  `json:"ours_s"`
	Theirs  float64  `json:"shadow_s"`
	Regret  *float64 `json:"regret_s"`
}

// receiptLine is a receipt in a list.
type receiptLine struct {
	Seq       uint64          `json:"seq"`
	Receipt   string          `json:"receipt"`
	ID        string          `json:"id"`
	Time      int64           `json:"t"` // milliseconds since 1970
	Model     string          `json:"model"`
	Path      string          `json:"path"`
	Endpoint  string          `json:"endpoint"`
	Code      int             `json:"code"`
	Reason    string          `json:"reason"`
	Duration  float64         `json:"duration_s"`
	DecidedBy string          `json:"decided_by"`
	Predicted account.Outcome `json:"predicted"`
	Actual    account.Outcome `json:"actual"`
}

func newReceiptLine(r *account.Receipt) receiptLine {
	return receiptLine{
		Seq: r.Seq, Receipt: r.Receipt, ID: r.ID, Time: r.Time.UnixMilli(), Model: r.Model, Path: r.Path, Endpoint: r.Endpoint,
		Code: r.Code, Reason: r.Reason, Duration: r.Duration, DecidedBy: r.DecidedBy, Predicted: r.Predicted, Actual: r.Actual,
	}
}

// modelKey names the traffic of a model in a pool.
type modelKey struct{ pool, model string }

// queueKey names what waits before a pool, shadowKey a pool's second policy.
type queueKey struct{ pool, criticality string }
type shadowKey struct{ pool, policy string }

// sample is what one reading of the metrics says.
type sample struct {
	at      time.Time
	totals  Totals
	models  map[modelKey]ModelLine
	queues  map[queueKey]QueueLine
	shadows map[shadowKey]ShadowLine
	bounds  []float64 // of ttft's buckets, the last of them +Inf
	ttft    []float64 // cumulative counts
	live    float64
	queued  float64
	uptime  float64
}

// sampler keeps as many readings as the window takes.
type sampler struct {
	last []sample // the oldest first
}

// sample makes a frame of what the metrics say.
func (s *sampler) sample(families []*dto.MetricFamily, now time.Time) Frame {
	is := read(families)
	is.at = now
	if len(s.last) > window {
		s.last = slices.Delete(s.last, 0, 1)
	}
	s.last = append(s.last, is)
	was := s.last[0]
	f := Frame{Uptime: is.uptime, Totals: is.totals, Models: []ModelLine{}, Queues: []QueueLine{}, Shadows: []ShadowLine{}}
	f.Now = Point{Time: now.UnixMilli(), Live: is.live, Queued: is.queued}
	seconds := is.at.Sub(was.at).Seconds()
	if seconds > 0 {
		rate := func(is, was float64) *float64 { return told(max(is-was, 0) / seconds) }
		f.Now.Requests = rate(is.totals.Requests, was.totals.Requests)
		f.Now.Failed = rate(is.totals.Failed, was.totals.Failed)
		f.Now.Shed = rate(is.totals.Shed, was.totals.Shed)
		f.Now.TTFT50, f.Now.TTFT90 = quantile(0.5, &is, &was), quantile(0.9, &is, &was)
		if prompt := is.totals.Prompt - was.totals.Prompt; prompt > 0 {
			f.Now.Hit = told((is.totals.Cached - was.totals.Cached) / prompt)
		}
	}
	for key, m := range is.models {
		if seconds > 0 {
			m.Rate = told(max(m.Requests-was.models[key].Requests, 0) / seconds)
		}
		f.Models = append(f.Models, m)
	}
	slices.SortFunc(f.Models, func(a, b ModelLine) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Model, b.Model))
	})
	for key, q := range is.queues {
		if before := was.queues[key]; seconds > 0 {
			q.Rate = told(max(q.shed()-before.shed(), 0) / seconds)
		}
		f.Queues = append(f.Queues, q)
	}
	slices.SortFunc(f.Queues, func(a, b QueueLine) int { // critical, standard, sheddable
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(worth(b.Criticality), worth(a.Criticality)))
	})
	var choices, ours, theirs float64
	for key, s := range is.shadows {
		before := was.shadows[key]
		n, o, t := s.Choices-before.Choices, s.Ours-before.Ours, s.Theirs-before.Theirs
		if n > 0 {
			s.Regret = told((t - o) / n)
		}
		choices, ours, theirs = choices+n, ours+o, theirs+t
		f.Shadows = append(f.Shadows, s)
	}
	slices.SortFunc(f.Shadows, func(a, b ShadowLine) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Policy, b.Policy))
	})
	if choices > 0 {
		f.Now.Ours, f.Now.Shadow = told(ours/choices), told(theirs/choices)
	}
	return f
}

// worth orders what requests may be worth.
func worth(criticality string) int {
	return slices.Index([]string{account.Sheddable, account.Standard, account.Critical}, criticality)
}

// told is a value that is known; nil for one that is no number.
func told(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// read adds up what is shown, whatever labels it is told apart by.
func read(families []*dto.MetricFamily) sample {
	s := sample{models: make(map[modelKey]ModelLine), queues: make(map[queueKey]QueueLine), shadows: make(map[shadowKey]ShadowLine)}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "fairway_requests_total":
				s.request(m)
			case "fairway_retries_total":
				s.totals.Retries += m.GetCounter().GetValue()
			case "fairway_tokens_total":
				switch label(m, "kind") {
				case "prompt":
					s.totals.Prompt += m.GetCounter().GetValue()
				case "cached":
					s.totals.Cached += m.GetCounter().GetValue()
				case "completion":
					s.totals.Completion += m.GetCounter().GetValue()
				}
			case "fairway_time_to_first_token_seconds":
				s.firstTokens(m.GetHistogram())
			case "fairway_queue_length":
				s.queued += m.GetGauge().GetValue()
				s.queue(m, func(q *QueueLine) { q.Waiting += m.GetGauge().GetValue() })
			case "fairway_shed_total":
				s.queue(m, func(q *QueueLine) { q.Shed[label(m, "reason")] += m.GetCounter().GetValue() })
			case "fairway_shadow_picks_total":
				s.shadow(m, func(l *ShadowLine) {
					l.Choices += m.GetCounter().GetValue()
					if label(m, "agrees") == "true" {
						l.Agrees += m.GetCounter().GetValue()
					}
				})
			case "fairway_shadow_first_token_seconds_total":
				s.shadow(m, func(l *ShadowLine) {
					if label(m, "at") == "shadow" {
						l.Theirs += m.GetCounter().GetValue()
					} else {
						l.Ours += m.GetCounter().GetValue()
					}
				})
			case "fairway_requests_live":
				s.live = m.GetGauge().GetValue()
			case "fairway_uptime_seconds":
				s.uptime = m.GetGauge().GetValue()
			}
		}
	}
	return s
}

// request counts those that ended alike.
func (s *sample) request(m *dto.Metric) {
	n, code, reason := m.GetCounter().GetValue(), label(m, "code"), label(m, "reason")
	key := modelKey{label(m, "pool"), label(m, "model")}
	line := s.models[key]
	line.Pool, line.Model = key.pool, key.model
	line.Requests += n
	s.totals.Requests += n
	switch {
	case reason == account.ClientGone:
		s.totals.Gone += n
	case code == "429" && strings.HasPrefix(reason, "fairway_"), reason == "fairway_buffers_spent", reason == "fairway_exhausted":
		s.totals.Shed += n
	case reason != "" || code >= "400":
		s.totals.Failed += n
		line.Failed += n
	}
	s.models[key] = line
}

// queue changes the line that a metric is about.
func (s *sample) queue(m *dto.Metric, change func(*QueueLine)) {
	key := queueKey{label(m, "pool"), label(m, "criticality")}
	line, ok := s.queues[key]
	if !ok {
		line = QueueLine{Pool: key.pool, Criticality: key.criticality, Shed: make(map[string]float64)}
	}
	change(&line)
	s.queues[key] = line
}

// shadow likewise.
func (s *sample) shadow(m *dto.Metric, change func(*ShadowLine)) {
	key := shadowKey{label(m, "pool"), label(m, "policy")}
	line := s.shadows[key]
	line.Pool, line.Policy = key.pool, key.policy
	change(&line)
	s.shadows[key] = line
}

// firstTokens adds a histogram to the others, which have the same buckets.
func (s *sample) firstTokens(h *dto.Histogram) {
	if s.bounds == nil {
		for _, b := range h.GetBucket() {
			s.bounds = append(s.bounds, b.GetUpperBound())
		}
		s.bounds = append(s.bounds, math.Inf(1))
		s.ttft = make([]float64, len(s.bounds))
	}
	for i, b := range h.GetBucket() {
		if i < len(s.ttft)-1 {
			s.ttft[i] += float64(b.GetCumulativeCount())
		}
	}
	s.ttft[len(s.ttft)-1] += float64(h.GetSampleCount())
}

// quantile is that of the first tokens between two readings, as Prometheus
// estimates it: evenly spread within a bucket. Nil when there were none.
func quantile(q float64, is, was *sample) *float64 {
	n := len(is.ttft)
	if n == 0 {
		return nil
	}
	count := func(i int) float64 {
		if len(was.ttft) != n {
			return is.ttft[i]
		}
		return is.ttft[i] - was.ttft[i]
	}
	all := count(n - 1)
	if all <= 0 {
		return nil
	}
	rank, below, from := q*all, 0.0, 0.0
	for i := range n {
		to := is.bounds[i]
		if c := count(i); c >= rank {
			if math.IsInf(to, 1) {
				return told(from)
			}
			return told(from + (to-from)*(rank-below)/max(c-below, 1))
		} else {
			below, from = c, to
		}
	}
	return told(from)
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
