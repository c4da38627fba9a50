package hbone

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// stream is a tunnel: a net.Conn with halves, as a TCP connection has.
//
// The peer's END_STREAM is io.EOF at Read, its RST_STREAM a *ResetError after what
// came before it was read. Write returns when its bytes are on their way or wait
// their turn, in a bounded buffer of the connection, behind others'.
type stream struct {
	conn *conn
	id   uint32
	peer *Peer

	// Guarded by conn.mu.
	out         []byte // what a Write has not handed over yet
	window      int64  // what the peer takes; less than 0 if it went back on it
	queued      bool   // in conn.w.queue, which next and prev belong to
	next, prev  *stream
	ending      bool // our half ends with out
	endSent     bool // our half has ended
	peerDone    bool // the peer's half has ended
	closed      bool // by Close
	abort       bool // Close resets
	unprocessed bool // the peer says that it has not looked at the stream
	used        bool // something was written
	broken      error
	writable    sync.Cond
	writeLimit  deadline
	lingering   *time.Timer
	dial        *dialing   // until the answer to our CONNECT has come
	writing     sync.Mutex // one Write at a time; taken before conn.mu

	woken bool // in conn.woken; the reader's

	mu        sync.Mutex
	first     *chunk // what was received; the last may have room
	last      *chunk
	filling   bool  // the reader of the connection is writing to last
	unread    int64 // bytes in the chunks
	credit    int64 // what the peer may send
	full      int64 // the window: unread and credit together, when all was given back
	gaveAt    int64 // when credit was given last, nanoseconds of conn.now
	ended     bool  // nothing more comes
	readErr   error // why, nil for the peer's END_STREAM
	shut      bool  // by Close: nobody reads
	readable  sync.Cond
	readLimit deadline
	hangup    func()
}

// leastRoom is how much of a chunk is worth filling up.
const leastRoom = 1 << 10

// deadline is one of net.Conn's. The lock of its half guards it.
type deadline struct {
	timer *time.Timer
	over  bool
	set   int // counts, so that a timer that was stopped too late is known
}

// move sets the deadline to t. over is called under lock when it is there.
func (d *deadline) move(t time.Time, lock sync.Locker, wake *sync.Cond) {
	d.set++
	d.over = false
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.over = true
		wake.Broadcast()
		return
	}
	set := d.set
	d.timer = time.AfterFunc(wait, func() {
		lock.Lock()
		defer lock.Unlock()
		if d.set == set {
			d.over = true
			wake.Broadcast()
		}
	})
}

// newStream makes a stream. Its peer is filled in by who opens or accepts it.
// c.mu is held.
func (c *conn) newStream(id uint32) *stream {
	s := &stream{conn: c, id: id, window: c.initial, credit: baseWindow, full: baseWindow}
	s.writable.L = &c.mu
	s.readable.L = &s.mu
	c.streams[id] = s
	return s
}

// Peer is who is at the other end.
func (s *stream) Peer() *Peer { return s.peer }

func (s *stream) LocalAddr() net.Addr  { return s.conn.raw.LocalAddr() }
func (s *stream) RemoteAddr() net.Addr { return s.conn.raw.RemoteAddr() }

// receive reads n bytes of DATA into the stream. The frame had so many bytes
// besides, padding, which count too. Called by the reader of the connection.
func (s *stream) receive(n, besides int) error {
	c := s.conn
	s.mu.Lock()
	if s.ended && s.readErr == nil {
		s.mu.Unlock()
		if err := c.skip(n); err != nil {
			return err
		}
		return http2.StreamError{StreamID: s.id, Code: http2.ErrCodeStreamClosed}
	}
	if s.credit -= int64(n + besides); s.credit < 0 && !s.ended {
		s.mu.Unlock()
		if err := c.skip(n); err != nil {
			return err
		}
		return http2.StreamError{StreamID: s.id, Code: http2.ErrCodeFlowControl}
	}
	for n > 0 && !s.shut && !s.ended {
		k := s.last
		// A rest too small for what comes is left: reading little makes the buffers on
		// the way copy much.
		if k == nil || len(k.buf)-k.w < min(n, leastRoom) {
			if k = getChunk(c.budget, n, s.unread < largeChunk); k == nil {
				s.mu.Unlock()
				return s.overflow(n)
			}
			if s.last == nil {
				s.first = k
			} else {
				s.last.next = k
			}
			s.last = k
		}
		s.filling = true
		s.mu.Unlock()
		m, err := c.br.Read(k.buf[k.w:min(len(k.buf), k.w+n)])
		s.mu.Lock()
		s.filling = false
		k.w += m
		s.unread += int64(m)
		n -= m
		c.wakeReader(s)
		if s.shut {
			s.freeChunks()
		}
		if err != nil {
			s.mu.Unlock()
			return err
		}
	}
	s.mu.Unlock()
	return c.skip(n)
}

// heard tells whether anything has come.
func (s *stream) heard() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unread > 0 || s.credit != baseWindow
}

