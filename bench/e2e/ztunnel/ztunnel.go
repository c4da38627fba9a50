// Package ztunnel is a peer of Fairway's tunnels for tests: both ends of HBONE in the
// shape that Istio's ztunnel gives them, written apart from proxy/hbone and on
// nothing of Fairway's, so that one can be judged by the other. What it imitates
// was seen on the wire of a real ztunnel: its SETTINGS and windows, data only after
// the 200, uploads that begin in 1,024-byte frames, END_STREAM for whatever ends a
// connection, a PING each ten seconds, pools of 100 tunnels a connection, and what its
// server answers, counts and cuts off.
package ztunnel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What ztunnel announces.
const (
	StreamWindow  = 4 << 20
	ConnWindow    = 16 << 20
	MaxFrame      = 1 << 20
	ClientHeaders = 16384
	ServerHeaders = 65536
	ServerStreams = 200
)

// Uploads begin in small frames, which grow as ztunnel's copy buffer does.
const (
	firstFrame  = 1024
	secondFrame = 16320
	lastFrame   = 262080
	smallUntil  = 128 << 10 // bytes sent in frames of the first size
	middleUntil = 1 << 20   // bytes sent in frames of the first two
)

// ErrReset is a tunnel that one side has broken off.
type ErrReset struct{ Code http2.ErrCode }

func (e ErrReset) Error() string { return "reset: " + e.Code.String() }

// ErrGoAway is a connection that the peer has closed.
type ErrGoAway struct {
	Last uint32
	Code http2.ErrCode
}

func (e ErrGoAway) Error() string { return fmt.Sprintf("goaway after %d: %v", e.Last, e.Code) }

// conn is what both ends have in common.
type conn struct {
	nc     net.Conn
	client bool
	ping   time.Duration

	write sync.Mutex // guards what follows, and the order of frames
	bw    *bufio.Writer
	fr    *http2.Framer
	henc  *hpack.Encoder
	hbuf  bytes.Buffer

	mu         sync.Mutex
	moved      sync.Cond // a window, an end, an answer
	tunnels    map[uint32]*Tunnel
	next       uint32 // of a client's streams
	last       uint32 // of the streams a server has seen
	window     int64  // to send
	initial    int64
	frame      int
	unacked    int64 // received on the connection and not given back
	err        error
	away       *ErrGoAway
	pinged     int // PINGs that were answered
	unanswered bool
	settings   map[http2.SettingID]uint32
	closed     chan struct{}
	acked      chan struct{} // an answer to a PING

	headers func(*http2.MetaHeadersFrame) // called by the reader
	reset   func(*Tunnel)                 // called by the reader
}

func newConn(nc net.Conn, client bool, ping time.Duration) *conn {
	if ping == 0 {
		ping = 10 * time.Second
	}
	c := &conn{
		nc: nc, client: client, ping: ping, tunnels: map[uint32]*Tunnel{}, next: 1,
		window: 65535, initial: 65535, frame: 16384, settings: map[http2.SettingID]uint32{},
		closed: make(chan struct{}), acked: make(chan struct{}, 1),
	}
	c.moved.L = &c.mu
	c.bw = bufio.NewWriterSize(nc, 64<<10)
	c.fr = http2.NewFramer(c.bw, bufio.NewReaderSize(nc, 64<<10))
	c.fr.SetMaxReadFrameSize(MaxFrame)
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.henc = hpack.NewEncoder(&c.hbuf)
	return c
}

// send writes frames and flushes them.
func (c *conn) send(frames func()) error {
	c.write.Lock()
	defer c.write.Unlock()
	frames()
	err := c.bw.Flush()
	if err != nil {
		c.fail(err)
	}
	return err
}

// block encodes a header block. c.write is held.
func (c *conn) block(fields ...string) []byte {
	c.hbuf.Reset()
	for i := 0; i < len(fields); i += 2 {
		c.henc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(c.hbuf.Bytes())
}

func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.closed)
	for _, t := range c.tunnels {
		t.fail(err)
	}
	c.moved.Broadcast()
	c.nc.Close()
}

