package proxy

import (
	"fmt"
	"log/slog"
	"net/netip"
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
	s := New(Config{Account: account.New(reg, account.Config{}), Log: slog.New(slog.DiscardHandler)})
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
	send := func(authority string) {
		m := post("/v1/chat/completions", chat(false, 1, "hi"))
		m.conn = meshConn{peer: &hbone.Peer{Authority: authority, ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/chat/sa/web"), Forwarded: netip.MustParseAddrPort("10.0.0.9:4711")}}
		s.Handle(m)
	}
	send("10.96.0.7:80")
	send("10.96.0.7:80")
	send("10.96.0.7:81")
	send("10.96.0.8:80")                                         // not ours
	s.Handle(post("/v1/chat/completions", chat(false, 1, "hi"))) // not of the mesh
	want := map[string]float64{"web chat vllm prod llm 200 -": 2, "web chat unknown unknown llm 503 UH": 1}
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
}
