package hbone

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairway-proxy/fairway/proxy/flood"
)

// What is announced and what is taken.
const (
	maxFrame       = 1 << 20  // of DATA
	maxOtherFrame  = 32 << 10 // of every other frame that is not skipped
	maxHeaderList  = 16 << 10 // as RFC 9113, section 6.5.2, counts it
	maxHeaderBlock = 32 << 10 // encoded
	maxFragments   = 32       // of one header block
	minFrame       = 16384    // RFC 9113, section 6.5.2
)

// Floods are cut off; beside those that proxy/flood knows, of tunnels: so many at once, and
// one more each interval.
const (
	youngResets = 100 // streams given up before anything came through them
	resetsEvery = 100 * time.Millisecond
)

// limits are the times a connection goes by.
type limits struct {
	handshake    time.Duration // for TLS, and again for the preface and SETTINGS
	writeTimeout time.Duration // for the socket to take 128 KiB
	silence      time.Duration // after which a PING asks whether the peer is there
	pingTimeout  time.Duration // for its answer
	linger       time.Duration // from Close to RST_STREAM
	drain        time.Duration // for the answer to the PING between two GOAWAYs
	answer       time.Duration // for the answer to a CONNECT
	calm         time.Duration // from a flood to its connection's end, in which nothing is heard: who comes back at once has as many more of them open
}

var standardLimits = limits{
	handshake:    10 * time.Second,
	writeTimeout: 20 * time.Second,
	silence:      10 * time.Second,
	pingTimeout:  20 * time.Second,
	linger:       5 * time.Second,
	drain:        5 * time.Second,
	answer:       20 * time.Second,
	calm:         500 * time.Millisecond,
}

var (
	errNotTaken    = errors.New("hbone: the peer does not take the answers it asks for")
	errSilent      = errors.New("hbone: the peer no longer answers")
	errDrained     = errors.New("hbone: the connection was drained")
	errEnded       = errors.New("hbone: the peer closed the connection")
	errShutdown    = errors.New("hbone: closed by us")
	errUnprocessed = errors.New("hbone: the peer closes the connection and has not looked at the stream")
)

// A ResetError says that one side has broken a tunnel off.
type ResetError struct {
	Code http2.ErrCode
	// ByPeer is false when we did, because of what the peer sent.
	ByPeer bool
}

func (e *ResetError) Error() string {
	who := "us"
	if e.ByPeer {
		who = "the peer"
	}
	return fmt.Sprintf("hbone: tunnel reset by %s: %v", who, e.Code)
}

// Unwrap lets a reset be taken for what it would be of a TCP connection.
func (e *ResetError) Unwrap() error { return syscall.ECONNRESET }

// A GoAwayError says that the peer has closed a connection with an error.
type GoAwayError struct {
	Code  http2.ErrCode
	Debug string // what the peer says of it, at most 256 bytes
}

func (e *GoAwayError) Error() string {
	return fmt.Sprintf("hbone: the peer closed the connection: %v %q", e.Code, e.Debug)
}

// role is what servers and clients do differently. The reader calls it, without
// locks.
type role interface {
	// headers is a whole header block on a stream.
	headers(id uint32, f *fields, end bool) error
	// free is called when a stream has ended, with conn.mu held.
	free(s *stream)
	// gone is called when the connection has ended.
	gone(err error)
}

// trier is a socket that can be written to without waiting: a sock.Bare.
type trier interface {
	TryWrite([]byte) (int, error)
}

// conn is a connection: the same at both ends.
type conn struct {
	role   role
	client bool
	raw    net.Conn
	try    trier    // raw's; the flusher's
	out    *records // between raw and sec
	sec    net.Conn // TLS, or out itself where there is none
	budget *Budget
	limits *limits
	born   time.Time

	heard atomic.Int64 // when bytes came last, nanoseconds after born
	rtt   atomic.Int64 // nanoseconds, 0 while unknown

	// The reader's.
	br        *bufio.Reader
	fr        *http2.Framer
	hdec      *hpack.Decoder
	fields    fields
	block     []byte // of headers, until they are whole
	fragments int
	blockID   uint32
	blockEnd  bool
	credit    int64     // what the peer may send on the connection
	woken     []*stream // have got something since the last settle
	flood     flood.Meter
	resets    bucket
	discard   [512]byte

	mu        sync.Mutex
	w         writer
	err       error         // the connection has ended
	over      chan struct{} // closed then
	greeted   bool          // the peer's SETTINGS have come; written by the reader alone
	closing   bool          // nothing new is sent; when all is flushed, the end is
	streams   map[uint32]*stream
	lastPeer  uint32 // the highest number of a stream the peer opened and we looked at
	seenPeer  uint32 // of those that came after our last GOAWAY too
	nextID    uint32 // of the stream we open next
	maxFrame  int    // of DATA we send
	maxOpen   int64  // streams we may have open
	initial   int64  // the window of streams as the peer begins them
	away      bool   // the peer wants no new streams
	draining  int    // GOAWAYs sent
	pingAt    int64  // when the unanswered PING was sent, nanoseconds after born; 0: none
	settingAt int64  // when our SETTINGS were sent; 0: answered
	measured  int64  // when a PING was sent to measure the round trip
	late      int64  // bytes the peer may still send on streams that we broke off
	pinger    *time.Timer
	closer    *time.Timer
}

