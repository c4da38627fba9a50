package account

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Requests are counted where little has to be waited for: in the tally of a desk, of which each processor has its own as a rule. Counters
// that all processors share, each with an atomic operation of its own, take several times as long.

// family is a metric, of which there is one for each combination of its labels' values.
type family struct {
	desc   *prometheus.Desc
	bounds []float64 // of a histogram's buckets, without the last, which has none; nil: it is a counter
}

// families are all that tallies count.
var families []*family

// maxBounds is how many bounds a histogram has at most.
const maxBounds = 16

func counters(name, help string, labels ...string) *family {
	f := &family{desc: prometheus.NewDesc(name, help, labels, nil)}
	families = append(families, f)
	return f
}

func histograms(name, help string, bounds []float64, labels ...string) *family {
	f := counters(name, help, labels...)
	f.bounds = bounds
	return f
}

// histogram counts what was observed by the first bound of its family that is not below it.
type histogram struct {
	sum    float64
	counts [maxBounds + 1]uint64
}

func (h *histogram) observe(f *family, v float64) {
	at := 0
	for _, bound := range f.bounds {
		if v > bound { // without a branch, for which it is goes by no pattern
			at++
		}
	}
	h.counts[at]++
	h.sum += v
}

func (h *histogram) seconds(f *family, d time.Duration) { h.observe(f, d.Seconds()) }

// few has a handful of values by what tells them apart, the commonest first as a rule: looking through them takes less time than hashing.
type few[K comparable, V any] []struct {
	key   K
	value V
}

// at gives the value of a key, which is the zero value at first. It is good until the next call.
func (f *few[K, V]) at(key K) *V {
	for i := range *f {
		if e := &(*f)[i]; e.key == key {
			return &e.value
		}
	}
	*f = append(*f, struct {
		key   K
		value V
	}{key: key})
	return &(*f)[len(*f)-1].value
}

// tally is a part of the counts. Its desk's lock guards it.
type tally struct {
	models map[modelKey]*modelTally
	pools  map[string]*poolTally
	last   *modelTally // that was counted in; nil: none
}

func newTally() tally {
	return tally{models: make(map[modelKey]*modelTally), pools: make(map[string]*poolTally)}
}

// modelKey tells apart what is counted by model.
type modelKey struct {
	pool, model string // labels
	operation   string
}

// modelTally counts the requests of one pool, model and operation.
type modelTally struct {
	modelKey
	in *poolTally

	prompt, cached, generated, willPrompt, willHit uint64 // tokens
	outcomes                                       few[outcome, uint64]
	genDurations                                   few[string, histogram] // by error_type

	ttft, perToken, genFirst, genEach histogram // the last two are empty without an operation
}

type outcome struct {
	code   int
	reason string
}

// poolTally counts the requests of one pool.
type poolTally struct {
	duration, queued, hitError, ttftRatio, tpotRatio histogram
	picks                                            few[string, uint64]      // by what decided
	shadows                                          few[string, shadowTally] // by policy
	ttftSLO, tpotSLO                                 objective
	retries, prefills                                uint64
}

// objective counts the streams that met one, and those that missed it.
type objective struct{ met, missed uint64 }

func (o *objective) count(met bool) {
	if met {
		o.met++
	} else {
		o.missed++
	}
}

// shadowTally counts what a shadow policy made of choices.
type shadowTally struct {
	agrees, differs uint64
	chosen, shadow  float64 // seconds
}

// of finds what a record counts in, and makes it if it is missing.
func (t *tally) of(rec *Record, names *modelNames) *modelTally {
	k := modelKey{rec.Pool, rec.Model, rec.Operation}
	if s := t.last; s != nil && s.modelKey == k {
		return s
	}
	s := t.models[k]
	if s == nil {
		k.model = names.label(k.model)
		s = t.models[k]
	}
	if s == nil {
		in := t.pools[k.pool]
		if in == nil {
			in = new(poolTally)
			t.pools[k.pool] = in
		}
		s = &modelTally{modelKey: k, in: in}
		t.models[k] = s
	}
	t.last = s
	return s
}

// count counts an exchange.
func (s *modelTally) count(rec *Record) {
	in, p := s.in, &rec.Pick
	*s.outcomes.at(outcome{rec.Status, rec.Reason})++
	in.duration.seconds(familyDuration, rec.Duration)
	if s.operation != "" {
		s.genDurations.at(errorType(rec)).seconds(familyGenDuration, rec.Duration)
	}
	if rec.TTFT > 0 {
		s.firstToken(rec)
	}
	s.prompt += uint64(max(rec.PromptTokens, 0))
	s.cached += uint64(max(rec.CachedTokens, 0))
	s.generated += uint64(max(rec.CompletionTokens, 0))
	s.willPrompt += uint64(max(rec.PredictedTokens, 0))
	s.willHit += uint64(max(rec.PredictedHit, 0))
	if p.Prefill != "" {
		in.prefills++
	} else if rec.CachedTokens >= 0 && rec.PredictedHit >= 0 {
		in.hitError.observe(familyHitError, float64(rec.PredictedHit-rec.CachedTokens))
	}
	if p.At > 0 {
		in.queued.seconds(familyQueued, p.Queued)
	}
	if p.DecidedBy != "" {
		*in.picks.at(p.DecidedBy)++
	}
	if p.Shadow.Policy != "" {
		in.shadows.at(p.Shadow.Policy).count(&p.Shadow)
	}
	in.retries += uint64(max(rec.Retries, 0))
}

func (t *shadowTally) count(s *Shadow) {
	if s.Agrees {
		t.agrees++
	} else {
		t.differs++
	}
	t.chosen += max(s.Chosen, 0)
	t.shadow += max(s.FirstToken, 0)
}

