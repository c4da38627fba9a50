package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// peer is a client that writes its frames one by one.
type peer struct {
	*http2.Framer
	t    testing.TB
	conn net.Conn
}

// dial serves s on the loopback until the test ends, and connects.
func dial(t testing.TB, s *Server, settings ...http2.Setting) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { s.Serve(l) })
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	p := &peer{Framer: http2.NewFramer(c, c), t: t, conn: c}
	p.AllowIllegalWrites = true
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	io.WriteString(c, http2.ClientPreface)
	p.WriteSettings(settings...)
	return p
}

// open begins a call.
func (p *peer) open(id uint32, end bool, more ...hpack.HeaderField) {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/test/Talk"}, {Name: ":authority", Value: "a"},
		{Name: "content-type", Value: "application/grpc"}}, more...) {
		e.WriteField(f)
	}
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: block.Bytes()})
}

func framed(message string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// next reads the next frame that says something of calls or the connection's end.
func (p *peer) next() http2.Frame {
	p.t.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return nil
		}
		switch f := f.(type) {
		case *http2.SettingsFrame, *http2.WindowUpdateFrame:
		case *http2.PingFrame:
			if !f.IsAck() {
				p.WritePing(true, f.Data)
			}
		default:
			return f
		}
	}
}

// silent waits for the call to be over.
func silent(c *Call) error {
	<-c.Context().Done()
	return nil
}

// What breaks HTTP/2 ends the call, or the connection, with the reason that RFC 9113 gives.
func TestViolations(t *testing.T) {
	goAway := func(c http2.ErrCode) string { return "GOAWAY " + c.String() }
	reset := func(c http2.ErrCode) string { return "RST_STREAM " + c.String() }
	answered := func(status string) string { return ":status " + status }
	for _, tt := range []struct {
		name string
		do   func(p *peer)
		want string
	}{
		{"an even stream", func(p *peer) { p.open(2, true) }, goAway(http2.ErrCodeProtocol)},
		{"data of no stream", func(p *peer) { p.WriteData(1, true, nil) }, goAway(http2.ErrCodeProtocol)},
		{"data of the connection", func(p *peer) { p.WriteData(0, true, nil) }, goAway(http2.ErrCodeProtocol)},
		{"a reset of no stream", func(p *peer) { p.WriteRSTStream(1, http2.ErrCodeCancel) }, goAway(http2.ErrCodeProtocol)},
		{"a window of no stream", func(p *peer) { p.WriteWindowUpdate(1, 1) }, goAway(http2.ErrCodeProtocol)},
		{"a push", func(p *peer) { p.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true}) }, goAway(http2.ErrCodeProtocol)},
		{"a window too large", func(p *peer) { p.WriteWindowUpdate(0, maxWindow) }, goAway(http2.ErrCodeFlowControl)},
		{"a stream's window too large", func(p *peer) { p.open(1, false); p.WriteWindowUpdate(1, maxWindow) }, reset(http2.ErrCodeFlowControl)},
		{"a window of nothing", func(p *peer) { p.WriteWindowUpdate(0, 0) }, goAway(http2.ErrCodeProtocol)},
		{"a setting that cannot be", func(p *peer) { p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, goAway(http2.ErrCodeProtocol)},
		{"a flood of settings", func(p *peer) { p.WriteSettings(make([]http2.Setting, maxSettings+1)...) }, goAway(http2.ErrCodeEnhanceYourCalm)},
		{"a frame too large", func(p *peer) { p.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, ownFrame+1)) }, goAway(http2.ErrCodeFrameSize)},
		{"padding alone", func(p *peer) { p.open(1, false); p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, nil) }, goAway(http2.ErrCodeFrameSize)},
		{"more padding than data", func(p *peer) {
			p.open(1, false)
			p.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 'x'})
		}, goAway(http2.ErrCodeProtocol)},
		{"a head in the middle", func(p *peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x83}})
			p.WriteData(1, true, nil)
		}, goAway(http2.ErrCodeProtocol)},
		{"fields that cannot be read", func(p *peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0x0f}})
		}, goAway(http2.ErrCodeCompression)},
		{"data after its end", func(p *peer) { p.open(1, true); p.WriteData(1, false, []byte("x")) }, reset(http2.ErrCodeStreamClosed)},
		{"more than the window", func(p *peer) {
			p.open(1, false)
			for range streamWindow/ownFrame + 1 {
				p.WriteData(1, false, make([]byte, ownFrame))
			}
		}, reset(http2.ErrCodeFlowControl)},
		{"trailers that are not the end", func(p *peer) { p.open(1, false); p.open(1, false) }, reset(http2.ErrCodeProtocol)},
		{"another method", func(p *peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: []byte{0x82, 0x86, 0x84}}) // GET http /
		}, answered("405")},
		{"no gRPC", func(p *peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: []byte{0x83, 0x86, 0x84}}) // POST http /
		}, answered("415")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := dial(t, &Server{Handler: silent})
			tt.do(p)
			got := "nothing"
			switch f := p.next().(type) {
			case *http2.GoAwayFrame:
				got = goAway(f.ErrCode)
			case *http2.RSTStreamFrame:
				got = reset(f.ErrCode)
			case *http2.MetaHeadersFrame:
				got = answered(f.PseudoValue("status"))
			}
			if got != tt.want {
				t.Errorf("it answers with %s, want %s", got, tt.want)
			}
		})
	}
}

