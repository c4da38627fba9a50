// Package admin serves those who watch the proxy: health and metrics for the
// cluster, endpoints, configuration and profiles for the operator.
//
// It sees the proxy through a Source that package main gives it, and changes
// nothing. Both handlers are safe for concurrent use.
package admin

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Source is what there is to see.
type Source struct {
	// Ready says whether requests are wanted; a non-empty reason says why not.
	Ready func() (reason string)
	// Gatherer holds the metrics.
	Gatherer prometheus.Gatherer
	// Endpoints and Config give values to be shown as JSON.
	Endpoints func() any
	Config    func() any
}

// Metrics handles the port that the cluster scrapes and probes: /metrics (also
// under Istio's path /stats/prometheus), /healthz/ready and /healthz/live.
func Metrics(s Source) http.Handler {
	mux := http.NewServeMux()
	metrics := promhttp.HandlerFor(s.Gatherer, promhttp.HandlerOpts{EnableOpenMetrics: true})
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /stats/prometheus", metrics)
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if reason := s.Ready(); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("ok\n"))
	})
	return mux
}

// Admin handles the operator's port: /endpoints, /config and /debug/pprof/,
// beside all that Metrics serves.
func Admin(s Source) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", Metrics(s))
	mux.HandleFunc("GET /endpoints", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Endpoints()) })
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Config()) })
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.Encode(v)
}
