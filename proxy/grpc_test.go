package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
)

// duplexStream is a stream in memory that goes both ways, as one of HTTP/2 does.
type duplexStream struct{ *memoryStream }

func (duplexStream) Duplex()      {}
func (duplexStream) StopReading() {}

// What a client says its body is ejects no endpoint: engines that speak HTTP/1.1
// alone answer HTTP/2 with an error.
func TestGRPCEjectsNoEngine(t *testing.T) {
	var pods []*pod
	for range 3 {
		pods = append(pods, scripted(t, func(c net.Conn, in *bufio.Reader) {
			if r, err := take(in); err != nil || r.ProtoMajor != 1 {
				io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}")
		}))
	}
	s := startServer(t, World{}, pods...)
	for range 20 {
		m := post("/grpc.health.v1.Health/Check", "")
		m.head.Fields[0].Value = []byte("application/grpc")
		s.Handle(duplexStream{m})
		m = post("/v1/chat/completions", chat(false, 1, "hi"))
		m.head.Fields[0].Value = []byte("application/grpc")
		s.Handle(m) // in HTTP/1.1 it is a body like another
	}
	for _, e := range s.Endpoints() {
		if e.Endpoint.Ejected(Now()) {
			t.Errorf("%s is ejected", e.Endpoint.Address())
		}
	}
	m := post("/v1/chat/completions", chat(false, 1, "hi"))
	s.Handle(m)
	if m.answer.Status != 200 {
		t.Errorf("a request like others: %d", m.answer.Status)
	}
}

// What is asked in HTTP/2 without a body is asked again like anything else, where that does no harm.
func TestAskedAgainInHTTP2(t *testing.T) {
	var asked atomic.Int32
	h := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "ok")
	})}
	h.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(func() { h.Close() })
	var endpoints []Endpoint
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go h.Serve(l)
		endpoints = append(endpoints, Endpoint{Address: l.Addr().String()})
	}
	service := []Service{{Host: "web", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: []ServicePort{{Port: 80, Protocol: PortH2C, Pool: "web"}}}}
	s := startServer(t, World{Services: service, Pools: []Pool{{Name: "web", Plain: true, Endpoints: endpoints}}})
	for method, want := range map[string]int{"GET": 200, "POST": 502} {
		asked.Store(0)
		m := post("/", "")
		m.conn = meshConn{peer: &hbone.Peer{Authority: "10.96.0.7:80", ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/client")}}
		m.head.Method = []byte(method)
		if s.Handle(duplexStream{m}); m.answer.Status != want {
			t.Errorf("%s: %d %s", method, m.answer.Status, m.seen())
		}
	}
}

// A model that is asked in HTTP/2 of a port that speaks nothing else is judged like any
// other, whatever the request says its body is.
func TestModelsAreJudgedInHTTP2(t *testing.T) {
	reached := make(chan string, 8)
	h := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached <- r.URL.Path
		io.WriteString(w, "{}")
	})}
	h.Protocols.SetUnencryptedHTTP2(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go h.Serve(l)
	t.Cleanup(func() { h.Close() })
	service := []Service{{Host: "llm", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: []ServicePort{{Port: 80, Protocol: PortH2C, Pool: "pool"}}}}
	s := startServer(t, World{Services: service, Access: authz.Config{Policies: []authz.Policy{
		policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"mock"}}}}),
	}}}, &pod{address: l.Addr().String()})
	peer := &hbone.Peer{Authority: "10.96.0.7:80", ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/client")}
	for _, kind := range []string{"application/json", "application/grpc"} {
		m := post("/v1/chat/completions", chat(false, 100, "hi"))
		m.conn = meshConn{peer: peer}
		m.head.Fields[0].Value = []byte(kind)
		s.Handle(duplexStream{m})
		if m.answer.Status != 403 || len(reached) > 0 {
			t.Errorf("%s: %d, %d requests reached the engine", kind, m.answer.Status, len(reached))
		}
	}
}
