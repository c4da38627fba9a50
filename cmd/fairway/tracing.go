package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// tracing makes spans of requests and sends them to a collector, by OTLP.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
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
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(sdktrace.AlwaysSample()), // the proxy has decided
		sdktrace.WithIDGenerator(givenIDs{}),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "fairway"),
			attribute.String("service.version", cli.Version(version)),
			attribute.String("service.instance.id", replica),
		)),
	)
	return &tracing{provider, provider.Tracer("github.com/fairway-proxy/fairway")}, nil
}

// flushTime bounds how long the last spans may take to leave.
const flushTime = 2 * time.Second

// close sends what is there.
func (t *tracing) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	return t.provider.Shutdown(ctx)
}

// givenIDs has a span get the ids that the engine was told.
type givenIDs struct{}

type givenKey struct{}

func (givenIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	t := ctx.Value(givenKey{}).(*account.Trace)
	return t.ID, t.Span
}

func (givenIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	return ctx.Value(givenKey{}).(*account.Trace).Span
}

// span tells of an exchange that has ended. Names are those of OpenTelemetry's conventions for generative AI and HTTP where they have
// one.
func (t *tracing) span(rec *account.Record) {
	ctx := context.WithValue(context.Background(), givenKey{}, &rec.Trace)
	if rec.Trace.Parent != [8]byte{} {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: rec.Trace.ID, SpanID: rec.Trace.Parent, TraceFlags: trace.FlagsSampled, Remote: true,
		}))
	}
	name := rec.Method
	if rec.Operation != "" {
		name = rec.Operation
		if rec.Status/100 == 2 && rec.Model != "" { // others are what a stranger made up
			name += " " + rec.Model
		}
	}
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(rec.Start), trace.WithSpanKind(trace.SpanKindServer))
	set := func(key, value string) {
		if value != "" {
			span.SetAttributes(attribute.String(key, value))
		}
	}
	count := func(key string, n int) {
		if n >= 0 {
			span.SetAttributes(attribute.Int(key, n))
		}
	}
	set("http.request.method", rec.Method)
	set("url.path", rec.Path)
	span.SetAttributes(attribute.Int("http.response.status_code", rec.Status))
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
	if p := &rec.Pick; p.Next >= 0 && p.Next != p.Chosen {
		set("fairway.next", p.Candidates[p.Next].Endpoint)
	}
	count("fairway.predicted.input_tokens", rec.PredictedTokens)
	count("fairway.predicted.cached_tokens", rec.PredictedHit)
	if rec.Pick.PredictedTTFT > 0 {
		span.SetAttributes(attribute.Float64("fairway.predicted.time_to_first_token", rec.Pick.PredictedTTFT.Seconds()))
	}
	span.SetAttributes(attribute.Int("fairway.retries", rec.Retries))
	set("fairway.peer", rec.Peer)
	set("fairway.service", rec.Service)

	event := func(name string, at time.Duration, attributes ...attribute.KeyValue) {
		span.AddEvent(name, trace.WithTimestamp(rec.Start.Add(at)), trace.WithAttributes(attributes...))
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
	if rec.Status >= 500 || rec.Reason != "" && rec.Status/100 != 4 { // a client's errors are none of a server's (HTTP conventions)
		span.SetStatus(codes.Error, cmp.Or(rec.Reason, fmt.Sprintf("status %d", rec.Status)))
	}
	span.End(trace.WithTimestamp(rec.Start.Add(rec.Duration)))
}
