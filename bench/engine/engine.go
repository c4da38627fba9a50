// Package engine is vLLM's scheduler and prefix cache as a pure step function.
//
// It has no clock, no goroutine and no randomness: a caller submits sequences, asks Plan what the next step costs, lets that much
// time pass on whatever clock it keeps, and calls Commit to learn what the step produced. A mock server drives it against the wall
// clock, a simulator against a heap of events, and the same calls give the same answers on both.
//
// What it promises (the rules are those of vllm/v1/core/sched/scheduler.py and vllm/v1/core/block_pool.py):
//   - A step serves the running sequences first, then admits waiting ones, first come first served, within MaxBatchedTokens and
//     MaxSeqs. A prompt longer than what is left of the budget is prefilled in chunks.
//   - A sequence is admitted only if all its present tokens fit the free KV blocks. The head of the queue is never overtaken for
//     want of blocks; it is for want of an adapter slot, because such a sequence is skipped, not failed.
//   - When a running sequence needs a block and none is free, the one admitted last is preempted: it loses its blocks, goes back to
//     the head of the queue and recomputes. A step that preempted admits nobody. Nothing ever fails for want of memory.
//   - Full blocks are found again by their hash, from the first block on, up to the last token but one. Freed blocks stay findable
//     until they are reused, least recently freed first, and of one sequence its tail before its head.
//
// An Engine and the sequences submitted to it belong to one goroutine at a time; nothing here is locked.
package engine

import (
	"fmt"
	"time"
)

// BlockSize is the number of tokens in a KV block.
const BlockSize = 16

// Config says what an Engine may use and how fast it is. Profiles give complete ones.
type Config struct {
	Cost             Cost    // what a step takes
	Blocks           int     // KV blocks, one of which vLLM keeps for itself; 0: 28,500
	MaxBatchedTokens int     // tokens a step may compute; 0: 8192
	MaxSeqs          int     // sequences that may run at once; 0: 1024
	MaxLoras         int     // adapters that may run in one step; 0: 1
	NoPrefixCaching  bool    // nothing is found again, as with vLLM's --no-enable-prefix-caching
	Speed            float64 // divides every duration; 0: 1
}

func (c Config) withDefaults() Config {
	if c.Blocks == 0 {
		c.Blocks = 28_500
	}
	if c.MaxBatchedTokens == 0 {
		c.MaxBatchedTokens = 8192
	}
	if c.MaxSeqs == 0 {
		c.MaxSeqs = 1024
	}
	if c.MaxLoras == 0 {
		c.MaxLoras = 1
	}
	if c.Speed == 0 {
		c.Speed = 1
	}
	return c
}

// Engine is the state of one model replica.
type Engine struct {
	cfg      Config
	kv       blockPool
	adapters adapterSlots

	waiting queue
	running []*Sequence // in the order of admission; those that decode come before one that still prefills

	planned bool          // between Plan and Commit
	inStep  int           // running[:inStep] take part in the planned step
	stepEnd time.Duration // when the planned step ends, in the caller's time
	step    Step

	deferred int       // waiting sequences that the last Plan skipped for want of an adapter slot
	spare    [][]int32 // block lists of finished sequences, for reuse
	stats    Stats     // its counters; the gauges are filled in by Stats()
}

// Step is what one step did. Its slices are valid until the next call of Plan.
type Step struct {
	Duration  time.Duration
	Prefilled int         // prompt tokens computed, recomputed ones included
	Decoded   int         // sequences that computed one token
	Preempted int         // sequences that lost their place
	Tokens    []*Sequence // each of these produced one token
	First     []*Sequence // the part of Tokens that produced their first one
	Finished  []*Sequence // the part of Tokens that produced their last one
}

// New returns an idle engine with an empty cache.
func New(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	return &Engine{cfg: cfg, kv: newBlockPool(cfg.Blocks), adapters: adapterSlots{max: cfg.MaxLoras}}
}

// Config returns the engine's configuration, defaults filled in.
func (e *Engine) Config() Config { return e.cfg }

// SetCost changes what steps take from the next one on: the hardware below has become another.
func (e *Engine) SetCost(c Cost) { e.cfg.Cost = c }

// MaxTokens is the longest sequence, prompt and output together, that can run at all.
func (e *Engine) MaxTokens() int { return (e.cfg.Blocks - 1) * BlockSize }

