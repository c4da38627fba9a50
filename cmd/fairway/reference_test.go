package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// With the flag, dashboards of the reference picker find what they ask for.
func TestReferenceMetrics(t *testing.T) {
	c := file.Default()
	c.Listen = file.Listen{Metrics: "127.0.0.1:0"}
	c.World.Pools = []proxy.Pool{{Name: "llama"}}
	for range 2 { // that take connections, and say nothing
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c.World.Pools[0].Endpoints = append(c.World.Pools[0].Endpoints, proxy.Endpoint{Address: l.Addr().String()})
	}
	a, err := newApp(c, logs{Logger: slog.New(slog.DiscardHandler)}, proxy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, status := range []int{200, 200, 503} {
		rec := account.Record{Pool: "llama", Model: "m", Operation: "chat", Status: status, Streamed: true, TTFT: 1, CompletionTokens: 2, Duration: 2, Pick: account.Pick{At: 1}}
		a.account.Done(&rec)
	}
	page := func() []string {
		r, err := http.Get("http://" + serverAddress(a.metrics) + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(text), "\n")
	}
	if lines := page(); slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "inference_") }) {
		t.Error("the reference picker's metrics are there without being asked for")
	}
	a.reference.Store(true)
	lines := page()
	for _, want := range []string{
		`inference_objective_request_total{code="200",model_name="m",pool="llama",reason=""} 2`,
		`inference_objective_request_error_total{error_code="503",model_name="m",pool="llama",reason=""} 1`,
		`inference_model_request_total{code="200",model_name="m",pool="llama",reason=""} 2`,
		`inference_extension_flow_control_queue_size{inference_pool="llama",priority="standard"} 0`,
		`inference_extension_flow_control_request_queue_duration_seconds_count{inference_pool="llama"} 3`,
		`inference_objective_request_duration_seconds_count{pool="llama"} 3`,
		`inference_objective_request_ttft_seconds_count{model_name="m",pool="llama"} 3`,
		`inference_pool_ready_pods{name="llama"} 2`,
		`inference_pool_average_kv_cache_utilization{name="llama"} 0`,
		`inference_pool_average_queue_size{name="llama"} 0`,
		`inference_pool_average_running_requests{name="llama"} 0`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%s is not there; of its kind there is %q", want, slices.DeleteFunc(slices.Clone(lines), func(l string) bool {
				return !strings.HasPrefix(l, fmt.Sprint(want[:strings.IndexByte(want, '{')]))
			}))
		}
	}
}

// What the panels of the reference picker's dashboard ask for (tools/dashboards of the
// Inference Extension, v1.5.0 and v0.5.1) is there by that name, or is documented not to be.
func TestReferenceDashboard(t *testing.T) {
	have := make(map[string]bool)
	for _, a := range aliases {
		have[a.name] = true
	}
	for _, name := range []string{
		"inference_objective_request_total", "inference_objective_request_error_total", "inference_objective_request_duration_seconds",
		"inference_model_request_total", "inference_model_request_error_total", "inference_model_request_duration_seconds",
		"inference_pool_average_kv_cache_utilization", "inference_pool_average_queue_size", "inference_pool_per_pod_queue_size",
		"inference_extension_flow_control_queue_size", "inference_extension_flow_control_request_queue_duration_seconds",
	} {
		if !have[name] {
			t.Errorf("there is no %s", name)
		}
	}
	page, err := os.ReadFile("../../docs/endpoint-picker.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"input_tokens", "output_tokens", "request_sizes", "response_sizes", "flow_control_queue_bytes", "flow_control_pool_saturation",
		"flow_control_dispatch_cycle_duration_seconds", "flow_control_request_enqueue_duration_seconds",
	} {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("that there is no %s is not documented", name)
		}
	}
}