// Floods end the connection that they come in.
func TestFloods(t *testing.T) {
	for _, tt := range []struct {
		name string
		send func(p *peer) error // again and again
	}{
		{"SETTINGS", func(p *peer) error { return p.WriteSettings() }},
		{"PING", func(p *peer) error { return p.WritePing(false, [8]byte{}) }},
		{"PRIORITY", func(p *peer) error { return p.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }},
		{"empty DATA", func(p *peer) error { return p.WriteData(1, false, nil) }},
		{"windows", func(p *peer) error { return p.WriteWindowUpdate(0, 1) }},
		{"unknown frames", func(p *peer) error { return p.WriteRawFrame(0xEE, 0, 0, []byte("?")) }},
		{"resets of one call", func(p *peer) error { return p.WriteRSTStream(1, http2.ErrCodeCancel) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			told := make(chan bool, 1)
			p := dial(t, &Server{Handler: silent, Misbehaved: func(flood bool) { told <- flood }})
			p.open(1, false)
			go func() {
				for tt.send(p) == nil {
				}
			}()
			for {
				switch f := p.next().(type) {
				case nil:
					t.Fatal("the connection has ended without a word")
				case *http2.GoAwayFrame:
					if f.ErrCode != http2.ErrCodeEnhanceYourCalm {
						t.Errorf("got %v", f.ErrCode)
					}
					if !<-told {
						t.Error("nobody is told that it was a flood")
					}
					return
				}
			}
		})
	}
}

// What does not begin like HTTP/2 is hung up on.
func TestOtherProtocols(t *testing.T) {
	p := dial(t, &Server{Handler: silent})
	c, err := net.Dial("tcp", p.conn.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, "GET / HTTP/1.1\r\nhost: a\r\n\r\n")
	if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, io.ErrNoProgress) {
		t.Errorf("answered %q, %v", b, err)
	}
}

// A connection that has said nothing holds no buffers, which are more than all the rest of it.
func TestSilenceHoldsNoBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Handler: silent}
		near, far := net.Pipe()
		defer far.Close()
		s.ready()
		s.begin(near)
		defer s.Close()
		io.WriteString(far, http2.ClientPreface[:5])
		synctest.Wait()
		for c := range s.conns {
			if c.br != nil || c.fr != nil {
				t.Error("it has buffers before its preface")
			}
		}
		if len(s.conns) != 1 {
			t.Errorf("%d connections, want 1", len(s.conns))
		}
	})
}

// pipes is a listener that gives what it is sent.
type pipes struct {
	net.Listener
	conns chan net.Conn
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	if c, ok := <-p.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.conns) }); return nil }

