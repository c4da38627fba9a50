package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// tunnelProxy is a proxy on real sockets in front of one endpoint, which
// answers each of its connections with answer.
type tunnelProxy struct {
	*Server
	address  string
	accessed accessLog
}

// accessLog has the lines of an access log sent on.
type accessLog chan map[string]any

func (l accessLog) Write(lines []byte) (int, error) {
	d := json.NewDecoder(bytes.NewReader(lines))
	d.UseNumber()
	for {
		var fields map[string]any
		switch err := d.Decode(&fields); err {
		case nil:
			l <- fields
		case io.EOF:
			return len(lines), nil
		default:
			return 0, err
		}
	}
}

// expect checks the next line of the access log.
func (l accessLog) expect(t *testing.T, status int, reason string, in, out int) {
	t.Helper()
	line := <-l
	got := fmt.Sprint(line["response_code"], " ", line["response_code_details"], " ", line["bytes_received"], " ", line["bytes_sent"])
	if want := fmt.Sprint(status, " ", reason, " ", in, " ", out); got != want {
		t.Errorf("access log: %s, want %s", got, want)
	}
}

func startTunnelProxy(t *testing.T, times Timeouts, answer func(c *net.TCPConn, r *bufio.Reader, head *http.Request)) *tunnelProxy {
	t.Helper()
	engine := listenTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		head, err := http.ReadRequest(r)
		if err == nil {
			answer(c, r, head)
		}
	})
	p := &tunnelProxy{accessed: make(accessLog, 100)}
	p.Server = New(Config{
		Account: account.New(prometheus.NewRegistry(), account.Config{Access: account.NewLog(p.accessed, account.JSON)}),
		Log:     slog.New(slog.DiscardHandler),
	})
	p.SetWorld(&World{Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: engine}}}}, Timeouts: times})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- p.Serve(l) }()
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		p.Shutdown(now)
		<-served
	})
	return p
}

// listenTCP serves connections until the test ends, and waits for them.
func listenTCP(t *testing.T, serve func(*net.TCPConn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

const upgradeRequest = "GET /v1/realtime?model=m HTTP/1.1\r\nHost: fairway.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"

// dial connects to the proxy and sends first.
func (p *tunnelProxy) dial(t *testing.T, first string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, first)
	return c.(*net.TCPConn), bufio.NewReader(c)
}

// open is dial with an upgrade, which is granted.
func (p *tunnelProxy) open(t *testing.T) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, r := p.dial(t, upgradeRequest)
	readSwitch(t, r)
	return c, r
}

func readSwitch(t *testing.T, r *bufio.Reader) *http.Response {
	t.Helper()
	head, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if head.StatusCode != 101 || head.Header.Get("Upgrade") != "websocket" || head.Header.Get("Connection") != "upgrade" {
		t.Fatalf("got %s %v", head.Status, head.Header)
	}
	return head
}

// Opcodes of WebSocket frames: RFC 6455 section 5.2.
const (
	textFrame  = 1
	closeFrame = 8
)

// frame is a WebSocket frame of less than 126 bytes, masked as a client's is.
func frame(opcode byte, text string, masked bool) []byte {
	f := []byte{0x80 | opcode, byte(len(text))}
	if !masked {
		return append(f, text...)
	}
	key := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	f[1] |= 0x80
	f = append(f, key[:]...)
	for i := range len(text) {
		f = append(f, text[i]^key[i%4])
	}
	return f
}

func readFrame(r io.Reader) (opcode byte, text string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, "", err
	}
	var key [4]byte
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, key[:]); err != nil {
			return 0, "", err
		}
	}
	data := make([]byte, head[1]&0x7f)
	_, err = io.ReadFull(r, data)
	for i := range data {
		data[i] ^= key[i%4]
	}
	return head[0] & 0x0f, string(data), err
}