// overflow breaks the stream off, because the budget has nothing left for it. n
// bytes of a frame are still to be read.
func (s *stream) overflow(n int) error {
	c := s.conn
	c.mu.Lock()
	c.reset(s, http2.ErrCodeEnhanceYourCalm, &ResetError{Code: http2.ErrCodeEnhanceYourCalm})
	c.mu.Unlock()
	s.mu.Lock()
	s.freeChunks()
	s.mu.Unlock()
	return c.skip(n)
}

// freeChunks gives back what nobody will read. s.mu is held.
func (s *stream) freeChunks() {
	for s.first != nil && !(s.filling && s.first == s.last) {
		k := s.first
		s.unread -= int64(k.w - k.r)
		if s.first = k.next; s.first == nil {
			s.last = nil
		}
		putChunk(s.conn.budget, k)
	}
}

// endReading notes that the peer has ended its half.
func (s *stream) endReading() { s.breakOff(nil) }

// breakOff notes that nothing more comes, and why. What has come can still be
// read.
func (s *stream) breakOff(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended, s.readErr = true, err
	s.readable.Broadcast()
	if s.full > baseWindow {
		s.conn.budget.shrink(s.full - baseWindow)
		s.full = baseWindow
	}
	if s.hangup != nil {
		go s.hangup()
	}
}

// OnHangup has f called, at most once and on a goroutine of its own, when the peer
// has ended its half or broken the tunnel off, even while bytes lie unread. It is
// called at most once itself.
func (s *stream) OnHangup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		go f()
		return
	}
	s.hangup = f
}

// Read reads what has come, and waits for it.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	for {
		switch {
		case s.shut:
			s.mu.Unlock()
			return 0, net.ErrClosed
		case s.readLimit.over:
			s.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case s.first != nil && s.first.r < s.first.w || len(p) == 0:
			n := s.copyOut(p)
			give := s.giveBack()
			s.mu.Unlock()
			if give > 0 {
				c := s.conn
				c.mu.Lock()
				if !s.peerDone && s.broken == nil {
					c.windowUpdate(s.id, give)
					c.measure()
					c.kick()
				}
				c.mu.Unlock()
			}
			return n, nil
		case s.ended && s.readErr != nil:
			err := s.readErr
			s.mu.Unlock()
			return 0, err
		case s.ended:
			s.mu.Unlock()
			return 0, io.EOF
		}
		s.readable.Wait()
	}
}

// Await returns as soon as Read would.
func (s *stream) Await() {
	s.mu.Lock()
	for !s.arrived() {
		s.readable.Wait()
	}
	s.mu.Unlock()
}

// Readable tells whether a Read would find something at once, be it the end.
func (s *stream) Readable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived()
}

// arrived tells whether Read would not wait. s.mu is held.
func (s *stream) arrived() bool {
	return s.shut || s.readLimit.over || s.ended || s.first != nil && s.first.r != s.first.w
}

// copyOut takes what is there, as far as it fits. s.mu is held.
func (s *stream) copyOut(p []byte) (n int) {
	for n < len(p) && s.first != nil {
		k := s.first
		m := copy(p[n:], k.buf[k.r:k.w])
		k.r += m
		n += m
		if k.r < k.w {
			break
		}
		if s.filling && k == s.last {
			break
		}
		if s.first = k.next; s.first == nil {
			s.last = nil
		}
		putChunk(s.conn.budget, k)
	}
	s.unread -= int64(n)
	return n
}

// giveBack says how much credit the peer is to be given: what was read, when it is
// an eighth of the window, and more if that was read so fast that the window must
// be what holds the peer up. s.mu is held.
func (s *stream) giveBack() int64 {
	if s.ended {
		return 0
	}
	target := s.full
	if s.conn.budget.tight() {
		target = tightWindow
	}
	give := target - s.credit - s.unread
	if give < target/8 || give <= 0 {
		return 0
	}
	now := s.conn.now()
	if s.gaveAt != 0 && target == s.full && s.full < maxWindow && now-s.gaveAt < s.conn.rtt.Load()/2 && s.conn.budget.grow(s.full) {
		give += s.full
		s.full *= 2
	}
	s.gaveAt = now
	s.credit += give
	return give
}

// Write hands p over to be sent, and waits while there is no room for it or the
// peer does not take it.
func (s *stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.write(p, false)
}

// WriteBuffers writes all of v, together. It consumes v as net.Buffers.WriteTo
// does.
func (s *stream) WriteBuffers(v *net.Buffers) (written int64, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	for len(*v) > 0 && err == nil {
		var n int
		n, err = s.write((*v)[0], len(*v) > 1)
		written += int64(n)
		if (*v)[0] = (*v)[0][n:]; len((*v)[0]) == 0 {
			*v = (*v)[1:]
		}
	}
	s.conn.flush()
	return written, err
}