// Clients beyond the limit wait until another has left, and do not hold up the end.
func TestConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Handler: silent, Connections: 2}
		l := &pipes{conns: make(chan net.Conn)}
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		var near, far [4]net.Conn
		come := func(i int) {
			near[i], far[i] = net.Pipe()
			l.conns <- near[i]
		}
		want := func(want ...net.Conn) {
			t.Helper()
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			served := make(map[net.Conn]bool)
			for c := range s.conns {
				served[c.nc] = true
			}
			if len(served) != len(want) || !served[want[0]] || !served[want[1]] {
				t.Errorf("%d connections are served, or others than should be", len(served))
			}
		}
		come(0)
		come(1)
		come(2)
		want(near[0], near[1])
		far[0].Close()
		want(near[1], near[2])
		come(3)
		want(near[1], near[2])
		s.Close()
		if err := <-ended; err != ErrServerClosed {
			t.Errorf("serving ended with %v", err)
		}
		if _, err := far[3].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the one that waited is told %v", err)
		}
	})
}

// However fast a client resets its calls, no more of them are at work than may be.
func TestRapidReset(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	working, most := 0, 0
	p := dial(t, &Server{Handler: func(*Call) error {
		mu.Lock()
		working++
		most = max(most, working)
		mu.Unlock()
		<-release
		mu.Lock()
		working--
		mu.Unlock()
		return nil
	}})
	const calls = maxStreams + 10
	go func() {
		for i := range uint32(calls) {
			p.open(2*i+1, true)
			p.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}
	}()
	for refused := range 10 {
		f, ok := p.next().(*http2.RSTStreamFrame)
		if !ok || f.ErrCode != http2.ErrCodeRefusedStream || f.StreamID != uint32(2*(maxStreams+refused)+1) {
			t.Fatalf("%d calls were refused, and then %v", refused, f)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if most > maxStreams {
		t.Errorf("%d were at work", most)
	}
	close(release)
}

// A client that opens no window gets nothing, others of the connection do, and it gets
// all of it when it does.
func TestWindows(t *testing.T) {
	message := string(bytes.Repeat([]byte("0123456789"), 5000))
	p := dial(t, &Server{Handler: func(c *Call) error {
		if _, err := c.Receive(); err != nil {
			return err
		}
		return c.Send([]byte(message[:7]), nil, []byte(message[7:]))
	}}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	got := map[uint32][]byte{}
	read := func(until func() bool) {
		t.Helper()
		for !until() {
			switch f := p.next().(type) {
			case *http2.DataFrame:
				got[f.StreamID] = append(got[f.StreamID], f.Data()...)
			case nil:
				t.Fatal("the connection has ended")
			}
		}
	}
	for _, id := range []uint32{1, 3} {
		p.open(id, false)
		p.WriteData(id, true, framed("x"))
	}
	read(func() bool { return len(got[1]) == 10 && len(got[3]) == 10 })
	p.WriteWindowUpdate(3, 1<<20)
	read(func() bool { return len(got[3]) == 5+len(message) })
	if len(got[1]) != 10 {
		t.Errorf("%d bytes came of a call whose window is shut", len(got[1]))
	}
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4}) // of one that has sent 10
	p.WriteWindowUpdate(0, 1<<20)
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 32 << 10})
	read(func() bool { return len(got[1]) == 5+len(message) })
	for id, b := range got {
		if string(b[prefixSize:]) != message {
			t.Errorf("call %d got another message", id)
		}
	}
}

