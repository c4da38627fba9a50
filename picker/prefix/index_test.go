package prefix

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

const (
	step = 64 // tokens a chunk
	wide = 1 << 30
)

// numbered returns a chain of n hashes that belongs to id. Chains with the same id share their prefix.
func numbered(id uint64, n int) []uint64 {
	c := make([]uint64, n)
	h := Link(id, 0)
	for i := range c {
		h = Link(h, uint64(i))
		c[i] = h
	}
	return c
}

// fork returns a chain that shares the first n chunks with base and continues as id for m more.
func fork(base []uint64, n int, id uint64, m int) []uint64 {
	return append(append([]uint64{}, base[:n]...), numbered(id, m)...)
}

// serve has the pod compute a chain at that clock.
func serve(x *Index, chain []uint64, clock uint64) {
	x.Keep(chain, x.Pin(chain, clock, wide, step), clock, step)
}

// pins counts what is pinned in the whole table.
func pins(x *Index) (n uint64) {
	t := x.table.Load()
	if t == nil {
		return 0
	}
	for i := range t.buckets {
		for s := range t.buckets[i].states {
			if t.buckets[i].keys[s].Load() != 0 {
				n += t.buckets[i].states[s].Load() & maxPins
			}
		}
	}
	return n
}

func TestMatch(t *testing.T) {
	var x Index
	base := numbered(1, 100)
	if got := x.Match(base, 0, wide, 0); got != 0 {
		t.Errorf("an empty index matches %d", got)
	}
	serve(&x, base, 10_000)
	for _, tt := range []struct {
		name   string
		chain  []uint64
		clock  uint64
		window int64
		want   int
	}{
		{"no chunks", nil, 10_000, wide, 0},
		{"all", base, 10_000, wide, 100},
		{"one", base[:1], 10_000, wide, 1},
		{"a shorter prompt", base[:37], 10_000, wide, 37},
		{"the next turn", fork(base, 100, 2, 30), 10_000, wide, 100},
		{"another question", fork(base, 40, 3, 60), 10_000, wide, 40},
		{"another prompt", numbered(4, 100), 10_000, wide, 0},
		{"head is young enough", base, 10_000, 1, 1},
		{"tail ages first", base, 10_000, 10*step + 1, 11},
		{"no window", base, 10_000, 0, 0},
		{"later", base, 12_000, 2000 + 50*step + 1, 51},
		{"a clock that was set back", base, 9_000, 1, 16}, // chunk i is i*64−1000 tokens old
		{"zero hash", []uint64{0, 0}, 10_000, wide, 0},
	} {
		for guess := -1; guess <= len(tt.chain)+1; guess++ {
			if got := x.Match(tt.chain, tt.clock, tt.window, guess); got != tt.want {
				t.Errorf("%s, guessing %d: %d chunks, want %d", tt.name, guess, got, tt.want)
			}
		}
	}
}

func TestPinnedChunksDoNotAge(t *testing.T) {
	var x Index
	c := numbered(1, 50)
	h := x.Pin(c, 0, wide, step)
	if h.Depth != 50 || h.Found != 0 {
		t.Errorf("pinned %d, found %d of a new chain of 50", h.Depth, h.Found)
	}
	if got := x.Match(c, 1e9, 0, 0); got != 50 {
		t.Errorf("in flight: %d chunks, want 50", got)
	}
	if _, ok := x.Age(c[0], 5); ok {
		t.Error("a pinned chunk has an age")
	}
	x.Keep(c, h, 1e9, step)
	if got := x.Match(c, 1e9+1000, 1001, 0); got != 1 {
		t.Errorf("after its end: %d chunks, want 1", got)
	}
	if a, ok := x.Age(c[2], 1e9+1000); !ok || a != 1000+2*step {
		t.Errorf("age %d, %v", a, ok)
	}
}

func TestAnOlderRequestDoesNotMakeChunksOlder(t *testing.T) {
	var x Index
	long := numbered(1, 100)
	serve(&x, long[:10], 5000)
	x.Keep(long, x.Pin(long, 100, wide, step), 100, step)
	if a, _ := x.Age(long[0], 5000); a != 0 {
		t.Errorf("the head is %d tokens old, want 0", a)
	}
}