// echoWebSocket is a WebSocket server that says what it is told.
func echoWebSocket(c *net.TCPConn, r *bufio.Reader, head *http.Request) {
	sum := sha1.Sum([]byte(head.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(c, "%sSec-WebSocket-Accept: %s\r\n\r\n", switching, base64.StdEncoding.EncodeToString(sum[:]))
	for {
		opcode, text, err := readFrame(r)
		if err != nil {
			return
		}
		c.Write(frame(opcode, text, false))
		if opcode == closeFrame {
			return
		}
	}
}

func TestWebSocket(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, echoWebSocket)
	// The first message does not wait for the handshake.
	c, r := p.dial(t, upgradeRequest+string(frame(textFrame, "early", true)))
	head := readSwitch(t, r)
	if head.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || head.Header.Get("X-Request-Id") == "" {
		t.Errorf("fields of the handshake: %v", head.Header)
	}
	for _, text := range []string{"early", "hello", ""} {
		if text != "early" {
			c.Write(frame(textFrame, text, true))
		}
		if opcode, got, err := readFrame(r); opcode != textFrame || got != text || err != nil {
			t.Fatalf("opcode %d, %q, %v", opcode, got, err)
		}
	}
	c.Write(frame(closeFrame, "\x03\xe8", true))
	if opcode, _, err := readFrame(r); opcode != closeFrame || err != nil {
		t.Fatalf("opcode %d, %v", opcode, err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the close frame: %v", err)
	}
	c.Close()
	p.accessed.expect(t, 101, "", 4*6+len("earlyhello")+2, 4*2+len("earlyhello")+2)
}

func TestTunnelHalfClose(t *testing.T) {
	t.Run("by the client", func(t *testing.T) {
		p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
			io.WriteString(c, switching+"\r\n")
			all, _ := io.ReadAll(r)
			fmt.Fprintf(c, "got %s", all)
		})
		c, r := p.open(t)
		io.WriteString(c, "question")
		c.CloseWrite()
		if all, err := io.ReadAll(r); string(all) != "got question" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
		p.accessed.expect(t, 101, "", 8, 12)
	})
	t.Run("by the endpoint", func(t *testing.T) {
		said := make(chan string, 1)
		p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
			io.WriteString(c, switching+"\r\nthat is all")
			c.CloseWrite()
			all, _ := io.ReadAll(r)
			said <- string(all)
		})
		c, r := p.open(t)
		if all, err := io.ReadAll(r); string(all) != "that is all" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
		io.WriteString(c, "not for me")
		c.Close()
		if got := <-said; got != "not for me" {
			t.Errorf("the endpoint got %q", got)
		}
		p.accessed.expect(t, 101, "", 10, 11)
	})
}

func TestTunnelPassesMuchBothWays(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
		io.WriteString(c, switching+"\r\n")
		io.Copy(c, r)
	})
	c, r := p.open(t)
	sent := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{}).Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(r); !bytes.Equal(got, sent) || err != nil {
		t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
	}
	p.accessed.expect(t, 101, "", len(sent), len(sent))
}

func TestTunnelClientGone(t *testing.T) {
	ended := make(chan error, 1)
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
		io.WriteString(c, switching+"\r\n")
		_, err := r.ReadByte()
		ended <- err
	})
	c, _ := p.open(t)
	c.SetLinger(0)
	c.Close()
	if err := <-ended; err == nil {
		t.Error("the endpoint read on")
	}
	p.accessed.expect(t, 101, account.ClientGone, 0, 0)
	if n := p.Endpoints()[0].Transport.Idle(); n != 0 {
		t.Errorf("%d connections kept", n)
	}
}

func TestTunnelEndpointGone(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, _ *bufio.Reader, _ *http.Request) {
		io.WriteString(c, switching+"\r\nhal")
		c.Read(make([]byte, 1)) // the client has that much
		c.SetLinger(0)
	})
	c, r := p.open(t)
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "?")
	if _, err := r.ReadByte(); err == nil || err == io.EOF {
		t.Errorf("the client sees an orderly end: %v", err)
	}
	p.accessed.expect(t, 101, account.UpstreamCut, 1, 3)
}