// roundTripAge is when the round trip is measured anew.
const roundTripAge = time.Second

// The payloads of our PINGs.
var (
	livePing  = [8]byte{'f', 'a', 'i', 'r', 'w', 'a', 'y', '?'}
	drainPing = [8]byte{'f', 'a', 'i', 'r', 'w', 'a', 'y', '!'}
)

func newConn(r role, client bool, raw net.Conn, out *records, sec net.Conn, budget *Budget, l *limits) *conn {
	c := &conn{
		role: r, client: client, raw: raw, out: out, sec: sec, budget: budget, limits: l, born: time.Now(),
		credit:   connWindow,
		resets:   bucket{size: youngResets, every: int64(resetsEvery)},
		streams:  make(map[uint32]*stream),
		over:     make(chan struct{}),
		nextID:   1,
		maxFrame: minFrame,
		maxOpen:  math.MaxInt32,
		initial:  protocolWindow,
	}
	c.w.window = protocolWindow
	c.try, _ = raw.(trier)
	c.br = bufio.NewReaderSize(source{c}, 4<<10)
	c.fr = http2.NewFramer(nil, c.br)
	c.fr.SetMaxReadFrameSize(maxFrame)
	c.fr.SetReuseFrames()
	c.hdec = hpack.NewDecoder(4096, c.fields.add)
	c.hdec.SetMaxStringLength(maxHeaderBlock)
	out.collect(c)
	return c
}

// now is the time since the connection was made, in nanoseconds; never 0.
func (c *conn) now() int64 { return int64(time.Since(c.born)) + 1 }

// source is where the reader reads: whatever it holds back for the sake of more,
// it lets go before it waits.
type source struct{ c *conn }

func (s source) Read(p []byte) (int, error) {
	s.c.settle()
	n, err := s.c.sec.Read(p)
	s.c.heard.Store(s.c.now())
	return n, err
}

// settle wakes the readers of what has come and sends what it has given rise to.
func (c *conn) settle() {
	for i, s := range c.woken {
		s.woken = false
		s.readable.Broadcast()
		c.woken[i] = nil
	}
	c.woken = c.woken[:0]
	c.wake()
}

// wakeReader has the reader of s woken by the next settle. Called by the reader of
// the connection.
func (c *conn) wakeReader(s *stream) {
	if !s.woken {
		s.woken = true
		c.woken = append(c.woken, s)
	}
}

// start says the preface of this end. The time the peer may take for its own
// begins.
func (c *conn) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := make([]byte, 0, 32)
	setting := func(id http2.SettingID, v uint32) {
		set = binary.BigEndian.AppendUint16(set, uint16(id))
		set = binary.BigEndian.AppendUint32(set, v)
	}
	if c.client {
		c.w.pending = room(nil, len(http2.ClientPreface))
		c.w.pending.b = append(c.w.pending.b, http2.ClientPreface...)
		setting(http2.SettingEnablePush, 0)
	} else {
		setting(http2.SettingMaxConcurrentStreams, maxStreams)
	}
	setting(http2.SettingInitialWindowSize, baseWindow)
	setting(http2.SettingMaxFrameSize, maxFrame)
	setting(http2.SettingMaxHeaderListSize, maxHeaderList)
	c.controlFrame(http2.FrameSettings, 0, 0, set)
	c.windowUpdate(0, connWindow-protocolWindow)
	c.settingAt = c.now()
	c.pinger = time.AfterFunc(min(c.limits.handshake, c.limits.silence), c.watch)
	c.kick()
}

// watch is what the timer calls: it asks a silent peer whether it is there, and
// gives up one that is not.
func (c *conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now, heard := c.now(), c.heard.Load()
	if !c.greeted {
		if left := c.limits.handshake - time.Duration(now); left > 0 {
			c.pinger.Reset(left)
		} else {
			c.failLocked(errSilent)
		}
		return
	}
	next := c.limits.silence - time.Duration(now-heard)
	if next <= 0 {
		switch {
		case c.pingAt == 0 || c.pingAt <= heard:
			c.ping(livePing)
			c.kick()
			next = min(c.limits.silence, c.limits.pingTimeout)
		case time.Duration(now-c.pingAt) >= c.limits.pingTimeout:
			c.failLocked(errSilent)
			return
		default:
			next = c.limits.pingTimeout - time.Duration(now-c.pingAt)
		}
	}
	c.pinger.Reset(next)
}

