package hbone

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const (
	frameHead = 9
	// dataFrame is the largest DATA frame's payload: with its head four full TLS
	// records.
	dataFrame = 4*16384 - frameHead
	// pendingLimit is how much DATA may wait to be sent on a connection.
	pendingLimit = 256 << 10
	// controlLimit is how much of other frames may: a peer that asks for answers
	// and does not take them is cut off.
	controlLimit = 1 << 20
	// sealed is how much is encrypted before it is given to the socket.
	sealed = 128 << 10
	// flushRounds is how often a writer goes on for the others before a goroutine
	// takes over.
	flushRounds = 16
)

// buffer is a pooled buffer.
type buffer struct{ b []byte }

const (
	smallBuffer = 16 << 10
	largeBuffer = pendingLimit + smallBuffer
)

var (
	smallBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, smallBuffer)} }}
	largeBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, largeBuffer)} }}
)

// room gives b with room for n bytes more.
func room(b *buffer, n int) *buffer {
	switch {
	case b == nil && n <= smallBuffer:
		return smallBuffers.Get().(*buffer)
	case b == nil:
		b = largeBuffers.Get().(*buffer)
	case cap(b.b)-len(b.b) < n && cap(b.b) < largeBuffer:
		large := largeBuffers.Get().(*buffer)
		large.b = append(large.b, b.b...)
		putBuffer(b)
		b = large
	}
	if cap(b.b)-len(b.b) < n {
		b.b = append(make([]byte, 0, 2*cap(b.b)+n), b.b...)
	}
	return b
}

func putBuffer(b *buffer) {
	full := cap(b.b)
	b.b = b.b[:0]
	switch full {
	case smallBuffer:
		smallBuffers.Put(b)
	case largeBuffer:
		largeBuffers.Put(b)
	}
}

// records is the connection under TLS. Until collect is called it passes writes
// through, as the handshake wants it. Afterwards it keeps what TLS writes, for
// the flusher to take: all records of a flush go out in few system calls.
type records struct {
	net.Conn
	conn *conn

	mu         sync.Mutex
	collecting bool
	flushing   bool // within seal; whoever writes otherwise has to wake a flusher
	buf        *buffer
}

func (r *records) collect(c *conn) {
	r.mu.Lock()
	r.conn, r.collecting = c, true
	r.mu.Unlock()
}

// Write keeps p. Only the flusher and TLS itself (alerts, key updates) write.
func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	if !r.collecting {
		r.mu.Unlock()
		return r.Conn.Write(p)
	}
	r.buf = room(r.buf, len(p))
	r.buf.b = append(r.buf.b, p...)
	flushing := r.flushing
	r.mu.Unlock()
	if !flushing {
		// TLS's lock is held here, which a flusher may be waiting for.
		go r.conn.wake()
	}
	return len(p), nil
}

// begin has what is written from now on kept without waking a flusher.
func (r *records) begin() {
	r.mu.Lock()
	r.flushing = true
	r.mu.Unlock()
}

// take gives what was written.
func (r *records) take() *buffer {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushing = false
	b := r.buf
	r.buf = nil
	return b
}

func (r *records) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf == nil
}

// writer is the sending half of a connection. conn.mu guards it but for what
// belongs to the flusher: whoever set flushing, or has it from who did.
type writer struct {
	pending  *buffer // frames to be sent, nil for none
	control  int     // bytes of pending that are not DATA
	queue    queue   // streams that have data and window
	window   int64   // what the peer takes on the connection
	flushing bool    // there is a flusher

	// The flusher's.
	plain    *buffer // frames being encrypted, from plainAt on
	plainAt  int
	cipher   *buffer // records being sent, from cipherAt on
	cipherAt int
}

// queue is the streams that wait for room, first come first served.
type queue struct{ first, last *stream }

func (q *queue) push(s *stream) {
	if s.queued {
		return
	}
	s.queued, s.prev, s.next = true, q.last, nil
	if q.last == nil {
		q.first = s
	} else {
		q.last.next = s
	}
	q.last = s
}

func (q *queue) remove(s *stream) {
	if !s.queued {
		return
	}
	if s.prev == nil {
		q.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		q.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.queued, s.prev, s.next = false, nil, nil
}

// appendFrame appends a frame to what is pending. c.mu is held.
func (c *conn) appendFrame(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	n := len(payload)
	c.w.pending = room(c.w.pending, frameHead+n)
	b := append(c.w.pending.b, byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags))
	b = binary.BigEndian.AppendUint32(b, id)
	c.w.pending.b = append(b, payload...)
	c.flood.Sent(kind, n)
}

// control appends a frame that is not DATA. It is sent by the next flush. c.mu is
// held.
func (c *conn) controlFrame(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	if c.err != nil {
		return
	}
	if c.w.control += frameHead + len(payload); c.w.control > controlLimit {
		c.failLocked(errNotTaken)
		return
	}
	c.appendFrame(kind, flags, id, payload)
}

