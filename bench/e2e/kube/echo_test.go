//go:build e2e

package kube_test

import (
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"
)

// echo is a pod that answers everything and counts what was chosen for it, as the field x-chosen says.
type echo struct {
	pod *pod

	mu     sync.Mutex
	counts map[string]int // guarded by mu
}

func startEcho(t *testing.T, namespace, name, labels string) *echo {
	t.Helper()
	e := &echo{pod: &pod{namespace: namespace, name: name, labels: labels, ip: podIP()}, counts: make(map[string]int)}
	l, err := net.Listen("tcp", e.pod.address())
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
	if r.URL.Path == "/metrics" {
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
