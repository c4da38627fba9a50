// Package admin serves those who watch the proxy: health and metrics for the
// cluster, endpoints, configuration and profiles for the operator.
//
// It sees the proxy through a Source that package main gives it, and changes
// nothing but the log's level. Both handlers are safe for concurrent use.
package admin

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairway-proxy/fairway/proxy/account"
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
	// Receipts gives the receipts of the last exchanges, the newest first.
	Receipts func(account.Query) []account.Receipt
	// Dashboard serves / and what is below /dashboard/ on the operator's port;
	// nil: nothing is there.
	Dashboard http.Handler
	// Replica is the name of this process.
	Replica string
	// Level is that of the log; nil: it cannot be changed.
	Level *slog.LevelVar
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

// Admin handles the operator's port: the dashboard at /, /endpoints, /config, /receipts, /log and
// /debug/pprof/, beside all that Metrics serves. It answers only to IP addresses and to names
// without a dot, such as localhost: a page of the web that an operator visits can have its own
// name lead here, and would read all of it.
func Admin(s Source) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", Metrics(s))
	if s.Dashboard != nil {
		mux.Handle("GET /{$}", s.Dashboard)
		mux.Handle("GET /dashboard/", s.Dashboard)
	}
	mux.HandleFunc("GET /endpoints", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Endpoints()) })
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Config()) })
	mux.HandleFunc("GET /receipts", s.receipts)
	mux.HandleFunc("GET /receipts/{id...}", s.receipt)
	mux.HandleFunc("GET /log", s.logLevel)
	mux.HandleFunc("PUT /log", s.setLogLevel)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && strings.Contains(host, ".") {
			writeError(w, http.StatusMisdirectedRequest, fmt.Sprintf("host %q: this port answers to IP addresses and to names without a dot, such as localhost", host))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// receipts lists the receipts that the query wants: by id, model, pool or endpoint, and at
// most limit of them.
func (s Source) receipts(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := account.Query{ID: v.Get("id"), Model: v.Get("model"), Pool: v.Get("pool"), Endpoint: v.Get("endpoint")}
	for name := range v {
		if !slices.Contains([]string{"id", "model", "pool", "endpoint", "limit"}, name) {
			writeError(w, http.StatusBadRequest, fmt.Sprintf("unknown parameter %q: want id, model, pool, endpoint or limit", name))
			return
		}
	}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			writeError(w, http.StatusBadRequest, fmt.Sprintf("limit %q: want a whole number, 0 or more", text))
			return
		}
		q.Limit = n
	}
	found := s.Receipts(q)
	if found == nil {
		found = []account.Receipt{}
	}
	writeJSON(w, struct {
		Replica  string            `json:"replica"`
		Receipts []account.Receipt `json:"receipts"`
	}{s.Replica, found})
}

// receipt gives the newest receipt of that id.
func (s Source) receipt(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	found := s.Receipts(account.Query{ID: id, Limit: 1})
	if len(found) == 0 {
		why := fmt.Sprintf("there is no receipt of %q here (replica %s): it has not ended yet, or too many have since", id, s.Replica)
		if _, replica, named := strings.Cut(id, "@"); named && replica != s.Replica {
			why = fmt.Sprintf("replica %s has served that request, and this is %s: ask there", replica, s.Replica)
		}
		writeError(w, http.StatusNotFound, why)
		return
	}
	writeJSON(w, found[0])
}

func (s Source) logLevel(w http.ResponseWriter, _ *http.Request) {
	if s.Level == nil {
		writeError(w, http.StatusNotFound, "the log's level is fixed")
		return
	}
	writeJSON(w, map[string]string{"level": strings.ToLower(s.Level.Level().String())})
}

// setLogLevel has the log say more or less, until the process ends or its
// configuration says another level.
func (s Source) setLogLevel(w http.ResponseWriter, r *http.Request) {
	var level slog.Level
	switch text := r.URL.Query().Get("level"); {
	case s.Level == nil:
	case level.UnmarshalText([]byte(text)) != nil:
		writeError(w, http.StatusBadRequest, fmt.Sprintf("level %q: want debug, info, warn or error", text))
		return
	default:
		s.Level.Set(level)
	}
	s.logLevel(w, r)
}

func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": message})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.Encode(v)
}
