package h1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

func TestUpgradeAskedFor(t *testing.T) {
	for _, c := range []struct{ name, fields, want string }{
		{"asked", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "websocket"},
		{"among other options", "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n", "WebSocket"},
		{"fields the other way round", "Upgrade: websocket\r\nConnection: upgrade\r\n", "websocket"},
		{"with a version", "Connection: upgrade\r\nUpgrade: IRC/6.9\r\n", "IRC/6.9"},
		{"not in Connection", "Upgrade: websocket\r\n", ""},
		{"only in Connection", "Connection: upgrade\r\n", ""},
		{"h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", ""},
		{"h2c and another", "Connection: upgrade\r\nUpgrade: h2c, websocket\r\n", "websocket"},
		{"another and h2c", "Connection: upgrade\r\nUpgrade: websocket , H2C\r\n", "websocket"},
		{"HTTP by its version", "Connection: upgrade\r\nUpgrade: HTTP/2.0\r\n", ""},
		{"two fields", "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n", "websocket"},
		{"not a token", "Connection: upgrade\r\nUpgrade: web socket\r\n", ""},
		{"a body", "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n", ""},
		{"chunks", "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n", ""},
		{"no body", "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n", "websocket"},
		{"empty", "Connection: upgrade\r\nUpgrade: \r\n", ""},
	} {
		for version, want := range map[string]string{"HTTP/1.1": c.want, "HTTP/1.0": ""} {
			if version == "HTTP/1.0" && c.name == "chunks" {
				continue // refused
			}
			var p parser
			var r message.Request
			p.restart()
			done, err := p.request([]byte("GET / "+version+"\r\nHost: a\r\n"+c.fields+"\r\n"), &r)
			if !done || err != nil {
				t.Errorf("%s: %v, %v", c.name, done, err)
			}
			if string(r.Upgrade) != want || (r.Upgrade == nil) != (want == "") || len(r.Fields) != 0 {
				t.Errorf("%s in %s: upgrade %q, want %q; fields %q", c.name, version, r.Upgrade, want, r.Fields)
			}
		}
	}
}

// shout answers an upgrade with a 101 and sends back in upper case what comes,
// until the client ends its half.
func shout(s *Stream) {
	head := message.Response{Status: 101, Upgrade: s.Head().Upgrade}
	if err := s.WriteHead(&head); err != nil {
		s.WriteHead(&message.Response{Status: 400})
		s.Finish(nil)
		return
	}
	c, err := s.Tunnel()
	if err != nil {
		s.Abort()
		return
	}
	var buf [100]byte
	for {
		n, err := c.Read(buf[:])
		if n > 0 {
			io.WriteString(c, strings.ToUpper(string(buf[:n])))
		}
		if err != nil {
			break
		}
	}
	if s.Context().Err() == nil { // half of a tunnel ended, not the client
		io.WriteString(c, "!")
		s.Finish(nil)
	}
}

func TestTunnelFromTheFirstByteToBothEnds(t *testing.T) {
	s := &Server{Handler: shout}
	addr := listen(t, s)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
	r := bufio.NewReader(c)
	for _, want := range []string{"HTTP/1.1 101 Switching Protocols\r\n", "connection: upgrade\r\n", "upgrade: websocket\r\n", "\r\n"} {
		if line, err := r.ReadString('\n'); line != want || err != nil {
			t.Fatalf("got %q, %v, want %q", line, err, want)
		}
	}
	io.WriteString(c, "late")
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(r); string(rest) != "EARLY LATE!" || err != nil {
		t.Fatalf("got %q, %v", rest, err)
	}
}

func TestClientConnTunnel(t *testing.T) {
	c := dial(t, listen(t, &Server{Handler: shout}))
	req := message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a"), Upgrade: []byte("websocket")}
	var resp message.Response
	if err := c.Send(&req); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadHead(&resp); err != nil || resp.Status != 101 || string(resp.Upgrade) != "websocket" {
		t.Fatalf("got %d, %q, %v", resp.Status, resp.Upgrade, err)
	}
	if _, err := c.Next(); err != ErrState {
		t.Errorf("a body of a 101: %v", err)
	}
	conn, err := c.Tunnel()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "abc")
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "ABC!" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	if c.Reusable() || c.Send(&req) != ErrState {
		t.Error("the connection is still taken for HTTP")
	}
}

func TestTunnelBytesBehindTheHead(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	c := NewClientConn(sock.New(client))
	defer c.Close()
	go func() {
		bufio.NewReader(server).ReadString('\n')
		io.WriteString(server, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\nhello")
		server.Close()
	}()
	c.Send(&message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a"), Upgrade: []byte("websocket")})
	var resp message.Response
	if err := c.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	conn, err := c.Tunnel()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestSwitchNobodyAskedFor(t *testing.T) {
	for _, c := range []struct{ name, asked, answer string }{
		{"not asked", "", "Connection: upgrade\r\nUpgrade: websocket\r\n"},
		{"another protocol", "websocket", "Connection: upgrade\r\nUpgrade: h2c\r\n"},
		{"no protocol", "websocket", ""},
		{"not in Connection", "websocket", "Upgrade: websocket\r\n"},
	} {
		client, server := net.Pipe()
		go func() {
			bufio.NewReader(server).ReadString('\n')
			io.WriteString(server, "HTTP/1.1 101 Switching Protocols\r\n"+c.answer+"\r\n")
			server.Close()
		}()
		cc := NewClientConn(sock.New(client))
		req := message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a")}
		if c.asked != "" {
			req.Upgrade = []byte(c.asked)
		}
		cc.Send(&req)
		var resp message.Response
		if err := cc.ReadHead(&resp); !errors.Is(err, errSwitch) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := cc.Tunnel(); err != ErrState {
			t.Errorf("%s: a tunnel: %v", c.name, err)
		}
		cc.Close()
	}
}

func TestServerSwitchesOnlyWhenAsked(t *testing.T) {
	addr := listen(t, &Server{Handler: shout})
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx", // a body
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, request)
		if line, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, " 400 ") || err != nil {
			t.Errorf("%q: %q, %v", request, line, err)
		}
		c.Close()
	}
}

func TestRefusedUpgradeKeepsTheConnection(t *testing.T) {
	c := dial(t, listen(t, &Server{Handler: echo}))
	req := message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a"), Upgrade: []byte("websocket")}
	var resp message.Response
	for range 2 {
		if err := c.Send(&req); err != nil {
			t.Fatal(err)
		}
		if err := c.ReadHead(&resp); err != nil || resp.Status != 200 {
			t.Fatalf("%d, %v", resp.Status, err)
		}
		if _, err := c.Tunnel(); err != ErrState {
			t.Errorf("a tunnel: %v", err)
		}
		readAll(t, c)
	}
}

func TestServerCloseEndsTunnels(t *testing.T) {
	ended := make(chan error, 1)
	s := &Server{Handler: func(s *Stream) {
		s.WriteHead(&message.Response{Status: 101, Upgrade: s.Head().Upgrade})
		c, err := s.Tunnel()
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		ended <- err
	}}
	c := dial(t, listen(t, s))
	c.Send(&message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a"), Upgrade: []byte("x")})
	var resp message.Response
	if err := c.ReadHead(&resp); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := <-ended; err == nil {
		t.Error("the tunnel goes on")
	}
	conn, _ := c.Tunnel()
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the client sees an orderly end: %v", err)
	}
}
