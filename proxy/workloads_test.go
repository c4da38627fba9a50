package proxy

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/hbone"
)

// What came through a tunnel is told with the workloads at both ends, and with the code
// and the flags that the client's side knows from Istio.
func TestRequestsOfTheMeshAreCountedAsIstioDoes(t *testing.T) {
	ranked := quick
	ranked.DataParallel = 2
	p := startPod(t, "", ranked)
	reg := prometheus.NewRegistry()
	var log bytes.Buffer
	access := account.NewLog(&log, account.Text)
	s := New(Config{Account: account.New(reg, account.Config{Access: access}), Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { s.Shutdown(t.Context()) })
	port := func(n uint16, pool string) ServicePort {
		return ServicePort{Port: n, Protocol: PortHTTP, Pool: pool}
	}
	s.SetWorld(&World{
		Pools: []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: p.address, Ranks: 2}}}, {Name: "none"}},
		Services: []Service{{Host: "llm.prod.svc.cluster.local", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")},
			Ports: []ServicePort{port(80, "pool"), port(81, "none")}}},
	})
	s.SetWorkloads(map[netip.Addr]*Workload{
		netip.MustParseAddr("10.0.0.9"):           {Name: "web", Namespace: "chat"},
		netip.MustParseAddrPort(p.address).Addr(): {Name: "vllm", Namespace: "prod"},
	})
	peer := func(authority string) *hbone.Peer {
		return &hbone.Peer{Authority: authority, ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/chat/sa/web"), Forwarded: netip.MustParseAddrPort("10.0.0.9:4711")}
	}
	send := func(authority string) {
		m := post("/v1/chat/completions", chat(false, 1, "hi"))
		m.conn = meshConn{peer: peer(authority)}
		s.Handle(m)
	}
	send("10.96.0.7:80")
	send("10.96.0.7:80")
	send("10.96.0.7:81")
	send("10.96.0.8:80")                                            // not ours
	sendBytes(t, s, peer("10.96.0.7:80"), "GET / HTTP/1.1\r\n\r\n") // has no Host
	s.Handle(post("/v1/chat/completions", chat(false, 1, "hi")))    // not of the mesh
	want := map[string]float64{"web chat vllm prod llm 200 -": 2, "web chat unknown unknown llm 503 UH": 1, "web chat unknown unknown llm 400 -": 1}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != "istio_requests_total" {
			continue
		}
		for _, m := range f.Metric {
			l := make(map[string]string)
			for _, pair := range m.Label {
				l[pair.GetName()] = pair.GetValue()
			}
			got[fmt.Sprint(l["source_workload"], " ", l["source_workload_namespace"], " ", l["destination_workload"], " ", l["destination_workload_namespace"], " ",
				l["destination_service_name"], " ", l["response_code"], " ", l["response_flags"])] = m.Counter.GetValue()
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	access.Close()
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "response_code=400 ") {
			if !strings.Contains(line, "spiffe://cluster.local/ns/chat/sa/web") || !strings.Contains(line, "10.0.0.9:4711") || !strings.Contains(line, "llm.prod.svc.cluster.local") {
				t.Errorf("a head that could not be taken is logged without who sent it where: %s", line)
			}
		}
	}
}

// sendBytes sends this through a tunnel and waits for the end of what is answered.
func sendBytes(t *testing.T, s *Server, peer *hbone.Peer, request string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		s.serveTunnel(meshConn{served, peer}, peer)
		close(done)
	}()
	if _, err := io.WriteString(client, request); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, client)
	client.Close()
	<-done
}
