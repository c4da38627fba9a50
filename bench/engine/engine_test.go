package engine

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// harness drives an engine in virtual time and gives its sequences names.
type harness struct {
	t    *testing.T
	e    *Engine
	now  time.Duration
	seqs map[string]*Sequence
}

// unit is a cost model in which a figure says where it came from: 1 s a step, 1 ms a prefilled token, 1 µs a decoding sequence, 1 ns
// a token of context.
var unit = Cost{Step: time.Second, PrefillToken: time.Millisecond, DecodeSeq: time.Microsecond, ContextToken: time.Nanosecond}

func newHarness(t *testing.T, cfg Config) *harness {
	if cfg.Cost == (Cost{}) {
		cfg.Cost = unit
	}
	return &harness{t: t, e: New(cfg), seqs: map[string]*Sequence{}}
}

// chain is n block hashes of a text of its own, after those of prefix.
func chain(text string, n int, prefix ...BlockHash) []BlockHash {
	hashes := slices.Clone(prefix)
	parent := RootHash(text, "")
	for i := range n {
		hashes = append(hashes, parent+BlockHash(i))
	}
	return hashes
}

// submit adds a sequence whose content is that of its name.
func (h *harness) submit(name string, prompt, output int) *Sequence {
	return h.submitSeq(name, &Sequence{PromptTokens: prompt, OutputTokens: output, Hashes: chain(name, (prompt+output)/BlockSize)})
}

func (h *harness) submitSeq(name string, s *Sequence) *Sequence {
	h.t.Helper()
	s.Owner = name
	h.seqs[name] = s
	if err := h.e.Submit(s, h.now); err != nil {
		h.t.Fatal(err)
	}
	h.check()
	return s
}

// step runs one step and describes it: what it took, what was computed, and who got a token; * a first one, . a last one.
func (h *harness) step() string {
	h.t.Helper()
	d, ok := h.e.Plan(h.now)
	if !ok {
		return "idle"
	}
	h.check()
	h.now += d
	st := h.e.Commit()
	h.check()
	text := fmt.Sprintf("%v prefill=%d decode=%d", d, st.Prefilled, st.Decoded)
	for _, s := range st.Tokens {
		text += " " + s.Owner.(string)
		if slices.Contains(st.First, s) {
			text += "*"
		}
		if slices.Contains(st.Finished, s) {
			text += "."
		}
	}
	if st.Preempted > 0 {
		text += fmt.Sprintf(" preempted=%d", st.Preempted)
	}
	return text
}

func (h *harness) want(steps ...string) {
	h.t.Helper()
	for i, want := range steps {
		if got := h.step(); got != want {
			h.t.Fatalf("step %d: got  %s\n             want %s", i, got, want)
		}
	}
}

func (h *harness) finish() {
	for h.step() != "idle" {
	}
}

// check holds the engine to its invariants: every block is used or free, never both, with as many references as it has users.
func (h *harness) check() {
	h.t.Helper()
	e := h.e
	refs := make([]int32, len(e.kv.blocks))
	for _, s := range e.running {
		for i, id := range s.blocks {
			if id <= 0 || slices.Contains(s.blocks[:i], id) {
				h.t.Fatalf("sequence %v has block %d twice or has the null block", s.Owner, id)
			}
			refs[id]++
		}
		if s.computed > len(s.blocks)*BlockSize {
			h.t.Fatalf("sequence %v computed %d tokens into %d blocks", s.Owner, s.computed, len(s.blocks))
		}
	}
	free := 0
	for id := e.kv.blocks[0].next; id != 0; id = e.kv.blocks[id].next {
		if e.kv.blocks[id].refs != 0 || refs[id] != 0 {
			h.t.Fatalf("block %d is free and has %d references and %d users", id, e.kv.blocks[id].refs, refs[id])
		}
		refs[id] = -1
		free++
	}
	if free != e.kv.available {
		h.t.Fatalf("%d blocks are free, %d counted", free, e.kv.available)
	}
	for id := 1; id < len(refs); id++ {
		b := e.kv.blocks[id]
		if refs[id] == 0 || refs[id] > 0 && refs[id] != b.refs {
			h.t.Fatalf("block %d has %d references and %d users", id, b.refs, refs[id])
		}
		if b.hash != 0 && e.kv.find(b.hash) == 0 {
			h.t.Fatalf("block %d has a hash that is not found", id)
		}
	}
	if len(e.running) > e.cfg.MaxSeqs {
		h.t.Fatalf("%d sequences run of at most %d", len(e.running), e.cfg.MaxSeqs)
	}
}

