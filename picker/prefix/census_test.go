package prefix

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"testing"
)

// surveyed is what a survey of a census finds that one index holds.
func surveyed(x *Index, c *Census, chain []uint64, clock uint64, window int64) int {
	var s Survey
	s.Take(c, chain)
	if s.None(x) {
		return 0
	}
	q := [...]Query{{Index: x, Clock: clock, Window: window}}
	s.Match(q[:])
	return q[0].Depth
}

// oneByOne answers a query by looking at one chunk after the other.
func oneByOne(q *Query, chain []uint64) int {
	t := q.Index.table.Load()
	if t == nil {
		return 0
	}
	depth := 0
	for i, key := range chain {
		switch {
		case t.alive(key, q.Clock, q.Window):
			depth = i + 1
		case i > depth: // the second in a row
			return depth
		}
	}
	return depth
}

// checkSeat fails the test if a bit of the index's seat is not what its table says.
func checkSeat(t *testing.T, x *Index) {
	t.Helper()
	tb, c := x.table.Load(), x.census
	if c == nil {
		return
	}
	rows := map[uint64]bool{}
	if tb != nil && tb.census != nil {
		tb.each(func(key, _ uint64) { rows[key*c.factor>>c.shift] = true })
	}
	n := 0
	for at := range uint64(len(c.rows) / c.words) {
		set := c.rows[int(at)*c.words+x.seat/64].Load()>>(x.seat%64)&1 == 1
		if set != rows[at] {
			n++
		}
	}
	if n > 0 {
		t.Errorf("%d of %d rows are wrong", n, len(c.rows)/c.words)
	}
}

// boundary says whether a chain may be said to be held up to depth, and no farther.
func boundary(q *Query, chain []uint64, depth int) bool {
	t := q.Index.table.Load()
	alive := func(i int) bool { return t != nil && i < len(chain) && t.alive(chain[i], q.Clock, q.Window) }
	return (depth == 0 || alive(depth-1)) && !alive(depth) && !(t != nil && t.holes.Load() && alive(depth+1))
}

// Whatever becomes of indexes, a survey of their census leaves Match with the answers that it finds without one.
func TestSurveyChangesNoAnswer(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		indexes := make([]Index, 1+rnd.IntN(2*queriesAtOnce))
		tiny := rnd.IntN(2) == 0 // tables lose chunks
		for i := range indexes {
			if tiny {
				indexes[i].MaxBytes = 1 << (9 + rnd.IntN(5))
			}
		}
		const secret = 0
		c := NewCensus(len(indexes)-rnd.IntN(2), 1<<(7+rnd.IntN(8)), secret)
		bases := [][]uint64{numbered(seed, 200), numbered(seed+1000, 60), numbered(seed+2000, 3)}
		prompt := func(rnd *rand.Rand) []uint64 {
			which := rnd.IntN(len(bases))
			base := bases[which]
			n := rnd.IntN(len(base) + 1)
			return fork(base, n, uint64(1e6+1000*(3*rnd.IntN(50)+which)+n), rnd.IntN(40)) // no chunk has two parents
		}
		type lease struct {
			x     *Index
			chain []uint64
			hold  Hold
		}
		var leases []lease
		clock := uint64(1e6)
		var survey Survey
		for range 1000 {
			x := &indexes[rnd.IntN(len(indexes))]
			switch rnd.IntN(12) {
			case 0:
				x.Join(c)
			case 1:
				if rnd.IntN(4) == 0 {
					x.Join(nil)
				}
			case 2:
				x.Grow(rnd.IntN(2000))
			case 3:
				if rnd.IntN(10) == 0 {
					x.Reset(rnd.IntN(2) * 100)
				}
			case 4:
				if rnd.IntN(50) == 0 {
					c = NewCensus(len(indexes), 1<<(7+rnd.IntN(8)), secret)
				}
			case 5, 6, 7, 8:
				clock += uint64(rnd.IntN(1000))
				chain := prompt(rnd)
				leases = append(leases, lease{x, chain, x.Pin(chain, clock, 1e4, step)})
			default:
				if len(leases) > 0 {
					i := rnd.IntN(len(leases))
					l := leases[i]
					leases[i] = leases[len(leases)-1]
					leases = leases[:len(leases)-1]
					if rnd.IntN(3) == 0 {
						l.x.Drop(l.chain, l.hold)
					} else {
						l.x.Keep(l.chain, l.hold, clock, step)
					}
				}
			}
			if rnd.IntN(20) > 0 {
				continue
			}
			chain := prompt(rnd)
			survey.Take(c, chain)
			window := rnd.Int64N(1e4) // no longer than that of Pin, which says what is lost
			queries := make([]Query, len(indexes))
			for i := range queries {
				queries[i] = Query{Index: &indexes[i], Clock: clock, Window: window}
			}
			survey.Match(queries)
			for i := range queries {
				q := &queries[i]
				if survey.None(q.Index) && q.Depth > 0 {
					t.Fatalf("seed %d: index %d holds %d chunks, and is said to hold none", seed, i, q.Depth)
				}
				tb := q.Index.table.Load()
				if tb == nil || !tb.holes.Load() {
					if want := oneByOne(q, chain); q.Depth != want {
						t.Fatalf("seed %d: index %d holds %d of %d chunks, surveyed %d", seed, i, want, len(chain), q.Depth)
					}
				} else if !boundary(q, chain, q.Depth) {
					t.Fatalf("seed %d: what index %d holds of %d chunks does not end at %d", seed, i, len(chain), q.Depth)
				}
			}
		}
		for i := range indexes {
			checkSeat(t, &indexes[i])
		}
	}
}

// While indexes change seats and censuses under a reader, it finds every chunk that is pinned.
func TestSurveyUnderWriters(t *testing.T) {
	var x, other Index
	censuses := []*Census{NewCensus(2, 1<<13, 0), NewCensus(2, 1<<15, 0)}
	c := numbered(1, 150)
	x.Pin(c, 0, wide, step)
	x.Join(censuses[0])
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			x.Join(censuses[i%2])
			other.Join(censuses[1-i%2])
			serve(&other, fork(c, i%100, uint64(i), 20), uint64(i))
			serve(&x, fork(c, i%100, uint64(i), 20), uint64(i))
			if i%7 == 0 {
				other.Reset(100)
				x.Join(nil)
			}
			x.Grow(min(100*i, 3000))
		}
	})
	for i := range 500 {
		if got := surveyed(&x, censuses[i%2], c, 0, 0); got != len(c) {
			t.Errorf("%d of %d pinned chunks are found", got, len(c))
			break
		}
	}
	close(stop)
	wg.Wait()
	checkSeat(t, &x)
	checkSeat(t, &other)
}

func TestCensusSize(t *testing.T) {
	for _, n := range []int{17, 64, 65, 1000} {
		for _, size := range []int{4 << 10, 256 << 10, 300 << 10} {
			c := NewCensus(n, size, 0)
			if !c.Suits(n, size) {
				t.Errorf("a census for %d indexes of %d bytes does not suit them", n, size)
			}
			if c.Suits(n+64, size) || c.Suits(n, 2*size) {
				t.Errorf("a census for %d indexes of %d bytes suits more", n, size)
			}
			if got, most := 8*len(c.rows), (n+63)/64*64*size/4; got > most || bits.OnesCount(uint(len(c.rows)/c.words)) != 1 {
				t.Errorf("%d indexes of %d bytes: %d bytes of census, want %d at most", n, size, got, most)
			}
		}
	}
}