// write is Write; with more, what needs not wait is left to be sent by the next.
// s.writing and conn.mu are held.
func (s *stream) write(p []byte, more bool) (int, error) {
	c := s.conn
	if err := s.writeErr(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.used = true
	s.out = p
	if s.window > 0 {
		c.w.queue.push(s)
	}
	c.pump()
	if len(s.out) > 0 || !more {
		c.flush()
	}
	for len(s.out) > 0 && s.writeErr() == nil {
		s.writable.Wait()
	}
	n := len(p) - len(s.out)
	s.out = nil
	c.w.queue.remove(s)
	if n < len(p) {
		return n, s.writeErr()
	}
	return n, nil
}

// writeErr is why nothing can be written. conn.mu is held.
func (s *stream) writeErr() error {
	switch {
	case s.closed:
		return net.ErrClosed
	case s.broken != nil:
		return s.broken
	case s.ending && len(s.out) == 0, s.endSent:
		return io.ErrClosedPipe
	case s.writeLimit.over:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// CloseWrite ends our half, after a Write that is under way.
func (s *stream) CloseWrite() error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.broken != nil {
		return s.broken
	}
	s.end()
	c.flush()
	return nil
}

// end ends our half as soon as what a Write has begun is handed over. conn.mu is
// held.
func (s *stream) end() {
	if s.ending {
		return
	}
	s.ending = true
	if len(s.out) == 0 {
		s.conn.controlFrame(http2.FrameData, http2.FlagDataEndStream, s.id, nil)
		s.sentEnd()
	}
}

// sentEnd notes that our END_STREAM is on its way. conn.mu is held.
func (s *stream) sentEnd() {
	s.endSent = true
	if s.peerDone {
		s.conn.remove(s)
	}
}

// SetLinger with 0 makes Close break the tunnel off instead of ending it, as a TCP
// connection's does. Other values change nothing.
func (s *stream) SetLinger(seconds int) error {
	s.conn.mu.Lock()
	s.abort = seconds == 0
	s.conn.mu.Unlock()
	return nil
}

// Close ends our half. Whatever the peer still sends is dropped; a peer that does
// not end its half within some seconds has the tunnel reset. Close does not wait.
func (s *stream) Close() error {
	c := s.conn
	c.mu.Lock()
	if s.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	cut := len(s.out) > 0 // by a Write that cannot go on
	s.closed = true
	s.writeLimit.move(time.Time{}, &c.mu, &s.writable)
	s.writable.Broadcast()
	if c.streams[s.id] == s {
		if s.abort || cut {
			c.reset(s, http2.ErrCodeCancel, net.ErrClosed)
		} else {
			s.end()
			if c.streams[s.id] == s {
				s.lingering = time.AfterFunc(c.limits.linger, s.giveUp)
			}
		}
		c.kick()
	}
	c.mu.Unlock()
	s.forsake()
	return nil
}

// forsake drops what has come and what may still come: nobody reads any more.
func (s *stream) forsake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	s.hangup = nil
	s.readLimit.move(time.Time{}, &s.mu, &s.readable)
	s.readable.Broadcast()
	s.freeChunks()
}

// giveUp resets a tunnel whose peer goes on after our Close.
func (s *stream) giveUp() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset(s, http2.ErrCodeCancel, net.ErrClosed)
	c.kick()
}

// SetDeadline sets both deadlines.
func (s *stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline sets the time at which Read stops waiting. It can be moved at
// any time, also after it has passed.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return net.ErrClosed
	}
	s.readLimit.move(t, &s.mu, &s.readable)
	return nil
}

// SetWriteDeadline sets the time at which Write stops waiting. It can be moved at
// any time, also after it has passed.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.writeLimit.move(t, &s.conn.mu, &s.writable)
	return nil
}

// refuse answers a stream that was not made with an error (HEADERS with
// END_STREAM, then RST_STREAM with NO_ERROR, as ztunnel does). c.mu is held.
func (c *conn) refuse(id uint32, status int, end bool) {
	c.controlFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, id, appendStatus(nil, status))
	if !end {
		c.rst(id, http2.ErrCodeNo)
		c.expect(baseWindow) // of a peer that does not wait for the 200
	}
}

// appendStatus encodes ":status" without touching the peer's dynamic table: 200 is
// one byte of HPACK (RFC 7541, appendix A).
func appendStatus(b []byte, status int) []byte {
	if status == 200 {
		return append(b, 0x88)
	}
	return append(b, 0x08, 3, '0'+byte(status/100%10), '0'+byte(status/10%10), '0'+byte(status%10))
}

// appendLiteral encodes a field of which the static table has the name at index,
// not to be indexed.
func appendLiteral(b []byte, index byte, value string) []byte {
	b = append(b, index)
	if len(value) < 127 {
		b = append(b, byte(len(value)))
	} else {
		b = append(b, 127)
		b = binary.AppendUvarint(b, uint64(len(value)-127)) // RFC 7541, section 5.1
	}
	return append(b, value...)
}
