package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// An endpoint picker written from the protocol's text alone
// (docs/proposals/004-endpoint-picker-protocol of the Inference Extension, and the
// comments of envoy/service/ext_proc/v3/external_processor.proto), to be asked by the
// proxy. It shares no code with proxy/extproc.

const (
	destinationKey = "x-gateway-destination-endpoint"
	servedKey      = "x-gateway-destination-endpoint-served"
	subsetKey      = "x-gateway-destination-endpoint-subset"
)

// heardRequest is what a picker heard of one request.
type heardRequest struct {
	fields  map[string]string
	body    string
	mode    modev3.ProcessingMode_BodySendMode
	subset  []string
	served  string
	status  string
	answer  string
	ended   bool // the answer's body
	trailer string
	gone    chan struct{} // closed when the processing has ended
}

// says is how a picker behaves. The zero value names nothing.
type says struct {
	destination string // in header and metadata
	onlyHeader  bool
	onlyMeta    bool
	set         []*corev3.HeaderValueOption
	remove      []string
	body        func(string) string // nil: as it came
	answer      *extprocv3.ImmediateResponse
	wantBodies  bool // of answers
	// instead takes the place of all that.
	instead func(s extprocv3.ExternalProcessor_ProcessServer) error
}

// ownEPP is a picker of the test's own.
type ownEPP struct {
	extprocv3.UnimplementedExternalProcessorServer
	says   atomic.Pointer[says]
	ruled  atomic.Int64 // requests that it named a destination for
	server *grpc.Server

	mu    sync.Mutex
	heard []*heardRequest
}

// startEPP starts a picker at address, on a port of its own if that is empty.
func startEPP(t testing.TB, address string, s says, options ...grpc.ServerOption) (*ownEPP, string) {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	e := &ownEPP{server: grpc.NewServer(append(options, grpc.MaxRecvMsgSize(128<<20))...)}
	e.says.Store(&s)
	extprocv3.RegisterExternalProcessorServer(e.server, e)
	served := make(chan struct{})
	go func() {
		defer close(served)
		e.server.Serve(l)
	}()
	t.Cleanup(func() {
		e.server.Stop()
		<-served
	})
	return e, l.Addr().String()
}

func (e *ownEPP) last(t *testing.T) *heardRequest {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.heard) == 0 {
		t.Fatal("the picker heard nothing")
	}
	return e.heard[len(e.heard)-1]
}

func (e *ownEPP) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	say := e.says.Load()
	if say.instead != nil {
		return say.instead(s)
	}
	h := &heardRequest{fields: make(map[string]string), gone: make(chan struct{})}
	e.mu.Lock()
	e.heard = append(e.heard, h)
	e.mu.Unlock()
	defer close(h.gone)
	m, err := s.Recv()
	if err != nil {
		return err
	}
	head := m.GetRequestHeaders()
	if head == nil {
		return fmt.Errorf("it begins with %T", m.GetRequest())
	}
	for _, v := range head.GetHeaders().GetHeaders() {
		if v.GetKey() != strings.ToLower(v.GetKey()) || v.GetValue() != "" {
			return fmt.Errorf("not as Envoy sends it: %v", v)
		}
		h.fields[v.GetKey()] += string(v.GetRawValue())
	}
	h.mode = m.GetProtocolConfig().GetRequestBodyMode()
	for _, v := range m.GetMetadataContext().GetFilterMetadata()["envoy.lb.subset_hint"].GetFields()[subsetKey].GetListValue().GetValues() {
		h.subset = append(h.subset, v.GetStringValue())
	}
	if say.answer != nil {
		return s.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: say.answer}})
	}

	named := &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: say.set, RemoveHeaders: say.remove}}
	if !say.onlyMeta {
		named.HeaderMutation.SetHeaders = append([]*corev3.HeaderValueOption{setField(destinationKey, say.destination)}, say.set...)
	}
	var meta *structpb.Struct
	if !say.onlyHeader {
		meta, _ = structpb.NewStruct(map[string]any{"envoy.lb": map[string]any{destinationKey: say.destination}})
	}
	toHead := func(c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
		r := &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: c}}}
		if say.wantBodies {
			r.ModeOverride = &modev3.ProcessingMode{ResponseHeaderMode: modev3.ProcessingMode_SEND, ResponseBodyMode: modev3.ProcessingMode_STREAMED}
		}
		return r
	}
	toBody := func(c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: c}}}
	}
	buffered := h.mode == modev3.ProcessingMode_BUFFERED
	if buffered && !head.GetEndOfStream() { // the body comes when its head was let pass
		if err := s.Send(toHead(&extprocv3.CommonResponse{})); err != nil {
			return err
		}
	}
	for last := head.GetEndOfStream(); !last; {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		b := m.GetRequestBody()
		if b == nil || buffered && !b.GetEndOfStream() {
			return fmt.Errorf("%v: %T in the place of the body", h.mode, m.GetRequest())
		}
		h.body += string(b.GetBody())
		last = b.GetEndOfStream()
	}
	body := h.body
	if say.body != nil {
		body = say.body(body)
	}
	e.ruled.Add(1)
	switch {
	case head.GetEndOfStream():
		r := toHead(named)
		r.DynamicMetadata = meta
		err = s.Send(r)
	case buffered:
		named.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte(body)}}
		r := toBody(named)
		r.DynamicMetadata = meta
		err = s.Send(r)
	default:
		r := toHead(named)
		r.DynamicMetadata = meta
		if err = s.Send(r); err != nil {
			return err
		}
		for last := false; !last; {
			piece := body[:min(len(body), 60_000)]
			body = body[len(piece):]
			last = body == ""
			err = s.Send(toBody(&extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{
				StreamedResponse: &extprocv3.StreamedBodyResponse{Body: []byte(piece), EndOfStream: last},
			}}}))
			if err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	return h.hearAnswer(s)
}

