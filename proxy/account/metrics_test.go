package account

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// Whatever a stranger calls a model, metrics stay readable and bounded: also where an engine answers to every name.
func TestHostileModelNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, Config{})
	for _, status := range []int{200, 404} {
		for _, name := range []string{
			"", " ", "other", "\x00", "\xff\xfe", "m\xc3", "a\"b", "a\nfairway_requests_total 1", `{pool="x"}`, "é\u2028\u202e", strings.Repeat("x", 1<<20), strings.Repeat("é", 64),
		} {
			for range 2 {
				rec := told()
				rec.Model, rec.Status, rec.Operation = name, status, "chat"
				r.Done(rec)
			}
		}
	}
	for i := range 10_000 {
		rec := told()
		rec.Model = fmt.Sprintf("%d%s", i, strings.Repeat("x", 100))
		r.Done(rec)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	requests := 0.0
	for _, f := range families {
		if n := len(f.Metric); n > 3*(maxModels+2) {
			t.Errorf("%s has %d series", f.GetName(), n)
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if v := l.GetValue(); len(v) > maxModelName || !utf8.ValidString(v) {
					t.Errorf("%s has the label %s=%.200q", f.GetName(), l.GetName(), v)
				}
			}
			if f.GetName() == "fairway_requests_total" {
				requests += m.Counter.GetValue()
			}
		}
	}
	if requests != 10_000+2*2*12 {
		t.Errorf("%v requests are counted", requests)
	}
	if len(series(t, reg)) == 0 {
		t.Error("the page is empty")
	}
}

func TestMetricsAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector")
	}
	m := newMetrics(prometheus.NewRegistry())
	known := picked("id", 4)
	known.Operation = "chat"
	stranger := picked("id", 4)
	stranger.Model, stranger.Status, stranger.Reason = "nobody's", 404, ""
	for _, rec := range []*Record{known, stranger} {
		m.done(rec)
		if n := testing.AllocsPerRun(100, func() { m.done(rec) }); n != 0 {
			t.Errorf("%v allocations for a request of the model %s", n, rec.Model)
		}
	}
}

func BenchmarkMetrics(b *testing.B) {
	m := newMetrics(prometheus.NewRegistry())
	rec := picked("id", 4)
	rec.Operation = "chat"
	b.ReportAllocs()
	for b.Loop() {
		m.done(rec)
	}
}

func TestShadowAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector")
	}
	m := newMetrics(prometheus.NewRegistry())
	rec := picked("id", 4)
	rec.Pick.Shadow = Shadow{Policy: "round-robin", Endpoint: "10.0.0.2:8000", FirstToken: .5, Chosen: .25}
	m.done(rec)
	if n := testing.AllocsPerRun(100, func() { m.done(rec) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
