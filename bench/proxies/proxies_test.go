package main

import (
	"encoding/json"
	"math"
	"testing"
	"time"
)

// Clients, backend and figures agree on what they count.
func TestMeasureDirect(t *testing.T) {
	b, err := newBackend([]byte("vllm:num_requests_running 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.listener.Close()
	l := newLoad("1k", 1<<10, false)
	for i, r := range l.requests {
		if n := len(r); n < 1<<10 || n > 2<<10 {
			t.Fatalf("request %d has %d bytes", i, n)
		}
	}
	n, failed, err := saturate(tcp(b.address()), l, 4, 50*time.Millisecond)
	if err != nil || n == 0 || failed != 0 {
		t.Fatalf("%d answered, %d failed: %v", n, failed, err)
	}
	events := newStreams("events", 3, 0)
	if n, failed, err := saturate(tcp(b.address()), events, 4, 50*time.Millisecond); err != nil || n == 0 || failed != 0 {
		t.Fatalf("%d streams, %d failed: %v", n, failed, err)
	}
	late, broken, err := crowd(tcp(b.address()), 4, 3, time.Millisecond, 5*time.Millisecond, func() {})
	if err != nil || len(late) != 12 || broken != 0 || late[0] < 0 {
		t.Fatalf("%d events, %d streams failed: %v; late: %v", len(late), broken, err, late)
	}
	took, err := latencies(tcp(b.address()), l, 1000, 50*time.Millisecond)
	if err != nil || len(took) != 50 || quantile(took, 1) != took[49] {
		t.Fatalf("%d latencies: %v", len(took), err)
	}
}

func TestResults(t *testing.T) {
	r := newResults()
	for i, v := range []float64{10, 30, 20} {
		r.add("cpu_us/1k", "haproxy", 10)
		r.add("cpu_us/1k", "fairway", v)
		r.add("ms_p99", "direct", 1)
		r.add("ms_p99", "fairway", float64(2+i))
	}
	if mid, low, high := r.ratio("cpu_us/1k", "fairway"); mid != 2 || low != 1 || high != 3 {
		t.Errorf("ratio %v, %v to %v", mid, low, high)
	}
	if mid, _, _ := r.ratio("sse_us", "fairway"); !math.IsNaN(mid) {
		t.Errorf("ratio of nothing: %v", mid)
	}
	got, err := json.Marshal(r.object())
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"added_ms_p99":{"fairway":2},"cpu_us_per_request":{"fairway":{"1k":20},"haproxy":{"1k":10}},"sse_us_per_event":{}}`; string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
