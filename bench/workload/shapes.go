package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// What the named workloads have beyond their parameters. A shape changes a conversation that the parameters have made; it draws
// from rng, which is the conversation's own.
const (
	agentContext = 14_000 // tokens an agent reads before its first step: with system prompt and steps, 20,000 to 60,000

	ragDocuments = 10_000 // in the store
	ragRetrieved = 5      // of them for a question, the most relevant first
	ragTokens    = 1000   // of a document
	ragSkew      = 0.8    // exponent of their popularity

	batchShare  = 0.2 // of the requests of the mix
	batchPrompt = 6000
	batchAnswer = 400
	hotFrom     = 30 * time.Second // from then on
	hotShare    = 0.6              // of the requests are of one group
	adapterSkew = 1.0              // exponent of the adapters' popularity
)

// agent gives a conversation a context of its own to begin with.
func agent(w *Workload, s *Session, rng *rand.Rand) {
	context := Segment{identity(w.params.Seed, document, s.ID), w.length(rng, agentContext)}
	s.Turns[0].User = append([]Segment{context}, s.Turns[0].User...)
}

// rag puts the documents that were found for a question before it.
func rag(w *Workload, s *Session, rng *rand.Rand) {
	user := make([]Segment, 0, ragRetrieved+1)
	for range ragRetrieved {
		user = append(user, Segment{identity(w.params.Seed, document, zipf(rng, ragDocuments, ragSkew)), ragTokens})
	}
	s.Turns[0].User = append(user, s.Turns[0].User...)
}

// mixed makes every fifth request one of a batch, which has nothing in common with any other, and a third of either critical,
// a third sheddable.
func mixed(w *Workload, s *Session, rng *rand.Rand) {
	job := rng.Float64() < batchShare
	s.Criticality = Criticalities[identity(w.params.Seed, rank, s.ID)%3]
	if job {
		s.System = nil
		s.Turns[0].User[0].Tokens = w.length(rng, batchPrompt)
		s.Turns[0].Answer.Tokens = w.length(rng, batchAnswer)
	}
}

// hot sends most of what comes after a while to one group. It looks at the conversation's Start.
func hot(w *Workload, s *Session, rng *rand.Rand) {
	if lot := rng.Float64(); s.Start >= hotFrom && lot < hotShare {
		s.System[0].ID = identity(w.params.Seed, systemPrompt, 0)
	}
}

// adapted gives each conversation a LoRA adapter, some of which are much more popular than others, and the adapter's system prompt.
func adapted(w *Workload, s *Session, rng *rand.Rand) {
	n := zipf(rng, uint64(w.params.Groups), adapterSkew)
	s.Adapter = fmt.Sprintf("adapter-%d", n)
	s.System[0].ID = identity(w.params.Seed, systemPrompt, n)
}

// zipf draws one of n, the first the most often: k's share falls as (k+1)^-skew. It inverts the continuous distribution.
func zipf(rng *rand.Rand, n uint64, skew float64) uint64 {
	u := rng.Float64()
	var x float64
	if skew == 1 {
		x = math.Pow(float64(n+1), u)
	} else {
		x = math.Pow(1+u*(math.Pow(float64(n+1), 1-skew)-1), 1/(1-skew))
	}
	return min(uint64(x)-1, n-1)
}
