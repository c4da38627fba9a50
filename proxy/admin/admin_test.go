package admin

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/proxy/account"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source has one metric, and something to see everywhere.
func source() Source {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "seen_total", Help: "What was seen."})
	reg.MustRegister(c)
	c.Add(3)
	return Source{
		Ready:     func() string { return "" },
		Gatherer:  reg,
		Endpoints: func() any { return []map[string]any{{"address": "10.0.0.1:8000", "in_flight": 2}} },
		Config:    func() any { return map[string]string{"model": "<any> & all"} },
		Receipts: func(q account.Query) []account.Receipt {
			if q.ID == "nobody's" || strings.HasSuffix(q.ID, "@other") {
				return nil
			}
			return []account.Receipt{{ID: q.ID, Model: q.Model, Pool: q.Pool, Endpoint: q.Endpoint, Retries: q.Limit}}
		},
		Replica: "this",
		Level:   new(slog.LevelVar),
	}
}

// answer is what a handler says to one request.
type answer struct {
	status int
	header http.Header
	body   string
}

// serve has h on a real socket, until the test ends, and gives a way to ask it.
func serve(t *testing.T, h http.Handler) func(method, path, accept string) answer {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	client := s.Client()
	t.Cleanup(client.CloseIdleConnections)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return func(method, path, accept string) answer {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if accept != "" {
			r.Header.Set("Accept", accept)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, string(body)}
	}
}

func TestPaths(t *testing.T) {
	const text, page, jsonType = "text/plain; charset=utf-8", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", "application/json"
	const nobody = -1 // not served there
	for _, tt := range []struct {
		method, path   string
		metrics, admin int // status on either port
		kind           string
		body           string // contained
	}{
		{"GET", "/metrics", 200, 200, page, "\nseen_total 3\n"},
		{"GET", "/stats/prometheus", 200, 200, page, "\nseen_total 3\n"},
		{"HEAD", "/metrics", 200, 200, page, ""},
		{"GET", "/healthz/live", 200, 200, text, "ok\n"},
		{"GET", "/healthz/ready", 200, 200, text, "ok\n"},
		{"HEAD", "/healthz/ready", 200, 200, text, ""},
		{"GET", "/healthz/ready?verbose", 200, 200, text, "ok\n"},
		{"GET", "/endpoints", nobody, 200, jsonType, `"address": "10.0.0.1:8000"`},
		{"GET", "/config", nobody, 200, jsonType, `"model": `},
		{"GET", "/receipts", nobody, 200, jsonType, `"replica": "this",`},
		{"GET", "/receipts?id=a%2Fb&model=m&pool=p&endpoint=e:1&limit=7", nobody, 200, jsonType,
			`"id": "a/b",`},
		{"GET", "/receipts?model=m", nobody, 200, jsonType, `"model": "m"`},
		{"GET", "/receipts?limit=7&endpoint=e:1", nobody, 200, jsonType, `"retries": 7`},
		{"GET", "/receipts?id=nobody's", nobody, 200, jsonType, `"receipts": []`},
		{"GET", "/receipts?limit=many", nobody, 400, jsonType, `limit \"many\": want`},
		{"GET", "/receipts?limit=-1", nobody, 400, jsonType, "want a whole number"},
		{"GET", "/receipts?modle=m", nobody, 400, jsonType, "unknown parameter"},
		{"GET", "/receipts/a%2Fb=:+", nobody, 200, jsonType, `"id": "a/b=:+"`},
		{"GET", "/receipts/nobody's", nobody, 404, jsonType, "there is no receipt of"},
		{"GET", "/receipts/x@other", nobody, 404, jsonType, "replica other has served that request, and this is this"},
		{"GET", "/debug/pprof/", nobody, 200, "text/html; charset=utf-8", "goroutine"},
		{"GET", "/debug/pprof/cmdline", nobody, 200, text, ""},
		{"GET", "/debug/pprof/symbol", nobody, 200, text, "num_symbols"},
		{"GET", "/debug/pprof/goroutine?debug=1", nobody, 200, text, "goroutine profile"},
		{"GET", "/debug/pprof/heap", nobody, 200, "application/octet-stream", ""},
		{"GET", "/debug/pprof/trace?seconds=0.01", nobody, 200, "application/octet-stream", ""},
		{"GET", "/debug/pprof/none", nobody, 404, text, "Unknown profile"},
		// Nobody changes anything by these ports, but how much is logged.
		{"POST", "/metrics", 405, 405, "", ""},
		{"POST", "/healthz/ready", 405, 405, "", ""},
		{"PUT", "/config", nobody, 404, "", ""},
		{"POST", "/receipts", nobody, 404, "", ""},
		{"GET", "/log", nobody, 200, jsonType, `"level": "info"`},
		{"PUT", "/log?level=debug", nobody, 200, jsonType, `"level": "debug"`},
		{"PUT", "/log?level=loud", nobody, 400, jsonType, "want debug, info, warn or error"},
		{"PUT", "/log", nobody, 400, jsonType, "want debug"},
		{"DELETE", "/endpoints", nobody, 404, "", ""},
		{"GET", "/", nobody, 404, "", ""},
		{"GET", "/healthz", nobody, 404, "", ""},
		{"GET", "/healthz/ready/", nobody, 404, "", ""},
		{"GET", "/metrics/x", nobody, 404, "", ""},
		{"GET", "/v1/models", nobody, 404, "", ""},
	} {
		for _, port := range []struct {
			name   string
			h      http.Handler
			status int
		}{
			{"metrics", Metrics(source()), tt.metrics},
			{"admin", Admin(source()), tt.admin},
		} {
			t.Run(port.name+" "+tt.method+" "+tt.path, func(t *testing.T) {
				got := serve(t, port.h)(tt.method, tt.path, "")
				if port.status == nobody {
					if got.status != 404 {
						t.Errorf("got %d of what is not served here: %q", got.status, got.body)
					}
					return
				}
				if got.status != port.status || !strings.Contains(got.body, tt.body) {
					t.Errorf("got %d, %.200q, want %d, %q", got.status, got.body, port.status, tt.body)
				}
				if kind := got.header.Get("Content-Type"); tt.kind != "" && kind != tt.kind {
					t.Errorf("it is of the type %q, want %q", kind, tt.kind)
				}
			})
		}
	}
}

