package extproc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairway-proxy/fairway/proxy/extproc"
	"github.com/fairway-proxy/fairway/proxy/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	none     = modev3.ProcessingMode_NONE
	streamed = modev3.ProcessingMode_STREAMED
	buffered = modev3.ProcessingMode_BUFFERED
	duplex   = modev3.ProcessingMode_FULL_DUPLEX_STREAMED
)

// start serves h and gives a connection to it.
func start(t *testing.T, h func(*extproc.Stream)) (*grpc.ClientConn, *extproc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &extproc.Server{Handler: h, Log: slog.New(slog.DiscardHandler)}
	go s.Serve(l)
	t.Cleanup(s.Close)
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, s
}

// proxy is the other end: what Envoy does, message by message.
type proxy struct {
	*testing.T
	extprocv3.ExternalProcessor_ProcessClient
	cancel context.CancelFunc
}

func open(t *testing.T, c *grpc.ClientConn) proxy {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	rpc, err := extprocv3.NewExternalProcessorClient(c).Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return proxy{t, rpc, cancel}
}

func (p proxy) say(r *extprocv3.ProcessingRequest) {
	p.Helper()
	if err := p.Send(r); err != nil {
		p.Fatal(err)
	}
}

func (p proxy) hear() *extprocv3.ProcessingResponse {
	p.Helper()
	r, err := p.Recv()
	if err != nil {
		p.Fatal(err)
	}
	return r
}

func fields(pairs ...string) *extprocv3.HttpHeaders {
	h := &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{}}
	for i := 0; i < len(pairs); i += 2 {
		h.Headers.Headers = append(h.Headers.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return h
}

func requestHead(request, response modev3.ProcessingMode_BodySendMode, last bool, more ...string) *extprocv3.ProcessingRequest {
	h := fields(append([]string{":method", "POST", ":path", "/v1/chat/completions", ":authority", "llm", "content-type", "application/json"}, more...)...)
	h.EndOfStream = last
	return &extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: h},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: request, ResponseBodyMode: response},
	}
}

func requestBody(body string, last bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: last}}}
}

func requestTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
}

func responseHead(last bool, more ...string) *extprocv3.ProcessingRequest {
	h := fields(append([]string{":status", "200", "server", "uvicorn"}, more...)...)
	h.EndOfStream = last
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: h}}
}

func responseBody(body string, last bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: last}}}
}

func responseTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{
		Trailers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "grpc-status", RawValue: []byte("0")}}},
	}}}
}

// set gives the value that a mutation sets, and whether it sets it.
func set(m *extprocv3.HeaderMutation, name string) (string, bool) {
	for _, o := range m.GetSetHeaders() {
		if o.GetHeader().GetKey() == name {
			return string(o.GetHeader().GetRawValue()), true
		}
	}
	return "", false
}

// serve does what the proxy package does with a Stream: reads the request, names a
// destination, and lets the answer pass, each piece through change.
func serve(s *extproc.Stream, destination string, change func([]byte) []byte) error {
	body, err := io.ReadAll(readerOf(s))
	if err != nil {
		return fmt.Errorf("request body: %w", err)
	}
	s.Direct(destination)
	if err := s.Send(s.Head(), body); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var head message.Response
	if err := s.ReadHead(&head); err != nil {
		return err
	}
	if err := s.WriteHead(&head); err != nil {
		return fmt.Errorf("head: %w", err)
	}
	for {
		piece, err := s.Next()
		if err == io.EOF {
			return s.Finish(s.Trailers())
		}
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if _, err := s.Write(change(piece)); err != nil {
			return err
		}
		if !s.Pending() {
			if err := s.Flush(); err != nil {
				return err
			}
		}
	}
}

func readerOf(s *extproc.Stream) io.Reader { return reader{s} }

type reader struct{ s *extproc.Stream }

func (r reader) Read(p []byte) (int, error) { return r.s.Read(p) }

func same(p []byte) []byte { return p }

