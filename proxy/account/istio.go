package account

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Workload is what Istio's metrics tell of one end of a request: of a pod, what it is part of. An empty field is not known.
type Workload struct {
	Name, Namespace   string // of what owns the pod: a Deployment, say
	Principal         string // the SPIFFE ID of its service account
	App, Version      string
	CanonicalService  string
	CanonicalRevision string
	Cluster           string
}

const (
	unknownLabel   = "unknown" // what nobody knows, in Istio's metrics
	latestRevision = "latest"  // the revision of what names none

	// maxIstioSeries is how many combinations of labels are told apart. In what is beyond, both ends are unknown: what is left are
	// Services, codes and flags.
	maxIstioSeries = 1024
	// istioIdle is how long nothing is counted in a combination, in seconds, until it makes room for another: pods come and go, and with
	// each version of theirs what they are part of. istioSweep is how often such are looked for at most.
	istioIdle  = 3600
	istioSweep = 10
	// maxPrincipal bounds a SPIFFE ID in a label, in bytes.
	maxPrincipal = 256
)

// istioBuckets are those of Istio's histograms, for times and for sizes: Envoy's default (envoy, source/common/stats/histogram_impl.cc).
var istioBuckets = []float64{.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// istioLabels are those that Istio documents ("Istio Standard Metrics").
var istioLabels = []string{
	"reporter",
	"source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
	"source_canonical_service", "source_canonical_revision", "source_cluster",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_canonical_service", "destination_canonical_revision", "destination_cluster",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"request_protocol", "response_code", "response_flags", "connection_security_policy",
}

// istioMetrics are the metrics that Istio's own waypoints have, of what comes through tunnels.
type istioMetrics struct {
	requests                *prometheus.CounterVec
	duration, received, out *prometheus.HistogramVec

	mu     sync.RWMutex
	series map[istioKey]*istioSeries // guarded by mu
	swept  int64                     // when room was last looked for, in Unix seconds; guarded by mu
}

// istioKey is what tells children apart.
type istioKey struct {
	source, destination Workload
	service             string
	grpc                bool
	code                int
	flags               string
}

// istioSeries are the children of a key.
type istioSeries struct {
	requests                prometheus.Counter
	duration, received, out prometheus.Observer

	used atomic.Int64 // when something was last counted, in Unix seconds; to be set with istioMetrics.mu held, if only to read
}

// use keeps that something is counted.
func (s *istioSeries) use(now int64) {
	if s.used.Load() < now {
		s.used.Store(now)
	}
}

func newIstioMetrics(reg prometheus.Registerer) *istioMetrics {
	m := &istioMetrics{series: make(map[istioKey]*istioSeries)}
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_requests_total",
		Help: "Requests through the mesh that have ended, as Istio's waypoints count them."}, istioLabels)
	histogram := func(name, help string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: istioBuckets}, istioLabels)
		reg.MustRegister(v)
		return v
	}
	reg.MustRegister(m.requests)
	m.duration = histogram("istio_request_duration_milliseconds", "Time from a request's head to the end of its answer, of requests through the mesh.")
	m.received = histogram("istio_request_bytes", "Size of the bodies of requests through the mesh.")
	m.out = histogram("istio_response_bytes", "Size of the bodies of their answers.")
	return m
}

// done counts an exchange, if it came through a tunnel to what is ours.
func (m *istioMetrics) done(rec *Record) {
	if rec.Service == "" {
		return
	}
	s := m.of(rec)
	s.requests.Inc()
	s.duration.Observe(float64(rec.Duration) / float64(time.Millisecond))
	s.received.Observe(float64(rec.BytesIn))
	s.out.Observe(float64(rec.BytesOut))
}