func TestStepTime(t *testing.T) {
	h := newHarness(t, Config{})
	h.submit("a", 100, 3)
	h.submit("b", 20, 2)
	h.want(
		"1.12s prefill=120 decode=0 a* b*",
		"1.00000212s prefill=0 decode=2 a b.", // 100 + 20 tokens of context
		"1.000001101s prefill=0 decode=1 a.",
		"idle",
	)
}

func TestSpeedDividesEveryDuration(t *testing.T) {
	h := newHarness(t, Config{Speed: 10})
	h.submit("a", 100, 1)
	h.want("110ms prefill=100 decode=0 a*.")
}

func TestAttentionPairs(t *testing.T) {
	h := newHarness(t, Config{Cost: Cost{AttentionPair: time.Microsecond}, MaxBatchedTokens: 10})
	h.submit("a", 20, 1)
	h.want("50µs prefill=10 decode=0", "150µs prefill=10 decode=0 a*.") // 10·10/2, then 10·10 + 10·10/2
}

func TestChunkedPrefillSharesTheBudget(t *testing.T) {
	h := newHarness(t, Config{MaxBatchedTokens: 64})
	h.submit("a", 30, 3)
	h.submit("b", 100, 2)
	h.submit("c", 10, 1)
	h.want(
		"1.064s prefill=64 decode=0 a*",              // a's 30, 34 of b
		"1.06300103s prefill=63 decode=1 a",          // a decodes first, 63 of b, c waits
		"1.013001031s prefill=13 decode=1 a. b* c*.", // b's last 3 and c's 10
		"1.0000011s prefill=0 decode=1 b.",
	)
}

func TestMaxSeqsIsFirstComeFirstServed(t *testing.T) {
	h := newHarness(t, Config{MaxSeqs: 2})
	for _, name := range []string{"a", "b", "c", "d"} {
		h.submit(name, 10, 1)
	}
	if st := h.e.Stats(); st.Waiting != 4 || st.Running != 0 {
		t.Fatalf("before a step: %+v", st)
	}
	h.want("1.02s prefill=20 decode=0 a*. b*.", "1.02s prefill=20 decode=0 c*. d*.")
}

func TestPrefixCache(t *testing.T) {
	system := chain("system", 4) // 64 tokens
	prompt := func(own string, blocks int) []BlockHash { return chain(own, blocks, system...) }
	tests := []struct {
		name   string
		first  Sequence
		second Sequence
		cached int
	}{
		{"shared head", Sequence{PromptTokens: 80, Hashes: prompt("x", 1)}, Sequence{PromptTokens: 80, Hashes: prompt("y", 1)}, 64},
		{"a partial block is never a hit", Sequence{PromptTokens: 70, Hashes: system}, Sequence{PromptTokens: 70, Hashes: system}, 64},
		{"all but the last token at most", Sequence{PromptTokens: 64, Hashes: system}, Sequence{PromptTokens: 64, Hashes: system}, 48},
		{"nothing shared", Sequence{PromptTokens: 64, Hashes: system}, Sequence{PromptTokens: 64, Hashes: chain("other", 4)}, 0},
		{"shorter than a block", Sequence{PromptTokens: 15}, Sequence{PromptTokens: 15}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, Config{})
			tt.first.OutputTokens, tt.second.OutputTokens = 1, 1
			h.submitSeq("first", &tt.first)
			h.finish()
			if u := h.e.Stats().KVUsage; u != 0 {
				t.Errorf("usage with cached blocks only: %v", u)
			}
			h.submitSeq("second", &tt.second)
			h.finish()
			if tt.second.Cached != tt.cached {
				t.Errorf("cached %d tokens, want %d", tt.second.Cached, tt.cached)
			}
			st := h.e.Stats()
			if want := uint64(tt.first.PromptTokens + tt.second.PromptTokens); st.PrefixQueries != want || st.PromptTokens != want {
				t.Errorf("queried %d and computed %d prompt tokens, want %d", st.PrefixQueries, st.PromptTokens, want)
			}
			if st.PrefixHits != uint64(tt.cached) || st.PromptTokensCached != uint64(tt.cached) {
				t.Errorf("counted %d and %d hits, want %d", st.PrefixHits, st.PromptTokensCached, tt.cached)
			}
		})
	}
}