// served starts a server that names a destination, and gives what became of its
// request.
func served(t *testing.T, destination string, change func([]byte) []byte) (*grpc.ClientConn, chan error) {
	t.Helper()
	done := make(chan error, 1)
	c, _ := start(t, func(s *extproc.Stream) {
		err := serve(s, destination, change)
		if err != nil {
			s.Abort()
		}
		done <- err
	})
	return c, done
}

// bodyOf gathers the pieces that replace a body, up to the one that says it is the
// last.
func (p proxy) bodyOf(get func(*extprocv3.ProcessingResponse) *extprocv3.BodyResponse) string {
	p.Helper()
	var all bytes.Buffer
	for {
		r := get(p.hear())
		m := r.GetResponse().GetBodyMutation().GetStreamedResponse()
		if m == nil {
			p.Fatalf("not a piece of body: %v", r)
		}
		if len(m.GetBody()) > 64<<10 {
			p.Fatalf("a piece of %d bytes", len(m.GetBody()))
		}
		all.Write(m.GetBody())
		if m.GetEndOfStream() {
			return all.String()
		}
	}
}

// The protocol, "Destination Endpoint": the header and the metadata name it, with
// one value.
func checkDestination(t *testing.T, r *extprocv3.ProcessingResponse, common *extprocv3.CommonResponse, want string) {
	t.Helper()
	if got, _ := set(common.GetHeaderMutation(), "x-gateway-destination-endpoint"); got != want {
		t.Errorf("the header names %q, want %q", got, want)
	}
	metadata := r.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"].GetStringValue()
	if metadata != want {
		t.Errorf("the metadata names %q, want %q", metadata, want)
	}
}

