package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// spans is a collector of spans, by gRPC and HTTP.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	all []*otlp.Span
}

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range r.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			s.all = append(s.all, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var export collector.ExportTraceServiceRequest
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &export) != nil {
		w.WriteHeader(400)
		return
	}
	s.Export(r.Context(), &export)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func attributeOf(all []*common.KeyValue, key string) string {
	for _, a := range all {
		if a.Key == key {
			switch v := a.Value.Value.(type) {
			case *common.AnyValue_StringValue:
				return v.StringValue
			case *common.AnyValue_IntValue:
				return fmt.Sprint(v.IntValue)
			case *common.AnyValue_DoubleValue:
				return fmt.Sprint(v.DoubleValue)
			}
		}
	}
	return ""
}

// A client's trace goes on through the proxy to the engine, and a collector hears of it, by either transport.
func TestTracing(t *testing.T) {
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, protocol := range []file.OTLP{file.OTLPGRPC, file.OTLPHTTP} {
		t.Run(string(protocol), func(t *testing.T) {
			got := new(spans)
			var url string
			if protocol == file.OTLPGRPC {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				server := grpc.NewServer()
				collector.RegisterTraceServiceServer(server, got)
				served := make(chan error, 1)
				go func() { served <- server.Serve(l) }()
				defer func() { server.Stop(); <-served }()
				url = "http://" + l.Addr().String()
			} else {
				server := httptest.NewServer(got)
				defer server.Close()
				url = server.URL
			}
			engine := startPod(t, "", mock.Config{Speed: 20})
			var told string
			engine.SetFaults(mock.Faults{OnRequest: func(r *http.Request, _ []byte) { told = r.Header.Get("Traceparent") }})
			gone := startPod(t, "", mock.Config{Speed: 20})

			t.Run("while it runs", func(t *testing.T) {
				f := startFleetWith(t, func(c *file.Config) {
					c.Tracing = file.Tracing{Endpoint: url, Protocol: protocol, Sampling: 0}
					c.World.Scrape.Interval = time.Hour
				}, engine, gone)
				gone.stop()
				for i := range 8 { // one of them is tried at the pod that is gone, as a rule
					body := request{Model: "mock", Stream: true, MaxTokens: 3, Messages: []message{{"user", prose(i, 300)}}}.body()
					req, _ := http.NewRequestWithContext(t.Context(), "POST", f.url+"/v1/chat/completions", body)
					req.Header.Set("Content-Type", "application/json")
					req.Header.Set("Traceparent", "00-"+trace+"-"+parent+"-01")
					resp, err := f.client.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				f.mustAsk(t, request{MaxTokens: 1, Messages: []message{{"user", "not traced"}}}) // nothing of the ratio 0
			})

			if len(got.all) != 8 {
				t.Fatalf("%d spans have come when the proxy has stopped, want 8", len(got.all))
			}
			retries := 0
			for _, s := range got.all {
				if s.Name != "chat mock" || hex.EncodeToString(s.TraceId) != trace || hex.EncodeToString(s.ParentSpanId) != parent || s.Kind != otlp.Span_SPAN_KIND_SERVER {
					t.Errorf("%v", s)
				}
				for key, want := range map[string]string{
					"gen_ai.operation.name": "chat", "gen_ai.request.model": "mock", "gen_ai.usage.output_tokens": "3", "http.response.status_code": "200",
					"fairway.pool": "pool", "server.address": engine.address, "url.path": "/v1/chat/completions",
				} {
					if v := attributeOf(s.Attributes, key); v != want {
						t.Errorf("%s is %q, want %q", key, v, want)
					}
				}
				var events []string
				at := s.StartTimeUnixNano
				for _, e := range s.Events {
					if e.TimeUnixNano < at && e.Name != "queued" || e.TimeUnixNano > s.EndTimeUnixNano {
						t.Errorf("%s is out of order", e.Name)
					}
					at = e.TimeUnixNano
					events = append(events, e.Name)
				}
				if n := len(events) - 3; n < 0 || !slices.Equal(events[n:], []string{"queued", "picked", "first token"}) {
					t.Errorf("events %v", events)
				} else if n > 0 && events[0] == "retry" && attributeOf(s.Events[0].Attributes, "server.address") == gone.address {
					retries++
				}
			}
			if retries == 0 {
				t.Log("no request was tried at the pod that is gone")
			}
			if !strings.HasSuffix(told, "-00") || len(told) != 55 || strings.Contains(told, trace) {
				t.Errorf("the last one, which is not sampled, was told to the engine as %q", told)
			}
		})
	}
}

// A span says what its record said when the exchange ended, though the record is another's by the time the span is sent; and no more of
// each than OpenTelemetry's environment has it.
func TestSpanOutlivesItsRecord(t *testing.T) {
	t.Setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5")
	tracing, err := startTracing(file.Tracing{Endpoint: "http://127.0.0.1:1"}, "replica", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer tracing.close()
	ended := tracetest.NewSpanRecorder()
	tracing.spans.Shutdown(t.Context())
	tracing.spans = ended

	rec := new(account.Record)
	rec.Reset()
	rec.Operation, rec.Model, rec.Path, rec.Status, rec.Start = "chat", "mödell", "/mödell", 502, time.Unix(1, 0)
	rec.Trace = account.Trace{ID: [16]byte{1}, Span: [8]byte{2}, Sampled: true}
	rec.Pick.Candidates = append(rec.Pick.Candidates, account.Candidate{Endpoint: "a"}, account.Candidate{Endpoint: "b"})
	rec.Pick.Chosen, rec.Pick.Next, rec.Pick.At = 0, 1, time.Second
	rec.Pick.Fail("c", time.Millisecond, errors.New("refused"))
	tracing.span(rec)
	rec.Pick.Candidates[1].Endpoint, rec.Pick.Tried[0].Endpoint = "another's", "another's"
	rec.Reset()

	s := ended.Ended()[0]
	if s.Name() != "chat" || s.SpanContext().TraceID() != [16]byte{1} || s.SpanContext().SpanID() != [8]byte{2} || s.Parent().IsValid() || s.Status().Code != codes.Error {
		t.Errorf("%+v", tracetest.SpanStubFromReadOnlySpan(s))
	}
	said := make(map[attribute.Key]string)
	for _, a := range s.Attributes() {
		said[a.Key] = a.Value.String()
	}
	if said["fairway.next"] != "b" || said["url.path"] != "/möde" || said["http.response.status_code"] != "502" {
		t.Errorf("%q", said)
	}
	if _, tells := said["gen_ai.usage.input_tokens"]; tells {
		t.Errorf("it tells of tokens that nobody counted: %q", said)
	}
	if e := s.Events(); len(e) != 3 || e[0].Name != "retry" || e[0].Attributes[0].Value.AsString() != "c" || !e[2].Time.Equal(time.Unix(2, 0)) {
		t.Errorf("events %+v", e)
	}
}

// A collector that is away costs spans, and no request.
func TestTracingWithoutACollector(t *testing.T) {
	f := startFleetWith(t, func(c *file.Config) {
		c.Tracing = file.Tracing{Endpoint: "http://127.0.0.1:1", Protocol: file.OTLPHTTP, Sampling: 1}
	}, startPod(t, "", mock.Config{Speed: 20}))
	for i := range 3 {
		f.mustAsk(t, request{MaxTokens: 1, Messages: []message{{"user", prose(i, 10)}}})
	}
}