func TestBlocksAreFoundWhileTheyAreComputed(t *testing.T) {
	h := newHarness(t, Config{})
	a := h.submit("a", 64, 1)
	b := h.submitSeq("b", &Sequence{PromptTokens: 64, OutputTokens: 1, Hashes: a.Hashes})
	h.want("1.08s prefill=80 decode=0 a*. b*.") // b computes its last block only
	if b.Cached != 48 {
		t.Errorf("cached %d", b.Cached)
	}
}

func TestOutputIsCached(t *testing.T) {
	h := newHarness(t, Config{})
	a := h.submit("a", 20, 30) // 50 tokens, of which the last is never computed: 3 blocks
	h.finish()
	next := h.submitSeq("next", &Sequence{PromptTokens: 60, OutputTokens: 1, Hashes: a.Hashes})
	h.finish()
	if next.Cached != 48 {
		t.Errorf("cached %d of the conversation's 48 tokens", next.Cached)
	}
}

func TestAdaptersAndSaltsShareNothing(t *testing.T) {
	tokens := make([]uint32, 64)
	roots := map[BlockHash]string{}
	for _, r := range [][2]string{{"", ""}, {"a", ""}, {"", "a"}, {"a", "b"}, {"b", "a"}} {
		h := AppendHashes(nil, RootHash(r[0], r[1]), tokens)
		if len(h) != 4 {
			t.Fatalf("%d hashes for 4 blocks", len(h))
		}
		for _, x := range h {
			if other, seen := roots[x]; seen {
				t.Errorf("%v has a block of %s", r, other)
			}
			roots[x] = fmt.Sprint(r)
		}
	}
}

// The head of a sequence outlives its tail, and what was freed first goes first.
func TestEvictionOrder(t *testing.T) {
	h := newHarness(t, Config{Blocks: 9}) // 8 usable
	a := h.submit("a", 65, 1)             // 4 full blocks and a partial one
	h.finish()
	h.submit("b", 80, 1) // 5 blocks: the 3 never used, then a's partial one, then a's 4th
	h.finish()
	again := h.submitSeq("again", &Sequence{PromptTokens: 65, OutputTokens: 1, Hashes: a.Hashes})
	h.finish()
	if again.Cached != 48 {
		t.Errorf("%d tokens of a are left, want 48", again.Cached)
	}
}

func TestPreemption(t *testing.T) {
	h := newHarness(t, Config{Blocks: 5}) // 4 usable
	a := h.submit("a", 32, 20)
	h.submitSeq("b", &Sequence{PromptTokens: 31, OutputTokens: 20}) // no hashes: nothing of it is cached
	c := h.submit("c", 10, 1)
	h.want(
		"1.063s prefill=63 decode=0 a* b*",
		// a needs a third block: b, the last, is preempted, goes before c, and nobody is admitted.
		"1.000001032s prefill=0 decode=1 a preempted=1",
		"1.000001033s prefill=0 decode=1 a",
	)
	if c.state != waiting || h.seqs["b"].Preemptions != 1 {
		t.Fatal("b was to be preempted once, and c to wait behind it")
	}
	if st := h.e.Stats(); st.Running != 1 || st.Waiting != 2 || st.Preemptions != 1 {
		t.Fatalf("stats: %+v", st)
	}
	h.finish()
	for name, s := range h.seqs {
		if s.Generated != s.OutputTokens || s.state != ended {
			t.Errorf("%s produced %d tokens of %d", name, s.Generated, s.OutputTokens)
		}
	}
	if a.Preemptions != 0 {
		t.Error("the oldest was preempted")
	}
	st := h.e.Stats()
	if st.PrefixQueries != 32+31+10 || st.PromptTokens != 32+31+10 || st.GenerationTokens != 20+20+1 {
		t.Errorf("a preempted prompt is counted once: %+v", st)
	}
}