// of finds what a record counts in, and makes it if it is missing.
func (m *istioMetrics) of(rec *Record) *istioSeries {
	k := istioKey{service: rec.Service, grpc: rec.GRPC, code: rec.Status, flags: responseFlags(rec)}
	if w := rec.Source; w != nil && (w.Principal == "" || w.Principal == rec.Peer) { // the address is only what the peer says
		k.source = *w
	}
	k.source.Principal = rec.Peer
	if rec.Destination != nil {
		k.destination = *rec.Destination
	}
	now := rec.Start.Add(rec.Duration).Unix()
	m.mu.RLock()
	s := m.series[k]
	if s != nil {
		s.use(now)
	}
	m.mu.RUnlock()
	if s != nil {
		return s
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.series) >= maxIstioSeries {
		m.makeRoom(now)
	}
	if s = m.series[k]; s != nil {
		s.use(now)
		return s
	}
	if len(m.series) >= maxIstioSeries || len(rec.Peer) > maxPrincipal || strings.ToValidUTF8(rec.Peer, "") != rec.Peer {
		k.source, k.destination = Workload{}, Workload{}
		if s = m.series[k]; s != nil {
			s.use(now)
			return s
		}
	}
	labels := k.labels()
	s = &istioSeries{
		requests: m.requests.WithLabelValues(labels...), duration: m.duration.WithLabelValues(labels...),
		received: m.received.WithLabelValues(labels...), out: m.out.WithLabelValues(labels...),
	}
	s.use(now)
	k.service = strings.Clone(k.service)
	m.series[k] = s
	return s
}

// makeRoom drops the combinations in which nothing has been counted for a while. m.mu is held.
func (m *istioMetrics) makeRoom(now int64) {
	if now-m.swept < istioSweep {
		return
	}
	m.swept = now
	used := make(map[prometheus.Counter]bool) // some keys have the same labels: what is not known, and what is called unknown
	for _, s := range m.series {
		if now-s.used.Load() < istioIdle {
			used[s.requests] = true
		}
	}
	for k, s := range m.series {
		if used[s.requests] {
			continue
		}
		labels := k.labels()
		m.requests.DeleteLabelValues(labels...)
		for _, v := range []*prometheus.HistogramVec{m.duration, m.received, m.out} {
			v.DeleteLabelValues(labels...)
		}
		delete(m.series, k)
	}
}

// labels are the values of istioLabels.
func (k istioKey) labels() []string {
	if ns, sa := serviceAccount(k.source.Principal); sa != "" {
		k.source.Namespace = cmp.Or(k.source.Namespace, ns)
	}
	values := append([]string{"waypoint"}, k.source.labels()...)
	values = append(values, k.destination.labels()...)
	host, name, ns := k.service, k.service, k.destination.Namespace
	if _, err := netip.ParseAddrPort(host); err == nil { // a pod
		host, name = unknownLabel, cmp.Or(k.destination.CanonicalService, unknownLabel)
	} else if first, rest, ok := strings.Cut(host, "."); ok {
		if in, rest, _ := strings.Cut(rest, "."); strings.HasPrefix(rest, "svc.") || rest == "svc" {
			name, ns = first, in
		}
	}
	protocol := "http"
	if k.grpc {
		protocol = "grpc"
	}
	return append(values, host, name, cmp.Or(ns, unknownLabel), protocol, strconv.Itoa(k.code), k.flags, "mutual_tls")
}

// labels are the values of the eight labels of one end.
func (w *Workload) labels() []string {
	values := []string{w.Name, w.Namespace, w.Principal, w.App, w.Version, w.CanonicalService, cmp.Or(w.CanonicalRevision, latestRevision), w.Cluster}
	for i, v := range values {
		values[i] = cmp.Or(v, unknownLabel)
	}
	return values
}

// serviceAccount gives the namespace and the service account of a SPIFFE ID as Istio has them, spiffe://domain/ns/namespace/sa/account;
// empty for another one.
func serviceAccount(id string) (namespace, account string) {
	_, path, ok := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/ns/")
	if !ok {
		return "", ""
	}
	namespace, account, _ = strings.Cut(path, "/sa/")
	if strings.Contains(namespace, "/") || strings.Contains(account, "/") || account == "" {
		return "", ""
	}
	return namespace, account
}
