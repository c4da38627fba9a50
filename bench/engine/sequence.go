package engine

import "time"

// Sequence is one prompt and the answer to it. The caller sets the first group of fields before Submit and leaves them alone until
// the sequence has ended, except that Hashes may grow; the engine writes the second group. A sequence that has ended may be
// submitted again.
type Sequence struct {
	PromptTokens int    // at least 1
	OutputTokens int    // at which number of produced tokens it ends; at least 1
	Adapter      string // LoRA adapter; "": the base model

	// Hashes are the chained hashes of the sequence's full blocks, the prompt's first (see AppendHashes). A block is cached when it
	// fills if its hash is here by then, so a caller that wants output tokens cached too either knows them all before Submit or
	// appends a hash between Commit and Plan whenever a block's last token was produced.
	Hashes []BlockHash

	// Transferred is how many leading prompt tokens another engine has computed, whose KV is there when the sequence is submitted:
	// they are not computed again, unless it loses its place.
	Transferred int

	Owner any // for the caller's use

	// Written by the engine.
	Generated    int           // tokens produced
	Cached       int           // prompt tokens found in the cache when it was first scheduled
	Received     int           // further ones that came from another engine
	AdapterLoads int           // how often its adapter had to be brought to the GPU for it
	Preemptions  int           // how often it lost its place
	Arrived      time.Duration // when it was submitted, on the caller's clock, as all of these
	Scheduled    time.Duration // when the step began that first served it
	FirstToken   time.Duration // when its first token was there
	Ended        time.Duration // when its last token was there; not set by Abort and Stop

	state    state
	computed int     // tokens whose KV is in its blocks, those of the step under way included
	hashed   int     // blocks[:hashed] are findable by their hash
	blocks   []int32 // ids of its KV blocks
}

type state uint8

const (
	fresh state = iota
	waiting
	running
	ended
)

// Running reports whether the engine has started s and not ended it.
func (s *Sequence) Running() bool { return s.state == running }

// Waiting reports whether s is in the engine's queue.
func (s *Sequence) Waiting() bool { return s.state == waiting }

// tokens is the number of tokens s has now: its prompt and what it has produced. The last one's KV is yet to be computed.
func (s *Sequence) tokens() int { return s.PromptTokens + s.Generated }

func (s *Sequence) reset() {
	s.Generated, s.Cached, s.Received, s.Preemptions = 0, 0, 0, 0
	s.Arrived, s.Scheduled, s.FirstToken, s.Ended = 0, 0, 0, 0
	s.computed, s.hashed, s.blocks = 0, 0, nil
}

// queue is a double-ended queue of sequences in a ring.
type queue struct {
	ring []*Sequence // its length is a power of two
	head int
	n    int
}

func (q *queue) len() int { return q.n }

func (q *queue) slot(i int) *(*Sequence) { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *queue) at(i int) *Sequence { return *q.slot(i) }

func (q *queue) grow() {
	if q.n < len(q.ring) {
		return
	}
	ring := make([]*Sequence, max(16, 2*len(q.ring)))
	for i := range q.n {
		ring[i] = q.at(i)
	}
	q.ring, q.head = ring, 0
}

func (q *queue) pushBack(s *Sequence) {
	q.grow()
	q.n++
	*q.slot(q.n - 1) = s
}

func (q *queue) pushFront(s *Sequence) {
	q.grow()
	q.head = (q.head - 1) & (len(q.ring) - 1)
	q.n++
	*q.slot(0) = s
}

// removeAt takes out the i-th sequence; it costs O(i).
func (q *queue) removeAt(i int) {
	for ; i > 0; i-- {
		*q.slot(i) = q.at(i - 1)
	}
	*q.slot(0) = nil
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
}

func (q *queue) remove(s *Sequence) {
	for i := range q.n {
		if q.at(i) == s {
			q.removeAt(i)
			return
		}
	}
}