// firstToken observes what a stream with a first token tells of time.
func (s *modelTally) firstToken(rec *Record) {
	in, p := s.in, &rec.Pick
	s.ttft.seconds(familyTTFT, rec.TTFT)
	if s.operation != "" {
		s.genFirst.seconds(familyGenFirst, rec.TTFT)
	}
	if each, ok := perToken(rec.Duration, rec.TTFT, rec.CompletionTokens); ok {
		s.perToken.seconds(familyPerToken, each)
		if p.PredictedTPOT > 0 {
			in.tpotRatio.observe(familyTPOTRatio, float64(each)/float64(p.PredictedTPOT))
		}
		if rec.WantTPOT > 0 {
			in.tpotSLO.count(each <= rec.WantTPOT)
		}
		if s.operation != "" {
			s.genEach.seconds(familyGenEach, each)
		}
	}
	if p.PredictedTTFT > 0 {
		in.ttftRatio.observe(familyTTFTRatio, float64(rec.TTFT-p.At)/float64(p.PredictedTTFT))
	}
	if rec.WantTTFT > 0 {
		in.ttftSLO.count(rec.TTFT <= rec.WantTTFT)
	}
}

// tallies are what is counted on all desks, together.
type tallies struct {
	*Recorder
	since time.Time // when all of it was 0
}

// Describe implements prometheus.Collector.
func (ts *tallies) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (ts *tallies) Collect(ch chan<- prometheus.Metric) {
	ts.settle()
	sums := make(sums)
	for _, d := range ts.desks.all {
		d.mu.Lock()
		for name, in := range d.tally.pools {
			sums.addPool(name, in)
		}
		for _, s := range d.tally.models {
			sums.addModel(s)
		}
		d.mu.Unlock()
	}
	ts.forgetPools() // after they were read once more
	for k, s := range sums {
		labels := k.labels[:k.n]
		if k.family.bounds == nil {
			ch <- prometheus.MustNewConstMetricWithCreatedTimestamp(k.family.desc, prometheus.CounterValue, s.sum, ts.since, labels...)
			continue
		}
		count, below := uint64(0), make(map[float64]uint64)
		for i, n := range s.counts[:len(k.family.bounds)+1] {
			if count += n; i < len(k.family.bounds) {
				below[k.family.bounds[i]] = count
			}
		}
		ch <- prometheus.MustNewConstHistogramWithCreatedTimestamp(k.family.desc, count, s.sum, below, ts.since, labels...)
	}
}

// sums are what tallies come to together. A counter's is its sum.
type sums map[sumKey]*histogram

type sumKey struct {
	family *family
	labels [4]string // n of them
	n      int
}

func (all sums) of(f *family, labels ...string) *histogram {
	k := sumKey{family: f, n: len(labels)}
	copy(k.labels[:], labels)
	if all[k] == nil {
		all[k] = new(histogram)
	}
	return all[k]
}

func (all sums) count(f *family, n uint64, labels ...string) { all.of(f, labels...).sum += float64(n) }

func (all sums) observed(f *family, h *histogram, labels ...string) {
	to := all.of(f, labels...)
	to.sum += h.sum
	for i, n := range h.counts {
		to.counts[i] += n
	}
}

func (all sums) addPool(pool string, in *poolTally) {
	all.observed(familyDuration, &in.duration, pool)
	all.observed(familyQueued, &in.queued, pool)
	all.observed(familyHitError, &in.hitError, pool)
	all.observed(familyTTFTRatio, &in.ttftRatio, pool)
	all.observed(familyTPOTRatio, &in.tpotRatio, pool)
	all.count(familyRetries, in.retries, pool)
	all.count(familyPrefills, in.prefills, pool)
	for name, o := range map[string]objective{"ttft": in.ttftSLO, "tpot": in.tpotSLO} {
		all.count(familySLO, o.met, pool, name, "true")
		all.count(familySLO, o.missed, pool, name, "false")
	}
	for _, p := range in.picks {
		all.count(familyPicks, p.value, pool, p.key)
	}
	for i := range in.shadows {
		policy, s := in.shadows[i].key, &in.shadows[i].value
		all.count(familyShadows, s.agrees, pool, policy, "true")
		all.count(familyShadows, s.differs, pool, policy, "false")
		all.of(familyShadowed, pool, policy, "chosen").sum += s.chosen
		all.of(familyShadowed, pool, policy, "shadow").sum += s.shadow
	}
}

func (all sums) addModel(s *modelTally) {
	for _, o := range s.outcomes {
		all.count(familyRequests, o.value, s.pool, s.model, strconv.Itoa(o.key.code), o.key.reason)
	}
	all.observed(familyTTFT, &s.ttft, s.pool, s.model)
	all.observed(familyPerToken, &s.perToken, s.pool, s.model)
	all.count(familyTokens, s.prompt, s.pool, s.model, "prompt")
	all.count(familyTokens, s.cached, s.pool, s.model, "cached")
	all.count(familyTokens, s.generated, s.pool, s.model, "completion")
	all.count(familyPredicted, s.willPrompt, s.pool, s.model, "prompt")
	all.count(familyPredicted, s.willHit, s.pool, s.model, "cached")
	if s.operation == "" {
		return
	}
	all.observed(familyGenFirst, &s.genFirst, s.operation, provider, s.model)
	all.observed(familyGenEach, &s.genEach, s.operation, provider, s.model)
	for i := range s.genDurations {
		all.observed(familyGenDuration, &s.genDurations[i].value, s.operation, provider, s.model, s.genDurations[i].key)
	}
}