// run reads until the connection ends.
func (c *conn) run() {
	go c.keepAlive()
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			c.fail(err)
			return
		}
		if err := c.frameIn(f); err != nil {
			c.fail(err)
			return
		}
	}
}

// keepAlive asks for a sign of life each ten seconds.
func (c *conn) keepAlive() {
	tick := time.NewTicker(c.ping)
	defer tick.Stop()
	for {
		select {
		case <-c.closed:
			return
		case <-tick.C:
		}
		c.mu.Lock()
		silent := c.unanswered
		c.unanswered = true
		c.mu.Unlock()
		if silent {
			c.fail(errors.New("keep-alive timed out"))
			return
		}
		c.send(func() { c.fr.WritePing(false, [8]byte{1}) })
	}
}

func (c *conn) frameIn(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		c.mu.Lock()
		f.ForeachSetting(func(s http2.Setting) error {
			c.settings[s.ID] = s.Val
			switch s.ID {
			case http2.SettingInitialWindowSize:
				for _, t := range c.tunnels {
					t.window += int64(s.Val) - c.initial
				}
				c.initial = int64(s.Val)
			case http2.SettingMaxFrameSize:
				c.frame = int(s.Val)
			}
			return nil
		})
		c.moved.Broadcast()
		c.mu.Unlock()
		return c.send(func() { c.fr.WriteSettingsAck() })
	case *http2.PingFrame:
		if !f.IsAck() {
			data := f.Data
			return c.send(func() { c.fr.WritePing(true, data) })
		}
		c.mu.Lock()
		c.pinged++
		c.unanswered = false
		c.mu.Unlock()
		select {
		case c.acked <- struct{}{}:
		default:
		}
	case *http2.WindowUpdateFrame:
		c.mu.Lock()
		if f.StreamID == 0 {
			c.window += int64(f.Increment)
		} else if t := c.tunnels[f.StreamID]; t != nil {
			t.window += int64(f.Increment)
		}
		c.moved.Broadcast()
		c.mu.Unlock()
	case *http2.DataFrame:
		return c.dataIn(f)
	case *http2.RSTStreamFrame:
		c.mu.Lock()
		t := c.tunnels[f.StreamID]
		if t != nil {
			t.fail(ErrReset{f.ErrCode})
			c.done(t)
		}
		c.moved.Broadcast()
		c.mu.Unlock()
		if t != nil && c.reset != nil {
			c.reset(t)
		}
	case *http2.GoAwayFrame:
		c.mu.Lock()
		away := ErrGoAway{f.LastStreamID, f.ErrCode}
		c.away = &away
		for id, t := range c.tunnels {
			if c.client && id > f.LastStreamID {
				t.fail(away)
				c.done(t)
			}
		}
		c.moved.Broadcast()
		c.mu.Unlock()
	case *http2.MetaHeadersFrame:
		c.headers(f)
	}
	return nil
}

func (c *conn) dataIn(f *http2.DataFrame) error {
	n := int64(f.Length)
	c.mu.Lock()
	t := c.tunnels[f.StreamID]
	if t == nil {
		c.unacked += n // for the connection alone
	} else {
		t.in.Write(f.Data())
		t.credit -= n
		if t.credit < 0 {
			c.mu.Unlock()
			return errors.New("the peer overran a stream's window")
		}
		if f.StreamEnded() {
			t.ended = true
			c.done(t)
		}
	}
	c.moved.Broadcast()
	c.mu.Unlock()
	return nil
}

// giveBack returns n bytes of window that were read from a tunnel, at half of it.
func (c *conn) giveBack(t *Tunnel, n int64) {
	c.mu.Lock()
	c.unacked += n
	t.unacked += n
	var forConn, forStream int64
	if c.unacked >= ConnWindow/2 {
		forConn, c.unacked = c.unacked, 0
	}
	if t.unacked >= StreamWindow/2 && !t.ended {
		forStream, t.unacked = t.unacked, 0
		t.credit += forStream
	}
	c.mu.Unlock()
	if forConn+forStream == 0 {
		return
	}
	c.send(func() {
		if forConn > 0 {
			c.fr.WriteWindowUpdate(0, uint32(forConn))
		}
		if forStream > 0 {
			c.fr.WriteWindowUpdate(t.id, uint32(forStream))
		}
	})
}