// A message may come in any pieces, with padding, and more of them in one.
func TestPieces(t *testing.T) {
	p := dial(t, &Server{Handler: func(c *Call) error {
		for {
			b, err := c.Receive()
			if err != nil {
				return nil
			}
			c.Send(b)
		}
	}})
	p.open(1, false)
	all := append(append(framed("first"), framed("")...), framed("third")...)
	for i, b := range all[:12] {
		p.WriteDataPadded(1, false, []byte{b}, make([]byte, i))
	}
	p.WriteData(1, true, all[12:])
	var got []byte
	for {
		f := p.next()
		if d, ok := f.(*http2.DataFrame); ok {
			got = append(got, d.Data()...)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok && h.StreamEnded() {
			break
		}
		if f == nil {
			t.Fatal("the connection has ended")
		}
	}
	if !bytes.Equal(got, all) {
		t.Errorf("%q came back as %q", all, got)
	}
}

// A message that fits a window, but not what is left of it, is let come.
func TestRestOfWindow(t *testing.T) {
	p := dial(t, &Server{Handler: func(c *Call) error {
		for {
			if _, err := c.Receive(); err != nil {
				return nil
			}
		}
	}})
	p.open(1, false)
	window := streamWindow
	for i, size := range []int{streamWindow/2 - 100, streamWindow - 100, streamWindow - prefixSize, streamWindow} {
		for rest := framed(string(make([]byte, size))); len(rest) > 0; {
			n := min(len(rest), window, ownFrame)
			if n > 0 {
				p.WriteData(1, false, rest[:n])
				rest, window = rest[n:], window-n
				continue
			}
			f, err := p.ReadFrame()
			if err != nil {
				t.Fatalf("%d bytes of message %d were never let come: %v", len(rest), i, err)
			}
			if f, ok := f.(*http2.WindowUpdateFrame); ok && f.StreamID == 1 {
				window += int(f.Increment)
			}
		}
	}
}

// A message that is received and answered costs no memory.
func TestMessageAllocs(t *testing.T) {
	p := dial(t, &Server{Handler: func(c *Call) error {
		for {
			b, err := c.Receive()
			if err != nil {
				return nil
			}
			if err := c.Send(b); err != nil {
				return nil
			}
		}
	}}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	p.WriteWindowUpdate(0, 1<<30)
	p.open(1, false)
	message := framed("message")
	frame := append([]byte{0, 0, byte(len(message)), byte(http2.FrameData), 0, 0, 0, 0, 1}, message...)
	p.WriteData(1, false, message)
	for {
		if _, ok := p.next().(*http2.DataFrame); ok {
			break
		}
	}
	answer := make([]byte, len(frame))
	n := testing.AllocsPerRun(2000, func() {
		p.conn.Write(frame)
		if _, err := io.ReadFull(p.conn, answer); err != nil {
			t.Fatal(err)
		}
	})
	if !bytes.Equal(answer, frame) {
		t.Errorf("the answer is %q", answer)
	}
	if n > 0 {
		t.Errorf("%v allocations a message", n)
	}
}

// Whatever a client sends, the connection ends, and with it all calls.
func FuzzConn(f *testing.F) {
	seed := func(write func(p *peer)) {
		var b bytes.Buffer
		p := &peer{Framer: http2.NewFramer(&b, nil), t: f}
		p.AllowIllegalWrites = true
		write(p)
		f.Add(b.Bytes())
	}
	seed(func(p *peer) {
		p.WriteSettings()
		p.open(1, false)
		p.WriteData(1, false, framed("one"))
		p.WriteDataPadded(1, true, framed("two"), make([]byte, 3))
	})
	seed(func(p *peer) {
		p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
		p.open(1, false, hpack.HeaderField{Name: "x-one", Value: "1"})
		p.WriteData(1, false, framed("one")[:6])
		p.WriteWindowUpdate(1, 100)
		p.WriteWindowUpdate(0, 100)
		p.WritePing(false, [8]byte{1})
		p.WriteRSTStream(1, http2.ErrCodeCancel)
		p.open(3, true)
	})
	seed(func(p *peer) {
		p.WriteSettings()
		p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x83}})
		p.WriteContinuation(1, true, []byte{0x86, 0x84})
		p.open(5, false)
		p.open(5, true)
		p.WriteGoAway(0, http2.ErrCodeNo, nil)
	})
	f.Fuzz(func(t *testing.T, sent []byte) {
		near, far := net.Pipe()
		s := &Server{MessageLimit: 1 << 10, Handler: func(c *Call) error {
			for {
				b, err := c.Receive()
				if err == io.EOF {
					return nil
				}
				if err != nil {
					return err
				}
				if len(b) > 1<<10 {
					t.Errorf("a message of %d bytes", len(b))
				}
				if err := c.Send(b); err != nil {
					return err
				}
			}
		}}
		s.ready()
		s.begin(near)
		var reading sync.WaitGroup
		reading.Go(func() { io.Copy(io.Discard, far) })
		fmt.Fprintf(far, "%s%s", http2.ClientPreface, sent)
		far.Close()
		reading.Wait()
		s.Close()
	})
}