// hearAnswer takes the response phase.
func (h *heardRequest) hearAnswer(s extprocv3.ExternalProcessor_ProcessServer) error {
	var all bytes.Buffer
	for {
		m, err := s.Recv()
		h.answer = all.String()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch said := m.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			h.served = m.GetMetadataContext().GetFilterMetadata()["envoy.lb"].GetFields()[servedKey].GetStringValue()
			for _, v := range said.ResponseHeaders.GetHeaders().GetHeaders() {
				if v.GetKey() == ":status" {
					h.status = string(v.GetRawValue())
				}
			}
			err = s.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}})
		case *extprocv3.ProcessingRequest_ResponseBody:
			all.Write(said.ResponseBody.GetBody())
			h.ended = said.ResponseBody.GetEndOfStream()
			err = s.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}})
		case *extprocv3.ProcessingRequest_ResponseTrailers:
			for _, v := range said.ResponseTrailers.GetTrailers().GetHeaders() {
				h.trailer += v.GetKey() + "=" + string(v.GetRawValue())
			}
			err = s.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}})
		default:
			return fmt.Errorf("%T in the response phase", said)
		}
		if err != nil {
			return err
		}
	}
}

func setField(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, RawValue: []byte(value)}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}
}

// appended keeps what there is of the field.
func appended(name, value string) *corev3.HeaderValueOption {
	//lint:ignore SA1019 what Envoy's ext_proc goes by
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, RawValue: []byte(value)}, Append: wrapperspb.Bool(true)}
}

func immediately(status int, body string, set ...*corev3.HeaderValueOption) *extprocv3.ImmediateResponse {
	return &extprocv3.ImmediateResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(status)}, Body: []byte(body), Headers: &extprocv3.HeaderMutation{SetHeaders: set},
	}
}

// withTLS has a picker speak TLS with this certificate.
func withTLS(c tls.Certificate) grpc.ServerOption {
	return grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12}))
}

// pickerProcess is in the environment of a process that is nothing but a picker: where
// it listens, and what it names.
const pickerProcess = "FAIRWAY_TEST_PICKER"

// runPicker is that process.
func runPicker() {
	address, destination, _ := strings.Cut(os.Getenv(pickerProcess), " ")
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	e := &ownEPP{server: grpc.NewServer()}
	e.says.Store(&says{destination: destination})
	extprocv3.RegisterExternalProcessorServer(e.server, e)
	fmt.Println(l.Addr())
	e.server.Serve(l)
}
