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

// body is a request's body, held whole because it is read for routing and may
// have to be sent a second time. The zero value is an empty one.
type body struct {
	bytes  []byte
	memory *[]byte // bytes' buffer, to be given back to its pool
	budget *budget
	taken  int64
}

const (
	smallestBuffer = 4 << 10
	largestPooled  = 1 << 20 // beyond it the collector does better than a pool
)

// buffers are pools of byte slices by capacity: smallestBuffer << index.
var buffers [9]sync.Pool

func bufferClass(n int) int {
	return bits.Len(uint(max(n, 1)-1) / smallestBuffer)
}

func getBuffer(n int) *[]byte {
	if n > largestPooled {
		b := make([]byte, n)
		return &b
	}
	class := bufferClass(n)
	if b, ok := buffers[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, smallestBuffer<<class)
	return &b
}

func putBuffer(b *[]byte) {
	if len(*b) <= largestPooled {
		buffers[bufferClass(len(*b))].Put(b)
	}
}

// read takes the whole body of s, of at most limit bytes, within the budget.
// Its errors are those to answer with (*Error) or what Stream.Read said.
func (b *body) read(s Stream, limit int64, from *budget) error {
	length := s.Head().ContentLength
	if length == 0 {
		return nil
	}
	b.budget = from
	if length > limit {
		return errBodyTooLarge(limit)
	}
	if length != message.Unknown {
		if err := b.grow(int(length)); err != nil {
			return err
		}
		_, err := io.ReadFull(s, (*b.memory)[:length])
		b.bytes = (*b.memory)[:length]
		return err
	}
	for n := 0; ; {
		if b.memory == nil || n == len(*b.memory) {
			if int64(n) > limit {
				return errBodyTooLarge(limit)
			}
			if err := b.grow(max(4*smallestBuffer, 2*n)); err != nil {
				return err
			}
		}
		m, err := s.Read((*b.memory)[n:])
		n += m
		b.bytes = (*b.memory)[:n]
		switch {
		case int64(n) > limit:
			return errBodyTooLarge(limit)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// grow makes room for size bytes in all, keeping what is there.
func (b *body) grow(size int) error {
	if !b.budget.take(int64(size) - b.taken) {
		return errBuffersSpent()
	}
	b.taken = int64(size)
	larger := getBuffer(size)
	copy(*larger, b.bytes)
	if b.memory != nil {
		putBuffer(b.memory)
	}
	b.memory = larger
	return nil
}

// release gives all of it back. The bytes must not be used any more.
func (b *body) release() {
	if b.memory != nil {
		putBuffer(b.memory)
	}
	if b.taken > 0 {
		b.budget.give(b.taken)
	}
	*b = body{}
}
