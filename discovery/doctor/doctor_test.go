package doctor_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/doctor"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine starts a mock vLLM and gives its address.
func engine(t *testing.T, c mock.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := mock.New(c)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// changed is the engine at an address whose answers are changed.
func changed(t *testing.T, address string, change func(*http.Response) error) string {
	t.Helper()
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	tr := new(http.Transport)
	p.Transport, p.ModifyResponse = tr, change
	s := httptest.NewServer(p)
	t.Cleanup(func() {
		s.Close()
		tr.CloseIdleConnections()
	})
	return s.Listener.Addr().String()
}

// withPage changes the metrics page.
func withPage(t *testing.T, address string, replace func(string) string) string {
	return changed(t, address, func(r *http.Response) error {
		if r.Request.URL.Path != "/metrics" {
			return nil
		}
		var b strings.Builder
		if err := r.Write(&b); err != nil {
			return err
		}
		_, page, _ := strings.Cut(b.String(), "\r\n\r\n")
		page = replace(page)
		r.Body = http.NoBody
		r.ContentLength = int64(len(page))
		r.Header.Set("Content-Length", fmt.Sprint(len(page)))
		r.Body = readCloser{strings.NewReader(page)}
		return nil
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func pods(t *testing.T, addresses ...string) []doctor.Pod {
	var all []doctor.Pod
	for _, a := range addresses {
		tr := &upstream.Transport{Address: a}
		t.Cleanup(tr.Close)
		all = append(all, doctor.Pod{Pool: "p", Transport: tr})
	}
	return all
}

// said are the checks that have a finding of this severity.
func said(d *doctor.Diagnosis, s doctor.Severity) []string {
	names := []string{}
	for _, f := range d.Findings {
		if f.Severity == s {
			names = append(names, f.Check)
		}
		if f.What == "" || f.Cure == "" {
			names = append(names, f.Check+" says nothing")
		}
	}
	slices.Sort(names)
	return names
}

// An engine that is started as it should be has no findings; one that is started
// wrongly has the one for that, and no other.
func TestFindings(t *testing.T) {
	t.Parallel()
	good := mock.Config{Model: "m", Loras: []string{"adapter"}}
	with := func(change func(*mock.Config)) string {
		c := good
		change(&c)
		return engine(t, c)
	}
	refused := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	blocks := regexp.MustCompile(`([," ]block_size)="16"`)
	tests := []struct {
		name     string
		address  string
		problems []string
		notes    []string
		says     string
	}{
		{"good", engine(t, good), nil, nil, ""},
		{"nobody there", refused(), []string{"reachable"}, nil, "refused"},
		{"no prefix caching", with(func(c *mock.Config) { c.Profile.Engine.NoPrefixCaching = true }), []string{"prefix-caching"}, nil, "--enable-prefix-caching"},
		{"no cached tokens", with(func(c *mock.Config) { c.HideCachedTokens = true }), []string{"cached-tokens"}, nil, "--enable-prompt-tokens-details"},
		{"no metrics", with(func(c *mock.Config) { c.NoEngineMetrics = true }), []string{"metrics"}, nil, "--disable-log-stats"},
		{"short keep-alive", with(func(c *mock.Config) { c.KeepAlive = 500 * time.Millisecond }), []string{"keep-alive"}, nil, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"},
		{"another model", with(func(c *mock.Config) { c.Model = "n" }), []string{"models"}, nil, "does not serve m"},
		{"no adapter", with(func(c *mock.Config) { c.Loras = nil }), []string{"models"}, nil, "--lora-modules adapter="},
		{"API key", with(func(c *mock.Config) { c.APIKey = "secret" }), []string{"api-key"}, nil, "OPENAI_API_KEY"},
		{"wrong clock", with(func(c *mock.Config) { c.ClockSkew = -time.Minute }), []string{"clock"}, nil, "NTP"},
		{"a metric of another name", withPage(t, engine(t, good), func(p string) string {
			return strings.ReplaceAll(p, "vllm:num_requests_running", "vllm:requests_running")
		}), []string{"metrics"}, nil, "vllm:num_requests_running is not"},
		{"large blocks", withPage(t, engine(t, good), func(p string) string { return blocks.ReplaceAllString(p, `$1="528"`) }), nil, []string{"block-size"}, "528"},
		{"cache on, nothing found", withPage(t, with(func(c *mock.Config) { c.Profile.Engine.NoPrefixCaching = true }), func(p string) string {
			return strings.ReplaceAll(p, `enable_prefix_caching="False"`, `enable_prefix_caching="True"`)
		}), []string{"prefix-caching"}, nil, "sent twice"},
		{"not well", changed(t, engine(t, good), func(r *http.Response) error {
			if r.Request.URL.Path == "/health" {
				r.StatusCode = 503
			}
			return nil
		}), []string{"health"}, nil, "503"},
		{"no load reports", changed(t, engine(t, good), func(r *http.Response) error {
			r.Header.Del("endpoint-load-metrics")
			return nil
		}), nil, []string{"orca"}, ""},
		{"no completions", changed(t, engine(t, good), func(r *http.Response) error {
			if r.Request.URL.Path == "/v1/completions" {
				r.StatusCode = 404
			}
			return nil
		}), nil, []string{"requests"}, "404"},
	}
	var all []doctor.Pod
	for _, tt := range tests {
		p := pods(t, tt.address)[0]
		p.Pool, p.Models = tt.name, []string{"m", "adapter"}
		all = append(all, p)
	}
	var mu sync.Mutex
	asked, done := make(map[string]int), make(map[string]int)
	found, differences := doctor.Examine(t.Context(), all, doctor.Options{
		Progress: func(pod, _ string) { mu.Lock(); asked[pod]++; mu.Unlock() },
		Examined: func(d *doctor.Diagnosis) { mu.Lock(); done[d.Address]++; mu.Unlock() },
	})
	if len(differences) > 0 {
		t.Errorf("pools of one pod differ: %+v", differences)
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := found[i]
			if got := said(d, doctor.Problem); !slices.Equal(got, tt.problems) || d.Healthy() != (len(tt.problems) == 0) {
				t.Errorf("problems %v, want %v: %+v", got, tt.problems, d.Findings)
			}
			if got := said(d, doctor.Note); !slices.Equal(got, tt.notes) {
				t.Errorf("notes %v, want %v: %+v", got, tt.notes, d.Findings)
			}
			if text := fmt.Sprint(d.Findings); !strings.Contains(text, tt.says) {
				t.Errorf("%s does not say %q", text, tt.says)
			}
			if asked[d.Address] == 0 || done[d.Address] != 1 {
				t.Errorf("told of %d steps and %d ends", asked[d.Address], done[d.Address])
			}
		})
	}
}

// What is found out of a good engine is right.
func TestFacts(t *testing.T) {
	t.Parallel()
	all, differences := doctor.Examine(t.Context(), pods(t, engine(t, mock.Config{Model: "m", APIKey: "secret"})), doctor.Options{APIKey: "secret"})
	d := all[0]
	if len(d.Findings)+len(differences) > 0 {
		t.Fatalf("%+v, %+v", d.Findings, differences)
	}
	if d.Engine != "vllm" || d.Version != "0.32.0" || d.BlockSize != 16 || d.CacheTokens != 456_000 || d.MaxModelLen != 131_072 || !*d.PrefixCaching || !*d.CachedTokens || !*d.ORCA {
		t.Errorf("%+v", d)
	}
	if *d.KeepAlive != upstream.KeepIdle.Seconds() || *d.ClockSkew < -2 || *d.ClockSkew > 1 {
		t.Errorf("kept alive for %v s, clock off by %v s", *d.KeepAlive, *d.ClockSkew)
	}
	if *d.CachedOnRepeat < d.PromptTokens-16 || *d.CachedOnRepeat > d.PromptTokens || d.SecondsPerToken <= 0 || d.FirstToken <= 0 {
		t.Errorf("%d of %d tokens cached, %v s for a token", *d.CachedOnRepeat, d.PromptTokens, d.SecondsPerToken)
	}
}

// Pods of a pool that differ are told apart; those of different pools may.
func TestPoolFindings(t *testing.T) {
	t.Parallel()
	p := pods(t, engine(t, mock.Config{Model: "m"}), engine(t, mock.Config{Model: "n", MaxModelLen: 4096}), engine(t, mock.Config{Model: "x", MaxModelLen: 2048}))
	p[2].Pool = "other"
	_, got := doctor.Examine(t.Context(), p, doctor.Options{NoRequests: true})
	var checks []string
	for _, f := range got {
		checks = append(checks, f.Pool+" "+f.Check)
	}
	if want := []string{"p pool-models", "p pool-length"}; !slices.Equal(checks, want) {
		t.Errorf("%v, want %v", checks, want)
	}
}

// A silent engine is given up after the time-out, and the end of the context ends
// everything.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all, _ := doctor.Examine(t.Context(), pods(t, l.Addr().String()), doctor.Options{Timeout: 50 * time.Millisecond})
	if got := all[0].Findings; len(got) != 1 || got[0].Check != "reachable" || !strings.Contains(got[0].What, "no answer to /health in 50ms") {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	all, _ = doctor.Examine(ctx, pods(t, l.Addr().String()), doctor.Options{})
	if all[0].Reachable {
		t.Error("reachable after the end")
	}
}

// What a tunnel or TLS says goes into the finding, with a cure of its own.
func TestUnreachable(t *testing.T) {
	p := pods(t, "10.0.0.1:8000", engine(t, mock.Config{}))
	p[0].Transport.Tunnel = func(context.Context, string) (net.Conn, error) {
		return nil, fmt.Errorf("the pod is spiffe://cluster.local/ns/a/sa/b")
	}
	p[1].Transport.TLS = &tls.Config{InsecureSkipVerify: true}
	all, _ := doctor.Examine(t.Context(), p, doctor.Options{})
	for i, want := range []string{"ztunnel", "speak TLS"} {
		if f := all[i].Findings; len(f) != 1 || f[0].Check != "reachable" || !strings.Contains(f[0].Cure, want) {
			t.Errorf("%+v, want a cure with %q", f, want)
		}
	}
}
