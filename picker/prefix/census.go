package prefix

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// bucketRows is how many rows a census has for each bucket of the tables: sixteen for each slot, so that where tables are full one bit in
// sixteen is set for another chunk than the one asked for.
const bucketRows = 16 * bucketSlots

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
	number uint64 // no other has it
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

var censuses atomic.Uint64 // made so far

// NewCensus returns a census with seats for so many indexes, whose tables have so many bytes in the mean and whose Secret is that. A
// table that is bucketRows times larger than that has no place in it.
func NewCensus(seats, bytes int, secret uint64) *Census {
	numbered := bits.Len(uint(max(bytes/bucketBytes, 1)*bucketRows - 1))
	c := &Census{number: censuses.Add(1), factor: secret | 1, shift: 64 - numbered, words: 1}
	for 64*c.words < seats { // rows lie in as few cache lines as can be
		c.words += min(c.words, 8)
	}
	c.rows = make([]atomic.Uint64, c.words<<numbered)
	onLargePages(c.rows)
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

// may says whether the index of that seat may hold a chunk.
func (c *Census) may(key uint64, seat int) bool {
	return c.row(key)[seat/64].Load()>>(seat%64)&1 != 0
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
		x.put(x.tableOf(t.buckets, t.holes.Load()))
		t.leave()
	} else {
		x.put(nil)
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
	most   []uint16 // by seat

	// While the rows are read: may has the seats whose indexes may hold all chunks looked at so far, open the words of it that are not 0
	// yet, and lines where in a row they begin that share a cache line.
	may         []uint64
	open, lines []uint16

	searching []uint16               // queries that have no answer yet
	buckets   [queriesAtOnce]*bucket // where each of them looks next
}

// How many rows a survey reads from memory at a time: twice as many each time, since the longer a chain has been held the longer it is likely to be.
const firstRows, mostRows = 8, 64

// Take has the survey say what a census does of a chain, which must not change while it is used.
func (s *Survey) Take(c *Census, chain []uint64) {
	s.census, s.chain, s.joined = c, chain, c.joined.Load()
	if len(s.most) < 64*c.words {
		s.may, s.most = make([]uint64, c.words), make([]uint16, 64*c.words)
		s.open, s.lines = make([]uint16, c.words), make([]uint16, (c.words+7)/8)
	}
	clear(s.most)
	may, holes, open := s.may[:c.words], c.holes[:c.words], s.open[:c.words]
	for w := range may {
		may[w], open[w] = ^uint64(0), uint16(w)
	}
	fetched := 0
	for i := range chain {
		if i == fetched {
			fetched = min(max(2*i, firstRows), i+mostRows, len(chain))
			s.fetch(chain[i:min(fetched+1, len(chain))], open)
		}
		row, child := c.row(chain[i])[:len(may)], c.row(chain[min(i+1, len(chain)-1)])[:len(may)]
		n := 0
		for _, w := range open {
			held := row[w].Load() | child[w].Load()&holes[w].Load() // the child vouches for a chunk that has lost its slot
			if gone := may[w] &^ held; gone != 0 && i > 0 {
				s.bound(int(w), gone, i)
			}
			if may[w] &= held; may[w] != 0 {
				open[n] = w
				n++
			}
		}
		if open = open[:n]; n == 0 {
			return
		}
	}
	for _, w := range open {
		s.bound(int(w), may[w], len(chain))
	}
}

// fetch has the processor read the open words of a chain's rows, many at a time.
func (s *Survey) fetch(chain []uint64, open []uint16) {
	lines := s.lines[:0]
	for _, w := range open {
		if n := len(lines); n == 0 || lines[n-1]/8 != w/8 {
			lines = append(lines, w)
		}
	}
	for _, key := range chain {
		row := s.census.row(key)
		for _, w := range lines {
			row[w].Load()
		}
	}
}

// bound says that the indexes of these seats hold so many chunks at most.
func (s *Survey) bound(w int, seats uint64, chunks int) {
	for ; seats != 0; seats &= seats - 1 {
		s.most[64*w+bits.TrailingZeros64(seats)] = uint16(chunks)
	}
}

// mostOf is how many leading chunks a table holds at most, and whether the census has told that.
func (s *Survey) mostOf(t *table) (chunks int, told bool) {
	switch {
	case t == nil:
		return 0, true
	case t.census == s.census && s.joined == s.census.joined.Load():
		return int(s.most[t.seat]), true
	}
	return len(s.chain), false
}

// None says that an index holds nothing of the chain, so that it need not be asked.
func (s *Survey) None(x *Index) bool {
	place := x.place.Load()
	return place>>32 == s.census.number && s.most[uint32(place)-1] == 0 && s.joined == s.census.joined.Load()
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
	told   bool // the census knows the table
}

// queriesAtOnce is how many queries are answered in step: enough that the processor always waits for as many cache lines as it can, and so
// few that it still has them when it looks.
const queriesAtOnce = 128

// Match answers queries about the chain, each as Index.Match would. It looks first where the census says that an index
// holds no more, and searches by halving if that is not held, in many indexes in step: where each looks next is read from memory for all
// of them at once, since waiting for it takes most of the time.
func (s *Survey) Match(queries []Query) {
	for len(queries) > 0 {
		n := min(len(queries), queriesAtOnce)
		s.match(queries[:n])
		queries = queries[n:]
	}
}

func (s *Survey) match(queries []Query) {
	searching := s.searching[:0]
	for i := range queries {
		q := &queries[i]
		q.table = q.Index.table.Load()
		q.Depth = 0
		q.hi, q.told = s.mostOf(q.table)
		if q.at = q.hi - 1; q.hi > 0 {
			searching = append(searching, uint16(i))
		}
	}
	s.searching = searching
	for round := 0; len(searching) > 0; round++ {
		for k, i := range searching {
			q := &queries[i]
			s.buckets[k] = q.table.bucket(s.chain[q.at])
		}
		for _, b := range s.buckets[:len(searching)] { // no more than that, so that the processor sees many of them ahead
			b.keys[0].Load()
			b.states[0].Load()
		}
		still := 0
		for k, i := range searching {
			q := &queries[i]
			switch t := q.table; { // as in Index.Match
			case s.buckets[k].alive(s.chain[q.at], q.Clock, q.Window):
				q.Depth = q.at + 1
			case q.at+1 < q.hi && t.holes.Load() && t.alive(s.chain[q.at+1], q.Clock, q.Window):
				q.Depth = q.at + 2
			default:
				q.hi = q.at
			}
			q.at = int(uint(q.Depth+q.hi) / 2)
			if round == 0 { // the bit may have been set for another chunk
				for q.told && q.Depth < q.hi && !s.census.may(s.chain[q.hi-1], q.table.seat) {
					q.hi--
				}
				q.at = q.hi - 1
			}
			if q.Depth < q.hi {
				searching[still] = i
				still++
			}
		}
		searching = searching[:still]
	}
	clear(s.buckets[:])
}
