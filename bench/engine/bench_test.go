package engine

import (
	"math/rand/v2"
	"testing"
	"time"
)

// loaded is an engine with many groups of sequences that share a prefix, submitted as fast as they end.
type loaded struct {
	e     *Engine
	rng   *rand.Rand
	seqs  []*Sequence
	now   time.Duration
	hash  BlockHash
	roots [64]BlockHash
}

func newLoaded(concurrency, output int) *loaded {
	l := &loaded{e: New(Profiles[0].Engine), rng: rand.New(rand.NewPCG(1, 2)), hash: 1 << 40}
	for i := range l.roots {
		l.roots[i] = BlockHash(i+1) << 20
	}
	for range concurrency {
		s := &Sequence{}
		l.seqs = append(l.seqs, s)
		l.submit(s, 1+l.rng.IntN(output))
	}
	return l
}

// submit sends s with a prompt of 2,048 shared and 512 own tokens.
func (l *loaded) submit(s *Sequence, output int) {
	s.PromptTokens, s.OutputTokens = 2560, output
	s.Hashes = s.Hashes[:0]
	root := l.roots[l.rng.IntN(len(l.roots))]
	for i := range BlockHash(128) {
		s.Hashes = append(s.Hashes, root+i)
	}
	for range (512 + output) / BlockSize {
		l.hash += 1
		s.Hashes = append(s.Hashes, l.hash)
	}
	if err := l.e.Submit(s, l.now); err != nil {
		panic(err)
	}
}

func (l *loaded) step() time.Duration {
	d, _ := l.e.Plan(l.now)
	l.now += d
	for _, s := range l.e.Commit().Finished {
		l.submit(s, s.OutputTokens)
	}
	return d
}

// BenchmarkEightEngines is what a simulation of a busy pool pays for its engines alone: the one whose step ends first goes next.
func BenchmarkEightEngines(b *testing.B) {
	var pool [8]*loaded
	for i := range pool {
		pool[i] = newLoaded(128, 200)
		for range 500 {
			pool[i].step()
		}
		pool[i].now = 0
	}
	b.ReportAllocs()
	for b.Loop() {
		first := pool[0]
		for _, l := range pool[1:] {
			if l.now < first.now {
				first = l
			}
		}
		first.step()
	}
	b.ReportMetric(pool[0].now.Seconds()/b.Elapsed().Seconds(), "x-realtime")
}

func benchmarkStep(b *testing.B, concurrency, output int) {
	l := newLoaded(concurrency, output)
	for range 2000 {
		l.step()
	}
	b.ReportAllocs()
	start := l.now
	for b.Loop() {
		l.step()
	}
	virtual := (l.now - start).Seconds()
	b.ReportMetric(virtual/b.Elapsed().Seconds(), "x-realtime")
}

func BenchmarkStep16(b *testing.B)  { benchmarkStep(b, 16, 200) }
func BenchmarkStep128(b *testing.B) { benchmarkStep(b, 128, 200) }
func BenchmarkStep512(b *testing.B) { benchmarkStep(b, 512, 1000) }
