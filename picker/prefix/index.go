package prefix

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	bucketSlots = 8
	bucketBytes = 16 * bucketSlots

	// slack is how many slots there are at least for each chunk of the pod's cache: at 2, rounded up to a power of two,
	// one chunk in a hundred at most loses its slot to a neighbour while the pod still holds it.
	slack = 2

	// DefaultChunks sizes an index whose pod's cache is not known yet: half a million tokens, the cache of an 8B model on
	// an 80 GB GPU.
	DefaultChunks = 8192

	// DefaultMaxBytes bounds an index whose MaxBytes is 0: 262,144 chunks, 16 million tokens.
	DefaultMaxBytes = 8 << 20

	minBuckets = 32 // 4 KiB

	// A slot's state word, from the low end: 20 bits of pins, one bit that says the chunk has been computed, 43 bits of
	// stamp (8.8e12 tokens: years of the fastest pod; differences are taken modulo that).
	maxPins     = 1<<20 - 1
	computedBit = 1 << 20
	stampShift  = 21
)

// An Index is what one pod holds, as far as can be told from outside. Its zero value is empty and ready to use.
//
// Match and Age never wait: they see every slot as atomic words. Pin, Keep, Drop, Grow and Reset exclude each other.
type Index struct {
	// place is, in one word for who asks many indexes, the number of the census that knows all that the table holds, and below it the
	// seat and one; 0: there is none such.
	place atomic.Uint64
	table atomic.Pointer[table] // nil until the first Pin

	// MaxBytes bounds the table; 0 means DefaultMaxBytes. To be set before first use.
	MaxBytes int
	// Secret says where in the table chunks lie. It is nobody else's business: with one that nobody knows, nobody can choose prompts
	// whose chunks crowd a few buckets. Chains do not depend on it. To be set before first use.
	Secret uint64

	entries atomic.Int64

	mu      sync.Mutex // guards what follows and every write to the table
	epoch   uint64     // counts Resets: a Hold of an earlier epoch holds nothing
	buckets int        // size the next table will have; 0: for DefaultChunks
	census  *Census    // nil: none
	seat    int        // in the census
}

// A Hold is what one request has pinned, to be given back to Keep or Drop once, with the same chain.
type Hold struct {
	// Depth is how many leading chunks are pinned: all, unless a bucket was full of pinned slots.
	Depth int
	// Found is how many leading chunks the index already had, alive or not.
	Found int

	epoch uint64
}

// A table is set-associative. Its size is a power of two, so that when it doubles, all of a new bucket comes from one old
// bucket and nothing is lost.
type table struct {
	factor  uint64 // odd
	shift   int    // leaves as many bits as number the buckets
	buckets []bucket
	holes   atomic.Bool // a chunk that was alive has lost its slot to its bucket's neighbours

	census *Census // that knows what it holds; nil: none
	seat   int
}

// A bucket is two cache lines: most probes miss and touch only the keys.
type bucket struct {
	keys   [bucketSlots]atomic.Uint64 // chunk hashes; 0: empty
	states [bucketSlots]atomic.Uint64
}

// tableOf makes a table of buckets, known to the census if that has place for so many. The writer's lock is held.
func (x *Index) tableOf(buckets []bucket, holes bool) *table {
	t := &table{factor: x.Secret | 1, shift: 64 - bits.TrailingZeros(uint(len(buckets))), buckets: buckets}
	t.holes.Store(holes)
	if c := x.census; c != nil && c.shift <= t.shift {
		t.census, t.seat = c, x.seat
		onLargePages(buckets) // it is one of many
		t.enter()
	}
	return t
}

// put has readers see t, which is nil or of tableOf, before a census forgets the one before. The writer's lock is held.
func (x *Index) put(t *table) {
	x.table.Store(t)
	c := x.census
	if t != nil {
		c = t.census
	}
	if c == nil {
		x.place.Store(0)
		return
	}
	x.place.Store(c.number<<32 | uint64(x.seat+1))
}

