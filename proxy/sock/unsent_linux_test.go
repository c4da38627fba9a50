package sock

import (
	"testing"
	"time"
)

// What a peer does not take is not piled up in the kernel.
func TestLimitUnsent(t *testing.T) {
	near, far := tcpPair(t)
	if err := far.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	LimitUnsent(near)
	c := New(near)
	defer c.Close()
	written, piece := 0, make([]byte, 1<<10)
	for {
		c.SetTimeout(50 * time.Millisecond) // nothing takes anything: however long, it is no more
		n, err := c.Write(piece)
		written += n
		if err != nil {
			break
		}
	}
	if most := 512 << 10; written > most {
		t.Errorf("%d bytes were taken of which nothing was read, want at most %d", written, most)
	}
}
