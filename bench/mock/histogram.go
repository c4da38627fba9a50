package mock

import (
	"math"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// histogram counts observations into buckets; the last count is that of what exceeds every bound.
type histogram struct {
	bounds []float64
	counts []uint64
	sum    float64
}

func newHistogram(bounds []float64) *histogram {
	return &histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(v float64) {
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += v
}

func (h *histogram) seconds(d time.Duration) { h.observe(d.Seconds()) }

// vLLM's buckets (vllm/v1/metrics/loggers.py).
var (
	firstTokenBounds = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	interTokenBounds = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	requestBounds    = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	iterationBounds  = []float64{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}
	choicesBounds    = []float64{1, 2, 5, 10, 20}
	preemptionBounds = []float64{1, 2, 3, 4, 5, 10, 20}
)

// tokenBounds are 1, 2, 5, 10, 20, 50 and so on up to a maximum.
func tokenBounds(most int) (bounds []float64) {
	for unit := 1.0; ; unit *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if m*unit > float64(most) {
				return bounds
			}
			bounds = append(bounds, m*unit)
		}
	}
}

// finishReasons are the values of request_success's label, in the page's order.
var finishReasons = [...]string{"stop", "length", "abort", "error", "repetition"}

// histograms are what the metrics page says beyond the engine's own counters. The driver feeds them.
type histograms struct {
	promptTokens, generationTokens, iterationTokens, mostGenerated, choices, maxTokens *histogram
	firstToken, interToken, perOutputToken                                             *histogram
	endToEnd, queue, inference, prefill, decode                                        *histogram
	preemptions, computedTokens                                                        *histogram

	success  [len(finishReasons)]uint64
	rejected uint64 // for the queue limit
}

func newHistograms(maxModelLen int) histograms {
	tokens := func() *histogram { return newHistogram(tokenBounds(maxModelLen)) }
	request := func() *histogram { return newHistogram(requestBounds) }
	return histograms{
		promptTokens: tokens(), generationTokens: tokens(), mostGenerated: tokens(), maxTokens: tokens(), computedTokens: tokens(),
		iterationTokens: newHistogram(iterationBounds), choices: newHistogram(choicesBounds), preemptions: newHistogram(preemptionBounds),
		firstToken: newHistogram(firstTokenBounds), interToken: newHistogram(interTokenBounds), perOutputToken: newHistogram(interTokenBounds),
		endToEnd: request(), queue: request(), inference: request(), prefill: request(), decode: request(),
	}
}

func (h *histograms) step(s *engine.Step) {
	h.iterationTokens.observe(float64(s.Prefilled + len(s.Tokens)))
}

// token counts a token that j has now.
func (h *histograms) token(j *job, now time.Duration) {
	if j.seq.Generated == 1 {
		h.firstToken.seconds(now - j.seq.Arrived)
	} else {
		h.interToken.seconds(now - j.lastToken)
	}
	j.lastToken = now
}

// finished counts a job that ended by itself; one whose client left appears nowhere, as in vLLM.
func (h *histograms) finished(j *job) {
	s := &j.seq
	for i, r := range finishReasons {
		if r == j.finish {
			h.success[i]++
		}
	}
	h.promptTokens.observe(float64(s.PromptTokens))
	h.computedTokens.observe(float64(s.PromptTokens - s.Cached))
	h.generationTokens.observe(float64(s.Generated))
	h.maxTokens.observe(float64(j.params.maxTokens))
	h.preemptions.observe(float64(s.Preemptions))
	h.endToEnd.seconds(j.lastToken - s.Arrived)
	h.queue.seconds(s.Scheduled - s.Arrived)
	h.inference.seconds(j.lastToken - s.Scheduled)
	h.prefill.seconds(s.FirstToken - s.Scheduled)
	decode := j.lastToken - s.FirstToken
	h.decode.seconds(decode)
	h.perOutputToken.observe(decode.Seconds() / math.Max(1, float64(s.Generated-1)))

	j.siblings.left--
	j.siblings.most = max(j.siblings.most, s.Generated)
	if j.siblings.left == 0 {
		h.choices.observe(float64(j.params.n))
		h.mostGenerated.observe(float64(j.siblings.most))
	}
}