// Submit puts s at the end of the queue. now is the present on the caller's clock, as everywhere in this package. It fails for a
// sequence that could never finish, and for one that is already in an engine.
func (e *Engine) Submit(s *Sequence, now time.Duration) error {
	switch {
	case s.state == waiting || s.state == running:
		return fmt.Errorf("sequence was submitted before and has not ended")
	case s.PromptTokens < 1 || s.OutputTokens < 1:
		return fmt.Errorf("sequence has %d prompt and %d output tokens: each must be at least 1", s.PromptTokens, s.OutputTokens)
	case s.PromptTokens+s.OutputTokens > e.MaxTokens():
		return fmt.Errorf("sequence of %d tokens exceeds the KV cache of %d tokens", s.PromptTokens+s.OutputTokens, e.MaxTokens())
	}
	s.reset()
	s.state = waiting
	s.Arrived = now
	e.waiting.pushBack(s)
	return nil
}

// Abort removes s, whatever its phase, and frees its blocks; a step that is under way reports nothing of it. It is a no-op for a
// sequence that has ended.
func (e *Engine) Abort(s *Sequence) {
	if e.remove(s) {
		e.stats.Aborted++
	}
}

// Stop ends s as finished before it has produced all its OutputTokens, as a stop string does.
func (e *Engine) Stop(s *Sequence) {
	if e.remove(s) {
		e.stats.Finished++
	}
}

func (e *Engine) remove(s *Sequence) bool {
	switch s.state {
	case waiting:
		e.waiting.remove(s)
	case running:
		i := 0
		for e.running[i] != s {
			i++
		}
		e.running = append(e.running[:i], e.running[i+1:]...)
		if e.planned && i < e.inStep {
			e.inStep--
		}
		e.vacate(s)
	default:
		return false
	}
	s.state = ended
	return true
}

// vacate takes back what a running sequence holds: its blocks and its adapter.
func (e *Engine) vacate(s *Sequence) {
	e.kv.free(s.blocks)
	e.spare = append(e.spare, s.blocks[:0])
	s.blocks = nil
	e.adapters.release(s.Adapter)
}

// Idle reports whether no sequence is waiting or running.
func (e *Engine) Idle() bool { return len(e.running) == 0 && e.waiting.len() == 0 }

// CachedPrefix returns how many tokens of s, which may not have been submitted, would be found in the cache if it started now.
func (e *Engine) CachedPrefix(s *Sequence) int {
	hits, _ := e.kv.lookup(s)
	return len(hits) * BlockSize
}

// Plan schedules the next step, which begins now, and returns how long it takes. It returns false when the engine is idle. Every
// Plan that returned true is followed by one Commit.
func (e *Engine) Plan(now time.Duration) (d time.Duration, ok bool) {
	if e.planned {
		panic("engine: Plan called twice without Commit")
	}
	if e.Idle() {
		return 0, false
	}
	e.step = Step{Tokens: e.step.Tokens[:0], First: e.step.First[:0], Finished: e.step.Finished[:0]}
	var w work
	e.scheduleRunning(&w)
	if e.step.Preempted == 0 {
		e.admit(&w, now)
	}
	d = e.cfg.Cost.of(&w)
	if e.cfg.Speed != 1 {
		d = time.Duration(float64(d) / e.cfg.Speed)
	}
	e.step.Duration, e.step.Prefilled, e.step.Decoded = d, w.prefill, w.decodes
	e.stepEnd = now + d
	e.planned = true
	return d, true
}

// scheduleRunning gives every running sequence its tokens, oldest first, and preempts from the other end when blocks run out.
func (e *Engine) scheduleRunning(w *work) {
	budget := e.cfg.MaxBatchedTokens
	i := 0
	for ; i < len(e.running) && budget > 0; i++ {
		s := e.running[i]
		n := min(s.tokens()-s.computed, budget)
		for !e.reserve(s, s.computed+n) {
			victim := e.running[len(e.running)-1]
			e.running = e.running[:len(e.running)-1]
			e.preempt(victim)
			if victim == s {
				e.inStep = i
				return
			}
		}
		w.add(s, n)
		s.computed += n
		budget -= n
	}
	e.inStep = i
}

