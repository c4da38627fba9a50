package proxy

import (
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// budget is the sum of what all request bodies may hold at once.
type budget struct {
	limit atomic.Int64
	used  atomic.Int64
}

// take reserves n bytes; false, and nothing reserved, beyond the limit.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) > b.limit.Load() {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// body is a request's body as far as it has been received. It is held because
// it is read for routing and may have to be sent a second time. The zero value is
// an empty one; begin starts another.
type body struct {
	bytes []byte // received so far
	whole bool   // that is all of it
	lost  bool   // more was received than is held: it cannot be sent again

	length int64 // as declared; message.Unknown
	limit  int64
	memory *[]byte // bytes' buffer, to be given back to its pool
	budget *budget
	taken  int64   // of the budget
	window *[]byte // what is not held passes through it
	passed int64   // that much of it
}

const (
	smallestBuffer = 4 << 10
	// largestPooled: buffers are kept for others up to the largest body there is
	// by default; as garbage they would make the heap as large again.
	largestPooled = DefaultBodyLimit
	// wholeSize is up to where a body is received whole before anything else.
	wholeSize = 1 << 20
	// windowSize is for what passes without being held.
	windowSize = 64 << 10
)

// buffers are pools of byte slices by class, four classes to each power of two.
var buffers [60]sync.Pool

// bufferClass gives the class of buffers for n bytes, and their size: at most a
// quarter more.
func bufferClass(n int) (class, size int) {
	const least = 9 // a buffer is 5 to 8 times a power of two; smallestBuffer is 8<<9
	n = max(n, smallestBuffer)
	shift := bits.Len(uint(n-1)) - 3
	eighths := (n-1)>>shift + 1
	return (shift-least)*4 + eighths - 5, eighths << shift
}

// bufferSize is what getBuffer really gives for n.
func bufferSize(n int) int {
	if n > largestPooled {
		return n
	}
	_, size := bufferClass(n)
	return size
}

func getBuffer(n int) *[]byte {
	if n <= largestPooled {
		class, _ := bufferClass(n)
		if b, ok := buffers[class].Get().(*[]byte); ok {
			return b
		}
	}
	b := make([]byte, bufferSize(n))
	return &b
}

func putBuffer(b *[]byte) {
	if len(*b) <= largestPooled {
		class, _ := bufferClass(len(*b))
		buffers[class].Put(b)
	}
}

// begin readies b for the body of s, of at most limit bytes.
func (b *body) begin(s Stream, limit int64, from *budget) error {
	b.length, b.limit, b.budget = s.Head().ContentLength, limit, from
	b.whole = b.length == 0
	if b.length > limit {
		return errBodyTooLarge(limit)
	}
	return nil
}

// more receives the next bytes of the body, as they come, and holds them if the
// budget allows; errBuffersSpent is its error if not. Its errors are those to answer
// with (*Error), or what Stream.Read said.
func (b *body) more(s Stream) (piece []byte, err error) {
	if b.memory == nil || len(b.bytes) == len(*b.memory) {
		if err := b.grow(); err != nil {
			return nil, err
		}
	}
	at := len(b.bytes)
	n, err := s.Read((*b.memory)[at:])
	b.bytes = (*b.memory)[:at+n]
	return b.bytes[at:], b.received(int64(at+n), err)
}

// pass is more for a body that is not read for routing: beyond the budget, or if it is
// not to be kept, its bytes are let go, and it cannot be sent again.
func (b *body) pass(s Stream, keep bool) (piece []byte, err error) {
	if keep && !b.lost {
		piece, err = b.more(s)
		if own, ok := err.(*Error); !ok || own.Type != typeBuffersSpent {
			return piece, err
		}
	}
	if b.window == nil {
		b.lost, b.window = true, getBuffer(windowSize)
	}
	n, err := s.Read(*b.window)
	b.passed += int64(n)
	return (*b.window)[:n], b.received(int64(len(b.bytes))+b.passed, err)
}

// received sees where the body stands after total bytes of it.
func (b *body) received(total int64, err error) error {
	switch {
	case total > b.limit:
		return errBodyTooLarge(b.limit)
	case err == io.EOF && b.length != message.Unknown && total < b.length:
		return io.ErrUnexpectedEOF
	case err == io.EOF || total == b.length:
		b.whole = true
		return nil
	}
	return err
}

// grow makes room for more, keeping what is there: four times as much, and from
// wholeSize on at least eight times that, so that growing copies little and a
// client that sends slowly holds little, however much it says that it will send; but
// not more than the body can be.
func (b *body) grow() error {
	size := max(4*smallestBuffer, 4*len(b.bytes))
	if len(b.bytes) >= wholeSize {
		size = max(size, 8*wholeSize)
	}
	most := b.limit + 1
	if b.length != message.Unknown {
		most = b.length
		if most <= wholeSize && len(b.bytes) > 0 { // once as much has come as is taken for a promise
			size = int(most)
		}
	}
	size = bufferSize(min(size, int(most)))
	if !b.budget.take(int64(size) - b.taken) {
		return errBuffersSpent()
	}
	larger := getBuffer(size)
	copy(*larger, b.bytes)
	if b.memory != nil {
		putBuffer(b.memory)
	}
	b.bytes = (*larger)[:len(b.bytes)]
	b.memory, b.taken = larger, int64(size)
	return nil
}

// replace has other bytes stand for the body, which is whole.
func (b *body) replace(with []byte) error {
	size := int64(len(with))
	if !b.budget.take(size) {
		return errBuffersSpent()
	}
	from := b.budget
	b.release()
	*b = body{bytes: with, whole: true, length: size, limit: size, budget: from, taken: size}
	return nil
}

// release gives all of it back. The bytes must not be used any more.
func (b *body) release() {
	for _, m := range []*[]byte{b.memory, b.window} {
		if m != nil {
			putBuffer(m)
		}
	}
	if b.taken > 0 {
		b.budget.give(b.taken)
	}
	*b = body{}
}