// bucket is where a key belongs, by multiply-shift hashing: for a random odd factor, two keys share a bucket with a probability of 2 in
// the number of buckets at most, whatever they are (Dietzfelbinger and others, "A Reliable Randomized Algorithm for the Closest-Pair
// Problem", 1997, section 2.2).
func (t *table) bucket(key uint64) *bucket { return &t.buckets[key*t.factor>>t.shift] }

// each calls do for every chunk in the table. The writer's lock is held.
func (t *table) each(do func(key, state uint64)) {
	for i := range t.buckets {
		b := &t.buckets[i]
		for s := range b.keys {
			if key := b.keys[s].Load(); key != 0 {
				do(key, b.states[s].Load())
			}
		}
	}
}

// fetch has the processor read the buckets of a chain, many at a time. A write to a slot that others read without a lock is a
// barrier: whoever writes to one bucket after the other waits for each from memory.
func (t *table) fetch(chain []uint64) {
	for _, key := range chain {
		b := t.bucket(key)
		b.keys[0].Load()
		b.states[0].Load()
	}
}

// load reads a slot without a lock. A writer that gives the slot to another key empties the key first, so that a key that
// reads the same before and after belongs to the state between.
func (b *bucket) load(key uint64) (state uint64, ok bool) {
	if key == 0 {
		return 0, false
	}
	s := b.find(key)
	if s < 0 {
		return 0, false
	}
	state = b.states[s].Load()
	return state, b.keys[s].Load() == key
}

func (t *table) alive(key, clock uint64, window int64) bool {
	return t.bucket(key).alive(key, clock, window)
}

func (b *bucket) alive(key, clock uint64, window int64) bool {
	state, ok := b.load(key)
	return ok && alive(state, clock, window)
}

func alive(state, clock uint64, window int64) bool {
	return state&maxPins != 0 || age(state, clock) < window
}

// age is the number of tokens the pod has computed since the stamp; negative for a stamp ahead of the clock.
func age(state, clock uint64) int64 {
	return int64(clock<<stampShift-state&^(1<<stampShift-1)) >> stampShift
}

// Match returns how many leading chunks of chain the pod still holds: those pinned, or stamped less than window tokens
// ago. A held chunk implies its parents, so it searches by halving. guess is where it looks first, such as what another pod
// holds of the same chain, which is often where a shared prefix ends; any number will do.
func (x *Index) Match(chain []uint64, clock uint64, window int64, guess int) int {
	t := x.table.Load()
	if t == nil || len(chain) == 0 {
		return 0
	}
	lo, hi := 0, len(chain) // chain[:lo] is held, chain[hi:] is not
	mid := 0                // most pods hold nothing of most prompts
	if guess > 0 && guess <= hi {
		if t.alive(chain[guess-1], clock, window) {
			lo, mid = guess, guess
		} else if !t.holes.Load() {
			hi = guess - 1
		}
	}
	for ; lo < hi; mid = int(uint(lo+hi) / 2) {
		switch {
		case t.alive(chain[mid], clock, window):
			lo = mid + 1
		case mid+1 < hi && t.holes.Load() && t.alive(chain[mid+1], clock, window):
			lo = mid + 2 // the child vouches for a chunk that has lost its slot
		default:
			hi = mid
		}
	}
	return lo
}

// Age returns how many tokens ago a chunk was last used, if the pod has computed it and no request holds it now.
func (x *Index) Age(key, clock uint64) (tokens int64, ok bool) {
	t := x.table.Load()
	if t == nil {
		return 0, false
	}
	state, ok := t.bucket(key).load(key)
	if !ok || state&computedBit == 0 || state&maxPins != 0 {
		return 0, false
	}
	return age(state, clock), true
}

