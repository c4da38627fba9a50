package prefix

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// bucketRows is how many rows a census has for each bucket of the tables: eight for each slot, so that where tables are full one bit in
// eight is set for another chunk than the one asked for.
const bucketRows = 8 * bucketSlots

// A Census tells of many indexes at once which of them may hold a chunk, so that a chain need not be looked for in each. It has a row for
// some chunks, and in the row a bit for each index, the index's seat:
//
//	                 seat 0 1 2 3 …
//	row of chunk 0        1 1 0 1      index 2 holds nothing
//	row of chunk 1        1 1 0 0      index 3 holds one chunk at most
//	row of chunk 2        1 0 0 1      index 1 two, whatever else its bits say: a held chunk implies its parents
//
// A bit that is not set says that the index does not hold the chunk. One that is set says that it holds it, or another of that row, or
// held it and does not any more: what a census leaves in question is asked of the index.
//
// Readers never wait. Bits are set and cleared by who writes to the table, under the index's mutex. Chunks of one row share a bucket in
// each table, because both are numbered by the first bits of the same product: whoever takes a slot from a chunk sees in the bucket
// whether another one needs the bit.
type Census struct {
	factor uint64
	shift  int // leaves as many bits as number the rows
	words  int // in a row
	rows   []atomic.Uint64
	holes  []atomic.Uint64 // one row: whose tables have lost chunks to their neighbours

	// joined counts the tables that were entered whole. A survey that began before that may have seen half of one.
	joined atomic.Uint64

	mu   sync.Mutex // guards what follows
	free []int      // seats that nobody has
}

// NewCensus returns a census with seats for so many indexes, whose tables have so many bytes in the mean and whose Secret is that. A
// table that is bucketRows times larger than that has no place in it.
func NewCensus(seats, bytes int, secret uint64) *Census {
	numbered := bits.Len(uint(max(bytes/bucketBytes, 1)*bucketRows - 1))
	c := &Census{factor: secret | 1, shift: 64 - numbered, words: 1}
	for 64*c.words < seats { // rows lie in as few cache lines as can be
		c.words += min(c.words, 8)
	}
	c.rows = make([]atomic.Uint64, c.words<<numbered)
	c.holes = make([]atomic.Uint64, c.words)
	for seat := 64*c.words - 1; seat >= 0; seat-- {
		c.free = append(c.free, seat)
	}
	return c
}

// Suits says whether the census is neither too small nor far too large for so many indexes of so many bytes in the mean.
func (c *Census) Suits(seats, bytes int) bool {
	rows, want := 1<<(64-c.shift), bytes/bucketBytes*bucketRows
	return seats <= 64*c.words && 4*seats >= 64*(c.words-1) && want <= rows && 8*want >= rows
}

func (c *Census) row(key uint64) []atomic.Uint64 {
	at := int(key*c.factor>>c.shift) * c.words
	return c.rows[at : at+c.words]
}

// rowsAhead is how many rows a survey reads from memory at a time: twice as many cache lines are on their way where endpoints are a thousand.
const rowsAhead = 16

// fetch has the processor read the rows of a chain, many at a time.
func (c *Census) fetch(chain []uint64) {
	for _, key := range chain {
		row := c.row(key)
		for w := 0; w < len(row); w += 8 { // a cache line
			row[w].Load()
		}
	}
}

// sit gives a seat away; ok is false if there is none.
func (c *Census) sit() (seat int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.free) - 1
	if last < 0 {
		return 0, false
	}
	seat, c.free = c.free[last], c.free[:last]
	return seat, true
}

// rise takes it back.
func (c *Census) rise(seat int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, seat)
}

// Join has the index take part in a census instead of the one that it is in; nil: in none. The census must have been made for its Secret.
// Without a free seat it does not take part.
func (x *Index) Join(c *Census) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.census == c {
		return
	}
	left, seat, t := x.census, x.seat, x.table.Load()
	x.census = nil
	if c != nil {
		if s, ok := c.sit(); ok {
			x.census, x.seat = c, s
		}
	}
	if t != nil {
		x.table.Store(x.tableOf(t.buckets, t.holes.Load()))
		t.leave()
	}
	if left != nil {
		left.rise(seat)
	}
}

// enter sets the bits of everything that the table holds. The writer's lock is held, as for what follows.
func (t *table) enter() {
	if t.census == nil {
		return
	}
	t.each(func(key, _ uint64) { t.note(key) })
	if t.holes.Load() {
		t.set(t.census.holes)
	}
	t.census.joined.Add(1)
}

// leave clears them, once readers see another table.
func (t *table) leave() {
	if t.census == nil {
		return
	}
	t.each(func(key, _ uint64) { t.clear(t.census.row(key)) })
	t.clear(t.census.holes)
}

// note says that a chunk is going to be in the table.
func (t *table) note(key uint64) {
	if t.census != nil {
		t.set(t.census.row(key))
	}
}

// forget says that chunks have lost their slots.
func (t *table) forget(keys []uint64) {
	if t.census == nil {
		return
	}
	t.fetchRows(keys)
	for _, key := range keys {
		if !t.needs(key) {
			t.clear(t.census.row(key))
		}
	}
}

