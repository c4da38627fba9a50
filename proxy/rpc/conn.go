package rpc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairway-proxy/fairway/proxy/flood"
)

const (
	// maxStreams is how many calls one connection may have at a time: clients with more
	// to ask open another one, or wait.
	maxStreams = 1000
	// streamWindow is what a client may send in a call that nobody listens to: whoever
	// sends a body of a common size does not wait for word of how much was read.
	streamWindow = 512 << 10
	// connWindow is opened again as data arrives, so that no call stops another.
	connWindow    = 16 << 20
	defaultWindow = 65535 // RFC 9113 section 6.9.2
	maxWindow     = 1<<31 - 1
	ownFrame      = 64 << 10 // the largest frame that is taken
	defaultFrame  = 16 << 10
	maxPeerFrame  = 64 << 10 // and the largest that is sent, if the client takes it
	maxHeaderList = 64 << 10
	readBuffer    = 64 << 10
	maxSettings   = 100 // of one frame: each may concern every call
	// maxUnsent is what may wait to be written before whoever adds to it waits too. A
	// buffer is kept for the next write up to keptBuffer, which is enough for that.
	maxUnsent  = 256 << 10
	keptBuffer = 2 * maxUnsent

	prefaceTimeout = 10 * time.Second
	writeTimeout   = time.Minute // for one write, less renewAfter
	renewAfter     = 15 * time.Second
	lastWords      = time.Second     // for a client to read why it is cut off
	lastCalls      = 5 * time.Second // for a client to answer drainPing
)

var (
	errClosed = errors.New("rpc: the server has ended the connection")
	errPeer   = errors.New("rpc: the client has closed the connection")
	errReset  = errors.New("rpc: the client has cancelled the call")
)

// conn is a connection. Fields without a word on it are the reader's.
type conn struct {
	server *Server
	nc     net.Conn
	remote string // its address
	br     *bufio.Reader
	fr     *http2.Framer

	lastID   uint32 // of the calls that were opened; set under mu
	received int    // of data since the connection's window was opened last
	flood    flood.Meter

	mu       sync.Mutex
	change   sync.Cond        // windows have grown, bytes were written, or it has failed
	calls    map[uint32]*Call // guarded by mu
	err      error            // why nothing is sent any more; guarded by mu
	out      []byte           // waits to be written; guarded by mu
	spare    []byte           // for the next out; guarded by mu
	writing  bool             // somebody writes; guarded by mu
	waiters  int              // for change; guarded by mu
	window   int64            // what may be sent; guarded by mu
	initial  int64            // window of new streams; guarded by mu
	frame    int              // largest payload of a frame; guarded by mu
	headed   bool             // a block of fields was sent; guarded by mu
	open     bool             // our settings were sent; guarded by mu
	draining bool             // GOAWAY was sent; guarded by mu
	settled  bool             // and the one with the last call; guarded by mu
	accepted uint32           // no call beyond is served; guarded by mu
	renewed  time.Time        // when the time for writing was; owned by who is writing
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		server: s, nc: nc, remote: nc.RemoteAddr().String(),
		calls: make(map[uint32]*Call), window: defaultWindow, initial: defaultWindow, frame: defaultFrame, accepted: maxWindow,
	}
	c.change.L = &c.mu
	return c
}

// buffer makes what frames are read with.
func (c *conn) buffer() {
	c.br = bufio.NewReaderSize(c.nc, readBuffer)
	c.fr = http2.NewFramer(nil, c.br)
	c.fr.SetReuseFrames()
	c.fr.SetMaxReadFrameSize(ownFrame)
	c.fr.MaxHeaderListSize = maxHeaderList
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
}

// serve is the reader: it reads frames until the connection ends.
func (c *conn) serve() {
	defer c.server.forget(c)
	defer c.nc.Close()
	err := c.readFrames()
	code, broken := errors.AsType[http2.ConnectionError](err)
	switch {
	case broken:
	case errors.Is(err, http2.ErrFrameTooLarge):
		code = http2.ConnectionError(http2.ErrCodeFrameSize)
	default:
		c.fail(errPeer)
		return
	}
	if told := c.server.Misbehaved; told != nil {
		told(http2.ErrCode(code) == http2.ErrCodeEnhanceYourCalm)
	}
	c.mu.Lock()
	c.appendGoAway(c.lastID, http2.ErrCode(code))
	c.flush()
	for c.writing && c.err == nil {
		c.wait()
	}
	c.mu.Unlock()
	c.fail(fmt.Errorf("rpc: the client has broken HTTP/2: %w", err))
	// Bytes that nobody reads would have the kernel reset the connection before the
	// client has read why.
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		c.nc.SetReadDeadline(time.Now().Add(lastWords))
		io.Copy(io.Discard, c.nc)
	}
}

