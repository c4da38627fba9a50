package sock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestUnder: what is given for TLS to stand on is a connection like the one below it, with both halves in use at once.
func TestUnder(t *testing.T) {
	a, b := tcpPair(t)
	near, far := Under(a), Under(b)
	sent := bytes.Repeat([]byte("fairway "), 1<<17)
	echoed := make(chan error, 2)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{far})
		far.(interface{ CloseWrite() error }).CloseWrite()
		echoed <- err
	}()
	go func() {
		_, err := near.Write(sent)
		near.(interface{ CloseWrite() error }).CloseWrite()
		echoed <- err
	}()
	got, err := io.ReadAll(near)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back of %d: %v", len(got), len(sent), err)
	}
	for range 2 {
		if err := <-echoed; err != nil {
			t.Fatal(err)
		}
	}
	near.SetReadDeadline(time.Unix(1, 0))
	if _, err := near.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) && err != io.EOF {
		t.Errorf("after the deadline: %v", err)
	}
}

// TestTryWrite: what a socket does not take is left, and nobody waits for it.
func TestTryWrite(t *testing.T) {
	a, b := tcpPair(t)
	c, ok := Under(a).(*Bare)
	if !ok {
		t.Skipf("%s has no reading and writing past the runtime here", runtime.GOOS)
	}
	sent := make([]byte, 64<<20) // more than sockets hold
	n, err := c.TryWrite(sent)
	if err != nil || n == 0 || n == len(sent) {
		t.Fatalf("%d of %d bytes written: %v", n, len(sent), err)
	}
	more, err := c.TryWrite(sent[n:]) // the kernel may have found room meanwhile
	if err != nil {
		t.Errorf("on a full socket: %v", err)
	}
	n += more
	if _, err := io.ReadFull(b, sent[:n]); err != nil {
		t.Error(err)
	}
	c.Close()
	if _, err := c.TryWrite(sent[:1]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed connection: %v", err)
	}
}