func TestDrop(t *testing.T) {
	var x Index
	base := numbered(1, 20)
	serve(&x, base[:10], 1000)
	before, _ := x.Age(base[3], 2000)

	a := x.Pin(base, 2000, wide, step)
	b := x.Pin(base[:15], 2000, wide, step)
	if a.Found != 10 || b.Found != 15 {
		t.Errorf("found %d and %d, want 10 and 15", a.Found, b.Found)
	}
	x.Drop(base, a)
	if got := x.Match(base, 2000, wide, 0); got != 15 {
		t.Errorf("%d chunks, want the 15 that another request holds", got)
	}
	x.Drop(base[:15], b)
	if got := x.Match(base, 2000, wide, 0); got != 10 || x.Len() != 10 {
		t.Errorf("%d of %d chunks, want the 10 computed before", got, x.Len())
	}
	if after, _ := x.Age(base[3], 2000); after != before {
		t.Error("a request that was never sent touched chunks")
	}
	// What has aged out of the pod's cache is not computed because it once was.
	x.Drop(base[:10], x.Pin(base[:10], 9000, 100, step))
	if x.Len() != 0 {
		t.Errorf("%d aged chunks are believed computed again", x.Len())
	}
}

func TestResetUnderLeases(t *testing.T) {
	var x Index
	c := numbered(1, 30)
	before := x.Pin(c, 0, wide, step)
	x.Reset(0)
	if x.Match(c, 0, wide, 0) != 0 || x.Len() != 0 || x.Bytes() != 0 {
		t.Error("the index is not empty")
	}
	x.Keep(c[:1], before, 0, step) // no table yet
	after := x.Pin(c, 0, wide, step)
	x.Keep(c, before, 0, step)
	x.Drop(c, before)
	if pins(&x) != 30 || x.Len() != 30 {
		t.Errorf("%d pins on %d chunks: a lease of the pod's former life took away the new one's", pins(&x), x.Len())
	}
	x.Keep(c, after, 0, step)
	if pins(&x) != 0 {
		t.Errorf("%d pins are left", pins(&x))
	}
}

func TestGrowLosesNothing(t *testing.T) {
	x := Index{}
	x.Reset(1) // smallest
	var chains [][]uint64
	var holds []Hold
	for id := range uint64(12) {
		c := numbered(id, 30)
		h := x.Pin(c, 0, wide, step)
		chains, holds = append(chains, c[:h.Depth]), append(holds, h)
	}
	small, n := x.Bytes(), x.Len()
	x.Grow(100)
	x.Grow(5000)
	x.Grow(1000)
	if x.Bytes() <= small || x.Len() != n {
		t.Fatalf("%d bytes with %d chunks grew to %d with %d", small, n, x.Bytes(), x.Len())
	}
	for i, c := range chains {
		if got := x.Match(c, 0, wide, 0); got != len(c) {
			t.Errorf("chain %d: %d of %d chunks", i, got, len(c))
		}
		x.Keep(c, holds[i], 0, step)
	}
	if pins(&x) != 0 {
		t.Errorf("%d pins are left", pins(&x))
	}
}

func TestFullOfPins(t *testing.T) {
	x := Index{MaxBytes: 1} // one bucket
	a, b := numbered(1, 20), numbered(2, 20)
	ha := x.Pin(a, 0, wide, step)
	hb := x.Pin(b, 0, wide, step)
	if ha.Depth != bucketSlots || hb.Depth != 0 {
		t.Fatalf("pinned %d and %d, want %d and 0", ha.Depth, hb.Depth, bucketSlots)
	}
	if got := x.Match(a, 0, 0, 0); got != bucketSlots {
		t.Errorf("matches %d", got)
	}
	x.Keep(b, hb, 0, step)
	x.Keep(a, ha, 0, step)
	serve(&x, b, 50)
	if x.Match(a, 50, wide, 0) != 0 || x.Match(b, 50, wide, 0) != bucketSlots || x.Len() != bucketSlots {
		t.Error("the oldest chunks did not make room")
	}
	if x.Bytes() != bucketBytes {
		t.Errorf("%d bytes, want %d", x.Bytes(), bucketBytes)
	}
}