// Pin enters a chain that is being sent to the pod and keeps it alive until Keep or Drop. clock and window are those of
// Match, step the tokens in ChunkSize bytes: a chunk's stamp is older than its parent's by the parent's tokens, because a pod
// frees a request's blocks from the tail.
//
// A chunk whose bucket is full of pinned slots ends the pinned part of the chain.
func (x *Index) Pin(chain []uint64, clock uint64, window, step int64) Hold {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := Hold{epoch: x.epoch}
	if len(chain) == 0 {
		return h
	}
	t := x.table.Load()
	if t == nil {
		t = x.tableOf(make([]bucket, x.size()), false)
		x.put(t)
	}
	t.fetch(chain)
	t.fetchRows(chain)
	known := true
	var gone [32]uint64 // chunks that have lost their slots
	n := 0
pinning:
	for i, key := range chain {
		if key == 0 {
			break
		}
		b := t.bucket(key)
		s := b.find(key)
		known = known && s >= 0
		switch {
		case s < 0:
			old, lost, ok := x.take(t, b, key, clock, stamp(clock, i, step)|1)
			if !ok {
				break pinning
			}
			if lost < window {
				t.lose()
			}
			if old != 0 {
				gone[n] = old
				n++
			}
			if n == len(gone) {
				t.forget(gone[:])
				n = 0
			}
		default:
			state := b.states[s].Load()
			if state&maxPins == maxPins {
				break pinning
			}
			if !alive(state, clock, window) {
				state &^= computedBit // the pod has dropped it since; it is to be computed again
			}
			b.states[s].Store(state + 1)
		}
		h.Depth = i + 1
		if known {
			h.Found = i + 1
		}
	}
	t.forget(gone[:n])
	return h
}

// Keep ends a hold whose chunks the pod has computed: they are stamped anew and stay until they age.
func (x *Index) Keep(chain []uint64, h Hold, clock uint64, step int64) {
	x.release(chain, h, true, clock, step)
}

// Drop ends a hold of a request that the pod never worked on: chunks that it alone brought in are forgotten.
func (x *Index) Drop(chain []uint64, h Hold) {
	x.release(chain, h, false, 0, 0)
}

// release takes the pins of a hold off, and if they are to be kept stamps its chunks anew.
func (x *Index) release(chain []uint64, h Hold, keep bool, clock uint64, step int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h.epoch != x.epoch || h.Depth == 0 {
		return
	}
	t := x.table.Load()
	chain = chain[:min(h.Depth, len(chain))]
	t.fetch(chain)
	for i, key := range chain {
		b := t.bucket(key)
		s := b.find(key)
		if s < 0 {
			continue // a pinned slot is never taken: the caller has changed the chain
		}
		state := b.states[s].Load()
		if state&maxPins == 0 {
			continue // likewise
		}
		state--
		if keep {
			if anew := stamp(clock, i, step); age(state, clock) > age(anew, clock) {
				state = anew | state&(1<<stampShift-1)
			}
			state |= computedBit
		}
		if state&(maxPins|computedBit) == 0 {
			b.keys[s].Store(0)
			x.entries.Add(-1)
			t.forget(chain[i : i+1])
		}
		b.states[s].Store(state)
	}
}

// find returns the slot that holds key, or -1. Which slot it is cannot be predicted: all of them are
// compared, one by one in the text, for only so the compiler makes conditional moves of the branches.
func (b *bucket) find(key uint64) int {
	at := -1
	if b.keys[0].Load() == key {
		at = 0
	}
	if b.keys[1].Load() == key {
		at = 1
	}
	if b.keys[2].Load() == key {
		at = 2
	}
	if b.keys[3].Load() == key {
		at = 3
	}
	if b.keys[4].Load() == key {
		at = 4
	}
	if b.keys[5].Load() == key {
		at = 5
	}
	if b.keys[6].Load() == key {
		at = 6
	}
	if b.keys[7].Load() == key {
		at = 7
	}
	return at
}