func TestTunnelIdle(t *testing.T) {
	patiently(t, func(idle time.Duration) error {
		p := startTunnelProxy(t, Timeouts{StreamIdle: idle}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
			io.WriteString(c, switching+"\r\n")
			io.Copy(c, r)
		})
		c, r := p.open(t)
		io.WriteString(c, "abc")
		if got, err := io.ReadAll(r); string(got) != "abc" || err == nil {
			return fmt.Errorf("%q, %v", got, err)
		}
		p.accessed.expect(t, 101, account.TunnelIdle, 3, 3)
		return nil
	})
}

func TestTunnelEndsWithTheServer(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
		io.WriteString(c, switching+"\r\n")
		io.Copy(c, r)
	})
	_, r := p.open(t)
	now, cancel := context.WithCancel(context.Background())
	cancel()
	p.Shutdown(now)
	if _, err := r.ReadByte(); err == nil || err == io.EOF {
		t.Errorf("the client sees an orderly end: %v", err)
	}
	p.accessed.expect(t, 101, account.Stopped, 0, 0)
}

func TestRefusedUpgradeIsAnAnswerLikeAnyOther(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
		for status := 403; ; status = 200 {
			fmt.Fprintf(c, "HTTP/1.1 %d X\r\nContent-Length: 2\r\nUpgrade: websocket\r\n\r\nno", status)
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
		}
	})
	c, r := p.dial(t, "")
	for _, status := range []int{403, 200} {
		io.WriteString(c, upgradeRequest)
		head, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(head.Body)
		if head.StatusCode != status || string(body) != "no" || head.Header.Get("Upgrade") != "" || head.Close {
			t.Errorf("%s %v %q", head.Status, head.Header, body)
		}
		p.accessed.expect(t, status, "", 0, 2)
	}
	if n := p.Endpoints()[0].Transport.Idle(); n != 1 {
		t.Errorf("%d connections kept, not one", n)
	}
}

func TestUpgradeThatReachesTheEndpoint(t *testing.T) {
	for _, test := range []struct{ name, fields, want string }{
		{"websocket", "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n", "upgrade websocket"},
		{"h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", " "},
		{"not connected", "Upgrade: websocket\r\n", " "},
		{"none", "", " "},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := make(chan string, 2)
			p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, _ *bufio.Reader, head *http.Request) {
				got <- head.Header.Get("Connection") + " " + head.Header.Get("Upgrade") + head.Header.Get("HTTP2-Settings")
				io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			})
			_, r := p.dial(t, "GET /x HTTP/1.1\r\nHost: a\r\n"+test.fields+"\r\n")
			if head, err := http.ReadResponse(r, nil); err != nil || head.StatusCode != 204 {
				t.Fatal(head, err)
			}
			if line := <-got; line != test.want {
				t.Errorf("the endpoint was sent %q, want %q", line, test.want)
			}
		})
	}
}

func TestSwitchThatNobodyAskedForIsAFailure(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
		io.WriteString(c, switching+"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		io.Copy(io.Discard, r)
	})
	_, r := p.dial(t, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
	head, err := http.ReadResponse(r, nil)
	if err != nil || head.StatusCode != 502 {
		t.Fatal(head, err)
	}
	text, _ := io.ReadAll(head.Body)
	if !strings.Contains(string(text), "not asked for") {
		t.Errorf("the error says %s", text)
	}
}

func TestTunnelOfAClientThatLeftBefore(t *testing.T) {
	ended := make(chan error, 1)
	p := startTunnelProxy(t, Timeouts{}, func(c *net.TCPConn, r *bufio.Reader, _ *http.Request) {
		io.WriteString(c, switching+"\r\n")
		_, err := r.ReadByte()
		ended <- err
	})
	m := post("/v1/realtime", "")
	m.head.Upgrade = []byte("websocket")
	m.writeErr = errClientLeft
	p.Handle(m)
	if err := <-ended; err == nil || !m.aborted {
		t.Errorf("the endpoint read %v; aborted: %v", err, m.aborted)
	}
	p.accessed.expect(t, 101, account.ClientGone, 0, 0)
}