func (e *Engine) preempt(s *Sequence) {
	e.vacate(s)
	s.computed, s.hashed = 0, 0
	s.state = waiting
	s.Preemptions++
	e.waiting.pushFront(s)
	e.step.Preempted++
	e.stats.Preemptions++
}

// admit starts waiting sequences, first come first served.
func (e *Engine) admit(w *work, now time.Duration) {
	e.deferred = 0
	budget := e.cfg.MaxBatchedTokens - w.prefill - w.decodes
	for budget > 0 && len(e.running) < e.cfg.MaxSeqs && e.deferred < e.waiting.len() {
		s := e.waiting.at(e.deferred)
		if !e.adapters.available(s.Adapter) {
			e.deferred++
			continue
		}
		hits, revived := e.kv.lookup(s)
		if blocksFor(s.tokens())-len(hits)+revived > e.kv.available {
			return
		}
		e.waiting.removeAt(e.deferred)
		if e.adapters.acquire(s.Adapter) {
			w.adapterLoads++
			s.AdapterLoads++
		}
		e.start(s, hits, now)
		n := min(s.tokens()-s.computed, budget)
		e.reserve(s, s.computed+n) // cannot fail: all its tokens fit
		w.add(s, n)
		s.computed += n
		budget -= n
		e.inStep++
	}
}

// start makes s a running sequence whose first blocks are those found in the cache.
func (e *Engine) start(s *Sequence, hits []int32, now time.Duration) {
	if k := len(e.spare); k > 0 {
		s.blocks, e.spare = e.spare[k-1], e.spare[:k-1]
	}
	e.kv.take(hits)
	s.blocks = append(s.blocks, hits...)
	s.computed, s.hashed = len(hits)*BlockSize, len(hits)
	s.state = running
	if s.Preemptions == 0 {
		s.Scheduled, s.Cached = now, s.computed
		e.stats.PrefixQueries += uint64(s.tokens())
		e.stats.PrefixHits += uint64(s.computed)
		if received := min(s.Transferred, s.tokens()-1) - s.computed; received > 0 { // the last token gives the first output
			s.Received = received
			s.computed += received
		}
	}
	e.running = append(e.running, s)
}

// reserve gives s the blocks for its first n tokens and makes those that will be full by then findable. It reports false, and
// changes nothing, if there are too few.
func (e *Engine) reserve(s *Sequence, n int) bool {
	if need := blocksFor(n) - len(s.blocks); need > 0 {
		if need > e.kv.available {
			return false
		}
		for range need {
			s.blocks = append(s.blocks, e.kv.allocate())
		}
	}
	for full := min(n/BlockSize, len(s.Hashes)); s.hashed < full; s.hashed++ {
		if !e.cfg.NoPrefixCaching {
			e.kv.publish(s.blocks[s.hashed], s.Hashes[s.hashed])
		}
	}
	return true
}

// Commit ends the planned step and reports what it produced.
func (e *Engine) Commit() *Step {
	if !e.planned {
		panic("engine: Commit called without Plan")
	}
	e.planned = false
	keep := 0
	for i, s := range e.running[:e.inStep] {
		if s.computed == s.tokens() {
			e.produce(s)
			if s.state == ended {
				continue
			}
		}
		if keep != i {
			e.running[keep] = s
		}
		keep++
	}
	if keep != e.inStep {
		e.running = append(e.running[:keep], e.running[e.inStep:]...)
	}
	e.stats.Steps++
	e.stats.BusyTime += e.step.Duration
	return &e.step
}

// produce gives s its next token.
func (e *Engine) produce(s *Sequence) {
	s.Generated++
	e.stats.GenerationTokens++
	e.step.Tokens = append(e.step.Tokens, s)
	if s.Generated == 1 {
		s.FirstToken = e.stepEnd
		e.stats.PromptTokens += uint64(s.PromptTokens)
		e.stats.PromptTokensCached += uint64(s.Cached)
		e.stats.PromptTokensReceived += uint64(s.Received)
		e.step.First = append(e.step.First, s)
	}
	if s.Generated == s.OutputTokens {
		s.Ended = e.stepEnd
		s.state = ended
		e.vacate(s)
		e.stats.Finished++
		e.step.Finished = append(e.step.Finished, s)
	}
}

func blocksFor(tokens int) int { return (tokens + BlockSize - 1) / BlockSize }
