package mock

import (
	"strings"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// call is one API request's generation: a job for each prompt and each of its n answers. The driver appends to it, the connection
// takes from it.
type call struct {
	jobs   []*job
	notify chan struct{} // has room for one; signalled when pending is not empty

	mu      sync.Mutex
	pending []delta
}

// delta is what one job has to say: some text of a token, or its end, or both.
type delta struct {
	job    *job
	text   string
	token  uint32
	piece  string // the token's own text, stop strings or not; "" if there is no token
	tokens int    // produced by this job so far
	finish string // "" until the last: "stop", "length" or "abort"
}

func newCall() *call { return &call{notify: make(chan struct{}, 1)} }

func (c *call) add(d delta) {
	c.mu.Lock()
	c.pending = append(c.pending, d)
	c.mu.Unlock()
	select {
	case c.notify <- struct{}{}:
	default:
	}
}

// take swaps what is pending for buf.
func (c *call) take(buf []delta) []delta {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.pending
	c.pending = buf[:0]
	return taken
}

// job is one answer being generated. The driver owns it while its sequence is in the engine.
type job struct {
	call     *call
	index    int // in the answer's choices
	seq      engine.Sequence
	gen      generator
	params   params
	siblings *siblings // the answers to the same prompt
	natural  bool      // it ends by itself ("stop") and not by its limit ("length")
	tool     *toolCall // the call its text is the arguments of; nil: it is text

	partial [engine.BlockSize]uint32 // the tokens after the last full block
	filled  int
	root    engine.BlockHash // of the last full block

	held      string // text kept back because a stop string may begin in it
	finish    string // set with the last delta
	stoppedBy string // the stop string that ended it

	lastToken time.Duration // when it produced its last token, in engine time
}

// siblings is what the metrics page counts once for the n answers to a prompt.
type siblings struct {
	left int // not yet finished
	most int // tokens of the longest
}

// params are the request's limits, as the metrics page reports them.
type params struct {
	n         int
	maxTokens int
	stop      []string
}

// prompt makes tokens the job's prompt.
func (j *job) prompt(tokens []uint32, adapter, salt string) {
	j.seq.PromptTokens, j.seq.Adapter = len(tokens), adapter
	j.root = engine.RootHash(adapter, salt)
	j.seq.Hashes = engine.AppendHashes(make([]engine.BlockHash, 0, len(tokens)/engine.BlockSize+8), j.root, tokens)
	if n := len(j.seq.Hashes); n > 0 {
		j.root = j.seq.Hashes[n-1]
	}
	j.filled = copy(j.partial[:], tokens[len(tokens)-len(tokens)%engine.BlockSize:])
}

// produce gives the job its next token, and says whether a stop string ended it. last says it is its last in any case.
func (j *job) produce(last bool) (stopped bool) {
	id, text := j.gen.next()
	piece := text
	j.partial[j.filled] = id
	if j.filled++; j.filled == engine.BlockSize {
		j.root = engine.HashBlock(j.root, &j.partial)
		j.seq.Hashes = append(j.seq.Hashes, j.root)
		j.filled = 0
	}
	if len(j.params.stop) > 0 {
		text, stopped = j.withhold(text, last)
	}
	switch {
	case stopped, last && j.natural:
		j.finish = "stop"
	case last:
		j.finish = "length"
	}
	j.call.add(delta{job: j, text: text, token: id, piece: piece, tokens: j.seq.Generated, finish: j.finish})
	return stopped
}

// withhold returns the text that is certain not to be part of a stop string, and whether one is complete.
func (j *job) withhold(text string, last bool) (certain string, stopped bool) {
	j.held += text
	longest, first := 0, len(j.held)
	for _, stop := range j.params.stop {
		if i := strings.Index(j.held, stop); stop != "" && i >= 0 && i < first {
			first, stopped, j.stoppedBy = i, true, stop
		}
		longest = max(longest, len(stop))
	}
	if !stopped && !last {
		first = max(0, len(j.held)-longest+1)
	}
	certain = j.held[:first]
	j.held = j.held[first:]
	return certain, stopped
}

// end finishes the job early.
func (j *job) end(reason string) {
	j.finish = reason
	j.call.add(delta{job: j, text: j.held, tokens: j.seq.Generated, finish: reason})
}
