package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/h1"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

func TestProtocolOf(t *testing.T) {
	for _, test := range []struct {
		first string
		want  PortProtocol
		sure  bool
	}{
		{"", PortTCP, false},
		{"GET", PortTCP, false},
		{"GET /", PortHTTP, false},
		{"GET / HTTP/1.1\r\n", PortHTTP, true},
		{"GET / HTTP/1.1\n", PortHTTP, true},
		{"POST /v1/chat/completions HTTP/1.0\r\nHost: a", PortHTTP, true},
		{"M-SEARCH * HTTP/1.1\r\n", PortHTTP, true},
		{"PRI * HTTP/2.0\r\n", PortHTTP, true},
		{"EHLO mail.example\r\n", PortTCP, true},
		{"PING\r\n", PortTCP, true},
		{"*1\r\n$4\r\nPING\r\n", PortTCP, true},
		{"SSH-2.0-OpenSSH_9.2", PortTCP, true},
		{"\x16\x03\x01\x02\x00", PortTCP, true},             // TLS
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", PortTCP, true}, // PostgreSQL
		{strings.Repeat("A", 33), PortTCP, true},
		{"GET / FTP/1.1\r\n", PortTCP, true},
	} {
		if got, sure := protocolOf([]byte(test.first)); got != test.want || sure != test.sure {
			t.Errorf("%q: %s, sure %v", test.first, got, sure)
		}
	}
}

// What is sure stays so whatever follows, and nothing that is read as a request with a
// method in capitals is passed on unread.
func FuzzProtocolOf(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 5)
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 9)
	f.Add([]byte("EHLO a\r\n"), 3)
	f.Add([]byte("\x16\x03\x01"), 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		whole, _ := protocolOf(b)
		cut = min(max(cut, 0), len(b))
		if part, sure := protocolOf(b[:cut]); sure && part != whole {
			t.Errorf("%q was %s for sure, and is %s", b[:cut], part, whole)
		}
		if method, _, _ := bytes.Cut(b, []byte(" ")); whole == PortHTTP || len(method) == 0 || len(method) > 32 || bytes.ContainsFunc(method, func(r rune) bool { return r < 'A' || r > 'Z' }) {
			return
		}
		near, far := net.Pipe()
		var served sync.WaitGroup
		s := h1.Server{
			Handler:    func(*h1.Stream) { t.Errorf("%q is a request, and would be passed on unread", b) },
			BadRequest: func(st *h1.Stream, _ *h1.ProtocolError) { st.Abort() },
		}
		served.Go(func() { s.ServeConn(t.Context(), near) })
		far.Write(b)
		far.Close()
		served.Wait()
	})
}

// A client that waits for the server's first word is given a second to speak.
func TestSniffTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		start := Now()
		protocol, err := sniff(sock.New(near))
		if protocol != PortTCP || err != nil || Now()-start != sniffTime {
			t.Errorf("%s, %v after %v", protocol, err, Now()-start)
		}
	})
}

// The endpoint with the fewest connections gets the next, one that takes none comes
// last.
func TestLeastConnections(t *testing.T) {
	pool := picker.NewPool(picker.Config{})
	pool.SetEndpoints([]picker.Spec{{Address: "a:1"}, {Address: "b:1"}, {Address: "c:1"}})
	all := pool.Endpoints()
	all[2].Eject(Now())
	var n connections
	for range 4 {
		n.least(all, nil, "")
	}
	if n.at[all[0]] != 2 || n.at[all[1]] != 2 || n.at[all[2]] != 0 {
		t.Errorf("%v", n.at)
	}
	n.leave(all[1])
	if e := n.least(all, nil, ""); e != all[1] {
		t.Errorf("got %s", e.Address())
	}
	if e := n.least(all, all[:2], ""); e != all[2] {
		t.Error("the last resort is not taken")
	}
	if e := n.least(all, all, ""); e != nil {
		t.Errorf("got %s", e.Address())
	}
	if e := n.least(all, nil, "c:1"); e != all[2] {
		t.Error("another one than the one that is meant")
	}
}

// A connection whose only endpoint takes none was tried once; one that had another to turn to, twice.
func TestConnectionsTriedAgainAreCounted(t *testing.T) {
	pool := Pool{Name: "pool"}
	for retries := range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		pool.Endpoints = append(pool.Endpoints, Endpoint{Address: l.Addr().String()})
		s := New(Config{Log: slog.New(slog.DiscardHandler)})
		s.SetWorld(&World{Pools: []Pool{pool}})
		var rec account.Record
		_, _, err = s.dialTCP(&rec, &destination{pool: s.serving.Load().byName["pool"]})
		if err == nil || rec.Retries != retries {
			t.Errorf("%d endpoints: tried again %d times (%v)", len(pool.Endpoints), rec.Retries, err)
		}
		s.Shutdown(t.Context())
	}
}

// What is not HTTP may be held up for long: one that takes nothing for minutes, or is silent after the other has said
// all, is not taken for one that has gone.
func TestConnectionsMayTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		endpoint, dialed := net.Pipe()
		s := New(Config{Log: slog.New(slog.DiscardHandler), Tunnel: func(context.Context, string, spiffeid.ID) (net.Conn, error) { return dialed, nil }})
		s.SetWorld(&World{
			Pools:    []Pool{{Name: "db", Plain: true, Endpoints: []Endpoint{{Address: "10.0.0.1:5432", Scheme: SchemeHBONE}}}},
			Services: []Service{{Host: "db", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: []ServicePort{{Port: 5432, Protocol: PortTCP, Pool: "db"}}}},
		})
		client, accepted := net.Pipe()
		done := make(chan struct{})
		go func() {
			s.serveConn(meshConn{accepted, &hbone.Peer{Authority: "10.96.0.7:5432"}}, nil)
			close(done)
		}()
		client.Write([]byte("insert"))
		time.Sleep(10 * time.Minute)
		if n, err := endpoint.Read(make([]byte, 10)); n != 6 {
			t.Errorf("it was held up: %v", err)
		}
		endpoint.Close() // has said all
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		select {
		case <-done:
			t.Error("the client was cut off")
		default:
		}
		client.Close()
		<-done
		s.Shutdown(t.Context())
	})
}
