package picker

import (
	"math"
	"sync/atomic"
)

const (
	// creditPrior and creditHorizon: how many tokens believed cached the prior (all true) counts for, and how many the
	// memory holds.
	creditPrior   = 65536
	creditHorizon = 1 << 20

	// shrink and grow are the steps of the believed capacity: thirty requests to correct a factor of four.
	shrink = 0.95
	grow   = 1.05
	// maxStretch bounds the correction either way.
	maxStretch = 8

	// minEvidence is how many tokens have to differ: one chunk and one block, rounded up.
	minEvidence = 256
)

// A belief is how far the index can be trusted, learned from how many tokens were cached in truth.
type belief struct {
	truth  ratio         // tokens found cached, of those believed to be
	factor atomic.Uint64 // float64: by how much the capacity differs from what the pod says; 0 means 1
}

// evidence compares what was believed of a prompt, or of many, with what was found. All in tokens.
type evidence struct {
	believed float64 // to be cached
	lost     float64 // to have been cached once
	found    float64 // in truth
	old      bool    // what was believed was old enough to have left a smaller cache
}

// learn moves the belief towards the evidence, and reports whether the capacity seems larger now.
func (b *belief) learn(v evidence) (grown bool) {
	if v.believed >= minEvidence {
		b.truth.add(min(v.found, v.believed), v.believed, creditHorizon)
		if v.old && v.found < v.believed/2 {
			b.scale(shrink)
		}
	}
	if v.lost >= minEvidence && v.found >= v.believed+v.lost/2 {
		b.scale(grow)
		return true
	}
	return false
}

// credit is what a token believed to be cached is worth, 0..1. It falls below 1 when less than half of what was believed
// proves true: then the pod does not cache at all, or not what the index thinks.
func (b *belief) credit() float64 { return min(1, 2*b.truth.mean(1, creditPrior)) }

// stretch is the factor by which the capacity differs from what the pod says.
func (b *belief) stretch() float64 {
	if bits := b.factor.Load(); bits != 0 {
		return math.Float64frombits(bits)
	}
	return 1
}

// scale multiplies the factor. Two at once may count as one.
func (b *belief) scale(by float64) {
	f := min(max(b.stretch()*by, 1.0/maxStretch), maxStretch)
	b.factor.Store(math.Float64bits(f))
}

func (b *belief) reset() {
	b.truth.reset()
	b.factor.Store(0)
}
