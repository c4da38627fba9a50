package picker

import (
	"math"
	"sync/atomic"
)

// A ratio is the quotient of two running sums that fade as the denominator grows: seconds a token, bytes a token. It is one
// atomic word (two float32), so that a reader sees both sums of one moment.
type ratio struct{ word atomic.Uint64 }

// add counts num over den, and fades what came before so that the denominator's sum tends to horizon.
func (r *ratio) add(num, den, horizon float64) {
	for {
		old := r.word.Load()
		n, d := unpack(old)
		keep := max(0, 1-den/horizon)
		if r.word.CompareAndSwap(old, pack(n*keep+num, d*keep+den)) {
			return
		}
	}
}

// mean returns the quotient, starting from a prior that counts as much as weight of the denominator.
func (r *ratio) mean(prior, weight float64) float64 {
	n, d := unpack(r.word.Load())
	return (prior*weight + n) / (weight + d)
}

func (r *ratio) reset() { r.word.Store(0) }

func pack(n, d float64) uint64 {
	return uint64(math.Float32bits(float32(n)))<<32 | uint64(math.Float32bits(float32(d)))
}

func unpack(w uint64) (n, d float64) {
	return float64(math.Float32frombits(uint32(w >> 32))), float64(math.Float32frombits(uint32(w)))
}