// A chunk that its bucket has lost does not cut the match: its child vouches for it.
func TestLostSlotDoesNotCutTheMatch(t *testing.T) {
	for lost := range 64 {
		var x Index
		c := numbered(1, 64)
		serve(&x, c, 0)
		b := x.table.Load().bucket(c[lost])
		b.keys[b.find(c[lost])].Store(0)
		x.table.Load().holes.Store(true)
		want := 64
		if lost == 63 {
			want = 63
		}
		for guess := range 65 {
			if got := x.Match(c, 0, wide, guess); got != want {
				t.Errorf("without chunk %d, guessing %d: %d chunks, want %d", lost, guess, got, want)
			}
		}
	}
}

// In a table too small for what is alive, matches still do not break at the chunks that were lost here and there.
func TestCrowdedTable(t *testing.T) {
	x := Index{}
	x.Grow(200) // 512 slots
	var chains [][]uint64
	for id := range uint64(10) {
		c := numbered(id, 40)
		serve(&x, c, id)
		chains = append(chains, c)
	}
	lost, cut := 0, 0
	for _, c := range chains {
		for _, key := range c {
			if _, ok := x.table.Load().bucket(key).load(key); !ok {
				lost++
			}
		}
		cut += len(c) - x.Match(c, 10, wide, 0)
	}
	if lost == 0 || cut > lost {
		t.Errorf("%d chunks lost their slots, matches are short by %d of 400", lost, cut)
	}
}

func TestPinCountIsBounded(t *testing.T) {
	var x Index
	c := numbered(1, 3)
	x.Pin(c, 0, wide, step)
	b := x.table.Load().bucket(c[1])
	s := b.find(c[1])
	b.states[s].Store(b.states[s].Load() | maxPins)
	if h := x.Pin(c, 0, wide, step); h.Depth != 1 {
		t.Errorf("pinned %d chunks past a full count, want 1", h.Depth)
	}
}

func TestChangedChainIsHarmless(t *testing.T) {
	var x Index
	c := numbered(1, 10)
	h := x.Pin(c, 0, wide, step)
	x.Keep(numbered(2, 10), h, 0, step)
	x.Keep(c[:3], h, 0, step)
	x.Drop(c, h)
	x.Drop(c, h)
	if pins(&x) != 0 || x.Match(c, 0, wide, 0) != 3 {
		t.Errorf("%d pins, %d chunks", pins(&x), x.Match(c, 0, wide, 0))
	}
}

func TestSize(t *testing.T) {
	for _, chunks := range []int{256, 1000, 7125, DefaultChunks, 100_000, 131_072} {
		var x Index
		x.Grow(chunks)
		serve(&x, numbered(1, 1), 0)
		if per := x.Bytes() / chunks; per < 32 || per > 64 {
			t.Errorf("%d chunks: %d bytes each, want 32 to 64", chunks, per)
		}
	}
	for _, max := range []int{1 << 10, 1 << 16, 3 << 16, 0} {
		x := Index{MaxBytes: max}
		x.Grow(1 << 40)
		for id := range uint64(100) {
			serve(&x, numbered(id, 1600), id)
		}
		if max == 0 {
			max = DefaultMaxBytes
		}
		if x.Bytes() > max || x.Len() > max/16 {
			t.Errorf("%d bytes and %d chunks under a bound of %d", x.Bytes(), x.Len(), max)
		}
	}
}

// A model of the pod's own cache: blocks in the order in which they will be dropped.
type lru struct {
	capacity int
	order    []uint64
}

