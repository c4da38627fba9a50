package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// tracing makes spans of requests and sends them to a collector, by OTLP.
type tracing struct {
	spans    sdktrace.SpanProcessor // keeps those that are not sent yet, as many as there is room for, and sends many at once
	resource *resource.Resource
	longest  int // characters of what an attribute says; below 0: all
}

// startTracing begins to send; nil without an endpoint. Nothing is dialled before there is a span to send, and a collector that is
// away loses spans, not requests.
func startTracing(c file.Tracing, replica string, log *slog.Logger) (*tracing, error) {
	if c.Endpoint == "" {
		return nil, nil
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("tracing", "error", err) }))
	var client otlptrace.Client
	if c.Protocol == file.OTLPHTTP {
		at, err := url.Parse(c.Endpoint)
		if err != nil {
			return nil, fmt.Errorf("tracing.endpoint: %w", err)
		}
		if at.Path == "" || at.Path == "/" {
			at.Path = "/v1/traces" // OTLP's default for HTTP
		}
		client = otlptracehttp.NewClient(otlptracehttp.WithEndpointURL(at.String()))
	} else {
		client = otlptracegrpc.NewClient(otlptracegrpc.WithEndpointURL(c.Endpoint))
	}
	exporter, err := otlptrace.New(context.Background(), client)
	if err != nil {
		return nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	told, err := resource.Merge(resource.Environment(), resource.NewSchemaless(
		attribute.String("service.name", "fairway"),
		attribute.String("service.version", cli.Version(version)),
		attribute.String("service.instance.id", replica),
	))
	if err != nil { // told has what can be read of it all the same
		log.Warn("tracing", "error", err)
	}
	return &tracing{sdktrace.NewBatchSpanProcessor(exporter), told, sdktrace.NewSpanLimits().AttributeValueLengthLimit}, nil
}

// flushTime bounds how long the last spans may take to leave.
const flushTime = 2 * time.Second

// close sends what is there.
func (t *tracing) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	return t.spans.Shutdown(ctx)
}

// span tells of an exchange that has ended.
func (t *tracing) span(rec *account.Record) {
	s := &span{of: t, rec: *rec}
	p := &s.rec.Pick
	if p.Next >= 0 && p.Next != p.Chosen {
		s.next = p.Candidates[p.Next].Endpoint
	}
	p.Candidates, p.Tried = nil, slices.Clone(p.Tried)
	t.spans.OnEnd(s)
}

// clip bounds what an attribute says, if OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT does: in characters.
func (t *tracing) clip(s string) string {
	if t.longest < 0 || len(s) <= t.longest {
		return s
	}
	n := 0
	for i := range s {
		if n == t.longest {
			return s[:i]
		}
		n++
	}
	return s
}

// span is that of an exchange that has ended. What it says is laid out when it is sent, beside many others, which takes a fraction of
// the time; and not at all if there is no room for it while the collector is away. Names are those of OpenTelemetry's conventions for
// generative AI and HTTP where they have one.
type span struct {
	sdktrace.ReadOnlySpan // nil. It makes this one of them, as in sdk/trace/tracetest; all that it can be asked is below

	of   *tracing
	rec  account.Record // without its candidates
	next string         // the runner-up among them
}

var scope = instrumentation.Scope{Name: "github.com/fairway-proxy/fairway"}

func (s *span) SpanKind() trace.SpanKind                    { return trace.SpanKindServer }
func (s *span) StartTime() time.Time                        { return s.rec.Start }
func (s *span) EndTime() time.Time                          { return s.at(s.rec.Duration) }
func (s *span) Links() []sdktrace.Link                      { return nil }
func (s *span) Resource() *resource.Resource                { return s.of.resource }
func (s *span) InstrumentationScope() instrumentation.Scope { return scope }
func (s *span) DroppedAttributes() int                      { return 0 }
func (s *span) DroppedLinks() int                           { return 0 }
func (s *span) DroppedEvents() int                          { return 0 }
func (s *span) ChildSpanCount() int                         { return 0 }

