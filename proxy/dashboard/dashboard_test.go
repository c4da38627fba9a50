package dashboard

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/proxy/account"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record is a request that ended.
func record(status int, reason string) *account.Record {
	return &account.Record{
		ID: "the-id", Pool: "p", Model: "m", Status: status, Reason: reason, Duration: time.Second, TTFT: 30 * time.Millisecond, Streamed: true,
		PromptTokens: 100, CachedTokens: 75, CompletionTokens: 10, PredictedTokens: 90, PredictedHit: 60,
	}
}

// watched gives a source whose metrics are those of a recorder.
func watched() (Source, *account.Recorder) {
	reg := prometheus.NewRegistry()
	r := account.New(reg, account.Config{Replica: "this"})
	live := prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairway_requests_live", Help: "h"})
	reg.MustRegister(live)
	live.Set(3)
	return Source{
		Version: "v1", Replica: "this", Ready: func() string { return "" }, Gatherer: reg,
		Endpoints: func() any { return []map[string]any{{"address": "10.0.0.1:8000"}} }, Receipts: r.Receipts,
	}, r
}

// follower reads events.
type follower struct {
	r    *bufio.Reader
	body io.Closer
}

func follow(t *testing.T, url string) *follower {
	t.Helper()
	tr := new(http.Transport)
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := (&http.Client{Transport: tr}).Get(url + "/dashboard/events")
	if err != nil {
		t.Fatal(err)
	}
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream" {
		t.Fatalf("%s, %s", resp.Status, ct)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &follower{bufio.NewReader(resp.Body), resp.Body}
}

// next is the next event with that name.
func (f *follower) next(t *testing.T, name string, v any) {
	t.Helper()
	for {
		line, err := f.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line != "event: "+name+"\n" {
			continue
		}
		data, err := f.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(data, "data: ")), v); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		return
	}
}

// Totals are those of the metrics, the rest is over the last seconds.
func TestFrames(t *testing.T) {
	source, r := watched()
	for range 3 {
		r.Done(record(200, ""))
	}
	d := New(source)
	s := httptest.NewServer(d)
	defer s.Close() // waits for whoever follows
	defer d.Close()
	f := follow(t, s.URL)
	var history []Point
	f.next(t, "history", &history)
	var first Frame
	f.next(t, "frame", &first)
	if first.Totals.Requests != 3 || first.Now.Live != 3 || first.Version != "v1" || len(first.Receipts) != 3 || first.Receipts[0].ID != "the-id" {
		t.Errorf("%+v", first)
	}
	r.Done(record(200, ""))
	r.Done(record(503, "fairway_no_endpoint"))
	r.Done(record(503, "fairway_exhausted"))
	r.Done(record(499, account.ClientGone))
	var then Frame
	for then.Totals.Requests < 7 {
		f.next(t, "frame", &then)
	}
	want := Totals{Requests: 7, Failed: 1, Gone: 1, Shed: 1, Prompt: 700, Cached: 525, Completion: 70}
	if then.Totals != want {
		t.Errorf("%+v, want %+v", then.Totals, want)
	}
	if n := then.Now; n.Requests == nil || *n.Requests <= 0 || n.Hit == nil || *n.Hit != 0.75 || n.TTFT50 == nil || *n.TTFT50 < 0.02 || *n.TTFT50 > 0.04 {
		t.Errorf("%+v", n)
	}
	if m := then.Models; len(m) != 1 || m[0].Model != "m" || m[0].Requests != 7 || m[0].Failed != 1 {
		t.Errorf("%+v", m)
	}
}

// Who waits, who was refused and why, and what a second policy would have done, are told by pool.
func TestQueuesAndShadows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, r := watched()
		waiting := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "fairway_queue_length", Help: "h"}, []string{"pool", "criticality"})
		source.Gatherer.(*prometheus.Registry).MustRegister(waiting)
		waiting.WithLabelValues("p", account.Standard).Set(2)
		waiting.WithLabelValues("p", account.Critical).Set(1)
		d := New(source)
		defer d.Close()
		synctest.Wait()
		shed := func(criticality, why string) {
			rec := record(429, "fairway_"+why)
			rec.Criticality, rec.Shed = criticality, why
			r.Done(rec)
		}
		shed(account.Sheddable, "saturated")
		shed(account.Sheddable, "saturated")
		shed(account.Sheddable, "deadline")
		for _, agrees := range []bool{true, false, false, false} {
			rec := record(200, "")
			rec.Pick.At, rec.Pick.Shadow = 1, account.Shadow{Policy: "least-request", Endpoint: "e", Agrees: agrees, Chosen: 0.1, FirstToken: 0.1}
			if !agrees {
				rec.Pick.Shadow.FirstToken = 0.3
			}
			r.Done(rec)
		}
		families, err := source.Gatherer.Gather()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(interval)
		synctest.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		f := d.sampler.sample(families, time.Now().Add(interval))
		if got, want := fmt.Sprintf("%+v", f.Queues[:2]), "[{Pool:p Criticality:critical Waiting:1 Shed:map[] Rate:"; !strings.HasPrefix(got, want) {
			t.Errorf("%s, want %s…", got, want)
		}
		if q := f.Queues[2]; q.Criticality != account.Sheddable || q.Shed["saturated"] != 2 || q.Shed["deadline"] != 1 || q.shed() != 3 || q.Rate == nil || *q.Rate != 1.5 || f.Now.Queued != 3 {
			t.Errorf("%+v", f.Queues)
		}
		if len(f.Shadows) != 1 {
			t.Fatalf("%+v", f.Shadows)
		}
		near := func(got *float64, want float64) bool { return got != nil && math.Abs(*got-want) < 1e-9 }
		if s := f.Shadows[0]; s.Pool != "p" || s.Policy != "least-request" || s.Choices != 4 || s.Agrees != 1 || !near(&s.Ours, 0.4) || !near(&s.Theirs, 1) || !near(s.Regret, 0.15) {
			t.Errorf("%+v", s)
		}
		if !near(f.Now.Ours, 0.1) || !near(f.Now.Shadow, 0.25) {
			t.Errorf("%+v", f.Now)
		}
	})
}

