package sim

import (
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/prefix"
)

// A request is one turn of a conversation on its way. The first group of fields is what a router can see of it.
type request struct {
	flow    uint64   // whose it is
	session uint64   // the client's, as a session header or a user id would tell
	model   string   // or the adapter
	chain   []uint64 // hashes of the prompt's chunks, of the sizes that package prefix gives them
	digest  uint64   // of the whole prompt
	bytes   int      // of the prompt's text
	limit   int      // tokens it asks for at most
	stream  bool

	// A router's own notes.
	asked   picker.Request
	lease   picker.Lease
	picked  time.Duration // when its pod was chosen
	tokens  float64       // by which the prompt counts as load
	replica int32
	pod     int32

	prefillPod int32 // that computes its prompt for pod; −1: none

	// The truth.
	seq         engine.Sequence
	prompt      engine.Sequence // on prefillPod
	lastToken   time.Duration
	gap         time.Duration // the longest between two tokens
	uncached    int           // prompt tokens to compute, as of the arrival at the engine
	conv        *workload.Session
	turn        int
	intended    time.Duration
	criticality string
	measured    bool
}

// bytesPerToken is what the mean text has. A text has up to spread more or less than that, always the same, so that what a router
// takes for the length of a prompt is off by as much.
const (
	bytesPerToken = 4.0
	spread        = 0.10
)

// textOf is the segment in bytes instead of tokens.
func textOf(s workload.Segment) workload.Segment {
	u := float64(s.ID>>11) / (1 << 53)
	return workload.Segment{ID: s.ID, Tokens: max(1, int(float64(s.Tokens)*bytesPerToken*(1-spread+2*spread*u)))}
}

// newRequest makes the request of a conversation's turn, which is due at the time given.
func (s *simulation) newRequest(conv *workload.Session, turn int, due time.Duration) *request {
	r := &request{
		session: conv.ID, model: conv.Adapter, stream: !s.cfg.NonStreaming,
		conv: conv, turn: turn, intended: due, criticality: conv.Criticality,
		limit: conv.Turns[turn].Answer.Tokens, prefillPod: -1,
	}
	s.segments = conv.AppendPrompt(s.segments[:0], turn)
	prompt := workload.Tokens(s.segments)
	s.segments = append(s.segments, conv.Turns[turn].Answer)

	// The prompt's blocks and the answer's.
	tokens := prompt + r.limit
	s.blocks = workload.AppendBlocks(s.blocks[:0], s.segments, engine.BlockSize)
	root := uint64(engine.RootHash(conv.Adapter, ""))
	hashes := make([]engine.BlockHash, 0, tokens/engine.BlockSize)
	for _, b := range s.blocks {
		hashes = append(hashes, engine.BlockHash(max(b^root, 1)))
	}
	r.seq = engine.Sequence{PromptTokens: prompt, OutputTokens: r.limit, Adapter: conv.Adapter, Hashes: hashes, Owner: r}
	r.prompt = engine.Sequence{PromptTokens: prompt, OutputTokens: 1, Adapter: conv.Adapter, Hashes: hashes[:prompt/engine.BlockSize], Owner: r}

	// The prompt as the router reads it.
	text := s.segments[:len(s.segments)-1]
	for i, seg := range text {
		text[i] = textOf(seg)
		r.bytes += text[i].Tokens
	}
	seed := prefix.Seed(conv.Adapter)
	s.blocks = workload.AppendBlocks(s.blocks[:0], text, prefix.ChunkSize)
	for i := 1; i <= prefix.MaxChunks && prefix.Offset(i) <= len(s.blocks)*prefix.ChunkSize; i++ {
		r.chain = append(r.chain, max(s.blocks[prefix.Offset(i)/prefix.ChunkSize-1]^seed, 1))
	}
	s.blocks = workload.AppendBlocks(s.blocks[:0], text, r.bytes)
	r.digest = s.blocks[0] ^ seed
	return r
}

// estimate is the prompt's length as a router without a tokenizer takes it to be.
func (r *request) estimate() float64 { return max(1, float64(r.bytes)/bytesPerToken) }