// InstrumentationLibrary is the scope's old name.
func (s *span) InstrumentationLibrary() instrumentation.Scope { return scope }

func (s *span) at(since time.Duration) time.Time { return s.rec.Start.Add(since) }

// SpanContext has the ids that the engine was told.
func (s *span) SpanContext() trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: s.rec.Trace.ID, SpanID: s.rec.Trace.Span, TraceFlags: trace.FlagsSampled})
}

// Parent is the span that caused the request, if there is one.
func (s *span) Parent() trace.SpanContext {
	if s.rec.Trace.Parent == [8]byte{} {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: s.rec.Trace.ID, SpanID: s.rec.Trace.Parent, TraceFlags: trace.FlagsSampled, Remote: true,
	})
}

func (s *span) Name() string {
	rec := &s.rec
	switch {
	case rec.Operation == "":
		return rec.Method
	case rec.Status/100 == 2 && rec.Model != "": // others are what a stranger made up
		return rec.Operation + " " + rec.Model
	}
	return rec.Operation
}

func (s *span) Attributes() []attribute.KeyValue {
	rec, all := &s.rec, make([]attribute.KeyValue, 0, 24)
	set := func(key, value string) {
		if value != "" {
			all = append(all, attribute.String(key, s.of.clip(value)))
		}
	}
	count := func(key string, n int) {
		if n >= 0 {
			all = append(all, attribute.Int(key, n))
		}
	}
	set("http.request.method", rec.Method)
	set("url.path", rec.Path)
	count("http.response.status_code", rec.Status)
	set("client.address", rec.Remote)
	set("error.type", rec.Reason)
	if rec.Operation != "" {
		set("gen_ai.operation.name", rec.Operation)
		set("gen_ai.provider.name", "vllm")
		set("gen_ai.request.model", rec.Model)
		count("gen_ai.usage.input_tokens", rec.PromptTokens)
		count("gen_ai.usage.output_tokens", rec.CompletionTokens)
		count("gen_ai.usage.cache_read.input_tokens", rec.CachedTokens)
	}
	set("server.address", rec.Endpoint)
	set("fairway.request_id", rec.ID)
	set("fairway.pool", rec.Pool)
	set("fairway.decided_by", rec.Pick.DecidedBy)
	set("fairway.next", s.next)
	count("fairway.predicted.input_tokens", rec.PredictedTokens)
	count("fairway.predicted.cached_tokens", rec.PredictedHit)
	if rec.Pick.PredictedTTFT > 0 {
		all = append(all, attribute.Float64("fairway.predicted.time_to_first_token", rec.Pick.PredictedTTFT.Seconds()))
	}
	count("fairway.retries", rec.Retries)
	set("fairway.peer", rec.Peer)
	set("fairway.service", rec.Service)
	return all
}

func (s *span) Events() []sdktrace.Event {
	rec, all := &s.rec, make([]sdktrace.Event, 0, 4)
	event := func(name string, since time.Duration, attributes ...attribute.KeyValue) {
		all = append(all, sdktrace.Event{Name: name, Time: s.at(since), Attributes: attributes})
	}
	for _, a := range rec.Pick.Tried {
		event("retry", a.At, attribute.String("server.address", a.Endpoint), attribute.String("error.message", a.Why))
	}
	if at := rec.Pick.At; at > 0 {
		event("queued", at-rec.Pick.Queued)
		event("picked", at)
	}
	if rec.TTFT > 0 {
		event("first token", rec.TTFT)
	}
	return all
}

// Status is an error if that is what it was of ours: a client's are none of a server's (HTTP conventions).
func (s *span) Status() sdktrace.Status {
	if rec := &s.rec; rec.Status >= 500 || rec.Reason != "" && rec.Status/100 != 4 {
		return sdktrace.Status{Code: codes.Error, Description: cmp.Or(rec.Reason, fmt.Sprintf("status %d", rec.Status))}
	}
	return sdktrace.Status{}
}