// Quantiles are those of Prometheus.
func TestQuantile(t *testing.T) {
	inf := math.Inf(1)
	was := &sample{bounds: []float64{1, 2, 4, inf}, ttft: []float64{5, 5, 5, 5}}
	for _, tt := range []struct {
		ttft    []float64
		q, want float64
	}{
		{[]float64{5, 15, 15, 15}, 0.5, 1.5},
		{[]float64{15, 15, 15, 15}, 0.5, 0.5},
		{[]float64{5, 10, 15, 15}, 0.9, 3.6},
		{[]float64{5, 5, 5, 15}, 0.9, 4}, // beyond the last bound nothing is known
	} {
		is := &sample{bounds: was.bounds, ttft: tt.ttft}
		if got := quantile(tt.q, is, was); got == nil || math.Abs(*got-tt.want) > 1e-9 {
			t.Errorf("%v of %v is %v, want %v", tt.q, tt.ttft, got, tt.want)
		}
	}
	if got := quantile(0.5, was, was); got != nil {
		t.Errorf("of nothing: %v", *got)
	}
}

// The history has ten minutes and no more, and rates are over ten seconds.
func TestHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, r := watched()
		d := New(source)
		defer d.Close()
		time.Sleep(20 * time.Minute)
		for range 20 {
			r.Done(record(200, ""))
		}
		time.Sleep(interval)
		synctest.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		last := d.points[len(d.points)-1]
		if len(d.points) != kept || cap(d.points) != kept || *last.Requests != 2 {
			t.Errorf("%d points in %d, the last with %v requests a second", len(d.points), cap(d.points), *last.Requests)
		}
	})
}

// slow is a page that takes nothing.
type slow struct {
	http.ResponseWriter
	stuck chan struct{}
}

func (s slow) Header() http.Header              { return http.Header{} }
func (s slow) WriteHeader(int)                  {}
func (s slow) Write(p []byte) (int, error)      { <-s.stuck; return len(p), nil }
func (s slow) Flush()                           {}
func (s slow) SetWriteDeadline(time.Time) error { return nil }

// One that does not read is left behind, and only so many may follow.
func TestPagesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, _ := watched()
		d := New(source)
		stuck := make(chan struct{})
		for range maxPages {
			go d.ServeHTTP(slow{stuck: stuck}, httptest.NewRequest("GET", "/dashboard/events", nil))
		}
		synctest.Wait()
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequest("GET", "/dashboard/events", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("page %d: %d", maxPages+1, w.Code)
		}
		time.Sleep((behind + 2) * interval)
		synctest.Wait()
		d.mu.Lock()
		left := len(d.pages)
		d.mu.Unlock()
		if left != 0 {
			t.Errorf("%d pages that do not read are still followed", left)
		}
		close(stuck)
		// There is room again; Close ends those that follow, and so does their own end.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go d.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/dashboard/events", nil).WithContext(ctx))
		go d.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/dashboard/events", nil))
		synctest.Wait()
		cancel()
		d.Close()
		d.Close()
	})
}

// What is served is there, may load nothing from elsewhere, and has nothing inline
// that the policy would refuse.
func TestFiles(t *testing.T) {
	source, _ := watched()
	d := New(source)
	defer d.Close()
	for path, kind := range map[string]string{
		"/": "text/html", "/dashboard/style.css": "text/css", "/dashboard/app.js": "text/javascript", "/dashboard/icon.svg": "image/svg+xml",
	} {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), kind) {
			t.Errorf("%s: %d, %s", path, w.Code, w.Header().Get("Content-Type"))
		}
		if p := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(p, "default-src 'none'") || strings.Contains(p, "unsafe") {
			t.Errorf("%s: policy %q", path, p)
		}
		body := w.Body.String()
		for _, foreign := range regexp.MustCompile(`https?://[^"' ]+`).FindAllString(body, -1) {
			if foreign != "http://www.w3.org/2000/svg" {
				t.Errorf("%s names %s", path, foreign)
			}
		}
		if m := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(| style="| on[a-z]+="`).FindString(body); m != "" {
			t.Errorf("%s has %s", path, m)
		}
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, httptest.NewRequest("GET", "/dashboard/nothing", nil))
	if w.Code != 404 {
		t.Errorf("/dashboard/nothing: %d", w.Code)
	}
}

func BenchmarkTurn(b *testing.B) {
	source, r := watched()
	for i := range 200 {
		rec := record(200, "")
		rec.Model, rec.Pool = fmt.Sprint("model-", i%50), fmt.Sprint("pool-", i%4)
		r.Done(rec)
	}
	d := New(source)
	d.Close()
	b.ReportAllocs()
	for b.Loop() {
		d.turn(time.Now())
	}
}