func TestPreemptedRecomputesItsOutputToo(t *testing.T) {
	h := newHarness(t, Config{Blocks: 5})
	h.submit("a", 16, 30)
	h.submitSeq("b", &Sequence{PromptTokens: 24, OutputTokens: 20})
	for h.e.Stats().Preemptions == 0 {
		h.step()
	}
	b := h.seqs["b"]
	had := b.Generated
	for b.Generated == had {
		h.step()
		if st := h.e.step; st.Prefilled != 0 && st.Prefilled != 24+had {
			t.Fatalf("recomputed %d tokens, want %d", st.Prefilled, 24+had)
		}
	}
	if b.Scheduled != 0 || b.FirstToken == 0 {
		t.Error("the times of a preempted sequence are those of its first run")
	}
}

func TestAdmissionNeedsRoomForTheWholePrompt(t *testing.T) {
	h := newHarness(t, Config{Blocks: 11, MaxBatchedTokens: 32})
	h.submit("a", 96, 10) // 6 blocks, 7 in the end
	h.submit("big", 80, 1)
	h.submit("small", 10, 1)
	h.want("1.032s prefill=32 decode=0", "1.032s prefill=32 decode=0", "1.032s prefill=32 decode=0 a*", "1.000001096s prefill=0 decode=1 a")
	if h.seqs["big"].state != waiting || h.seqs["small"].state != waiting {
		t.Error("the head of the queue does not fit, so nobody is admitted")
	}
	h.finish()
}

func TestAdapterSlots(t *testing.T) {
	cost := unit
	cost.AdapterLoad = time.Hour
	h := newHarness(t, Config{Cost: cost, MaxLoras: 1})
	submit := func(name, adapter string, output int) {
		h.submitSeq(name, &Sequence{PromptTokens: 10, OutputTokens: output, Adapter: adapter})
	}
	submit("a1", "a", 2)
	submit("b1", "b", 1)
	submit("a2", "a", 1)
	submit("base", "", 1)
	h.want("1h0m1.03s prefill=30 decode=0 a1* a2*. base*.") // b1 is skipped, not failed, and holds nobody up
	if st := h.e.Stats(); st.Waiting != 1 || st.Deferred != 1 {
		t.Errorf("%d waiting, %d of them deferred", st.Waiting, st.Deferred)
	}
	if got := slices.Collect(h.e.RunningAdapters); !slices.Equal(got, []string{"a"}) {
		t.Errorf("running adapters %v", got)
	}
	h.want("1.00000101s prefill=0 decode=1 a1.", "1h0m1.01s prefill=10 decode=0 b1*.")
	if st := h.e.Stats(); st.Deferred != 0 {
		t.Errorf("%d deferred", st.Deferred)
	}
	submit("b2", "b", 1)
	submit("a3", "a", 1)
	h.want("1.01s prefill=10 decode=0 b2*.", "1h0m1.01s prefill=10 decode=0 a3*.") // b is still loaded, a no longer
}

