package account

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meshed is a record of an exchange through the mesh, of which all is known.
func meshed() *Record {
	rec := told()
	rec.Reason, rec.Retries = "", 0
	rec.Peer, rec.Service = "spiffe://cluster.local/ns/chat/sa/web", "llama.prod.svc.cluster.local"
	rec.Source = &Workload{Name: "web-v1", Namespace: "chat", Principal: rec.Peer, App: "web", Version: "v1", CanonicalService: "web", CanonicalRevision: "v1", Cluster: "c1"}
	rec.Destination = &Workload{Name: "vllm", Namespace: "prod", Principal: "spiffe://cluster.local/ns/prod/sa/vllm", App: "vllm", CanonicalService: "vllm", Cluster: "c1"}
	return rec
}

// requestsOf gives the labels of the only series of istio_requests_total that a record makes, but for the reporter and the policy.
func requestsOf(t *testing.T, rec *Record) map[string]string {
	t.Helper()
	reg := prometheus.NewRegistry()
	New(reg, Config{}).Done(rec)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := make(map[string]string)
	for _, f := range families {
		if f.GetName() == "istio_requests_total" {
			if len(f.Metric) != 1 || f.Metric[0].Counter.GetValue() != 1 {
				t.Fatalf("%v", f)
			}
			for _, l := range f.Metric[0].Label {
				labels[l.GetName()] = l.GetValue()
			}
		}
	}
	return labels
}

func TestIstioLabels(t *testing.T) {
	full := map[string]string{
		"reporter": "waypoint", "connection_security_policy": "mutual_tls", "request_protocol": "http", "response_code": "200", "response_flags": "-",
		"source_workload": "web-v1", "source_workload_namespace": "chat", "source_principal": "spiffe://cluster.local/ns/chat/sa/web", "source_app": "web",
		"source_version": "v1", "source_canonical_service": "web", "source_canonical_revision": "v1", "source_cluster": "c1",
		"destination_workload": "vllm", "destination_workload_namespace": "prod", "destination_principal": "spiffe://cluster.local/ns/prod/sa/vllm",
		"destination_app": "vllm", "destination_version": "unknown", "destination_canonical_service": "vllm", "destination_canonical_revision": "latest",
		"destination_cluster": "c1", "destination_service": "llama.prod.svc.cluster.local", "destination_service_name": "llama", "destination_service_namespace": "prod",
	}
	stranger := map[string]string{"source_workload": "unknown", "source_app": "unknown", "source_version": "unknown", "source_canonical_service": "unknown",
		"source_canonical_revision": "latest", "source_cluster": "unknown"}
	nowhere := map[string]string{"destination_workload": "unknown", "destination_workload_namespace": "unknown", "destination_principal": "unknown",
		"destination_app": "unknown", "destination_canonical_service": "unknown", "destination_cluster": "unknown"}
	for name, c := range map[string]struct {
		change func(*Record)
		want   map[string]string // beside full
	}{
		"all known":             {func(*Record) {}, nil},
		"gRPC":                  {func(r *Record) { r.GRPC = true }, map[string]string{"request_protocol": "grpc"}},
		"a peer of no known IP": {func(r *Record) { r.Source = nil }, stranger}, // its namespace is in its identity
		"a peer that says it comes from another's": {func(r *Record) { r.Peer = "spiffe://cluster.local/ns/evil/sa/x" },
			merged(stranger, map[string]string{"source_principal": "spiffe://cluster.local/ns/evil/sa/x", "source_workload_namespace": "evil"})},
		"another kind of identity": {func(r *Record) { r.Peer, r.Source = "spiffe://elsewhere/web", nil },
			merged(stranger, map[string]string{"source_principal": "spiffe://elsewhere/web", "source_workload_namespace": "unknown"})},
		"nobody chosen": {func(r *Record) { r.Destination, r.Status, r.Reason = nil, 503, "fairway_no_endpoint" },
			merged(nowhere, map[string]string{"response_code": "503", "response_flags": "UH"})},
		"a pod": {func(r *Record) { r.Service = "10.0.0.1:8000" }, map[string]string{"destination_service": "unknown", "destination_service_name": "vllm"}},
		"another host": {func(r *Record) { r.Service = "llama.example.com" },
			map[string]string{"destination_service": "llama.example.com", "destination_service_name": "llama.example.com"}},
		"denied": {func(r *Record) { r.Status, r.Reason = 403, "fairway_forbidden" }, map[string]string{"response_code": "403"}},
		"retried in vain": {func(r *Record) { r.Status, r.Reason, r.Retries = 502, "fairway_upstream_failed", 2 },
			map[string]string{"response_code": "502", "response_flags": "UF,URX"}},
		"left": {func(r *Record) { r.Status, r.Reason = 499, ClientGone }, map[string]string{"response_code": "499", "response_flags": "DC"}},
	} {
		t.Run(name, func(t *testing.T) {
			rec := meshed()
			c.change(rec)
			want := merged(full, c.want)
			if got := requestsOf(t, rec); !maps.Equal(got, want) {
				for _, l := range slices.Sorted(maps.Keys(want)) {
					if got[l] != want[l] {
						t.Errorf("%s=%q, want %q", l, got[l], want[l])
					}
				}
			}
		})
	}
	t.Run("not of the mesh", func(t *testing.T) {
		if got := requestsOf(t, told()); len(got) != 0 {
			t.Errorf("%v", got)
		}
	})
}