func TestFullDuplex(t *testing.T) {
	const destination = "10.0.0.1:8000,10.0.0.2:8000"
	for _, size := range []int{1, 1000, 62_000, 62_001, 300_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			body := strings.Repeat("x", size)
			c, done := served(t, destination, bytes.ToUpper)
			p := open(t, c)
			p.say(requestHead(duplex, duplex, false, "content-length", fmt.Sprint(size)))
			p.say(requestBody(body[:size/2], false))
			p.say(requestBody(body[size/2:], false))
			p.say(requestBody("", true)) // HTTP/1.1 says the end of a body on its own
			r := p.hear()
			checkDestination(t, r, r.GetRequestHeaders().GetResponse(), destination)
			if got := p.bodyOf((*extprocv3.ProcessingResponse).GetRequestBody); got != body {
				t.Errorf("%d bytes of body came back of %d", len(got), size)
			}
			p.say(responseHead(false))
			if r := p.hear().GetResponseHeaders(); r == nil || len(r.GetResponse().GetHeaderMutation().GetSetHeaders()) > 0 {
				t.Errorf("the answer's head is changed, or not answered: %v", r)
			}
			p.say(responseBody("one ", false))
			if got := string(p.hear().GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()); got != "ONE " {
				t.Errorf("the first piece came back as %q", got)
			}
			p.say(responseBody("two", true))
			if got := p.bodyOf((*extprocv3.ProcessingResponse).GetResponseBody); got != "TWO" {
				t.Errorf("the last piece came back as %q", got)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTrailers(t *testing.T) {
	c, done := served(t, "10.0.0.1:8000", same)
	p := open(t, c)
	p.say(requestHead(duplex, duplex, false))
	p.say(requestBody("body", false))
	p.say(requestTrailers())
	p.hear() // head
	if m := p.hear().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse(); string(m.GetBody()) != "body" || m.GetEndOfStream() {
		t.Errorf("the body came back as %v", m)
	}
	if p.hear().GetRequestTrailers() == nil {
		t.Error("the request's trailers were not answered")
	}
	p.say(responseHead(false))
	p.hear()
	p.say(responseBody("answer", false))
	p.hear()
	p.say(responseTrailers())
	if p.hear().GetResponseTrailers() == nil {
		t.Error("the answer's trailers were not answered")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWithoutBodies(t *testing.T) {
	c, done := served(t, "10.0.0.1:8000", same)
	p := open(t, c)
	p.say(requestHead(duplex, duplex, true))
	r := p.hear()
	checkDestination(t, r, r.GetRequestHeaders().GetResponse(), "10.0.0.1:8000")
	p.say(responseHead(true))
	if p.hear().GetResponseHeaders() == nil {
		t.Error("the answer's head was not answered")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// In this mode Envoy sends the body only when its head was answered, and answers
// to the body carry the destination.
func TestBuffered(t *testing.T) {
	c, done := served(t, "10.0.0.1:8000", bytes.ToUpper)
	p := open(t, c)
	p.say(requestHead(buffered, buffered, false, "content-length", "4"))
	if r := p.hear().GetRequestHeaders(); r == nil {
		t.Fatal("the head was not let pass")
	}
	p.say(requestBody("body", true))
	r := p.hear()
	checkDestination(t, r, r.GetRequestBody().GetResponse(), "10.0.0.1:8000")
	if got := string(r.GetRequestBody().GetResponse().GetBodyMutation().GetBody()); got != "body" {
		t.Errorf("the body came back as %q", got)
	}
	p.say(responseHead(false, "content-length", "6"))
	p.hear()
	p.say(responseBody("answer", true))
	if got := string(p.hear().GetResponseBody().GetResponse().GetBodyMutation().GetBody()); got != "ANSWER" {
		t.Errorf("the answer came back as %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Answers in the older streaming mode: each piece is answered by one.
func TestStreamedAnswer(t *testing.T) {
	c, done := served(t, "10.0.0.1:8000", func(p []byte) []byte {
		if string(p) == "hidden" {
			return nil
		}
		return p
	})
	p := open(t, c)
	p.say(requestHead(duplex, streamed, true))
	p.hear()
	p.say(responseHead(false))
	p.hear()
	for i, piece := range []string{"one", "hidden", "two"} {
		p.say(responseBody(piece, i == 2))
		got := string(p.hear().GetResponseBody().GetResponse().GetBodyMutation().GetBody())
		if want := strings.ReplaceAll(piece, "hidden", ""); got != want {
			t.Errorf("%q came back as %q", piece, got)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A proxy may show no answers at all, or only their heads.
func TestAnswersNotShown(t *testing.T) {
	for _, head := range []bool{false, true} {
		c, done := served(t, "10.0.0.1:8000", same)
		p := open(t, c)
		p.say(requestHead(duplex, none, true))
		p.hear()
		if head {
			p.say(responseHead(false))
			p.hear()
		}
		p.CloseSend()
		var want error
		if !head {
			want = io.EOF
		}
		if err := <-done; err != want {
			t.Errorf("with the head shown %v: %v, want %v", head, err, want)
		}
	}
}

// An answer of our own, in the place of a destination.
func TestImmediate(t *testing.T) {
	c, _ := start(t, func(s *extproc.Stream) {
		io.ReadAll(readerOf(s))
		s.WriteHead(&message.Response{Status: 429, Fields: []message.Field{{Name: []byte("retry-after"), Value: []byte("3")}}})
		s.Write([]byte(`{"error":`))
		s.Write([]byte(`"later"}`))
		s.Finish(nil)
	})
	for _, mode := range []modev3.ProcessingMode_BodySendMode{duplex, buffered} {
		p := open(t, c)
		p.say(requestHead(mode, duplex, false))
		if mode == buffered {
			p.hear()
		}
		p.say(requestBody("body", true))
		r := p.hear().GetImmediateResponse()
		if r.GetStatus().GetCode() != 429 || string(r.GetBody()) != `{"error":"later"}` {
			t.Errorf("%v: %v", mode, r)
		}
		if after, _ := set(r.GetHeaders(), "retry-after"); after != "3" {
			t.Errorf("%v: retry-after is %q", mode, after)
		}
		if _, err := p.Recv(); err != io.EOF {
			t.Errorf("%v: the processing ends with %v", mode, err)
		}
	}
}

// What is changed in a head is said as a mutation: no more and no less.
func TestMutation(t *testing.T) {
	c, _ := start(t, func(s *extproc.Stream) {
		head := *s.Head()
		kept := head.Fields[:0:0]
		for _, f := range head.Fields {
			switch string(f.Name) {
			case "x-gone":
				continue
			case "x-changed":
				f.Value = []byte("new")
			}
			kept = append(kept, f)
		}
		head.Fields = append(kept, message.Field{Name: []byte("x-added"), Value: []byte("1")}, message.Field{Name: []byte("x-added"), Value: []byte("2")})
		head.Target = []byte("/v1/completions")
		s.Direct("10.0.0.1:8000")
		s.Send(&head)
		s.ReadHead(&message.Response{})
	})
	p := open(t, c)
	p.say(requestHead(duplex, none, true, "x-kept", "a", "x-kept", "b", "x-changed", "old", "x-gone", "1", "x-gone", "2"))
	m := p.hear().GetRequestHeaders().GetResponse().GetHeaderMutation()
	var got []string
	for _, o := range m.GetSetHeaders() {
		got = append(got, fmt.Sprintf("%s=%s %v", o.GetHeader().GetKey(), o.GetHeader().GetRawValue(), o.GetAppendAction()))
	}
	want := []string{
		":path=/v1/completions OVERWRITE_IF_EXISTS_OR_ADD",
		"x-changed=new OVERWRITE_IF_EXISTS_OR_ADD",
		"x-added=1 OVERWRITE_IF_EXISTS_OR_ADD",
		"x-added=2 APPEND_IF_EXISTS_OR_ADD",
		"x-gateway-destination-endpoint=10.0.0.1:8000 OVERWRITE_IF_EXISTS_OR_ADD",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("set:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if removed := m.GetRemoveHeaders(); len(removed) != 1 || removed[0] != "x-gone" {
		t.Errorf("removed: %q", removed)
	}
	p.CloseSend()
}

// The protocol, "Endpoint Subset".
func TestSubset(t *testing.T) {
	type subset struct {
		endpoints []string
		ok        bool
	}
	got := make(chan subset, 1)
	c, _ := start(t, func(s *extproc.Stream) {
		endpoints, ok := s.Subset()
		got <- subset{endpoints, ok}
	})
	list := func(endpoints ...any) *structpb.Value {
		l, err := structpb.NewList(endpoints)
		if err != nil {
			t.Fatal(err)
		}
		return structpb.NewListValue(l)
	}
	for _, tt := range []struct {
		hint *structpb.Value
		want string
	}{
		{nil, "[] false"},
		{list(), "[] true"},
		{list("10.0.0.1:8000", "10.0.0.2:8000"), "[10.0.0.1:8000 10.0.0.2:8000] true"},
		{structpb.NewStringValue("10.0.0.1:8000, 10.0.0.2:8000"), "[10.0.0.1:8000 10.0.0.2:8000] true"},
		{structpb.NewStringValue(strings.Repeat("x,", 5000)), "[" + strings.Repeat("x ", 4095) + "x] true"},
	} {
		r := requestHead(duplex, duplex, true)
		if tt.hint != nil {
			r.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
				"envoy.lb.subset_hint": {Fields: map[string]*structpb.Value{"x-gateway-destination-endpoint-subset": tt.hint}},
			}}
		}
		open(t, c).say(r)
		if s := <-got; fmt.Sprint(s.endpoints, s.ok) != tt.want {
			t.Errorf("%v: %v %v, want %s", tt.hint, s.endpoints, s.ok, tt.want)
		}
	}
}

// The protocol, "Destination Endpoint Served".
func TestServed(t *testing.T) {
	got := make(chan string, 1)
	c, _ := start(t, func(s *extproc.Stream) {
		s.Direct("10.0.0.1:8000,10.0.0.2:8000")
		s.Send(s.Head())
		s.ReadHead(&message.Response{})
		got <- s.Served()
	})
	p := open(t, c)
	p.say(requestHead(duplex, duplex, true))
	p.hear()
	r := responseHead(true)
	r.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"envoy.lb": {Fields: map[string]*structpb.Value{"x-gateway-destination-endpoint-served": structpb.NewStringValue("10.0.0.2:8000")}},
	}}
	p.say(r)
	if s := <-got; s != "10.0.0.2:8000" {
		t.Errorf("served by %q", s)
	}
}

// A client that leaves is a processing that the proxy cancels, at whatever step.
func TestCancelled(t *testing.T) {
	for _, tt := range []struct {
		name string
		upTo func(proxy)
	}{
		{"before the body", func(p proxy) { p.say(requestHead(duplex, duplex, false)) }},
		{"within the body", func(p proxy) { p.say(requestHead(duplex, duplex, false)); p.say(requestBody("b", false)) }},
		{"before the answer", func(p proxy) { p.say(requestHead(duplex, duplex, true)); p.hear() }},
		{"within the answer", func(p proxy) {
			p.say(requestHead(duplex, duplex, true))
			p.hear()
			p.say(responseHead(false))
			p.hear()
			p.say(responseBody("a", false))
			p.hear()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begun, gone := make(chan struct{}), make(chan struct{})
			done := make(chan error, 1)
			c, _ := start(t, func(s *extproc.Stream) {
				close(begun)
				err := serve(s, "10.0.0.1:8000", same)
				<-s.Context().Done()
				close(gone)
				done <- err
			})
			p := open(t, c)
			tt.upTo(p)
			<-begun
			p.cancel()
			select {
			case <-gone:
			case <-time.After(time.Minute):
				t.Fatal("not noticed")
			}
			if err := <-done; err == nil {
				t.Error("it went on as if nothing had happened")
			}
		})
	}
}

// Proxies that are set up so that nothing can be picked hear why.
func TestMisconfigured(t *testing.T) {
	c, _ := start(t, func(*extproc.Stream) { t.Error("served") })
	observing := requestHead(duplex, duplex, true)
	observing.ObservabilityMode = true
	for _, tt := range []struct {
		first *extprocv3.ProcessingRequest
		why   string
	}{
		{requestBody("body", true), "request_header_mode"},
		{requestHead(none, duplex, false), "request_body_mode"},
		{requestHead(streamed, duplex, false), "request_body_mode"},
		{observing, "observability_mode"},
		{requestHead(duplex, duplex, true, make([]string, 10000)...), "5004 fields"},
	} {
		p := open(t, c)
		p.say(tt.first)
		_, err := p.Recv()
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%v: %v, want something about %s", tt.first, err, tt.why)
		}
	}
}

// However many ask wrongly, the log is told of one in a while, and of all who want to know.
func TestMisconfiguredLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told bytes.Buffer
		s := &extproc.Server{Log: slog.New(slog.NewTextHandler(&told, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		b, err := proto.Marshal(requestBody("body", true))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for range 3 {
				call := &recorded{T: t, data: append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)}
				if err := extproc.Process(s, call); status.Code(err) != codes.FailedPrecondition {
					t.Errorf("it ends with %v", err)
				}
			}
			time.Sleep(10 * time.Second)
		}
		if loud, all := strings.Count(told.String(), "level=ERROR"), strings.Count(told.String(), "a proxy asks"); loud != 2 || all != 6 {
			t.Errorf("%d at Error and %d in all, want 2 and 6:\n%s", loud, all, &told)
		}
	})
}

// Messages out of order end the processing, and nothing else.
func TestOutOfOrder(t *testing.T) {
	for _, tt := range []struct {
		name string
		say  []*extprocv3.ProcessingRequest
	}{
		{"two heads", []*extprocv3.ProcessingRequest{requestHead(duplex, duplex, false), requestHead(duplex, duplex, false)}},
		{"an answer before the body's end", []*extprocv3.ProcessingRequest{requestHead(duplex, duplex, false), responseHead(true)}},
		{"a body of no request", []*extprocv3.ProcessingRequest{requestHead(duplex, duplex, true), requestBody("b", true)}},
		{"an answer without a status", []*extprocv3.ProcessingRequest{requestHead(duplex, duplex, true), {
			Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: fields("server", "x")},
		}}},
		{"two answers", []*extprocv3.ProcessingRequest{requestHead(duplex, duplex, true), responseHead(false), responseHead(false)}},
		{"nothing", []*extprocv3.ProcessingRequest{requestHead(duplex, duplex, false), {}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, done := served(t, "10.0.0.1:8000", same)
			p := open(t, c)
			for _, r := range tt.say {
				p.say(r)
			}
			if err := <-done; err == nil || errors.Is(err, io.EOF) {
				t.Errorf("served: %v", err)
			}
		})
	}
}

// The protocol, "Health Checking".
func TestHealth(t *testing.T) {
	c, s := start(t, func(*extproc.Stream) {})
	client := healthv1.NewHealthClient(c)
	for _, ready := range []bool{false, true, false} {
		s.SetReady(ready)
		for service, want := range map[string]bool{"liveness": true, "readiness": ready, "envoy.service.ext_proc.v3.ExternalProcessor": ready, "": ready} {
			r, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
			if err != nil {
				t.Fatal(err)
			}
			if got := r.GetStatus() == healthv1.HealthCheckResponse_SERVING; got != want {
				t.Errorf("ready %v: %q is %v", ready, service, r.GetStatus())
			}
		}
	}
}

// Whatever a proxy says, in whatever order, ends without a panic.
func FuzzProcess(f *testing.F) {
	seed := func(messages ...*extprocv3.ProcessingRequest) {
		var all []byte
		for _, m := range messages {
			b, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			all = append(all, byte(len(b)>>8), byte(len(b)))
			all = append(all, b...)
		}
		f.Add(all)
	}
	seed(requestHead(duplex, duplex, false), requestBody("body", true), responseHead(false), responseBody("answer", true))
	seed(requestHead(buffered, streamed, false), requestBody("body", true), responseHead(false), responseBody("answer", true))
	seed(requestHead(duplex, none, true), responseHead(false))
	seed(requestHead(duplex, duplex, false, "content-length", "3"), requestBody("bo", false), requestTrailers(), responseHead(false), responseTrailers())
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &extproc.Server{Handler: func(s *extproc.Stream) {
			if serve(s, "10.0.0.1:8000", same) != nil {
				s.Abort()
			}
		}, Log: slog.New(slog.DiscardHandler)}
		extproc.Process(s, &recorded{T: t, data: data})
	})
}

// recorded is a processing whose messages are all there.
type recorded struct {
	*testing.T
	data []byte
}

func (r *recorded) RemoteAddr() net.Addr { return &net.TCPAddr{} }
func (r *recorded) Remote() string       { return "" }
func (r *recorded) Receive() ([]byte, error) {
	if len(r.data) < 2 {
		return nil, io.EOF
	}
	n := min(int(r.data[0])<<8|int(r.data[1]), len(r.data)-2)
	b := r.data[2 : 2+n]
	r.data = r.data[2+n:]
	return b, nil
}

// Send has generated code read what is said.
func (r *recorded) Send(parts ...[]byte) error {
	var m extprocv3.ProcessingResponse
	if err := proto.Unmarshal(bytes.Join(parts, nil), &m); err != nil {
		r.Error(err)
	} else if m.GetResponse() == nil || len(m.ProtoReflect().GetUnknown()) > 0 {
		r.Errorf("it says %v", &m)
	}
	return nil
}