// pump moves what streams have to send into pending, a frame of each in turn, as
// far as there is room and the peer takes it. c.mu is held.
func (c *conn) pump() {
	for s := c.w.queue.first; s != nil; s = c.w.queue.first {
		n := min(int64(len(s.out)), s.window, int64(c.maxFrame))
		if n <= 0 {
			c.w.queue.remove(s) // its window is used up; an update brings it back
			continue
		}
		if n > c.w.window {
			if n = c.w.window; n <= 0 {
				return
			}
		}
		if p := c.w.pending; p != nil && len(p.b) > 0 && len(p.b)-c.w.control+frameHead+int(n) > pendingLimit {
			return
		}
		var flags http2.Flags
		if s.ending && int(n) == len(s.out) {
			flags = http2.FlagDataEndStream
		}
		c.appendFrame(http2.FrameData, flags, s.id, s.out[:n])
		s.out = s.out[n:]
		s.window -= n
		c.w.window -= n
		c.w.queue.remove(s)
		if len(s.out) > 0 {
			c.w.queue.push(s)
			continue
		}
		if flags != 0 {
			s.sentEnd()
		}
		s.writable.Broadcast()
	}
}

func (c *conn) unsent() bool {
	return c.w.pending != nil || c.w.queue.first != nil && c.w.window > 0
}

// flush sends what is pending, or leaves it to who is sending already. It does not
// wait for the socket. c.mu is held; it is unlocked meanwhile.
func (c *conn) flush() {
	if !c.w.flushing && c.unsent() {
		c.w.flushing = true
		c.runFlush(false)
	}
}

// kick has what is pending sent by another goroutine. c.mu is held.
func (c *conn) kick() {
	if !c.w.flushing && (c.unsent() || !c.out.empty()) {
		c.w.flushing = true
		go c.flushInBackground()
	}
}

// wake is kick for those that do not hold c.mu.
func (c *conn) wake() {
	c.mu.Lock()
	c.kick()
	c.mu.Unlock()
}

func (c *conn) flushInBackground() {
	c.mu.Lock()
	c.runFlush(true)
	c.mu.Unlock()
}

// runFlush sends until nothing is left. When that would make it wait, and it is
// not in the background, it leaves the rest to a goroutine. c.mu is held; it is
// unlocked while there is something to encrypt or send.
func (c *conn) runFlush(background bool) {
	for round := 0; c.err == nil; round++ {
		// What an earlier flusher left is still to be finished.
		if c.w.plain == nil && c.w.cipher == nil {
			c.pump()
			if c.w.pending == nil && c.out.empty() {
				break
			}
			c.w.plain, c.w.plainAt = c.w.pending, 0
			c.w.pending, c.w.control = nil, 0
		}
		c.mu.Unlock()
		done, err := false, error(nil)
		if background || round < flushRounds {
			done, err = c.send(background)
		}
		c.mu.Lock()
		if err != nil {
			if c.client && !c.greeted {
				// In TLS 1.3 a server refuses a certificate when the client's handshake is over, and is gone: why is
				// there to be read, and watch bounds how long the reader takes.
				return
			}
			c.failLocked(err)
			break
		}
		if !done {
			go c.flushInBackground()
			return
		}
	}
	if c.closing && c.err == nil {
		go c.sayEnd() // the last flusher there is
		return
	}
	c.w.flushing = false
}

// sayEnd tells the peer that nothing more comes.
func (c *conn) sayEnd() {
	var err error
	if t, ok := c.sec.(*tls.Conn); ok {
		c.out.begin()
		t.CloseWrite()
		_, err = c.send(true)
	}
	if h, ok := c.raw.(interface{ CloseWrite() error }); ok && err == nil {
		err = h.CloseWrite()
	} else if err == nil {
		err = errDrained
	}
	if err != nil {
		c.fail(err)
	}
}

// send encrypts and sends plain. It gives false when the socket takes no more and
// it may not wait. Called by the flusher, without c.mu.
func (c *conn) send(mayWait bool) (done bool, err error) {
	w := &c.w
	for {
		if w.cipher != nil {
			rest := w.cipher.b[w.cipherAt:]
			n, err := 0, error(nil)
			if c.try != nil {
				n, err = c.try.TryWrite(rest)
			}
			if err != nil {
				return false, err
			}
			w.cipherAt += n
			if n < len(rest) {
				if !mayWait {
					return false, nil
				}
				c.raw.SetWriteDeadline(time.Now().Add(c.limits.writeTimeout))
				if _, err := c.raw.Write(rest[n:]); err != nil {
					return false, err
				}
				c.raw.SetWriteDeadline(time.Time{})
			}
			putBuffer(w.cipher)
			w.cipher = nil
		}
		if w.plain != nil && w.plainAt == len(w.plain.b) {
			putBuffer(w.plain)
			w.plain = nil
		}
		if w.plain == nil {
			// What TLS itself has to say may be there.
			if w.cipher, w.cipherAt = c.out.take(), 0; w.cipher == nil {
				return true, nil
			}
			continue
		}
		piece := w.plain.b[w.plainAt:]
		piece = piece[:min(len(piece), sealed)]
		w.plainAt += len(piece)
		c.out.begin()
		_, err = c.sec.Write(piece)
		w.cipher, w.cipherAt = c.out.take(), 0
		if err != nil {
			return false, err
		}
	}
}