func TestTunnelInMemory(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, echoWebSocket)
	client, far := net.Pipe()
	m := post("/v1/realtime", "")
	m.head.Upgrade = []byte("websocket")
	m.tunnel = sock.New(far)
	done := make(chan struct{})
	go func() {
		p.Handle(m)
		close(done)
	}()
	client.Write(frame(textFrame, "hello", true))
	if _, text, err := readFrame(client); text != "hello" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	client.Close()
	<-done
	if m.answer.Status != 101 || !m.finished || m.aborted {
		t.Errorf("status %d, finished %v, aborted %v", m.answer.Status, m.finished, m.aborted)
	}
	p.accessed.expect(t, 101, "", 11, 7)
}

// inTunnel has a tunnel run in a bubble between two pipes, and gives their far
// ends and the tunnel's end.
func inTunnel(t *testing.T, idle time.Duration, f func(tu *tunnel, client, endpoint net.Conn, ended <-chan struct{})) {
	synctest.Test(t, func(t *testing.T) {
		client, c := net.Pipe()
		endpoint, e := net.Pipe()
		tu := &tunnel{idle: idle, stall: tunnelStall}
		tu.client.conn, tu.endpoint.conn = sock.New(c), sock.New(e)
		ended := make(chan struct{})
		go func() {
			tu.run()
			close(ended)
			c.Close()
			e.Close()
		}()
		f(tu, client, endpoint, ended)
		<-ended
		client.Close()
		endpoint.Close()
	})
}

func TestTunnelTimes(t *testing.T) {
	open := func(ended <-chan struct{}) bool {
		synctest.Wait()
		select {
		case <-ended:
			return false
		default:
			return true
		}
	}
	t.Run("either direction keeps it", func(t *testing.T) {
		inTunnel(t, time.Second, func(tu *tunnel, client, endpoint net.Conn, ended <-chan struct{}) {
			for range 10 {
				time.Sleep(900 * time.Millisecond) // the bubble's time
				endpoint.Write([]byte("x"))
				client.Read(make([]byte, 1))
			}
			if !open(ended) {
				t.Error("cut while the endpoint talked")
			}
			time.Sleep(time.Second)
			if open(ended) || tu.failed != nil || tu.cause != errTunnelIdle {
				t.Errorf("after a second of silence: %v", tu.cause)
			}
		})
	})
	t.Run("without a bound silence is no end", func(t *testing.T) {
		inTunnel(t, 0, func(_ *tunnel, client, endpoint net.Conn, ended <-chan struct{}) {
			time.Sleep(24 * time.Hour)
			if !open(ended) {
				t.Error("cut")
			}
			client.Close()
			endpoint.Close()
		})
	})
	t.Run("half of it is kept while it says something", func(t *testing.T) {
		inTunnel(t, 0, func(tu *tunnel, client, endpoint net.Conn, ended <-chan struct{}) {
			client.Close()
			time.Sleep(tunnelStall - time.Second)
			if !open(ended) {
				t.Error("cut too early")
			}
			time.Sleep(time.Second)
			if open(ended) || !errors.Is(tu.cause, errTunnelIdle) {
				t.Errorf("a minute after the client's end: %v", tu.cause)
			}
		})
	})
	t.Run("an end that takes nothing", func(t *testing.T) {
		inTunnel(t, 0, func(tu *tunnel, client, endpoint net.Conn, ended <-chan struct{}) {
			client.Write([]byte("x")) // the endpoint does not read it
			for range 59 {
				time.Sleep(time.Second)
				endpoint.Write([]byte("y")) // but talks
				client.Read(make([]byte, 1))
			}
			if !open(ended) {
				t.Error("cut too early")
			}
			time.Sleep(time.Second)
			if open(ended) || tu.failed != &tu.endpoint {
				t.Errorf("a minute without taking a byte: %v", tu.cause)
			}
		})
	})
}
