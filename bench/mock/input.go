package mock

import (
	"io"
	"net"
	"os"
	"sync"
)

// readAhead is how many bytes are read from a connection before anybody asked for them, as uvicorn does.
const readAhead = 64 << 10

// input reads a connection ahead of its consumer, so that the client's going away, even a half-close, is noticed at once and not
// hidden behind requests sent in advance (unless more than readAhead bytes of them are unread).
type input struct {
	nc    net.Conn
	gone  chan struct{} // closed when the client has closed, or the connection is broken
	ready chan struct{} // has room for one; signalled when there is something to read, or never will be, or waiting is over

	mu      sync.Mutex
	drained *sync.Cond // the buffer has room, or stopped
	buf     []byte
	off     int // buf[off:] is unread
	err     error
	stopped bool // nobody reads any more
	noWait  bool // see stopWaiting
}

func newInput(nc net.Conn) *input {
	in := &input{nc: nc, gone: make(chan struct{}), ready: make(chan struct{}, 1)}
	in.drained = sync.NewCond(&in.mu)
	return in
}

func (in *input) signal() {
	select {
	case in.ready <- struct{}{}:
	default:
	}
}

// fill reads the connection until it ends or stop is called.
func (in *input) fill() {
	chunk := make([]byte, 16<<10)
	for {
		n, err := in.nc.Read(chunk)
		in.mu.Lock()
		in.buf = append(in.buf, chunk[:n]...)
		in.err = err
		if err != nil {
			close(in.gone)
		}
		in.signal()
		for len(in.buf)-in.off >= readAhead && !in.stopped {
			in.drained.Wait()
		}
		stop := err != nil || in.stopped
		in.mu.Unlock()
		if stop {
			return
		}
	}
}

// Read blocks until there is something to read.
func (in *input) Read(p []byte) (int, error) {
	for {
		in.mu.Lock()
		if in.off < len(in.buf) {
			n := copy(p, in.buf[in.off:])
			in.off += n
			if in.off == len(in.buf) {
				in.buf, in.off = in.buf[:0], 0
			}
			in.drained.Signal()
			in.mu.Unlock()
			return n, nil
		}
		err := in.err
		in.mu.Unlock()
		if err != nil {
			return 0, err
		}
		<-in.ready
	}
}

// await returns nil when there is something to read, and an error when there never will be, or timeout or stopWaiting came first.
func (in *input) await(timeout <-chan struct{}) error {
	for {
		in.mu.Lock()
		unread, err, noWait := len(in.buf)-in.off, in.err, in.noWait
		in.mu.Unlock()
		switch {
		case noWait:
			return net.ErrClosed
		case unread > 0:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-in.ready:
		case <-timeout:
			return os.ErrDeadlineExceeded
		}
	}
}

// stopWaiting makes await fail from now on.
func (in *input) stopWaiting() {
	in.mu.Lock()
	in.noWait = true
	in.mu.Unlock()
	in.signal()
}

// stop lets fill return; the connection must be closed too.
func (in *input) stop() {
	in.mu.Lock()
	in.stopped = true
	in.mu.Unlock()
	in.drained.Signal()
}

// left reports whether the client has gone.
func (in *input) left() bool {
	select {
	case <-in.gone:
		return true
	default:
		return false
	}
}

var _ io.Reader = (*input)(nil)