// take gives key an empty slot, or that of the oldest chunk that is not pinned, which it returns with its age; ok is false if all are.
// The writer's lock is held.
func (x *Index) take(t *table, b *bucket, key, clock, state uint64) (old uint64, oldest int64, ok bool) {
	victim := b.find(0)
	if victim >= 0 {
		oldest = math.MaxInt64
		x.entries.Add(1)
	} else {
		const pinned = math.MinInt64
		best := int64(pinned)
		for i := range b.states {
			s := b.states[i].Load()
			v := age(s, clock)<<3 | int64(i) // bucketSlots is 8
			if s&maxPins != 0 {
				v = pinned
			}
			best = max(best, v)
		}
		if best == pinned {
			return 0, 0, false
		}
		victim, oldest = int(best&(bucketSlots-1)), best>>3
	}
	t.note(key)
	if old = b.keys[victim].Load(); old != 0 {
		b.keys[victim].Store(0)
	}
	b.states[victim].Store(state)
	b.keys[victim].Store(key)
	return old, oldest, true
}

func stamp(clock uint64, i int, step int64) uint64 {
	return (clock - uint64(Offset(i)/ChunkSize)*uint64(step)) << stampShift
}

// Grow makes room for a pod whose cache holds so many chunks. It never shrinks a table: a pod does not change its cache
// while it runs, and Reset starts small again. Nothing that is held is lost. It tells whether Size is another than it was.
func (x *Index) Grow(chunks int) (grown bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	was := x.buckets
	x.buckets = max(x.buckets, x.fit(chunks))
	grown = x.buckets != was
	old := x.table.Load()
	if old == nil || len(old.buckets) >= x.buckets {
		return grown
	}
	t := x.tableOf(make([]bucket, x.buckets), old.holes.Load())
	old.each(func(key uint64, state uint64) {
		to := t.bucket(key)
		free := to.find(0)
		to.states[free].Store(state)
		to.keys[free].Store(key)
	})
	x.put(t)
	if t.census == nil {
		old.leave()
	}
	return grown
}

// Reset forgets everything: the pod has started anew, with a cache of so many chunks (0: not known yet). Requests that
// hold chunks may still end; their holds hold nothing any more.
func (x *Index) Reset(chunks int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.epoch++
	x.buckets = 0
	if chunks > 0 {
		x.buckets = x.fit(chunks)
	}
	if t := x.table.Load(); t != nil {
		x.put(nil)
		t.leave()
	}
	x.entries.Store(0)
}

// fit returns the number of buckets for so many chunks, within MaxBytes.
func (x *Index) fit(chunks int) int {
	limit := x.MaxBytes
	if limit <= 0 {
		limit = DefaultMaxBytes
	}
	most := max(1, limit/bucketBytes)
	most = 1 << (bits.Len(uint(most)) - 1)
	if chunks <= 0 {
		return min(minBuckets, most)
	}
	want := (min(chunks, most*bucketSlots)*slack + bucketSlots - 1) / bucketSlots
	return min(max(1<<bits.Len(uint(want-1)), minBuckets), most)
}

func (x *Index) size() int {
	if x.buckets == 0 {
		x.buckets = x.fit(DefaultChunks)
	}
	return x.buckets
}

// Len returns the number of chunks in the index, alive or not.
func (x *Index) Len() int { return int(x.entries.Load()) }

// Size returns how many bytes the table has, or will have once there is something in it.
func (x *Index) Size() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.buckets == 0 {
		return x.fit(DefaultChunks) * bucketBytes
	}
	return x.buckets * bucketBytes
}

// Bytes returns the size of the table, and of the bits that a census has for it.
func (x *Index) Bytes() int {
	t := x.table.Load()
	if t == nil {
		return 0
	}
	n := len(t.buckets) * bucketBytes
	if c := t.census; c != nil {
		n += len(c.rows) / c.words / 8
	}
	return n
}