func (l *lru) serve(chain []uint64) (hit int) {
	at := make(map[uint64]bool, len(l.order))
	for _, k := range l.order {
		at[k] = true
	}
	for hit < len(chain) && at[chain[hit]] {
		hit++
	}
	used := make(map[uint64]bool, len(chain))
	for _, k := range chain {
		used[k] = true
	}
	kept := l.order[:0]
	for _, k := range l.order {
		if !used[k] {
			kept = append(kept, k)
		}
	}
	for i := len(chain) - 1; i >= 0; i-- { // freed from the tail
		kept = append(kept, chain[i])
	}
	l.order = kept[max(0, len(kept)-l.capacity):]
	return hit
}

// The index predicts what an exact cache of the same capacity has, over conversations that share system prompts and do not
// all fit.
func TestPredictsAnExactCache(t *testing.T) {
	const capacity = 7000 // chunks
	rnd := rand.New(rand.NewPCG(1, 2))
	pod := lru{capacity: capacity}
	var x Index
	x.Grow(capacity)
	clock := uint64(0)
	turns := make([]int, 200)
	var predicted, found, wrong, prompt float64
	for range 2000 {
		id := rnd.IntN(len(turns))
		turns[id]++
		system := numbered(uint64(id%10), 40)
		chain := fork(system, 40, uint64(1000+id), 2*turns[id])
		if rnd.IntN(30) == 0 {
			chain = numbered(rnd.Uint64(), 1000) // a long document, once
		}
		h := x.Match(chain, clock, capacity*step, 0)
		truth := pod.serve(chain)
		predicted += float64(h)
		found += float64(truth)
		wrong += max(float64(h-truth), float64(truth-h))
		prompt += float64(len(chain))
		hold := x.Pin(chain, clock, capacity*step, step)
		clock += uint64(len(chain)-truth) * step
		x.Keep(chain, hold, clock, step)
	}
	t.Logf("predicted %.3f of the prompts cached, found %.3f, wrong on %.3f", predicted/prompt, found/prompt, wrong/prompt)
	if wrong/prompt > 0.02 || found/prompt < 0.3 {
		t.Errorf("wrong on %.3f of %.3f cached", wrong/prompt, found/prompt)
	}
}

// Readers see nothing of the writer's lock.
func TestReadersDoNotWaitForTheWriter(t *testing.T) {
	var x Index
	c := numbered(1, 100)
	serve(&x, c, 0)
	x.mu.Lock()
	defer x.mu.Unlock()
	if got := x.Match(c, 0, wide, 0); got != 100 {
		t.Errorf("matches %d", got)
	}
	if _, ok := x.Age(c[0], 0); !ok {
		t.Error("no age")
	}
	_, _ = x.Len(), x.Bytes()
}

// Workers pin, keep and drop shared chains, in an index so small that slots are always being taken, while it is reset and
// grown. Chunks that a worker holds are always found; in the end nothing is pinned.
func TestConcurrentLeases(t *testing.T) {
	x := Index{MaxBytes: 1 << 16}
	x.Reset(1)
	var resets sync.RWMutex // held for reading where a reset would void what is asserted
	var wg sync.WaitGroup
	for w := range uint64(8) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(w, 1))
			type lease struct {
				chain []uint64
				hold  Hold
			}
			var held []lease
			end := func(i int) {
				l := held[i]
				if rnd.IntN(3) == 0 {
					x.Drop(l.chain, l.hold)
				} else {
					x.Keep(l.chain, l.hold, rnd.Uint64N(1e6), step)
				}
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			}
			for range 1500 {
				c := fork(numbered(rnd.Uint64N(4), 40), rnd.IntN(41), rnd.Uint64N(20), rnd.IntN(40))
				clock := rnd.Uint64N(1e6)
				resets.RLock()
				h := x.Pin(c, clock, wide, step)
				for _, k := range c[:h.Depth] {
					if !x.table.Load().alive(k, clock, 0) {
						t.Error("a pinned chunk is not there")
					}
				}
				resets.RUnlock()
				x.Match(c, clock, 1000, 0)
				held = append(held, lease{c, h})
				for len(held) > 4 || len(held) > 0 && rnd.IntN(2) == 0 {
					end(rnd.IntN(len(held)))
				}
			}
			for len(held) > 0 {
				end(len(held) - 1)
			}
		})
	}
	wg.Go(func() {
		for i := range 50 {
			resets.Lock()
			x.Reset(1)
			resets.Unlock()
			x.Grow(i * 10)
			x.Match(numbered(1, 40), 0, wide, 0)
		}
	})
	wg.Wait()
	if n := pins(&x); n != 0 {
		t.Errorf("%d pins are left", n)
	}
	n := 0
	if tb := x.table.Load(); tb != nil {
		for i := range tb.buckets {
			for s := range tb.buckets[i].keys {
				if tb.buckets[i].keys[s].Load() != 0 {
					n++
				}
			}
		}
	}
	if n != x.Len() {
		t.Errorf("Len says %d, %d slots are in use", x.Len(), n)
	}
}