// needs says whether the table holds a chunk of the key's row.
func (t *table) needs(key uint64) bool {
	c, b := t.census, t.bucket(key)
	row := key * c.factor >> c.shift
	for i := range b.keys {
		if k := b.keys[i].Load(); k != 0 && k*c.factor>>c.shift == row {
			return true
		}
	}
	return false
}

// fetchRows has the processor read what the census has of the table's chunks, as fetch does its buckets.
func (t *table) fetchRows(keys []uint64) {
	if t.census == nil {
		return
	}
	for _, key := range keys {
		t.census.row(key)[t.seat/64].Load()
	}
}

// lose notes that a chunk that was alive has lost its slot to its bucket's neighbours.
func (t *table) lose() {
	if t.holes.Load() {
		return
	}
	t.holes.Store(true)
	if t.census != nil {
		t.set(t.census.holes)
	}
}

func (t *table) set(row []atomic.Uint64) {
	if w, bit := &row[t.seat/64], uint64(1)<<(t.seat%64); w.Load()&bit == 0 {
		w.Or(bit)
	}
}

func (t *table) clear(row []atomic.Uint64) { row[t.seat/64].And(^(1 << (t.seat % 64))) }

// A Survey is what a census says of one chain: how many leading chunks each index holds at most. Its zero value says that of no chain. It
// is there to be used again and again, for the memory that it holds.
type Survey struct {
	census *Census
	chain  []uint64
	joined uint64   // as of its beginning
	may    []uint64 // the seats whose indexes may hold all chunks looked at so far
	most   []uint16 // by seat
}

// Take has the survey say what a census does of a chain, which must not change while it is used.
func (s *Survey) Take(c *Census, chain []uint64) {
	s.census, s.chain, s.joined = c, chain, c.joined.Load()
	if len(s.most) < 64*c.words {
		s.may, s.most = make([]uint64, c.words), make([]uint16, 64*c.words)
	}
	clear(s.most)
	may, holes := s.may[:c.words], c.holes[:c.words]
	for w := range may {
		may[w] = ^uint64(0)
	}
	for i := range chain {
		if i%rowsAhead == 0 {
			c.fetch(chain[i:min(i+rowsAhead+1, len(chain))])
		}
		row, child := c.row(chain[i])[:len(may)], c.row(chain[min(i+1, len(chain)-1)])[:len(may)]
		some := uint64(0)
		for w := range may {
			if may[w] == 0 {
				continue
			}
			held := row[w].Load() | child[w].Load()&holes[w].Load() // the child vouches for a chunk that has lost its slot
			if gone := may[w] &^ held; gone != 0 && i > 0 {
				s.bound(w, gone, i)
			}
			may[w] &= held
			some |= may[w]
		}
		if some == 0 {
			return
		}
	}
	for w := range may {
		s.bound(w, may[w], len(chain))
	}
}

// bound says that the indexes of these seats hold so many chunks at most.
func (s *Survey) bound(w int, seats uint64, chunks int) {
	for ; seats != 0; seats &= seats - 1 {
		s.most[64*w+bits.TrailingZeros64(seats)] = uint16(chunks)
	}
}

// A Query asks an index how much of a chain its pod still holds, as Index.Match does.
type Query struct {
	Index  *Index
	Clock  uint64
	Window int64
	Depth  int // the answer: leading chunks that are held

	// While it is searched for, chain[:Depth] is held, chain[hi:] is not, and chain[at] is looked at next.
	table  *table
	at, hi int
}

// MaxQueries is how many queries are answered at once.
const MaxQueries = 64

// Match answers up to MaxQueries queries about the chain, each as Index.Match would. It looks first where the census says that an index
// holds no more, and searches by halving if that is not held, in all indexes in step: where each looks next is read from memory for all
// of them at once, since waiting for it takes most of the time.
func (s *Survey) Match(queries []Query) {
	var searching [MaxQueries]uint8 // the queries that have no answer yet
	n, current := 0, s.joined == s.census.joined.Load()
	for i := range queries {
		q := &queries[i]
		q.Depth, q.hi = 0, 0
		if q.table = q.Index.table.Load(); q.table != nil {
			q.hi = len(s.chain)
			if current && q.table.census == s.census {
				q.hi = int(s.most[q.table.seat])
			}
		}
		q.at = q.hi - 1
		searching[n] = uint8(i)
		if q.hi > 0 {
			n++
		}
	}
	for round := 0; n > 0; round++ {
		for _, i := range searching[:n] {
			q := &queries[i]
			q.table.fetch(s.chain[q.at : q.at+1])
		}
		still := 0
		for _, i := range searching[:n] {
			q := &queries[i]
			switch t := q.table; { // as in Index.Match
			case t.alive(s.chain[q.at], q.Clock, q.Window):
				q.Depth = q.at + 1
			case q.at+1 < q.hi && t.holes.Load() && t.alive(s.chain[q.at+1], q.Clock, q.Window):
				q.Depth = q.at + 2
			default:
				q.hi = q.at
			}
			q.at = int(uint(q.Depth+q.hi) / 2)
			if round == 0 {
				q.at = q.hi - 1 // the bit may have been set for another chunk
			}
			searching[still] = i
			if q.Depth < q.hi {
				still++
			}
		}
		n = still
	}
}
