package h1

import "sync"

// Buffers come in these sizes; larger ones are made and dropped.
const (
	small  = 8 << 10
	medium = 16 << 10
	large  = 64 << 10
)

var (
	smallBuffers  = sync.Pool{New: func() any { return new([small]byte) }}
	mediumBuffers = sync.Pool{New: func() any { return new([medium]byte) }}
	largeBuffers  = sync.Pool{New: func() any { return new([large]byte) }}
)

// getBuffer gives a buffer of at least n bytes; its length is its capacity.
func getBuffer(n int) []byte {
	switch {
	case n <= small:
		return smallBuffers.Get().(*[small]byte)[:]
	case n <= medium:
		return mediumBuffers.Get().(*[medium]byte)[:]
	case n <= large:
		return largeBuffers.Get().(*[large]byte)[:]
	}
	return make([]byte, n)
}

// lender lends buffers of its number of bytes at least, while there is something to read into them.
type lender int

func (n lender) Get() []byte  { return getBuffer(int(n)) }
func (n lender) Put(b []byte) { putBuffer(b) }

// putBuffer takes back what getBuffer gave, whatever its length is now, or nil.
func putBuffer(b []byte) {
	switch cap(b) {
	case small:
		smallBuffers.Put((*[small]byte)(b[:small]))
	case medium:
		mediumBuffers.Put((*[medium]byte)(b[:medium]))
	case large:
		largeBuffers.Put((*[large]byte)(b[:large]))
	}
}