// ping asks for a sign of life. c.mu is held.
func (c *conn) ping(payload [8]byte) {
	c.pingAt = c.now()
	c.controlFrame(http2.FramePing, 0, 0, payload[:])
}

// measure keeps the round trip up to date while there is traffic. c.mu is held.
func (c *conn) measure() {
	if now := c.now(); c.pingAt == 0 && now-c.measured > int64(roundTripAge) {
		c.measured = now
		c.ping(livePing)
	}
}

// windowUpdate gives credit. c.mu is held.
func (c *conn) windowUpdate(id uint32, n int64) {
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], uint32(n))
	c.controlFrame(http2.FrameWindowUpdate, 0, id, p[:])
}

// rst sends RST_STREAM. c.mu is held.
func (c *conn) rst(id uint32, code http2.ErrCode) {
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], uint32(code))
	c.controlFrame(http2.FrameRSTStream, 0, id, p[:])
}

// goAway sends GOAWAY. c.mu is held.
func (c *conn) goAway(last uint32, code http2.ErrCode) {
	var p [8]byte
	binary.BigEndian.PutUint32(p[:], last)
	binary.BigEndian.PutUint32(p[4:], uint32(code))
	c.controlFrame(http2.FrameGoAway, 0, 0, p[:])
}

// fail ends the connection at once, with all its tunnels.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	close(c.over)
	for _, s := range c.streams {
		c.drop(s, err)
	}
	if c.pinger != nil {
		c.pinger.Stop()
	}
	if c.closer != nil {
		c.closer.Stop()
	}
	if c.w.pending != nil {
		putBuffer(c.w.pending)
		c.w.pending = nil
	}
	c.raw.Close() // TLS's own would wait for its locks
}

// drop ends a stream that is in the table, and takes it out. c.mu is held.
func (c *conn) drop(s *stream, err error) {
	c.w.queue.remove(s)
	if s.broken == nil {
		s.broken = err
	}
	s.writable.Broadcast()
	s.breakOff(err)
	c.remove(s)
}

// remove takes a stream that has ended out of the table. c.mu is held.
func (c *conn) remove(s *stream) {
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	if !s.peerDone {
		c.expect(maxWindow)
	}
	if s.lingering != nil {
		s.lingering.Stop()
	}
	c.role.free(s)
	c.closeIfDrained()
}

// expect notes that the peer may still send n bytes on a stream that is not, or no
// longer, in the table. c.mu is held.
func (c *conn) expect(n int64) { c.late = min(c.late+n, maxStreams*maxWindow) }

// reset breaks a stream off. c.mu is held.
func (c *conn) reset(s *stream, code http2.ErrCode, err error) {
	if c.streams[s.id] == s {
		c.rst(s.id, code)
		c.drop(s, err)
	}
}

// end closes the connection in order: what is pending is sent, then GOAWAY, then
// the end. The peer has so long to close its side. c.mu is held.
func (c *conn) end(code http2.ErrCode, wait time.Duration) {
	if c.err != nil || c.closing {
		return
	}
	if c.draining < 2 || code != http2.ErrCodeNo {
		c.goAway(c.lastPeer, code)
	}
	c.draining = 2
	c.closing = true
	c.closer = time.AfterFunc(wait, func() { c.fail(errDrained) })
	if !c.w.flushing {
		c.w.flushing = true
		go c.flushInBackground()
	}
}

// drain begins the end in two steps, so that no stream that is on its way is lost:
// first the peer is asked for no more, and when it has heard that, it is told
// which was the last (RFC 9113, section 6.8).
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.draining > 0 {
		return
	}
	c.draining = 1
	c.goAway(windowLimit, http2.ErrCodeNo)
	c.ping(drainPing)
	c.closer = time.AfterFunc(c.limits.drain, c.drained)
	c.kick()
}

// drained is the second step.
func (c *conn) drained() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.draining != 1 {
		return
	}
	c.closer.Stop()
	c.draining = 2
	c.goAway(c.lastPeer, http2.ErrCodeNo)
	c.kick()
	c.closeIfDrained()
}

// closeIfDrained closes the connection after its last stream. c.mu is held.
func (c *conn) closeIfDrained() {
	if c.draining == 2 && len(c.streams) == 0 {
		c.end(http2.ErrCodeNo, c.limits.linger)
	}
}