// Whether requests are wanted is asked anew each time, and does not touch
// liveness: a proxy that is not ready is not to be restarted.
func TestReady(t *testing.T) {
	for name, handler := range map[string]func(Source) http.Handler{"metrics": Metrics, "admin": Admin} {
		t.Run(name, func(t *testing.T) {
			reasons := make(chan string, 1)
			s := source()
			s.Ready = func() string { return <-reasons }
			ask := serve(t, handler(s))
			for _, tt := range []struct {
				reason string
				status int
				body   string
			}{
				{"no configuration is in force yet", 503, "no configuration is in force yet\n"},
				{"", 200, "ok\n"},
				{"stopping", 503, "stopping\n"},
				{"", 200, "ok\n"},
			} {
				reasons <- tt.reason
				if got := ask("GET", "/healthz/ready", ""); got.status != tt.status || got.body != tt.body {
					t.Errorf("%q: got %d, %q, want %d, %q", tt.reason, got.status, got.body, tt.status, tt.body)
				}
				if got := ask("GET", "/healthz/live", ""); got.status != 200 || got.body != "ok\n" {
					t.Errorf("%q: alive: %d, %q", tt.reason, got.status, got.body)
				}
			}
		})
	}
}

// What is shown is what the Source gives at the time.
func TestJSON(t *testing.T) {
	type endpoint struct {
		Address string  `json:"address"`
		Running float64 `json:"running"`
	}
	for _, tt := range []struct {
		name string
		give any
		want string
	}{
		{"list", []endpoint{{"10.0.0.1:8000", 1.5}, {"[::1]:8000", 0}},
			"[\n  {\n    \"address\": \"10.0.0.1:8000\",\n    \"running\": 1.5\n  },\n  {\n    \"address\": \"[::1]:8000\",\n    \"running\": 0\n  }\n]\n"},
		{"empty list", []endpoint{}, "[]\n"},
		{"object", map[string]int{"a": 1}, "{\n  \"a\": 1\n}\n"},
		{"nothing", nil, "null\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := source()
			s.Endpoints = func() any { return tt.give }
			s.Config = func() any { return tt.give }
			ask := serve(t, Admin(s))
			for _, path := range []string{"/endpoints", "/config"} {
				got := ask("GET", path, "")
				if got.status != 200 || got.body != tt.want {
					t.Errorf("%s: got %d, %q, want %q", path, got.status, got.body, tt.want)
				}
			}
		})
	}
	t.Run("text survives", func(t *testing.T) {
		got := serve(t, Admin(source()))("GET", "/config", "")
		var back map[string]string
		if err := json.Unmarshal([]byte(got.body), &back); err != nil {
			t.Fatal(err)
		}
		if want := source().Config(); !reflect.DeepEqual(back, want) {
			t.Errorf("got %v, want %v", back, want)
		}
	})
}

func TestOpenMetrics(t *testing.T) {
	for name, handler := range map[string]func(Source) http.Handler{"metrics": Metrics, "admin": Admin} {
		for _, path := range []string{"/metrics", "/stats/prometheus"} {
			t.Run(name+path, func(t *testing.T) {
				got := serve(t, handler(source()))("GET", path, "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3")
				if kind := got.header.Get("Content-Type"); got.status != 200 || !strings.HasPrefix(kind, "application/openmetrics-text; version=1.0.0") {
					t.Errorf("got %d of the type %q", got.status, kind)
				}
				// In this format a counter's family has no suffix and the page an end.
				if !strings.Contains(got.body, "# TYPE seen counter\n") || !strings.Contains(got.body, "\nseen_total 3.0\n") || !strings.HasSuffix(got.body, "# EOF\n") {
					t.Errorf("got %q", got.body)
				}
			})
		}
	}
}

func TestLogLevel(t *testing.T) {
	s := source()
	ask := serve(t, Admin(s))
	if ask("PUT", "/log?level=error", ""); s.Level.Level() != slog.LevelError {
		t.Errorf("the level is %v", s.Level.Level())
	}
	if got := ask("GET", "/log", ""); !strings.Contains(got.body, "error") {
		t.Errorf("it says %s", got.body)
	}
	s.Level = nil
	for _, method := range []string{"GET", "PUT"} {
		if got := serve(t, Admin(s))(method, "/log?level=debug", ""); got.status != 404 || !strings.Contains(got.body, "fixed") {
			t.Errorf("%s of a level that is fixed: %d, %s", method, got.status, got.body)
		}
	}
}

// A name that anybody on the web may have lead here is not answered to.
func TestAdminAnswersToNoStrangersName(t *testing.T) {
	h := Admin(Source{Gatherer: prometheus.NewRegistry(), Config: func() any { return "secret" }})
	for host, want := range map[string]int{
		"127.0.0.1:15000": 200, "[::1]:15000": 200, "localhost:15000": 200, "localhost": 200, "fairway:15000": 200, "10.0.0.1": 200,
		"rebound.example:15000": 421, "rebound.example": 421, "127.0.0.1.example": 421,
	} {
		r := httptest.NewRequest("GET", "/config", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want || want != 200 && strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: %d, want %d", host, w.Code, want)
		}
	}
}
