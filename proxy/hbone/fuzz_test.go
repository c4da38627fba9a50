package hbone

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestAuthority(t *testing.T) {
	for _, tt := range []struct {
		in   string
		addr string // "" for a name
		ok   bool
	}{
		{"10.96.0.7:80", "10.96.0.7:80", true},
		{"[fd00::7]:8080", "[fd00::7]:8080", true},
		{"[::ffff:10.96.0.7]:80", "10.96.0.7:80", true},
		{"llama.default.svc.cluster.local:80", "", true},
		{"llama:1", "", true},
		{"", "", false},
		{":80", "", false},
		{"10.96.0.7", "", false},
		{"10.96.0.7:", "", false},
		{"10.96.0.7:0", "", false},
		{"10.96.0.7:65536", "", false},
		{"10.96.0.7:080", "", false},
		{"10.96.0:80", "", false},
		{"010.96.0.7:80", "", false},
		{"[fe80::1%eth0]:80", "", false},
		{"fd00::7:80", "", false},
		{"user@llama:80", "", false},
		{"llama/:80", "", false},
		{"llama..svc:80", "", false},
		{"http://llama:80", "", false},
	} {
		got, err := parseAuthority(tt.in)
		if (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.in, err)
		}
		if want, _ := netip.ParseAddrPort(tt.addr); got != want {
			t.Errorf("%q: got %v", tt.in, got)
		}
	}
}

func TestForwarded(t *testing.T) {
	for _, tt := range []struct{ in, from, host string }{
		{`for="10.1.2.3:4567";host=llama.default.svc`, "10.1.2.3:4567", "llama.default.svc"},
		{`for="10.1.2.3:4567"`, "10.1.2.3:4567", ""},
		{`For="[fd00::1]:4567"; Host="llama:80"`, "[fd00::1]:4567", "llama:80"},
		{`host=llama;proto=http;for="10.1.2.3:4567"`, "10.1.2.3:4567", "llama"},
		{`for="10.1.2.3:4567", for="6.6.6.6:66";host=evil`, "10.1.2.3:4567", ""},
		{`for="10.1.2.\3:4567"`, "10.1.2.3:4567", ""},
		{`for=unknown;host=llama`, "", "llama"},
		{`for="_secret"`, "", ""},
		{`for="10.1.2.3"`, "", ""},
		{`for="10.1.2.3:4567`, "", ""},
		{`host="a b"`, "", ""},
		{`nonsense`, "", ""},
		{``, "", ""},
	} {
		from, host := parseForwarded(tt.in)
		if want, _ := netip.ParseAddrPort(tt.from); from != want || host != tt.host {
			t.Errorf("%s: got %v, %q", tt.in, from, host)
		}
	}
}

// What is accepted is one address, or a name that nobody can take for one.
func FuzzAuthority(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseAuthority(s)
		if err != nil {
			if got.IsValid() {
				t.Errorf("%q: refused, and %v", s, got)
			}
			return
		}
		host, port, err := net.SplitHostPort(s)
		if err != nil || host == "" || port == "" || port == "0" {
			t.Fatalf("%q is accepted, and net says %q, %q, %v", s, host, port, err)
		}
		addr, err := netip.ParseAddr(host)
		if (err == nil) != got.IsValid() || err == nil && addr.Unmap() != got.Addr() {
			t.Errorf("%q: got %v, netip says %v", s, got, addr)
		}
		if strings.ContainsAny(host, "/@ \t\r\n\x00%?#\\") {
			t.Errorf("%q is accepted", s)
		}
	})
}

func FuzzForwarded(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		from, host := parseForwarded(s)
		if from.Addr().Zone() != "" {
			t.Errorf("%q: from %v", s, from)
		}
		if name, _, _ := strings.Cut(host, ":"); host != "" && !hostName(name) {
			t.Errorf("%q: host %q", s, host)
		}
		// An address that ztunnel has written is found, whatever it says besides.
		if again, _ := parseForwarded(`for="10.1.2.3:4567";` + s); again != netip.MustParseAddrPort("10.1.2.3:4567") && !strings.Contains(strings.ToLower(s), "for") {
			t.Errorf("%q after an address: %v", s, again)
		}
	})
}

// Whatever a peer says of itself, what is kept of it has no control characters and is
// no longer than the limit.
func FuzzBaggage(f *testing.F) {
	f.Fuzz(func(t *testing.T, baggage, traceparent, name, value string) {
		var fl fields
		for _, h := range []hpack.HeaderField{
			{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: vip}, {Name: name, Value: value},
			{Name: "baggage", Value: baggage}, {Name: "traceparent", Value: traceparent}, {Name: "baggage", Value: value},
		} {
			fl.add(h)
		}
		if fl.malformed != "" || fl.size > maxHeaderList {
			return
		}
		for _, s := range []string{fl.baggage, fl.traceparent, fl.forwarded, fl.authority} {
			if len(s) > maxHeaderList || strings.ContainsAny(s, "\r\n\x00") {
				t.Errorf("kept %q", s)
			}
		}
		if fl.method != "CONNECT" || fl.authority != vip {
			t.Errorf("%q: %q changed what was asked for", name, value)
		}
	})
}

// script is a connection that says what it was given, and then no more.
type script struct {
	io.Reader
	net.Conn
}

func (s script) Read(p []byte) (int, error)     { return s.Reader.Read(p) }
func (script) Write(p []byte) (int, error)      { return len(p), nil }
func (script) Close() error                     { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }
func (script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// frames is what a client could say.
func frames(say func(*http2.Framer)) []byte {
	var b bytes.Buffer
	f := http2.NewFramer(&b, nil)
	f.AllowIllegalWrites = true
	f.WriteSettings()
	say(f)
	return b.Bytes()
}

// Whatever frames come, the server neither panics nor keeps anything of them, and it
// gives out the bytes of a tunnel as they were sent.
func FuzzFrames(f *testing.F) {
	f.Add(frames(func(f *http2.Framer) {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: connectBlock})
		f.WriteData(1, false, []byte("hello"))
		f.WriteWindowUpdate(1, 1000)
		f.WriteDataPadded(1, true, []byte("world"), make([]byte, 9))
	}))
	l := newListener(&handed{conns: make(chan net.Conn), closed: make(chan struct{})}, Config{Budget: NewBudget(1 << 20)}, standardLimits)
	f.Cleanup(func() { l.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		l.running.Add(1)
		l.serve(script{Reader: io.MultiReader(strings.NewReader(http2.ClientPreface), bytes.NewReader(b))})
		l.running.Done()
		for {
			select {
			case c := <-l.accept:
				got, _ := io.ReadAll(c)
				if !bytes.Contains(b, got) && len(got) > 0 && !spread(b, got) {
					t.Errorf("a tunnel says %q, which nobody sent", got)
				}
				if p, ok := PeerOf(c); !ok || p.Authority == "" {
					t.Errorf("accepted without an authority: %+v", p)
				}
				c.Close()
				continue
			default:
			}
			break
		}
		if l.Counters.Tunnels.Load() != 0 || l.Counters.Conns.Load() != 0 || l.config.Budget.Held() != 0 {
			t.Errorf("left: %d tunnels, %d connections, %d bytes", l.Counters.Tunnels.Load(), l.Counters.Conns.Load(), l.config.Budget.Held())
		}
	})
}

// spread tells whether got's bytes come in b in this order.
func spread(b, got []byte) bool {
	for _, c := range got {
		i := bytes.IndexByte(b, c)
		if i < 0 {
			return false
		}
		b = b[i+1:]
	}
	return true
}
