package hbone

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
)

// announcement is a PROXY header as ztunnel writes it.
func announcement(from, to string, id string) []byte {
	f, d := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	b := append([]byte(proxySignature), 0x21, 0x11)
	if f.Addr().Is6() {
		b[13] = 0x21
	}
	body := append(f.Addr().AsSlice(), d.Addr().AsSlice()...)
	body = binary.BigEndian.AppendUint16(body, f.Port())
	body = binary.BigEndian.AppendUint16(body, d.Port())
	if id != "" {
		body = append(body, proxyIdentity)
		body = binary.BigEndian.AppendUint16(body, uint16(len(id)))
		body = append(body, id...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

func sandwich(t *testing.T, inner net.Listener) (*Sandwich, *log) {
	t.Helper()
	said := new(log)
	s := NewSandwich(inner, SandwichConfig{Log: slog.New(slog.NewTextHandler(said, nil))})
	t.Cleanup(func() { s.Close() })
	return s, said
}

func loopback(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSandwich(t *testing.T) {
	s, _ := sandwich(t, loopback(t))
	for _, tt := range []struct{ from, to, id string }{
		{"10.1.2.3:4567", vip, "spiffe://cluster.local/ns/default/sa/client"},
		{"[fd00::1]:4567", "[fd00::7]:80", "spiffe://cluster.local/ns/default/sa/client"},
		{"10.1.2.3:4567", vip, ""},
	} {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Write(append(announcement(tt.from, tt.to, tt.id), "GET / HTTP/1.1\r\n"...))
		c.(*net.TCPConn).CloseWrite()
		accepted, err := s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		p, ok := PeerOf(accepted)
		if !ok || p.ID.String() != tt.id || p.Forwarded != netip.MustParseAddrPort(tt.from) || p.Destination != netip.MustParseAddrPort(tt.to) || p.Authority != tt.to || p.Remote != nil {
			t.Errorf("got %+v", p)
		}
		if got, err := io.ReadAll(accepted); err != nil || string(got) != "GET / HTTP/1.1\r\n" {
			t.Errorf("got %q, %v", got, err)
		}
		accepted.Close()
		c.Close()
	}
	if n := s.Counters.Opened.Load(); n != 3 {
		t.Errorf("%d counted", n)
	}
}

// foreign gives connections that seem to come from elsewhere.
type foreign struct{ net.Listener }

type foreignConn struct{ net.Conn }

func (l foreign) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return foreignConn{c}, nil
}

func (foreignConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 99} }

func TestSandwichRefuses(t *testing.T) {
	good := announcement("10.1.2.3:4567", vip, "spiffe://cluster.local/ns/default/sa/client")
	change := func(at int, b byte) []byte {
		p := bytes.Clone(good)
		p[at] = b
		return p
	}
	for _, tt := range []struct {
		name  string
		bytes []byte
		far   bool
	}{
		{"not this machine", good, true},
		{"HTTP", []byte("GET / HTTP/1.1\r\nhost: llama\r\n\r\n"), false},
		{"version 1", []byte("PROXY TCP4 10.1.2.3 10.96.0.7 4567 80\r\n"), false},
		{"version 3", change(12, 0x31), false},
		{"nobody announced", change(12, 0x20), false},
		{"UDP", change(13, 0x12), false},
		{"too long", change(14, 0xFF), false},
		{"cut", good[:len(good)-1], false},
		{"no such identity", announcement("10.1.2.3:4567", vip, "client"), false},
		{"no port", announcement("10.1.2.3:4567", "10.96.0.7:0", ""), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner := loopback(t)
			if tt.far {
				inner = foreign{inner}
			}
			s, said := sandwich(t, inner)
			c, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write(tt.bytes)
			c.(*net.TCPConn).CloseWrite()
			io.ReadAll(c) // until it is closed
			waitFor(t, "the refusal", func() bool { return s.Counters.Refused(ReasonProxy) == 1 && said.lines() == 1 })
		})
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add(announcement("10.1.2.3:4567", vip, "spiffe://cluster.local/ns/default/sa/client"))
	f.Add(announcement("[fd00::1]:4567", "[fd00::7]:80", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(append(bytes.Clone(b), "rest"...))
		p, err := readProxyHeader(r)
		if err != nil {
			return
		}
		if !p.Destination.IsValid() || p.Destination.Port() == 0 || p.Authority != p.Destination.String() {
			t.Errorf("accepted without a destination: %+v", p)
		}
		if want := len(b) - 16 - int(binary.BigEndian.Uint16(b[14:])); r.Len() != want+4 {
			t.Errorf("%d bytes are left, want %d", r.Len(), want+4)
		}
	})
}
