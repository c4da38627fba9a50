package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
	"github.com/fairway-proxy/fairway/proxy/turn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tooLong is when a test gives up waiting for what should have happened.
const tooLong = 2 * time.Minute

// listen serves s on the loopback until the test ends, and gives the address.
func listen(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				conn := sock.New(c)
				stop := context.AfterFunc(ctx, conn.Interrupt)
				defer stop()
				s.ServeConn(ctx, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		all.Wait()
	})
	return l.Addr().String()
}

// peer is a client that writes its frames one by one.
type peer struct {
	*http2.Framer
	t     testing.TB
	conn  net.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
}

func dial(t testing.TB, addr string, settings ...http2.Setting) *peer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(tooLong))
	p := &peer{Framer: http2.NewFramer(c, c), t: t, conn: c}
	p.AllowIllegalWrites = true
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.block)
	io.WriteString(c, http2.ClientPreface)
	p.WriteSettings(settings...)
	return p
}

// fields encodes "name: value" lines.
func (p *peer) fields(lines ...string) []byte {
	p.block.Reset()
	for _, l := range lines {
		i := strings.Index(l[1:], ":") + 1
		p.enc.WriteField(hpack.HeaderField{Name: l[:i], Value: strings.TrimPrefix(l[i+1:], " ")})
	}
	return bytes.Clone(p.block.Bytes())
}

var post = []string{":method: POST", ":scheme: http", ":path: /v1", ":authority: a"}

// with is a head with more lines, those in place of the ones that begin alike.
func with(lines ...string) []string {
	var all []string
	for _, l := range post {
		name, _, _ := strings.Cut(l[1:], ":")
		if !strings.HasPrefix(lines[0], ":"+name+":") {
			all = append(all, l)
		}
	}
	for _, l := range lines {
		if l[0] == ':' {
			all = append([]string{l}, all...)
		} else {
			all = append(all, l)
		}
	}
	return all
}

func (p *peer) open(id uint32, end bool, lines ...string) {
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: p.fields(lines...)})
}

// reply is what came on one stream.
type reply struct {
	status   string
	interim  []string
	fields   map[string]string
	body     string
	trailers map[string]string
	reset    *http2.ErrCode
	goAway   *http2.ErrCode // of the connection, before the stream had ended
	closed   bool           // the connection, before the stream had ended
}

func (r reply) String() string {
	s := fmt.Sprintf("%s %v %q %v", r.status, r.fields, r.body, r.trailers)
	if r.reset != nil {
		s += " reset " + r.reset.String()
	}
	if r.goAway != nil {
		s += " goaway " + r.goAway.String()
	}
	if r.closed {
		s += " closed"
	}
	return s
}

// await reads until the stream has ended, or the connection has.
func (p *peer) await(id uint32) (r reply) {
	p.t.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				p.t.Fatalf("stream %d did not end: so far %v", id, r)
			}
			r.closed = true
			return r
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				p.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			code := f.ErrCode
			r.goAway = &code
		}
		if f.Header().StreamID != id {
			continue
		}
		end := false
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			all := make(map[string]string)
			for _, h := range f.RegularFields() {
				all[h.Name] += h.Value
			}
			switch status := f.PseudoValue("status"); {
			case strings.HasPrefix(status, "1"):
				r.interim = append(r.interim, status)
			case status != "":
				r.status, r.fields = status, all
			default:
				r.trailers = all
			}
			end = f.StreamEnded()
		case *http2.DataFrame:
			r.body += string(f.Data())
			end = f.StreamEnded()
		case *http2.RSTStreamFrame:
			r.reset, end = &f.ErrCode, true
		}
		if end {
			return r
		}
	}
}

// echo answers with the request's body.
func echo(s *Stream) {
	s.WriteHead(&message.Response{Status: 200, ContentLength: s.Head().ContentLength})
	var buf [4096]byte
	for {
		n, err := s.Read(buf[:])
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				s.Abort()
				return
			}
		}
		if err == io.EOF {
			s.Finish(nil)
			return
		}
		if err != nil {
			s.Abort()
			return
		}
	}
}