// silentPeer begins a connection of s over a pipe that takes nothing but what is read of it, and reads what the server greets with.
func silentPeer(t *testing.T, s *Server) *peer {
	near, far := net.Pipe()
	s.ready()
	s.begin(near)
	p := &peer{Framer: http2.NewFramer(far, far), t: t, conn: far}
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var greeting sync.WaitGroup
	greeting.Go(func() {
		io.WriteString(far, http2.ClientPreface)
		p.WriteSettings()
	})
	for range 3 {
		if _, err := p.ReadFrame(); err != nil {
			t.Fatal(err)
		}
	}
	greeting.Wait()
	return p
}

// What is owed to a client that does not read is bounded, however many calls end for it.
func TestAnswersNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Handler: func(*Call) error { return status.Error(codes.Unavailable, strings.Repeat("x", maxMessage)) }}
		p := silentPeer(t, s)
		const calls = 4 * maxStreams
		go func() {
			for i := range uint32(calls) {
				p.open(2*i+1, true)
			}
		}()
		synctest.Wait()
		for c := range s.conns {
			c.mu.Lock()
			if n, most := len(c.out), maxUnsent+maxStreams*(maxMessage+100); n > most {
				t.Errorf("%d bytes wait to be read, want at most %d", n, most)
			}
			c.mu.Unlock()
		}
		for range calls {
			switch f := p.next().(type) {
			case *http2.MetaHeadersFrame:
				if !f.StreamEnded() {
					t.Fatalf("in the place of an answer: %v", f)
				}
			case *http2.RSTStreamFrame: // it came before so many others were answered
				if f.ErrCode != http2.ErrCodeRefusedStream {
					t.Fatalf("in the place of an answer: %v", f)
				}
			default:
				t.Fatalf("in the place of an answer: %v", f)
			}
		}
		p.conn.Close()
		s.Close()
	})
}

// A client that does not read does not hold up the end.
func TestShutdownOfOneWhoDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Handler: silent}
		p := silentPeer(t, s)
		defer p.conn.Close()
		synctest.Wait() // for the greeting to have been written
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		s.Shutdown(ctx)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// Nor does one that reads, and has nothing more to say.
func TestShutdownOfOneWhoDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Handler: silent}
		p := silentPeer(t, s)
		defer p.conn.Close()
		go io.Copy(io.Discard, p.conn)
		began := time.Now()
		s.Shutdown(t.Context())
		if took := time.Since(began); took > lastCalls {
			t.Errorf("it took %v", took)
		}
	})
}

// What all calls together have received and not read is bounded, and none of it is counted once they have ended.
func TestBufferLimit(t *testing.T) {
	s := &Server{Handler: silent, BufferLimit: 100 << 10}
	p := dial(t, s)
	for _, id := range []uint32{1, 3} {
		p.open(id, false)
		p.WriteData(id, false, make([]byte, 60<<10))
	}
	f, ok := p.next().(*http2.MetaHeadersFrame)
	if !ok || f.StreamID != 3 || f.RegularFields()[1].Value != strconv.Itoa(int(codes.ResourceExhausted)) {
		t.Errorf("call 3 was answered %v", f)
	}
	s.Close()
	if n := s.held.Load(); n != 0 {
		t.Errorf("%d bytes are counted still", n)
	}
}