func TestAbort(t *testing.T) {
	tests := []struct {
		name  string
		steps int // before b is aborted
		mid   bool
	}{
		{"waiting", 0, false}, {"prefilling", 1, false}, {"decoding", 3, false},
		{"during the prefill", 1, true}, {"while decoding", 3, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, Config{MaxBatchedTokens: 50})
			a, b, c := h.submit("a", 10, 10), h.submit("b", 80, 10), h.submit("c", 10, 10)
			for range tt.steps {
				h.step()
			}
			had := b.Generated
			if tt.mid {
				h.e.Plan(h.now)
			}
			h.e.Abort(b)
			h.e.Abort(b) // once is enough
			h.check()
			if tt.mid {
				for _, s := range h.e.Commit().Tokens {
					if s == b {
						t.Error("an aborted sequence got a token")
					}
				}
				h.check()
			}
			h.finish()
			if a.Generated != 10 || c.Generated != 10 || b.Generated != had {
				t.Errorf("tokens %d, %d, %d", a.Generated, b.Generated, c.Generated)
			}
			st := h.e.Stats()
			if st.Aborted != 1 || st.Finished != 2 || st.Running != 0 || st.Waiting != 0 || st.KVUsage != 0 {
				t.Errorf("stats %+v", st)
			}
			if err := h.e.Submit(b, h.now); err != nil {
				t.Errorf("an aborted sequence cannot be submitted again: %v", err)
			}
		})
	}
}

func TestStopEndsASequenceEarly(t *testing.T) {
	h := newHarness(t, Config{})
	a := h.submit("a", 10, 100)
	h.step()
	h.e.Stop(a)
	h.want("idle")
	if st := h.e.Stats(); st.Finished != 1 || st.Aborted != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestSubmitRefuses(t *testing.T) {
	e := New(Config{Blocks: 3})
	twice := &Sequence{PromptTokens: 1, OutputTokens: 1}
	if err := e.Submit(twice, 0); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Sequence{twice, {PromptTokens: 0, OutputTokens: 1}, {PromptTokens: 1}, {PromptTokens: 30, OutputTokens: 3}} {
		if e.Submit(s, 0) == nil {
			t.Errorf("accepted %+v", s)
		}
	}
	if err := e.Submit(&Sequence{PromptTokens: 30, OutputTokens: 2}, 0); err != nil {
		t.Errorf("refused what just fits: %v", err)
	}
}

func TestTimes(t *testing.T) {
	h := newHarness(t, Config{MaxSeqs: 1})
	h.now = time.Minute
	a := h.submit("a", 100, 2)
	b := h.submit("b", 100, 1)
	h.finish()
	if a.Arrived != time.Minute || a.Scheduled != time.Minute || a.FirstToken != time.Minute+1100*time.Millisecond ||
		a.Ended != time.Minute+2100001100*time.Nanosecond {
		t.Errorf("a: %v %v %v %v", a.Arrived, a.Scheduled, a.FirstToken, a.Ended)
	}
	if b.Arrived != time.Minute || b.Scheduled != a.Ended {
		t.Errorf("b: %v %v", b.Arrived, b.Scheduled)
	}
}

// A prompt that another engine has computed costs this one its last token, and is found again like any other.
func TestTransferredPrompt(t *testing.T) {
	e := New(Config{Blocks: 100, Cost: Cost{PrefillToken: time.Millisecond}})
	tokens := make([]uint32, 100)
	for i := range tokens {
		tokens[i] = uint32(i + 1)
	}
	hashes := AppendHashes(nil, RootHash("", ""), tokens)
	ask := func(transferred int) (*Sequence, time.Duration) {
		s := &Sequence{PromptTokens: 100, OutputTokens: 1, Hashes: hashes, Transferred: transferred}
		if err := e.Submit(s, 0); err != nil {
			t.Fatal(err)
		}
		took, _ := e.Plan(0)
		e.Commit()
		return s, took
	}
	s, took := ask(100)
	if took != time.Millisecond || s.Cached != 0 || s.Received != 99 {
		t.Errorf("took %v, %d cached, %d received", took, s.Cached, s.Received)
	}
	s, took = ask(0)
	if took != 4*time.Millisecond || s.Cached != 96 || s.Received != 0 {
		t.Errorf("the same once more: took %v, %d cached, %d received", took, s.Cached, s.Received)
	}
	s, took = ask(100)
	if took != time.Millisecond || s.Cached != 96 || s.Received != 3 {
		t.Errorf("with most of it cached: took %v, %d cached, %d received", took, s.Cached, s.Received)
	}
	if st := e.Stats(); st.PromptTokens != 300 || st.PromptTokensCached != 192 || st.PromptTokensReceived != 102 {
		t.Errorf("counted %+v", st)
	}
}
