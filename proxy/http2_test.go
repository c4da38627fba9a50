package proxy

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

// serveOn has s take connections until the test ends, and gives the address.
func serveOn(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		s.Serve(l)
		close(served)
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	return l.Addr().String()
}

// startChecks starts a server of gRPC that answers health checks, for the service
// "engine" too, and tells of its services.
func startChecks(t *testing.T) (address string, checks *health.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	backend := grpc.NewServer()
	checks = health.NewServer()
	checks.SetServingStatus("engine", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(backend, checks)
	reflection.Register(backend)
	served := make(chan struct{})
	go func() {
		backend.Serve(l)
		close(served)
	}()
	t.Cleanup(func() {
		backend.Stop()
		<-served
	})
	return l.Addr().String(), checks
}

// gRPC passes through with its trailers, in every kind of call: one answer, none but
// trailers, a stream of answers, and both ways at once.
func TestGRPC(t *testing.T) {
	address, checks := startChecks(t)
	passesGRPC(t, startServer(t, World{}, &pod{address: address}), checks)
}

// passesGRPC makes calls through s to checks.
func passesGRPC(t *testing.T, s *Server, checks *health.Server) {
	t.Helper()
	conn, err := grpc.NewClient(serveOn(t, s), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	client := grpc_health_v1.NewHealthClient(conn)
	var header, trailer metadata.MD
	answer, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "engine"}, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", answer, err)
	}
	if len(header.Get("x-request-id")) != 1 {
		t.Errorf("header %v", header)
	}
	if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "nobody"}); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "unknown service") {
		t.Errorf("an error of the backend came as %v", err)
	}

	watching, stop := context.WithCancel(ctx)
	watch, err := client.Watch(watching, &grpc_health_v1.HealthCheckRequest{Service: "engine"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{1, 2, 1} {
		if got, err := watch.Recv(); err != nil || got.Status != want {
			t.Fatalf("watched %v, %v, want %v", got, err, want)
		}
		checks.SetServingStatus("engine", 3-want)
	}
	stop()
	for err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Canceled {
		t.Errorf("left with %v", err)
	}

	both, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // each answer comes while the call is still being made
		if err := both.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
			t.Fatal(err)
		}
		if got, err := both.Recv(); err != nil || len(got.GetListServicesResponse().GetService()) < 2 {
			t.Fatalf("%v, %v", got, err)
		}
	}
	both.CloseSend()
	if _, err := both.Recv(); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
}

// A call whose backend ends it early lets go of its client.
func TestGRPCEndsBeforeItsClient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	backend := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.Error(codes.ResourceExhausted, "enough")
	}))
	served := make(chan struct{})
	go func() {
		backend.Serve(l)
		close(served)
	}()
	t.Cleanup(func() {
		backend.Stop()
		<-served
	})
	s := startServer(t, World{}, &pod{address: l.Addr().String()})
	conn, err := grpc.NewClient(serveOn(t, s), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("ended with %v", err)
	}
}

// overTLS is an engine of a few words behind TLS.
func overTLS(t *testing.T, http2 bool) (address, roots string) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto+" "+r.URL.Path)
	}))
	s.EnableHTTP2 = http2
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestEndpointsOverTLS(t *testing.T) {
	address, roots := overTLS(t, true)
	for _, test := range []struct {
		roots  string
		status int
	}{{roots, 200}, {"", 502}} {
		s := startServer(t, World{Pools: []Pool{{Name: "tls", Endpoints: []Endpoint{{Address: address, Scheme: SchemeHTTPS, Roots: test.roots}}}},
			Models: []Model{{Name: "m", Pool: "tls"}}})
		for range 2 {
			m := post("/v1/completions", `{"model":"m","prompt":"x"}`)
			s.Handle(m)
			if m.answer.Status != test.status || test.status == 200 && m.seen() != "HTTP/1.1 /v1/completions" {
				t.Errorf("roots %q: %d %s", test.roots, m.answer.Status, m.seen())
			}
		}
	}
}

func TestEndpointsInHTTP2(t *testing.T) {
	engine := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: "+r.Proto+" "+string(body)+"\n\n")
		w.(http.Flusher).Flush()
		io.WriteString(w, "data: [DONE]\n\n")
	}))
	engine.Config.Protocols = new(http.Protocols)
	engine.Config.Protocols.SetUnencryptedHTTP2(true)
	engine.Start()
	t.Cleanup(engine.Close)
	s := startServer(t, World{Pools: []Pool{{Name: "h2c", Endpoints: []Endpoint{{Address: engine.Listener.Addr().String(), Scheme: SchemeH2C}}}},
		Models: []Model{{Name: "m", Pool: "h2c"}}})
	for range 3 {
		m := post("/v1/completions", `{"model":"m","prompt":"x"}`)
		s.Handle(m)
		if want := "data: HTTP/2.0 {\"model\":\"m\",\"prompt\":\"x\"}\n\ndata: [DONE]\n\n"; m.answer.Status != 200 || m.seen() != want {
			t.Errorf("%d %q", m.answer.Status, m.seen())
		}
	}
}

// TLS of the listener's client is none of ours; its hello is refused at once.
func TestTLSHelloIsRefused(t *testing.T) {
	s := startServer(t, World{}, startPod(t, "", quick))
	c, err := net.Dial("tcp", serveOn(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()); err == nil {
		t.Error("somebody spoke TLS")
	}
}
