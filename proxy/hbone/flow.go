package hbone

import (
	"sync"
	"sync/atomic"
)

const (
	// baseWindow is a stream's first receive window, maxWindow what it grows to
	// when it is read faster than the round trip allows.
	baseWindow = 256 << 10
	maxWindow  = 4 << 20
	// tightWindow is what streams are given back to while the budget is tight.
	tightWindow = 64 << 10
	// connWindow is a connection's receive window, given back on receipt: four
	// times the largest of a stream, as ztunnel's, so that no stream can take all
	// of it.
	connWindow = 16 << 20
	// protocolWindow is every window before SETTINGS and WINDOW_UPDATE say
	// otherwise (RFC 9113, section 6.9.2).
	protocolWindow = 65535
	// windowLimit is the largest window there is (RFC 9113, section 6.9.1).
	windowLimit = 1<<31 - 1
)

// A Budget bounds what is held of the data that came through tunnels and was not
// read yet, over all that share it. It is safe for concurrent use.
//
// From half of it on no stream's window is larger than 64 KiB, as far as it is
// not promised already. When all of it is used, a stream that has 16 KiB unread is
// reset as more arrives for it.
type Budget struct {
	limit int64
	held  atomic.Int64 // bytes of chunks
	grown atomic.Int64 // bytes of windows beyond baseWindow
}

// NewBudget makes a budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{limit: bytes} }

// defaultBudget is the budget of those that were given none.
var defaultBudget = NewBudget(512 << 20)

// Held is how many bytes are held at the moment.
func (b *Budget) Held() int64 { return b.held.Load() }

// take reserves the memory of a chunk. It gives false when there is no more, unless
// it must.
func (b *Budget) take(n int, must bool) bool {
	if b.held.Add(int64(n)) <= b.limit || must {
		return true
	}
	b.held.Add(-int64(n))
	return false
}

func (b *Budget) give(n int) { b.held.Add(-int64(n)) }

// tight tells whether windows have to be small.
func (b *Budget) tight() bool { return b.held.Load() > b.limit/2 }

// grow lets a window grow by n bytes, unless others have taken what there is
// for that.
func (b *Budget) grow(n int64) bool {
	if b.tight() {
		return false
	}
	if b.grown.Add(n) <= b.limit/2 {
		return true
	}
	b.grown.Add(-n)
	return false
}

func (b *Budget) shrink(n int64) { b.grown.Add(-n) }

// chunk is a piece of what was received: buf[r:w] is unread.
type chunk struct {
	next *chunk
	r, w int
	buf  []byte
}

// The sizes of chunks: small ones for events and requests, large ones for bulk.
const (
	smallChunk = 2 << 10
	largeChunk = 16 << 10
)

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, largeChunk)} }}
)

// getChunk gives a chunk for n bytes or for the first of them, nil when the
// budget is used up, unless it must.
func getChunk(b *Budget, n int, must bool) *chunk {
	size, pool := smallChunk, &smallChunks
	if n > smallChunk {
		size, pool = largeChunk, &largeChunks
	}
	if !b.take(size, must) {
		return nil
	}
	return pool.Get().(*chunk)
}

func putChunk(b *Budget, c *chunk) {
	b.give(len(c.buf))
	c.next, c.r, c.w = nil, 0, 0
	if len(c.buf) == smallChunk {
		smallChunks.Put(c)
	} else {
		largeChunks.Put(c)
	}
}

// bucket allows so many things at once and, over time, so many a second. Times
// are nanoseconds of one clock.
type bucket struct {
	size  int64 // how many at once
	every int64 // nanoseconds until another is allowed
	used  int64 // nanoseconds of allowance that are used
	at    int64
}

// take tells whether one more is allowed.
func (b *bucket) take(now int64) bool {
	b.used = max(0, b.used-(now-b.at))
	b.at = now
	if b.used+b.every > b.size*b.every {
		return false
	}
	b.used += b.every
	return true
}
