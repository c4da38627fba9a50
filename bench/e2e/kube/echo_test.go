//go:build e2e

package kube_test

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// witness stands before a pod's engine and counts which models it is asked for.
type witness struct {
	engine *httputil.ReverseProxy

	mu    sync.Mutex
	asked map[string]int // guarded by mu
}

// startWitness has one listen at the address of a pod whose engine listens elsewhere.
func startWitness(t *testing.T, p *pod) *witness {
	t.Helper()
	p.ip, p.listen = podIP(), process.FreeAddress()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	w := &witness{engine: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: p.listen}), asked: make(map[string]int)}
	w.engine.Transport = transport
	l, err := net.Listen("tcp", p.address())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: w}
	go s.Serve(l)
	t.Cleanup(func() {
		s.Close()
		transport.CloseIdleConnections()
	})
	return w
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method == "POST" {
		body, err := io.ReadAll(r.Body)
		var said struct{ Model string }
		if err != nil || json.Unmarshal(body, &said) != nil {
			http.Error(rw, "what is this?", http.StatusBadRequest)
			return
		}
		w.mu.Lock()
		w.asked[said.Model]++
		w.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	w.engine.ServeHTTP(rw, r)
}

// counts gives how often each model was asked for.
func (w *witness) counts() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.asked)
}

// echo is a pod that answers everything and counts what was chosen for it, as the field x-chosen says.
type echo struct {
	pod *pod

	mu     sync.Mutex
	counts map[string]int // guarded by mu
}

func startEcho(t *testing.T, namespace, name, labels string) *echo {
	t.Helper()
	return startEchoAt(t, 8000, namespace, name, labels)
}

func startEchoAt(t *testing.T, port uint16, namespace, name, labels string) *echo {
	t.Helper()
	e := &echo{pod: &pod{namespace: namespace, name: name, labels: labels, ip: podIP()}, counts: make(map[string]int)}
	l, err := net.Listen("tcp", netip.AddrPortFrom(e.pod.ip, port).String())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: e}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	theCluster.apply(t, e.pod.yaml("True"))
	return e
}

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/metrics" || r.URL.Path == "/health" {
		return
	}
	e.mu.Lock()
	e.counts[r.Header.Get("x-chosen")]++
	e.mu.Unlock()
	w.Header().Set("content-type", "application/json")
	w.Write([]byte("{}\n"))
}

// chosen gives how many requests said what in x-chosen.
func (e *echo) chosen() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.counts)
}