func answer(s *Stream, status int, body string) {
	s.WriteHead(&message.Response{Status: status, ContentLength: int64(len(body))})
	s.Write([]byte(body))
	s.Finish(nil)
}

func field(name, value string) message.Field {
	return message.Field{Name: []byte(name), Value: []byte(value)}
}

func TestAnswers(t *testing.T) {
	plain := func(s *Stream) { answer(s, 200, "abc") }
	for _, tt := range []struct {
		name    string
		handler func(*Stream)
		head    []string
		body    string
		want    string
	}{
		{"length", plain, post, "", `200 map[content-length:3] "abc" map[]`},
		{"no length", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			s.Flush()
			s.Write([]byte("abc"))
			s.Finish(nil)
		}, post, "", `200 map[] "abc" map[]`},
		{"body", echo, with("content-length: 5"), "hello", `200 map[content-length:5] "hello" map[]`},
		{"body without a length", echo, post, "hello", `200 map[] "hello" map[]`},
		{"trailers, which are dropped", echo, with("trailer: x-sum"), "hello", `200 map[] "hello" map[]`},
		{"trailers of gRPC", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown, Fields: []message.Field{field("content-type", "application/grpc")}})
			s.Write([]byte("abc"))
			s.Finish([]message.Field{field("grpc-status", "0"), field("Grpc-Message", "ok")})
		}, with("te: trailers"), "", `200 map[content-type:application/grpc] "abc" map[grpc-message:ok grpc-status:0]`},
		{"trailers only", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown, Fields: []message.Field{field("grpc-status", "12")}})
			s.Finish(nil)
		}, post, "", `200 map[grpc-status:12] "" map[]`},
		{"head", plain, with(":method: HEAD"), "", `200 map[content-length:3] "" map[]`},
		{"204", func(s *Stream) { answer(s, 204, "") }, post, "", `204 map[] "" map[]`},
		{"304", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 304, ContentLength: 7})
			s.Write([]byte("not sent"))
			s.Finish(nil)
		}, post, "", `304 map[content-length:7] "" map[]`},
		{"fields as given, none that is not end-to-end", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, Fields: []message.Field{field("X-One", "1"), field("Connection", "close"), field("x-two", ""),
				field("content-LENGTH", "9"), field("Transfer-Encoding", "x"), field("upgrade", "x"), field("TE", "x")}})
			s.Finish(nil)
		}, post, "", `200 map[content-length:0 x-one:1 x-two:] "" map[]`},
		{"too much", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: 2})
			if _, err := s.Write([]byte("abc")); err != ErrLength {
				t.Errorf("wrote too much: %v", err)
			}
			s.Write([]byte("ab"))
			s.Finish(nil)
		}, post, "", `200 map[content-length:2] "ab" map[]`},
		{"too little", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: 2})
			s.Write([]byte("a"))
			s.Flush()
			if err := s.Finish(nil); err != ErrLength {
				t.Errorf("finished too early: %v", err)
			}
		}, post, "", `200 map[content-length:2] "a" map[] reset INTERNAL_ERROR`},
		{"aborted", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
			s.Write([]byte("a"))
			s.Flush()
			s.Abort()
			if _, err := s.Write([]byte("b")); err == nil {
				t.Error("wrote after Abort")
			}
		}, post, "", `200 map[] "a" map[] reset INTERNAL_ERROR`},
		{"no answer", func(*Stream) {}, post, "", ` map[] "" map[] reset INTERNAL_ERROR`},
		{"body left unread", plain, with("content-length: 500000"), "hello", `200 map[content-length:3] "abc" map[]`},
		{"early hints", func(s *Stream) {
			s.WriteHead(&message.Response{Status: 103, Fields: []message.Field{field("link", "x")}})
			if s.Started() {
				t.Error("an interim head counts as the answer")
			}
			plain(s)
		}, post, "", `200 map[content-length:3] "abc" map[]`},
		{"no switch of protocols", func(s *Stream) {
			if err := s.WriteHead(&message.Response{Status: 101, Upgrade: []byte("x")}); err == nil {
				t.Error("wrote a 101")
			}
			if _, err := s.Tunnel(); err == nil {
				t.Error("gave a tunnel")
			}
			plain(s)
		}, post, "", `200 map[content-length:3] "abc" map[]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := dial(t, listen(t, &Server{Handler: tt.handler}))
			p.open(1, tt.body == "", tt.head...)
			if tt.body != "" {
				trailers := strings.HasPrefix(tt.name, "trailers")
				p.WriteData(1, !trailers && tt.name != "body left unread", []byte(tt.body))
				if trailers {
					p.open(1, true, "x-sum: 42")
				}
			}
			r := p.await(1)
			delete(r.fields, "date")
			if got := r.String(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// What is asked is what the handler gets.
func TestHead(t *testing.T) {
	got := make(chan message.Request, 1)
	p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
		h := *s.Head()
		h.Fields = append([]message.Field(nil), h.Fields...)
		got <- h
		answer(s, 200, "")
	}}))
	p.open(1, false, with(":path: /v1/models?a=b", "x-one: 1", "content-length: 7", "te: trailers", "cookie: a=1", "cookie: b=2", "x-empty: ")...)
	p.WriteData(1, true, []byte("1234567"))
	p.await(1)
	h := <-got
	if string(h.Method) != "POST" || string(h.Target) != "/v1/models?a=b" || string(h.Authority) != "a" || h.ContentLength != 7 || h.Upgrade != nil {
		t.Errorf("got %+v", h)
	}
	for name, want := range map[string]string{"x-one": "1", "cookie": "a=1; b=2", "x-empty": "", "te": "", "content-length": "", "host": ""} {
		if got := message.Get(h.Fields, name); string(got) != want || (got == nil) != (want == "" && name != "x-empty") {
			t.Errorf("%s is %q", name, got)
		}
	}
	p.open(3, true, with("content-length: 0")...)
	p.await(3)
	if h := <-got; h.ContentLength != 0 {
		t.Errorf("a request without a body has a length of %d", h.ContentLength)
	}
}

// A request that two servers could read differently, or that HTTP/1.1 could not
// carry on, is refused.
func TestRefusals(t *testing.T) {
	const protocol = "reset PROTOCOL_ERROR"
	const either = "400 or reset" // as the library's version has it
	for _, tt := range []struct {
		name string
		head []string
		want string // the status, or how the stream ended
	}{
		{"uppercase name", with("X-One: 1"), protocol},
		{"connection", with("connection: close"), "400"},
		{"keep-alive", with("keep-alive: 5"), "400"},
		{"proxy-connection", with("proxy-connection: close"), "400"},
		{"transfer-encoding", with("transfer-encoding: chunked"), "400"},
		{"upgrade", with("upgrade: websocket"), "400"},
		{"te", with("te: gzip"), "400"},
		{"two lengths", with("content-length: 5", "content-length: 6"), "400"},
		{"two equal lengths", with("content-length: 5", "content-length: 5"), "400"},
		{"length that is none", with("content-length: five"), "400"},
		{"length with a sign", with("content-length: +5"), "400"},
		{"length with a list", with("content-length: 5, 5"), "400"},
		{"length that overflows", with("content-length: 99999999999999999999"), "400"},
		{"no method", post[1:], protocol},
		{"no path", []string{post[0], post[1], post[3]}, protocol},
		{"no scheme", []string{post[0], post[2], post[3]}, protocol},
		{"two paths", append([]string{":path: /b"}, post...), protocol},
		{"unknown pseudo-field", append([]string{":proto: x"}, post...), protocol},
		{"pseudo-field of an answer", append([]string{":status: 200"}, post...), protocol},
		{"late pseudo-field", []string{post[0], post[1], post[2], "x-one: 1", post[3]}, protocol},
		{"protocol of an extended CONNECT", append([]string{":protocol: websocket"}, with(":method: CONNECT")...), protocol},
		{"scheme", with(":scheme: ftp"), protocol},
		{"empty path", with(":path: "), protocol},
		{"absolute path", with(":path: http://b/"), either},
		{"absolute path of OPTIONS", []string{":method: OPTIONS", post[1], ":path: http://b/", post[3]}, "400"},
		{"relative path", with(":path: v1"), protocol},
		{"asterisk", with(":path: *"), "400"},
		{"fragment", with(":path: /v1#x"), "400"},
		{"space in the path", with(":path: /v1 HTTP/1.1"), "400"},
		{"half an escape", with(":path: /v1%2"), protocol},
		{"path that is not ASCII", with(":path: /v1/\xc3\xa4"), "400"},
		{"long path", with(":path: /" + strings.Repeat("x", maxTarget)), "414"},
		{"no authority", post[:3], "400"},
		{"host that is not the authority", with("host: b"), either},
		{"two hosts", with("host: a", "host: a"), either},
		{"user in the authority", with(":authority: u@a"), either},
		{"authority with a slash", with(":authority: a/b"), either},
		{"authority with an escape", with(":authority: a%41"), "400"},
		{"authority with an odd port", with(":authority: a:8x"), "400"},
		{"method that is none", with(":method: GE T"), "400"},
		{"CONNECT", []string{":method: CONNECT", ":authority: a:80"}, "501"},
		{"expectation", with("expect: 200-ok"), "417"},
		{"line break in a value", with("x-one: a\r\nb"), protocol},
		{"name that is no token", with("x one: 1"), protocol},
		{"too many fields", with(strings.Split(strings.Repeat("x: 1\n", maxFields+1), "\n")[:maxFields+1]...), "431"},
		{"long head", with("x-one: " + strings.Repeat("x", 64<<10)), "431"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
				t.Errorf("the handler got %+v", s.Head())
				s.Abort()
			}}))
			block := p.fields(tt.head...)
			for first := true; first || len(block) > 0; first = false {
				piece := block[:min(len(block), 16384)]
				block = block[len(piece):]
				if first {
					p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: len(block) == 0, BlockFragment: piece})
				} else {
					p.WriteContinuation(1, len(block) == 0, piece)
				}
			}
			r := p.await(1)
			got := r.status
			if got == "" && r.reset != nil {
				got = "reset " + r.reset.String()
			}
			if got != tt.want && (tt.want != either || got != "400" && got != protocol) {
				t.Errorf("got %v, want %s", r, tt.want)
			}
		})
	}
}

func TestBodyAndItsLength(t *testing.T) {
	for _, tt := range []struct {
		name   string
		length string
		body   string
		want   string
	}{
		{"none at all", "5", "", "400"}, // the head ends the stream
		{"short", "5", "1234", "400"},
		{"long", "5", "123456", "reset PROTOCOL_ERROR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
				_, err := io.ReadAll(struct{ io.Reader }{s})
				e, ok := errors.AsType[*ProtocolError](err)
				if !ok {
					if tt.name != "long" || err != ErrClientGone {
						t.Errorf("got %v", err)
					}
					s.Abort()
					return
				}
				answer(s, e.Status, "")
			}}))
			p.open(1, tt.body == "", with("content-length: "+tt.length)...)
			if tt.body != "" {
				p.WriteData(1, true, []byte(tt.body))
			}
			r := p.await(1)
			if r.status != tt.want && (r.reset == nil || "reset "+r.reset.String() != tt.want) {
				t.Errorf("got %v, want %s", r, tt.want)
			}
		})
	}
}

func TestExpect(t *testing.T) {
	p := dial(t, listen(t, &Server{Handler: echo}))
	p.open(1, false, with("expect: 100-continue")...)
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			if h.PseudoValue("status") == "100" {
				break
			}
		}
	}
	p.WriteData(1, true, []byte("hello"))
	if r := p.await(1); r.body != "hello" {
		t.Errorf("got %v", r)
	}
}

// bound is told when the client goes.
type bound chan struct{}

func (b bound) Interrupt() { close(b) }

func TestClientGone(t *testing.T) {
	leave := map[string]func(*peer){
		"reset":      func(p *peer) { p.WriteRSTStream(1, http2.ErrCodeCancel) },
		"close":      func(p *peer) { p.conn.Close() },
		"broken":     func(p *peer) { p.conn.(*net.TCPConn).SetLinger(0); p.conn.Close() },
		"half-close": func(p *peer) { p.conn.(*net.TCPConn).CloseWrite() },
	}
	for how, leave := range leave {
		for _, phase := range []string{"body", "waiting", "answering", "writing"} {
			t.Run(how+" while "+phase, func(t *testing.T) {
				reached := make(chan bool)
				ended := make(chan error, 1)
				p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
					b := make(bound)
					if !s.Bind(b) {
						t.Error("gone before it was")
					}
					var buf [10]byte
					if phase != "body" { // the end of the body is no hang-up
						if _, err := io.ReadFull(s, buf[:5]); err != nil {
							t.Error(err)
						}
						if n, err := s.Read(buf[:]); n != 0 || err != io.EOF {
							t.Error(n, err)
						}
						if s.Context().Err() != nil {
							t.Error("the end of the body ends the context")
						}
					}
					var err error
					switch phase {
					case "body":
						reached <- true
						_, err = io.ReadAll(struct{ io.Reader }{s})
					case "waiting":
						reached <- true
					case "answering":
						s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
						s.Flush()
						reached <- true
					case "writing":
						s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
						s.Flush()
						reached <- true
						for err == nil { // until the window is used up
							_, err = s.Write(make([]byte, 10000))
						}
					}
					<-b
					<-s.Context().Done()
					if (phase == "body" || phase == "writing") && err == nil {
						t.Error("the stream works on")
					}
					s.Unbind()
					if s.Bind(b) {
						t.Error("bound to a client that has gone")
					}
					s.Abort()
					ended <- context.Cause(s.Context())
				}}))
				p.open(1, false, post...)
				p.WriteData(1, phase != "body", []byte("hello"))
				<-reached
				leave(p)
				select {
				case cause := <-ended:
					if cause != ErrClientGone {
						t.Errorf("the cause is %v", cause)
					}
				case <-time.After(tooLong):
					t.Fatal("nobody noticed")
				}
			})
		}
	}
}

func TestTimeouts(t *testing.T) {
	for _, phase := range []string{"reading", "writing"} {
		t.Run(phase, func(t *testing.T) {
			p := dial(t, listen(t, &Server{BodyTimeout: 30 * time.Millisecond, WriteTimeout: 30 * time.Millisecond, Handler: func(s *Stream) {
				b := make(bound)
				s.Bind(b)
				var err error
				if phase == "reading" {
					_, err = s.Read(make([]byte, 1))
				} else {
					s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
					for err == nil {
						_, err = s.Write(make([]byte, 10000))
					}
				}
				if err != ErrTimeout || context.Cause(s.Context()) != ErrTimeout {
					t.Errorf("got %v, and %v of the context", err, context.Cause(s.Context()))
				}
				<-b
				s.Abort()
			}}))
			p.open(1, false, post...)
			if r := p.await(1); r.reset == nil {
				t.Errorf("got %v", r)
			}
		})
	}
}

// A body that nobody reads stops its sender, and nobody else.
func TestFlowControl(t *testing.T) {
	stalled := make(chan bool)
	p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
		if string(s.Head().Target) == "/stall" {
			<-stalled
			s.Abort()
			return
		}
		echo(s)
	}}))
	defer close(stalled)
	chunk := make([]byte, 16384)
	last := uint32(2*maxStreams - 1)
	for id := uint32(1); id < last; id += 2 {
		p.open(id, false, with(":path: /stall")...)
		for range streamWindow / len(chunk) {
			p.WriteData(id, false, chunk)
		}
	}
	p.open(last, false, post...)
	p.WriteData(last, true, []byte("hello"))
	if r := p.await(last); r.body != "hello" {
		t.Errorf("got %v", r)
	}
	// One more byte than its window is too much.
	p.WriteData(1, false, []byte("x"))
	if r := p.await(1); r.reset == nil || *r.reset != http2.ErrCodeFlowControl {
		t.Errorf("got %v", r)
	}
}

// A client that does not read holds back what is written for it.
func TestBackPressure(t *testing.T) {
	const window = 1000
	wrote := make(chan bool, 2)
	p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
		s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
		s.Write(make([]byte, window))
		s.Flush()
		wrote <- true
		s.Write(make([]byte, window))
		s.Flush()
		wrote <- true
		s.Finish(nil)
	}}), http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	p.open(1, true, post...)
	<-wrote
	for got := 0; got < window; {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			got += len(d.Data())
		}
	}
	p.WritePing(false, [8]byte{1}) // what is still to come stands before its answer
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := f.(*http2.DataFrame); ok {
			t.Fatal("data beyond the window")
		}
		if _, ok := f.(*http2.PingFrame); ok {
			break
		}
	}
	select {
	case <-wrote:
		t.Fatal("written beyond the window")
	default:
	}
	p.WriteWindowUpdate(1, window)
	if r := p.await(1); len(r.body) != window {
		t.Errorf("got %d bytes", len(r.body))
	}
	<-wrote
}

func TestFloods(t *testing.T) {
	t.Run("too many streams", func(t *testing.T) {
		p := dial(t, listen(t, &Server{Handler: func(s *Stream) { <-s.Context().Done() }}))
		if r := settings(t, p); r != maxStreams {
			t.Errorf("%d concurrent streams are announced", r)
		}
		for i := range uint32(maxStreams + 1) {
			p.open(2*i+1, true, post...)
		}
		if r := p.await(2*maxStreams + 1); r.reset == nil || *r.reset != http2.ErrCodeProtocol && *r.reset != http2.ErrCodeRefusedStream {
			t.Errorf("got %v", r)
		}
	})
	// CVE-2023-44487: handlers that take their time are no more than the streams
	// allowed at once, whatever is reset.
	t.Run("rapid reset", func(t *testing.T) {
		var mu sync.Mutex
		live, most := 0, 0
		release := make(chan bool)
		p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
			mu.Lock()
			live++
			most = max(most, live)
			mu.Unlock()
			<-release
			mu.Lock()
			live--
			mu.Unlock()
		}}))
		for id := uint32(1); id < 20*maxStreams; id += 2 {
			p.open(id, true, post...)
			if p.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				break
			}
		}
		r := p.await(1 << 30) // until the connection ends
		close(release)
		if !r.closed || r.goAway != nil && *r.goAway != http2.ErrCodeEnhanceYourCalm { // what is still unread may cost the client the GOAWAY
			t.Errorf("got %v", r)
		}
		mu.Lock()
		defer mu.Unlock()
		if most > maxStreams {
			t.Errorf("%d handlers at once", most)
		}
	})
	// CVE-2024-27316
	t.Run("CONTINUATION", func(t *testing.T) {
		p := dial(t, listen(t, &Server{Handler: func(s *Stream) { t.Error("the handler was called"); s.Abort() }}))
		p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.fields(post...)})
		for i := 0; ; i++ {
			if i == 1000 {
				t.Fatal("the connection is still there")
			}
			if p.WriteContinuation(1, false, p.fields(fmt.Sprintf("x-%d: %s", i, strings.Repeat("x", 10000)))) != nil {
				return
			}
		}
	})
	// CVE-2019-9511 to 9518
	for _, tt := range []struct {
		name string
		send func(p *peer) error // again and again
	}{
		{"SETTINGS", func(p *peer) error { return p.WriteSettings() }},
		{"PING", func(p *peer) error { return p.WritePing(false, [8]byte{}) }},
		{"PRIORITY", func(p *peer) error { return p.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }},
		{"empty DATA", func(p *peer) error { return p.WriteData(1, false, nil) }},
		{"unknown frames", func(p *peer) error { return p.WriteRawFrame(0xEE, 0, 0, []byte("?")) }},
		{"windows", func(p *peer) error { return p.WriteWindowUpdate(1, 100) }},
		{"streams beyond the limit", func() func(p *peer) error {
			id := uint32(1)
			return func(p *peer) error {
				id += 2
				return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: p.fields(post...)})
			}
		}()},
		{"resets of one stream", func(p *peer) error { return p.WriteRSTStream(1, http2.ErrCodeCancel) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // each waits for floodPause
			flooded := make(chan bool, 1)
			p := dial(t, listen(t, &Server{
				Handler: func(s *Stream) { <-s.Context().Done() },
				Misbehaved: func(what string) {
					if what == Flood {
						flooded <- true
					}
				},
			}))
			p.open(1, false, post...)
			for tt.send(p) == nil {
			}
			<-flooded
		})
	}
	// A window of a byte at a time has an answer cut into bytes.
	t.Run("windows of a byte", func(t *testing.T) {
		t.Parallel()
		flooded := make(chan bool, 1)
		p := dial(t, listen(t, &Server{
			Handler: func(s *Stream) {
				s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
				for {
					if _, err := s.Write(make([]byte, 1000)); err != nil || s.Flush() != nil {
						return
					}
				}
			},
			Misbehaved: func(what string) {
				if what == Flood {
					flooded <- true
				}
			},
		}), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		p.open(1, true, post...)
		got := 0
		for {
			f, err := p.ReadFrame()
			if err != nil {
				break
			}
			if f, ok := f.(*http2.DataFrame); ok {
				got += len(f.Data())
				p.WriteWindowUpdate(1, 1)
			}
		}
		<-flooded
		if got > 5000 {
			t.Errorf("%d bytes came, each for itself", got)
		}
	})
}

// interrupted is what a stream has bound.
type interrupted struct{}

func (interrupted) Interrupt() {}

// A request waits for its turn while others of its connection are not under way.
func TestRequestsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := new(turn.Gate)
		exhaust := func() {
			for start := time.Now(); time.Since(start) == 0; {
				turns.Take(new(turn.Turn), nil)
			}
		}
		exhaust()
		bind, end := make(chan bool), make(chan bool)
		var begun atomic.Int32
		s := &Server{Turns: turns, Handler: func(s *Stream) {
			begun.Add(1)
			if <-bind {
				s.Bind(interrupted{})
			}
			<-end
			answer(s, 200, "whole")
		}}
		near, far := net.Pipe()
		defer far.Close()
		go s.ServeConn(context.Background(), sock.New(near))
		p := &peer{Framer: http2.NewFramer(far, far), t: t, conn: far}
		p.enc = hpack.NewEncoder(&p.block)
		go io.Copy(io.Discard, far)
		io.WriteString(far, http2.ClientPreface)
		p.WriteSettings()
		wants := func(n int32, when string) {
			t.Helper()
			if synctest.Wait(); begun.Load() != n {
				t.Errorf("%s %d have begun, want %d", when, begun.Load(), n)
			}
		}
		p.open(1, true, post...)
		p.open(3, true, post...)
		p.open(5, true, post...)
		wants(1, "without a turn")
		p.WriteRSTStream(5, http2.ErrCodeCancel)
		time.Sleep(time.Second)
		wants(2, "with turns, but for the one that was reset,")
		exhaust()
		bind <- true
		bind <- true
		wants(2, "with both under way")
		p.open(7, true, post...)
		wants(3, "with nothing before it that is not under way")
		bind <- false
		close(end)
		far.Close()
	})
}

// That a stream is reset is noticed without a turn, behind a few heads that came with it.
func TestResetInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := new(turn.Gate)
		for start := time.Now(); time.Since(start) == 0; {
			turns.Take(new(turn.Turn), nil)
		}
		var gone atomic.Bool
		s := &Server{Turns: turns, Handler: func(s *Stream) {
			s.Bind(interrupted{})
			<-s.Context().Done()
			gone.Store(true)
		}}
		near, far := net.Pipe()
		go s.ServeConn(context.Background(), sock.New(near))
		go io.Copy(io.Discard, far)
		var wire bytes.Buffer
		p := &peer{Framer: http2.NewFramer(&wire, far), t: t, conn: far}
		p.enc = hpack.NewEncoder(&p.block)
		send := func() { wire.WriteTo(far) }
		io.WriteString(far, http2.ClientPreface)
		p.WriteSettings()
		p.open(1, true, post...)
		send()
		synctest.Wait()
		for id := range uint32(fewHeads) {
			p.open(2*id+3, true, post...)
		}
		p.WriteRSTStream(1, http2.ErrCodeCancel)
		send()
		if synctest.Wait(); !gone.Load() {
			t.Error("the stream goes on")
		}
		far.Close()
	})
}

// Frames are found wherever what goes on a connection is cut.
func TestFrames(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(preface)
	fr := http2.NewFramer(&b, nil)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
	fr.WriteWindowUpdate(3, 77)
	fr.WriteData(3, true, []byte("some"))
	fr.WriteRawFrame(http2.FrameWindowUpdate, 0, 3, []byte("wrong"))
	fr.WriteRSTStream(3, http2.ErrCodeCancel)
	fr.WritePing(true, [8]byte{})
	want := []string{"SETTINGS 0 6 0", "WINDOW_UPDATE 0 4 77", "DATA 1 4 0", "WINDOW_UPDATE 0 5 0", "RST_STREAM 0 4 8", "PING 1 8 0"}
	all := b.Bytes()
	for size := 1; size <= len(all); size++ {
		f := frames{skip: len(preface)}
		var got []string
		for piece := range slices.Chunk(all, size) {
			f.each(piece, func(kind http2.FrameType, flags http2.Flags, length int, increment uint32) bool {
				got = append(got, fmt.Sprint(kind, flags, length, increment))
				return true
			})
		}
		if !slices.Equal(got, want) {
			t.Fatalf("in pieces of %d: got %q, want %q", size, got, want)
		}
	}
}

func TestFramesAlloc(t *testing.T) {
	h := &handed{}
	piece := []byte("\x00\x00\x08\x06\x00\x00\x00\x00\x00abcdefgh")
	if n := testing.AllocsPerRun(100, func() { h.received.each(piece, h.meter.Received) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// settings reads the server's SETTINGS and gives its limit of streams.
func settings(t *testing.T, p *peer) uint32 {
	t.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			v, _ := s.Value(http2.SettingMaxConcurrentStreams)
			p.WriteSettingsAck()
			return v
		}
	}
}

func TestDrain(t *testing.T) {
	begun, release := make(chan bool), make(chan bool)
	s := &Server{Handler: func(s *Stream) {
		begun <- true
		<-release
		answer(s, 200, "whole")
	}}
	p := dial(t, listen(t, s))
	p.open(1, true, post...)
	<-begun
	s.Drain()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			if g.ErrCode != http2.ErrCodeNo || g.LastStreamID < 1 {
				t.Errorf("got %v", g)
			}
			break
		}
	}
	close(release)
	if r := p.await(1); r.status != "200" || r.body != "whole" {
		t.Errorf("got %v", r)
	}
	if r := p.await(3); !r.closed {
		t.Errorf("the connection goes on: %v", r)
	}
}

// An answer may end before the request's body, and a reader in its own goroutine
// is let go.
func TestStopReading(t *testing.T) {
	p := dial(t, listen(t, &Server{Handler: func(s *Stream) {
		read := make(chan error)
		go func() {
			_, err := io.ReadAll(struct{ io.Reader }{s})
			read <- err
		}()
		s.WriteHead(&message.Response{Status: 200, ContentLength: message.Unknown})
		s.Write([]byte("abc"))
		s.Finish(nil)
		s.StopReading()
		if err := <-read; err == nil {
			t.Error("the body has ended")
		}
	}}))
	p.open(1, false, post...)
	p.WriteData(1, false, []byte("hello"))
	if r := p.await(1); r.body != "abc" || r.reset != nil {
		t.Errorf("got %v", r)
	}
}
