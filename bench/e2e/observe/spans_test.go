//go:build e2e && linux

package observe_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// span is one in OTLP's JSON (opentelemetry-proto, trace.proto).
type span struct {
	TraceID, SpanID, ParentSpanID string
	Name                          string
	Kind                          int
	Attributes                    []attribute
	Events                        []struct{ Name string }
	Status                        struct{ Code int }
	resource                      []attribute
}

type attribute struct {
	Key   string
	Value struct {
		StringValue string
		IntValue    string
		DoubleValue float64
	}
}

// at is an attribute's value in words, "" without it.
func at(all []attribute, key string) string {
	for _, a := range all {
		if a.Key == key {
			return a.Value.StringValue + a.Value.IntValue
		}
	}
	return ""
}

// startCollector starts a collector that hands on what it gets.
func startCollector(t *testing.T) (grpc, http_ string, spans chan span) {
	t.Helper()
	spans = make(chan span, 1024)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sink := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var batch struct {
			ResourceSpans []struct {
				Resource   struct{ Attributes []attribute }
				ScopeSpans []struct{ Spans []span }
			}
		}
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(body, &batch)
		}
		if err != nil {
			t.Errorf("the collector sends %v: %.500s", err, body)
		}
		for _, of := range batch.ResourceSpans {
			for _, scope := range of.ScopeSpans {
				for _, s := range scope.Spans {
					s.resource = of.Resource.Attributes
					spans <- s
				}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte("{}"))
	})}
	go sink.Serve(l)
	t.Cleanup(func() { sink.Close() })
	grpc, http_ = process.FreeAddress(), process.FreeAddress()
	health := "receivers: {otlp: {protocols: {grpc: {endpoint: %q}, http: {endpoint: %q}}}}\n" +
		"exporters: {otlphttp: {endpoint: \"http://%s\", encoding: json, compression: none, sending_queue: {enabled: false}}}\n" +
		"service: {telemetry: {metrics: {level: none}}, pipelines: {traces: {receivers: [otlp], exporters: [otlphttp]}}}\n"
	config := filepath.Join(t.TempDir(), "collector.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, health, grpc, http_, l.Addr()), 0o644); err != nil {
		t.Fatal(err)
	}
	otelcol := start(t, "otelcol", os.Getenv("E2E_OTELCOL"), "--config", config)
	for _, address := range []string{grpc, http_} {
		otelcol.Await(t, patience, process.Listens(address))
	}
	return grpc, http_, spans
}

// Each request is a span that a collector takes, by either protocol; a client's trace goes on in it.
func TestSpans(t *testing.T) {
	grpc, overHTTP, spans := startCollector(t)
	engine := process.FreeAddress()
	start(t, "engine", os.Getenv("E2E_MOCKVLLM"), "--listen", engine, "--model", "m").
		Await(t, patience, process.Answers("http://"+engine+"/health"))
	for protocol, collector := range map[string]string{"grpc": grpc, "http": overHTTP} {
		t.Run(protocol, func(t *testing.T) {
			config := filepath.Join(t.TempDir(), "fairway.yaml")
			listen, metrics := process.FreeAddress(), process.FreeAddress()
			text := fmt.Sprintf("listen: {http: %q, metrics: %q, admin: %q}\ntracing: {endpoint: \"http://%s\", protocol: %s, sampling: 1}\npools: [{name: p, endpoints: [\"http://%s\"]}]\n",
				listen, metrics, process.FreeAddress(), collector, protocol, engine)
			if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			fairway := start(t, "fairway", os.Getenv("E2E_FAIRWAY"), "serve", "--config", config)
			fairway.Await(t, patience, process.Answers("http://"+metrics+"/healthz/ready"))

			const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
			ask := func(model string, fields map[string]string) {
				req, _ := http.NewRequest("POST", "http://"+listen+"/v1/chat/completions",
					strings.NewReader(`{"model":"`+model+`","stream":true,"max_tokens":3,"messages":[{"role":"user","content":"a secret of the prompt"}]}`))
				req.Header.Set("Content-Type", "application/json")
				for name, value := range fields {
					req.Header.Set(name, value)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			ask("m", map[string]string{"traceparent": "00-" + trace + "-" + parent + "-01", "X-Request-Id": "traced-" + protocol})
			ask("nobody's", map[string]string{"b3": strings.Repeat("1", 32) + "-" + strings.Repeat("2", 16) + "-1"})
			ask("m", map[string]string{"traceparent": "00-" + strings.Repeat("3", 32) + "-" + parent + "-00"}) // not sampled
			fairway.Stop()                                                                                     // sends what is left

			served, refused := <-spans, <-spans
			if served.Name != "chat m" || served.TraceID != trace || served.ParentSpanID != parent || served.Kind != 2 || served.Status.Code == 2 {
				t.Errorf("%+v", served)
			}
			for key, want := range map[string]string{
				"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.output_tokens": "3", "http.response.status_code": "200",
				"server.address": engine, "fairway.request_id": "traced-" + protocol, "fairway.pool": "p", "fairway.decided_by": "nothing",
			} {
				if got := at(served.Attributes, key); got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if got := at(served.resource, "service.name"); got != "fairway" {
				t.Errorf("the service is %q", got)
			}
			var events []string
			for _, e := range served.Events {
				events = append(events, e.Name)
			}
			if !slices.Equal(events, []string{"queued", "picked", "first token"}) {
				t.Errorf("events %v", events)
			}
			if refused.TraceID != strings.Repeat("1", 32) || refused.ParentSpanID != strings.Repeat("2", 16) || at(refused.Attributes, "http.response.status_code") != "404" || refused.Name != "chat" {
				t.Errorf("%+v", refused)
			}
			if text := fmt.Sprint(served, refused); strings.Contains(text, "secret") {
				t.Errorf("the prompt is in a span: %s", text)
			}
			select {
			case s := <-spans:
				t.Errorf("a span of what was not sampled: %+v", s)
			default:
			}
		})
	}
}
