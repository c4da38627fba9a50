package proxy

import (
	"io"
	"log/slog"
	"net"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extproc"
)

// The lease of a request that waited follows it to an endpoint that has no room for another.
func TestLeaseFollowsToABusyEndpoint(t *testing.T) {
	p := picker.NewPool(picker.Config{})
	p.SetEndpoints([]picker.Spec{{Address: "named"}, {Address: "busy"}})
	named, busy := p.Endpoints()[0], p.Endpoints()[1]
	if _, err := p.Pick(&picker.Request{Bytes: 1 << 20, Stream: true, Exclude: []*picker.Endpoint{named}}, Now()); err != nil {
		t.Fatal(err)
	}
	x := Exchange{progress: progress{pool: &pool{picker: p}}}
	x.want = picker.Request{Bytes: 100, Room: picker.Room{Queued: 1000}, Until: Now() + 1, Exclude: []*picker.Endpoint{busy}}
	lease := p.Reserve(named, &x.want, Now())
	x.follow(&lease, "busy")
	if lease.Endpoint() != busy || x.record.Endpoint != "busy" || named.Load(Now()).InFlight != 0 || busy.Load(Now()).InFlight != 2 {
		t.Errorf("the lease is on %s, the record says %q", lease.Endpoint().Address(), x.record.Endpoint)
	}
	x.follow(&lease, "gone")
	if lease.Endpoint() != busy || busy.Load(Now()).InFlight != 1 {
		t.Errorf("the lease is on %s", lease.Endpoint().Address())
	}
}

// What the queue refuses is a 429 at once to the proxy that asks for an endpoint (proposal 004).
func TestPickerSheds(t *testing.T) {
	s, _, release := queued(t, World{Access: authz.Config{Elsewhere: true}, Queue: Queue{Bytes: 1}})
	defer release()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &extproc.Server{Handler: func(e *extproc.Stream) { s.Handle(e) }, Log: slog.New(slog.DiscardHandler)}
	go g.Serve(l)
	defer g.Close()
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rpc, err := extprocv3.NewExternalProcessorClient(c).Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	head := &corev3.HeaderMap{}
	for name, value := range map[string]string{":method": "POST", ":path": "/v1/chat/completions", ":authority": "llm", "content-type": "application/json"} {
		head.Headers = append(head.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
	}
	for _, r := range []*extprocv3.ProcessingRequest{
		{
			Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: head}},
			ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: modev3.ProcessingMode_FULL_DUPLEX_STREAMED, ResponseBodyMode: modev3.ProcessingMode_FULL_DUPLEX_STREAMED},
		},
		{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(chat(false, 3, "hi")), EndOfStream: true}}},
	} {
		if err := rpc.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	r, err := rpc.Recv()
	if err != nil {
		t.Fatal(err)
	}
	answer := r.GetImmediateResponse()
	fields := make(map[string]string)
	for _, o := range answer.GetHeaders().GetSetHeaders() {
		fields[o.GetHeader().GetKey()] = string(o.GetHeader().GetRawValue())
	}
	if answer.GetStatus().GetCode() != 429 || fields["retry-after"] != "1" || fields["x-llm-d-request-dropped-reason"] != "rejected-saturated" {
		t.Errorf("%v", r)
	}
	if _, err := rpc.Recv(); err != io.EOF {
		t.Errorf("the processing ends with %v", err)
	}
}