// done takes a tunnel out when both halves have ended. c.mu is held.
func (c *conn) done(t *Tunnel) {
	if t.err != nil || t.ended && t.said {
		delete(c.tunnels, t.id)
	}
}

// Tunnel is a stream as a net.Conn. Deadlines do nothing.
type Tunnel struct {
	Authority string // what was asked for
	Fields    map[string]string

	conn *conn
	id   uint32
	sent int // bytes; the writer's

	// Guarded by conn.mu.
	in              bytes.Buffer
	window          int64
	credit, unacked int64
	status          int
	ended           bool // the peer's half
	said            bool // our half
	accepted        bool // a server has answered with 200
	err             error
}

func (c *conn) newTunnel(id uint32) *Tunnel {
	t := &Tunnel{conn: c, id: id, window: c.initial, credit: StreamWindow, Fields: map[string]string{}}
	c.tunnels[id] = t
	return t
}

func (t *Tunnel) fail(err error) {
	if t.err == nil && !(t.ended && t.said) {
		t.err = err
	}
}

// Read reads what has come.
func (t *Tunnel) Read(p []byte) (int, error) {
	c := t.conn
	c.mu.Lock()
	for t.in.Len() == 0 {
		if t.err != nil {
			defer c.mu.Unlock()
			return 0, t.err
		}
		if t.ended {
			c.mu.Unlock()
			return 0, io.EOF
		}
		c.moved.Wait()
	}
	n, _ := t.in.Read(p)
	c.mu.Unlock()
	c.giveBack(t, int64(n))
	return n, nil
}

// frameSize is how large ztunnel's next frame is.
func (t *Tunnel) frameSize() int {
	switch {
	case t.sent < smallUntil:
		return firstFrame
	case t.sent < middleUntil:
		return secondFrame
	}
	return lastFrame
}

// Write sends p as ztunnel would.
func (t *Tunnel) Write(p []byte) (int, error) {
	c := t.conn
	written := 0
	for written < len(p) {
		c.mu.Lock()
		for t.err == nil && (t.window <= 0 || c.window <= 0) {
			c.moved.Wait()
		}
		if t.err != nil {
			defer c.mu.Unlock()
			return written, t.err
		}
		n := min(len(p)-written, t.frameSize(), c.frame, int(t.window), int(c.window))
		t.window -= int64(n)
		c.window -= int64(n)
		c.mu.Unlock()
		if err := c.send(func() { c.fr.WriteData(t.id, false, p[written:written+n]) }); err != nil {
			return written, err
		}
		written += n
		t.sent += n
	}
	return written, nil
}

// CloseWrite is the application's half-close.
func (t *Tunnel) CloseWrite() error {
	c := t.conn
	c.mu.Lock()
	if t.said || t.err != nil {
		c.mu.Unlock()
		return t.err
	}
	t.said = true
	c.done(t)
	c.mu.Unlock()
	return c.send(func() { c.fr.WriteData(t.id, true, nil) })
}

// Close is the application's going away, be it in order or not: the peer sees
// END_STREAM.
func (t *Tunnel) Close() error { return t.CloseWrite() }

// Reset breaks the tunnel off.
func (t *Tunnel) Reset(code http2.ErrCode) {
	c := t.conn
	c.mu.Lock()
	t.fail(ErrReset{code})
	c.done(t)
	c.moved.Broadcast()
	c.mu.Unlock()
	c.send(func() { c.fr.WriteRSTStream(t.id, code) })
}

// Err is what has broken the tunnel, nil while it is whole.
func (t *Tunnel) Err() error {
	t.conn.mu.Lock()
	defer t.conn.mu.Unlock()
	return t.err
}

func (t *Tunnel) LocalAddr() net.Addr              { return t.conn.nc.LocalAddr() }
func (t *Tunnel) RemoteAddr() net.Addr             { return t.conn.nc.RemoteAddr() }
func (t *Tunnel) SetDeadline(time.Time) error      { return nil }
func (t *Tunnel) SetReadDeadline(time.Time) error  { return nil }
func (t *Tunnel) SetWriteDeadline(time.Time) error { return nil }