// cut closes the connection.
func (c *conn) cut() {
	c.fail(errClosed)
	c.nc.Close()
}

// fail has nothing more sent, and all calls end.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	err = c.err
	calls := make([]*Call, 0, len(c.calls))
	for _, call := range c.calls {
		calls = append(calls, call)
	}
	c.change.Broadcast()
	c.mu.Unlock()
	for _, call := range calls {
		call.lose(err)
	}
}

func (c *conn) readFrames() error {
	c.nc.SetReadDeadline(time.Now().Add(prefaceTimeout))
	var preface [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(c.nc, preface[:]); err != nil {
		return err
	}
	if string(preface[:]) != http2.ClientPreface {
		return errPeer // it speaks something else
	}
	c.nc.SetReadDeadline(time.Time{})
	c.buffer()
	c.greet()
	for greeted := false; ; greeted = true {
		h, err := c.fr.ReadFrameHeader()
		if err != nil {
			return err
		}
		if !greeted && h.Type != http2.FrameSettings {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if h.Type != http2.FrameWindowUpdate && h.Type != http2.FrameRSTStream && !c.flood.Received(h.Type, h.Flags, int(h.Length), 0) {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		if h.Type == http2.FrameData {
			err = c.readData(h)
		} else {
			err = c.readFrame(h)
		}
		if err == nil {
			continue
		}
		if se, ok := errors.AsType[http2.StreamError](err); ok {
			c.mu.Lock()
			c.lastID = max(c.lastID, se.StreamID|1) // a head that cannot be read has opened it
			c.mu.Unlock()
			c.reset(se.StreamID, se.Code)
		} else {
			return err
		}
	}
}

// greet sends our settings.
func (c *conn) greet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var p []byte
	for _, s := range []http2.Setting{
		{ID: http2.SettingMaxConcurrentStreams, Val: maxStreams},
		{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		{ID: http2.SettingMaxFrameSize, Val: ownFrame},
		{ID: http2.SettingMaxHeaderListSize, Val: maxHeaderList},
	} {
		p = binary.BigEndian.AppendUint16(p, uint16(s.ID))
		p = binary.BigEndian.AppendUint32(p, s.Val)
	}
	c.appendFrame(http2.FrameSettings, 0, 0, p)
	c.appendWindowUpdate(0, connWindow-defaultWindow)
	c.open = true
	c.flush()
}

// readFrame takes any frame but DATA.
func (c *conn) readFrame(h http2.FrameHeader) error {
	f, err := c.fr.ReadFrameForHeader(h)
	if err != nil {
		return err
	}
	if f, ok := f.(*http2.MetaHeadersFrame); ok {
		return c.readHead(f)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.readSettings(f)
	case *http2.WindowUpdateFrame:
		return c.readWindowUpdate(f)
	case *http2.RSTStreamFrame:
		if f.StreamID > c.lastID || f.StreamID%2 == 0 {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		call := c.calls[f.StreamID]
		// All calls may be reset at once, each once: it takes a head to begin one.
		if (call == nil || call.over) && !c.flood.Received(f.Type, f.Flags, int(f.Length), 0) {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		if call != nil {
			call.over = true
			c.change.Broadcast()
			c.mu.Unlock()
			call.lose(errReset)
			c.mu.Lock()
		}
	case *http2.PingFrame:
		switch {
		case !f.IsAck():
			c.appendFrame(http2.FramePing, http2.FlagPingAck, 0, f.Data[:])
			return c.push()
		case f.Data == drainPing && c.draining:
			c.settle()
			return c.push()
		}
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

func (c *conn) readSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > maxSettings {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			by := int64(s.Val) - c.initial
			c.initial = int64(s.Val)
			for _, call := range c.calls {
				if call.window += by; call.window > maxWindow {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
			}
			c.change.Broadcast()
		case http2.SettingMaxFrameSize:
			c.frame = min(int(s.Val), maxPeerFrame)
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.appendFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	return c.push()
}

func (c *conn) readWindowUpdate(f *http2.WindowUpdateFrame) error {
	if !c.flood.Received(f.Type, f.Flags, int(f.Length), f.Increment) {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
	} else if f.StreamID > c.lastID || f.StreamID%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	} else if call := c.calls[f.StreamID]; call != nil {
		if call.window += int64(f.Increment); call.window > maxWindow {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
		}
	}
	if c.waiters > 0 {
		c.change.Broadcast()
	}
	return nil
}

// readHead begins a call, or ends what its client says, by trailers.
func (c *conn) readHead(f *http2.MetaHeadersFrame) error {
	id := f.StreamID
	if id%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if id <= c.lastID {
		c.mu.Lock()
		call := c.calls[id]
		c.mu.Unlock()
		switch {
		case call == nil: // it has just ended
			return nil
		case !f.StreamEnded():
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
		}
		return call.endInput()
	}
	c.mu.Lock()
	c.lastID = id
	if len(c.out) > maxUnsent { // calls that end at once add to it, and are not counted any more
		if err := c.push(); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	refused := id > c.accepted
	full := len(c.calls) >= maxStreams
	c.mu.Unlock()
	switch {
	case refused: // it was sent before our GOAWAY came there
		return nil
	case full:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	case f.Truncated:
		return c.answerOtherwise(id, "431")
	case f.PseudoValue("method") != "POST":
		return c.answerOtherwise(id, "405")
	}
	kind := ""
	for _, h := range f.RegularFields() {
		if h.Name == "content-type" {
			kind = h.Value
		}
	}
	if rest, ok := strings.CutPrefix(kind, contentType); !ok || rest != "" && rest[0] != '+' && rest[0] != ';' {
		return c.answerOtherwise(id, "415")
	}
	call := newCall(c, id, f.PseudoValue("path"))
	if f.StreamEnded() {
		call.ended = true
	}
	c.mu.Lock()
	call.window = c.initial
	c.calls[id] = call
	c.mu.Unlock()
	c.server.serve(call)
	return nil
}

// answerOtherwise answers what is no call of gRPC, with a status of HTTP.
func (c *conn) answerOtherwise(id uint32, status string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.appendHead(id, http2.FlagHeadersEndStream, append([]byte{0x08, byte(len(status))}, status...)) // literal, with the name of index 8
	c.appendReset(id, http2.ErrCodeNo)
	return c.push()
}

// readData takes a piece of what a client says, from the buffer that it was read into.
func (c *conn) readData(h http2.FrameHeader) error {
	if h.StreamID == 0 || h.StreamID > c.lastID || h.StreamID%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	left, padding := int(h.Length), 0
	if h.Flags.Has(http2.FlagDataPadded) {
		if left == 0 {
			return http2.ConnectionError(http2.ErrCodeFrameSize)
		}
		n, err := c.br.ReadByte()
		if err != nil {
			return err
		}
		if left, padding = left-1, int(n); padding > left {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		left -= padding
	}
	if err := c.countData(int(h.Length)); err != nil {
		return err
	}
	c.mu.Lock()
	call := c.calls[h.StreamID]
	c.mu.Unlock()
	var failed error
	if call != nil {
		failed = call.countData(int(h.Length))
	}
	for left > 0 {
		p, err := c.br.Peek(max(1, min(left, c.br.Buffered())))
		if err != nil {
			return err
		}
		if call != nil && failed == nil {
			failed = call.add(p)
		}
		c.br.Discard(len(p))
		left -= len(p)
	}
	if _, err := c.br.Discard(padding); err != nil {
		return err
	}
	if call != nil && failed == nil && h.Flags.Has(http2.FlagDataEndStream) {
		failed = call.endInput()
	}
	return failed
}

// countData counts data that has arrived against the connection's window.
func (c *conn) countData(n int) error {
	if c.received += n; c.received > connWindow {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if c.received < connWindow/4 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.appendWindowUpdate(0, c.received)
	c.received = 0
	return c.push()
}

// reset ends a call because of what its client has sent. It counts among the calls
// until its handler has ended, so that a client cannot have more of them at work.
func (c *conn) reset(id uint32, code http2.ErrCode) {
	c.mu.Lock()
	call := c.calls[id]
	if call != nil {
		call.over = true
		c.change.Broadcast()
	}
	c.appendReset(id, code)
	c.push()
	c.mu.Unlock()
	if call != nil {
		call.lose(fmt.Errorf("rpc: the client has broken the call: %v", code))
	}
}

// drainPing is answered when the client has read our first GOAWAY: all calls that it
// began before have arrived then. A client that does not answer is not waited for.
var drainPing = [8]byte{'f', 'a', 'i', 'r', 'w', 'a', 'y'}

// drain has the connection end with the last of its calls.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.draining || c.err != nil:
		return
	case !c.open:
		c.err = errClosed
		c.nc.Close()
		return
	}
	c.draining = true
	c.appendGoAway(maxWindow, http2.ErrCodeNo)
	c.appendFrame(http2.FramePing, 0, 0, drainPing[:])
	time.AfterFunc(lastCalls, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.settle()
		c.flush()
	})
	c.flush()
}

// settle is the second half of drain: no further call is taken. Guarded by mu.
func (c *conn) settle() {
	if c.settled {
		return
	}
	c.settled, c.accepted = true, c.lastID
	c.appendGoAway(c.lastID, http2.ErrCodeNo)
}

func (c *conn) appendFrame(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	c.appendFrameHead(kind, flags, id, len(payload))
	c.out = append(c.out, payload...)
}

func (c *conn) appendFrameHead(kind http2.FrameType, flags http2.Flags, id uint32, n int) {
	c.flood.Sent(kind, n)
	c.out = append(c.out, byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags), byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func (c *conn) appendWindowUpdate(id uint32, n int) {
	c.appendFrameHead(http2.FrameWindowUpdate, 0, id, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(n))
}

func (c *conn) appendReset(id uint32, code http2.ErrCode) {
	c.appendFrameHead(http2.FrameRSTStream, 0, id, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
}

func (c *conn) appendGoAway(last uint32, code http2.ErrCode) {
	c.appendFrameHead(http2.FrameGoAway, 0, 0, 8)
	c.out = binary.BigEndian.AppendUint32(c.out, last)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
}

// appendHead adds a block of fields. None of ours is ever in the table of HPACK, and
// the first block of a connection says that it is empty, so that it stays right whatever
// size the client gives it (RFC 7541 section 4.2).
func (c *conn) appendHead(id uint32, flags http2.Flags, block []byte) {
	if c.headed {
		c.appendFrame(http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id, block)
		return
	}
	c.headed = true
	c.appendFrameHead(http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id, 1+len(block))
	c.out = append(c.out, 0x20)
	c.out = append(c.out, block...)
}

// push is flush for the reader, who does not read on while its client does not: what
// is owed to it would grow without bound. Guarded by mu.
func (c *conn) push() error {
	c.flush()
	for len(c.out) > maxUnsent && c.err == nil {
		c.wait()
	}
	return c.err
}

// wait waits for something to change. Guarded by mu.
func (c *conn) wait() {
	c.waiters++
	c.change.Wait()
	c.waiters--
}

// flush writes what waits, unless somebody does already, who then writes that too.
// Guarded by mu, which is let go meanwhile.
func (c *conn) flush() {
	if c.writing {
		return
	}
	for len(c.out) > 0 && c.err == nil {
		c.writing = true
		c.mu.Unlock()
		runtime.Gosched() // others who have something to say now say it before
		c.mu.Lock()
		p := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		err := c.write(p)
		c.mu.Lock()
		c.writing = false
		if cap(p) <= keptBuffer {
			c.spare = p
		}
		if err != nil && c.err == nil {
			c.err = errPeer
			c.nc.Close() // the reader finds out, and tells the calls
		}
		if c.waiters > 0 {
			c.change.Broadcast()
		}
	}
	if c.settled && len(c.calls) == 0 && c.err == nil {
		c.err = errClosed
		c.nc.Close()
	}
}

func (c *conn) write(p []byte) error {
	if now := time.Now(); now.Sub(c.renewed) > renewAfter {
		c.renewed = now
		c.nc.SetWriteDeadline(now.Add(writeTimeout))
	}
	_, err := c.nc.Write(p)
	return err
}