func TestIndexDoesNotAllocate(t *testing.T) {
	var x Index
	c := numbered(1, 1600)
	serve(&x, c, 0)
	clock := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		clock += 1000
		x.Match(c, clock, wide, 0)
		h := x.Pin(c, clock, wide, step)
		x.Age(c[0], clock)
		x.Keep(c, h, clock, step)
		x.Drop(c, x.Pin(c, clock, wide, step))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{112, 1600} {
		var x Index
		c := numbered(1, n)
		for id := range uint64(50) {
			serve(&x, numbered(id, 112), 0)
		}
		serve(&x, c, 0)
		half := fork(c, n/2, 99, n/2)
		cold := numbered(77, n)
		for name, c := range map[string][]uint64{"all": c, "half": half, "cold": cold} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					x.Match(c, 0, wide, 0)
				}
			})
		}
		b.Run(fmt.Sprintf("%d/half, guessed", n), func(b *testing.B) {
			for b.Loop() {
				x.Match(half, 0, wide, n/2)
			}
		})
	}
}

func BenchmarkPinKeep(b *testing.B) {
	for _, n := range []int{112, 1600} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var x Index
			c := numbered(1, n)
			b.ReportAllocs()
			clock := uint64(0)
			for b.Loop() {
				clock++
				x.Keep(c, x.Pin(c, clock, wide, step), clock, step)
			}
		})
	}
}

// BenchmarkRotate pins and keeps prompts that come again only when the tables have lost most of them: every chunk takes the
// slot of an old one, in one of so many tables.
func BenchmarkRotate(b *testing.B) {
	for _, n := range []int{1, 100} {
		for _, census := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/census=%v", n, census), func(b *testing.B) {
				indexes := make([]Index, n)
				if census {
					c := NewCensus(n, indexes[0].Size(), 0)
					for i := range indexes {
						indexes[i].Join(c)
					}
				}
				prompts := make([][]uint64, 256*n)
				for i := range prompts {
					prompts[i] = numbered(uint64(i), 186)
				}
				b.ReportAllocs()
				clock := 0
				for b.Loop() {
					x, c := &indexes[clock%n], prompts[clock%len(prompts)]
					clock++
					x.Keep(c, x.Pin(c, uint64(clock), wide, step), uint64(clock), step)
				}
			})
		}
	}
}

// Prompts whose chunks would crowd one bucket, chosen by somebody who knows how chains are hashed and buckets numbered, do so only
// for who has the same secret: elsewhere they are spread as evenly as any.
func TestSecretSpreadsChosenKeys(t *testing.T) {
	known := Index{}
	known.Pin(numbered(1, 1), 0, wide, step)
	at := known.table.Load()
	var chosen []uint64
	for id := uint64(0); len(chosen) < 4*bucketSlots; id++ {
		if key := Link(2, id); at.bucket(key) == &at.buckets[0] {
			chosen = append(chosen, key)
		}
	}
	const n = 4 * bucketSlots
	if known.Pin(chosen, 0, wide, step).Depth != bucketSlots {
		t.Fatal("keys were chosen that do not crowd a bucket: this test shows nothing")
	}
	for secret := range uint64(100) {
		x := Index{Secret: mix(secret + 1)}
		if h := x.Pin(chosen, 0, wide, step); h.Depth != n {
			t.Errorf("secret %#x: %d of %d chosen chunks find a place", x.Secret, h.Depth, n)
		}
	}
}
