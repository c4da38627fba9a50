package mock

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
)

const upgrade = "GET /v1/realtime HTTP/1.1\r\nHost: mock\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// frame makes a client's frame.
func frame(opcode byte, payload []byte) string {
	b := []byte{0x80 | opcode}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return string(b)
}

// dialRealtime opens a WebSocket.
func dialRealtime(t *testing.T, ln *pipes) *client {
	t.Helper()
	c := connect(t, ln)
	c.send(upgrade)
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The example of RFC 6455, section 1.3.
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" ||
		resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	return c
}

// readFrame reads a server's frame.
func (c *client) readFrame() (opcode byte, payload []byte) {
	c.t.Helper()
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c.br, b); err != nil {
			c.t.Fatal(err)
		}
		return b
	}
	head := read(2)
	n := int(head[1])
	switch n {
	case 126:
		n = int(binary.BigEndian.Uint16(read(2)))
	case 127:
		n = int(binary.BigEndian.Uint64(read(8)))
	}
	return head[0] & 0xf, read(n)
}

func TestRealtimeEchoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := dialRealtime(t, ln)
		for _, size := range []int{0, 5, 125, 126, 65535, 65536, maxFrame} {
			want := bytes.Repeat([]byte("x"), size)
			go io.WriteString(c.nc, frame(1, want))
			if op, got := c.readFrame(); op != 1 || !bytes.Equal(got, want) {
				t.Errorf("%d bytes came back as %d, opcode %d", size, len(got), op)
			}
		}
		c.send(frame(opPing, []byte("there?")))
		if op, got := c.readFrame(); op != opPong || string(got) != "there?" {
			t.Errorf("a ping was answered by %d %q", op, got)
		}
		c.send(frame(opPong, nil) + frame(2, []byte("a")) + frame(opClose, []byte{3, 232}))
		if op, got := c.readFrame(); op != 2 || string(got) != "a" {
			t.Errorf("got %d %q", op, got)
		}
		if op, got := c.readFrame(); op != opClose || !bytes.Equal(got, []byte{3, 232}) {
			t.Errorf("got %d %q", op, got)
		}
		if _, err := c.br.ReadByte(); err != io.EOF {
			t.Errorf("after the close: %v", err)
		}
	})
}

func TestRealtimeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		if resp, _ := connect(t, ln).ask(get("/v1/realtime")); resp.StatusCode != http.StatusNotFound {
			t.Errorf("without an upgrade: %s", resp.Status)
		}
		for sent, code := range map[string]uint16{
			"\x81\x01a": closeProtocolError, // no mask
			"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00": closeTooBig,
			frame(2, make([]byte, maxFrame+1))[:14]:                    closeTooBig,
		} {
			c := dialRealtime(t, ln)
			go io.WriteString(c.nc, sent)
			if op, got := c.readFrame(); op != opClose || binary.BigEndian.Uint16(got) != code {
				t.Errorf("%q: got %d %q", sent, op, got)
			}
		}
	})
}

// SIGTERM says goodbye on an idle WebSocket and does not wait for the client.
func TestRealtimeShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := New(tiny()), newPipes()
		go s.Serve(ln)
		c := dialRealtime(t, ln)
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()
		if op, got := c.readFrame(); op != opClose || binary.BigEndian.Uint16(got) != closeRestart {
			t.Errorf("got %d %q", op, got)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte(frame(1, []byte("hello")) + frame(opPing, nil)))
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := &conn{in: newInput(nil)}
		c.in.buf, c.in.err = sent, io.EOF
		close(c.in.gone)
		c.attach()
		x := &exchange{c: c}
		for x.echo() {
			if len(c.out) > len(sent)+2 {
				t.Fatalf("%d bytes for %d", len(c.out), len(sent))
			}
			c.out = c.out[:0]
		}
	})
}

func TestUpgradeIsNoWayAroundTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.APIKey = "secret"
		_, ln := start(t, cfg)
		if resp, _ := connect(t, ln).ask(upgrade); resp.StatusCode != http.StatusUnauthorized {
			t.Error(resp.Status)
		}
		if resp, _ := connect(t, ln).ask(strings.Replace(upgrade, "Host", "Authorization: Bearer secret\r\nHost", 1)); resp.StatusCode != 101 {
			t.Error(resp.Status)
		}
	})
}