func merged(a, b map[string]string) map[string]string {
	a = maps.Clone(a)
	maps.Copy(a, b)
	return a
}

// The histograms count what the counter does.
func TestIstioSums(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, Config{})
	r.Done(meshed())
	r.Done(meshed())
	sums := make(map[string]float64)
	for name, v := range series(t, reg) {
		if short, _, _ := strings.Cut(name, "{"); strings.HasPrefix(short, "istio_") && !strings.HasSuffix(short, "_bucket") {
			sums[short] += v
		}
	}
	want := map[string]float64{"istio_requests_total": 2,
		"istio_request_duration_milliseconds_count": 2, "istio_request_duration_milliseconds_sum": 2469.134,
		"istio_request_bytes_count": 2, "istio_request_bytes_sum": 32, "istio_response_bytes_count": 2, "istio_response_bytes_sum": 34}
	if !maps.Equal(sums, want) {
		t.Errorf("%v", sums)
	}
}

// However many peers there are and whatever they are called, there is an end to the series, and no request is lost.
func TestIstioSeriesAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, Config{})
	n := maxIstioSeries + 500
	for i := range n {
		rec := meshed()
		rec.Peer = fmt.Sprintf("spiffe://cluster.local/ns/n/sa/%d", i)
		r.Done(rec)
	}
	for _, peer := range []string{"spiffe://" + strings.Repeat("x", 2000), "spiffe://\xff"} {
		rec := meshed()
		rec.Peer = peer
		r.Done(rec)
	}
	total, lines := 0.0, 0
	for name, v := range series(t, reg) {
		if strings.HasPrefix(name, "istio_requests_total{") {
			total, lines = total+v, lines+1
			if len(name) > 2000 {
				t.Errorf("%.100s…", name)
			}
		}
	}
	if lines != maxIstioSeries+1 || total != float64(n+2) || len(r.istio.series) != lines {
		t.Errorf("%d series of %v requests, %d held", lines, total, len(r.istio.series))
	}
}

// Combinations in which nothing was counted for an hour make room for others, once there is none. The others go on counting.
func TestIstioSeriesMakeRoom(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, Config{})
	at := func(version string, minutes int) {
		rec := meshed()
		rec.Source.Version, rec.Start = version, rec.Start.Add(time.Duration(minutes)*time.Minute)
		r.Done(rec)
	}
	counts := func() map[string]float64 {
		all := make(map[string]float64)
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.Metric {
				for _, l := range m.Label {
					if f.GetName() == "istio_requests_total" && l.GetName() == "source_version" {
						all[l.GetValue()] += m.Counter.GetValue()
					}
				}
			}
		}
		return all
	}
	for i := range maxIstioSeries - 3 {
		at(fmt.Sprint("old ", i), 0)
	}
	at("unknown", 0)
	at("", 0) // in labels the same
	at("lives", 0)
	at("", 50)
	at("lives", 50)
	at("new", 59) // counts with both ends unknown
	if n := counts(); len(n) != maxIstioSeries-1 || n["old 0"] != 1 || n["lives"] != 2 || n["unknown"] != 4 {
		t.Errorf("%d versions before an hour has passed, %v", len(n), n)
	}
	at("new", 61)
	if n := counts(); len(n) != 3 || n["new"] != 1 || n["lives"] != 2 || n["unknown"] != 4 {
		t.Errorf("after an hour: %v", n)
	}
	at("lives", 200)
	at("unknown", 200)
	if n := counts(); len(n) != 3 || n["lives"] != 3 || n["unknown"] != 5 {
		t.Errorf("while there is room: %v", n)
	}
}

func TestIstioAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector")
	}
	m := newIstioMetrics(prometheus.NewRegistry())
	known, stranger := meshed(), meshed()
	stranger.Source, stranger.Destination = nil, nil
	for name, rec := range map[string]*Record{"workloads known": known, "principal alone": stranger} {
		m.done(rec)
		if n := testing.AllocsPerRun(100, func() { m.done(rec) }); n != 0 {
			t.Errorf("%s: %v allocations a request", name, n)
		}
	}
}

func BenchmarkIstio(b *testing.B) {
	m := newIstioMetrics(prometheus.NewRegistry())
	rec := meshed()
	b.ReportAllocs()
	for b.Loop() {
		m.done(rec)
	}
}
