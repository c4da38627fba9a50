package extproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// Names that the protocol gives (proposal 004).
const (
	destinationField = "x-gateway-destination-endpoint"
	destinationSpace = "envoy.lb"
	servedKey        = "x-gateway-destination-endpoint-served"
	subsetSpace      = "envoy.lb.subset_hint"
	subsetKey        = "x-gateway-destination-endpoint-subset"
	pseudoMethod     = ":method"
	pseudoPath       = ":path"
	pseudoScheme     = ":scheme"
	pseudoAuthority  = ":authority"
	pseudoStatus     = ":status"
	lengthField      = "content-length"
	maxMutation      = 62_000 // bytes of body in one message: Envoy takes at most 64 KiB
	maxSubset        = 4096   // endpoints of a subset hint that are read
)

// A Stream is one request that another proxy holds. It is used by one goroutine.
//
// Until Direct it is the request and the answer to it, which then is an immediate
// one. After it, Send or SendHead, WriteBody and EndBody let the proxy send the
// request to its destination, ReadHead and Next read the answer that came, and
// WriteHead, Write, Flush and Finish say what the client gets of it.
type Stream struct {
	rpc  extprocv3.ExternalProcessor_ProcessServer
	in   extprocv3.ProcessingRequest
	out  extprocv3.ProcessingResponse
	mode modes

	head   message.Request
	came   []message.Field // the request's fields as they came
	path   string
	host   string
	names  []byte // memory of the field names
	subset []string
	hinted bool // there was a subset hint, which may be empty

	body     []byte // of the request, received and not yet read
	bodyEnd  bool   // no more of it will come
	bodiless bool   // there is none
	owesEnd  bool   // request trailers came, and wait for their answer

	destination string
	sentHead    bool // the answer to the request's head was given
	sentAll     bool // so was that to its body
	held        []byte

	served     string
	answered   bool // the answer's head was read
	answer     []message.Field
	answerEnd  bool // all of the answer was read
	trailers   []message.Field
	hasTrailer bool
	piece      bool // a piece of the answer waits for its response

	immediate *message.Response // the answer instead of a destination
	writing   []byte            // of the immediate answer's body, or of the current piece's
	started   bool
	finished  bool
	failed    error
}

// modes are what the proxy sends (ProcessingMode.BodySendMode).
type modes struct {
	request, response modev3.ProcessingMode_BodySendMode
}

// errState is for calls out of order.
var errState = errors.New("extproc: called out of order")

// begin takes the request's head, with which every processing begins.
func (s *Stream) begin() error {
	if err := s.receive(); err != nil {
		return err
	}
	headers := s.in.GetRequestHeaders()
	if headers == nil {
		return fmt.Errorf("processing began with %T, not with a request's headers: set request_header_mode to SEND", s.in.GetRequest())
	}
	s.mode = modes{modev3.ProcessingMode_FULL_DUPLEX_STREAMED, modev3.ProcessingMode_FULL_DUPLEX_STREAMED}
	if c := s.in.GetProtocolConfig(); c != nil {
		s.mode = modes{c.GetRequestBodyMode(), c.GetResponseBodyMode()}
	}
	if s.in.GetObservabilityMode() {
		return errors.New("the filter is in observability mode, in which no destination can be given: set observability_mode to false")
	}
	s.takeSubset()
	s.head.ContentLength = message.Unknown
	s.head.Fields = s.takeFields(headers.GetHeaders(), func(name string, value []byte) {
		switch name {
		case pseudoMethod:
			s.head.Method = value
		case pseudoPath:
			s.head.Target, s.path = value, string(value)
		case pseudoAuthority:
			s.head.Authority, s.host = value, string(value)
		case lengthField:
			if n, err := strconv.ParseInt(string(value), 10, 64); err == nil && n >= 0 {
				s.head.ContentLength = n
			}
		}
	})
	s.came = append(s.came, s.head.Fields...)
	if headers.GetEndOfStream() {
		s.bodyEnd, s.bodiless = true, true
		s.head.ContentLength = 0
		return nil
	}
	switch s.mode.request {
	case modev3.ProcessingMode_FULL_DUPLEX_STREAMED, modev3.ProcessingMode_BUFFERED:
		return nil
	}
	return fmt.Errorf("request_body_mode is %v: set it to FULL_DUPLEX_STREAMED, or to BUFFERED", s.mode.request)
}

// takeFields gives the header fields, and tells of those that are not among a
// message's Fields.
func (s *Stream) takeFields(h *corev3.HeaderMap, special func(name string, value []byte)) []message.Field {
	list := h.GetHeaders()
	fields := make([]message.Field, 0, len(list)+4)
	for _, f := range list {
		value := f.GetRawValue()
		if len(value) == 0 {
			value = []byte(f.GetValue())
		}
		name := f.GetKey()
		if name == lengthField || len(name) > 0 && name[0] == ':' {
			special(name, value)
			continue
		}
		at := len(s.names)
		s.names = append(s.names, name...)
		fields = append(fields, message.Field{Name: s.names[at:len(s.names):len(s.names)], Value: value})
	}
	return fields
}

// takeSubset takes the endpoints that the proxy says the destination must be among.
func (s *Stream) takeSubset() {
	hint, ok := s.in.GetMetadataContext().GetFilterMetadata()[subsetSpace].GetFields()[subsetKey]
	if !ok {
		return
	}
	s.hinted = true
	if text, ok := hint.GetKind().(*structpb.Value_StringValue); ok {
		for _, e := range bytes.Split([]byte(text.StringValue), []byte{','}) {
			s.subset = append(s.subset, string(bytes.TrimSpace(e)))
		}
		return
	}
	for _, v := range hint.GetListValue().GetValues() {
		if len(s.subset) == maxSubset {
			return
		}
		s.subset = append(s.subset, v.GetStringValue())
	}
}

// Subset lists the endpoints ("ip:port") that the destination must be among; ok
// is false where the proxy leaves the choice free.
func (s *Stream) Subset() (endpoints []string, ok bool) { return s.subset, s.hinted }

// receive waits for the next message; io.EOF when the proxy wants no more of this
// request processed.
func (s *Stream) receive() error {
	if s.failed == nil {
		s.failed = s.rpc.RecvMsg(&s.in)
	}
	return s.failed
}

func (s *Stream) send() error {
	if s.failed == nil {
		s.failed = s.rpc.Send(&s.out)
		s.out.Reset()
	}
	return s.failed
}

// Context is done when the proxy no longer wants the request processed: its
// client has gone.
func (s *Stream) Context() context.Context { return s.rpc.Context() }

// Head is the request's head.
func (s *Stream) Head() *message.Request { return &s.head }

// Read reads the request's body.
func (s *Stream) Read(p []byte) (int, error) {
	for len(s.body) == 0 {
		if s.bodyEnd {
			return 0, io.EOF
		}
		if s.mode.request == modev3.ProcessingMode_BUFFERED && !s.sentHead {
			// The body comes when its head has been let pass.
			s.sentHead = true
			s.out.Response = &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{}}}
			if err := s.send(); err != nil {
				return 0, err
			}
		}
		if err := s.receive(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		switch m := s.in.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_RequestBody:
			s.body, s.bodyEnd = m.RequestBody.GetBody(), m.RequestBody.GetEndOfStream()
		case *extprocv3.ProcessingRequest_RequestTrailers:
			s.bodyEnd, s.owesEnd = true, true
		default:
			return 0, fmt.Errorf("%T came before the request's body had ended", m)
		}
	}
	n := copy(p, s.body)
	s.body = s.body[n:]
	return n, nil
}

// Bind keeps nothing: what is waited for is the proxy, whose context ends.
func (s *Stream) Bind(interface{ Interrupt() }) bool { return s.Context().Err() == nil }

// Unbind takes back Bind.
func (s *Stream) Unbind() {}

// Direct names where the request is to go: "ip:port", more of them separated by
// commas, to be tried in order. What is sent from now on goes there.
func (s *Stream) Direct(endpoints string) { s.destination = endpoints }

// Send lets the proxy send the request, with this head and this body.
func (s *Stream) Send(r *message.Request, body ...[]byte) error {
	if err := s.SendHead(r); err != nil {
		return err
	}
	for _, b := range body {
		if err := s.WriteBody(b); err != nil {
			return err
		}
	}
	return s.EndBody(nil)
}

// SendHead begins to let the proxy send the request.
func (s *Stream) SendHead(r *message.Request) error {
	if s.destination == "" {
		return errState
	}
	m := &mutation{}
	if string(r.Target) != s.path {
		m.set(pseudoPath, r.Target)
	}
	if string(r.Authority) != s.host {
		m.set(pseudoAuthority, r.Authority)
	}
	m.diff(s.came, r.Fields)
	m.set(destinationField, []byte(s.destination))
	common := &extprocv3.CommonResponse{HeaderMutation: &m.HeaderMutation}
	s.out.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{
		destinationSpace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			destinationField: structpb.NewStringValue(s.destination),
		}}),
	}}
	s.started = true
	if s.sentHead { // the body was asked for first: the mutation goes with it
		m.remove(lengthField)
		s.out.Response = &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: common}}
		return nil
	}
	s.sentHead = true
	s.out.Response = &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: common}}
	return s.send()
}

// WriteBody adds to the body that the proxy is to send.
func (s *Stream) WriteBody(p []byte) error {
	if s.mode.request == modev3.ProcessingMode_BUFFERED {
		s.held = append(s.held, p...)
		return nil
	}
	// The last piece is held back, since it has to say that it is the last.
	for len(s.held)+len(p) > maxMutation {
		n := maxMutation - len(s.held)
		s.held = append(s.held, p[:n]...)
		p = p[n:]
		if err := s.sendBody(false); err != nil {
			return err
		}
	}
	s.held = append(s.held, p...)
	return nil
}

// EndBody ends the request. Trailers stay as they came.
func (s *Stream) EndBody([]message.Field) error {
	if s.sentAll {
		return errState
	}
	s.sentAll = true
	// The end of a body whose length was known may still be on its way.
	if _, err := s.Read(make([]byte, 1)); err == nil {
		return errors.New("the request's body is longer than its content-length")
	} else if err != io.EOF {
		return err
	}
	if s.mode.request == modev3.ProcessingMode_BUFFERED {
		body := s.out.GetRequestBody()
		if body == nil { // there was none
			return nil
		}
		body.Response.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: s.held}}
		return s.send()
	}
	if s.bodiless {
		return nil
	}
	if err := s.sendBody(!s.owesEnd); err != nil {
		return err
	}
	if s.owesEnd {
		s.out.Response = &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}
		return s.send()
	}
	return nil
}

func (s *Stream) sendBody(last bool) error {
	s.out.Response = &extprocv3.ProcessingResponse_RequestBody{RequestBody: streamed(s.held, last)}
	err := s.send()
	s.held = s.held[:0]
	return err
}

// streamed is a piece of body in the place of one that came.
func streamed(p []byte, last bool) *extprocv3.BodyResponse {
	return &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &extprocv3.StreamedBodyResponse{Body: p, EndOfStream: last}},
	}}}
}

// Used is false: the proxy looks after its connections itself.
func (s *Stream) Used() bool { return false }

// Interrupt does nothing: the waits end with the Context.
func (s *Stream) Interrupt() {}

// ReadHead waits for the head of the answer that the proxy got; io.EOF where the
// proxy shows no answers (response_header_mode SKIP).
func (s *Stream) ReadHead(r *message.Response) error {
	for {
		if err := s.receive(); err != nil {
			return err
		}
		switch m := s.in.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			return s.takeAnswer(r, m.ResponseHeaders)
		case *extprocv3.ProcessingRequest_RequestTrailers:
			s.out.Response = &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}
			if err := s.send(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%T came in the place of the answer's headers", m)
		}
	}
}

func (s *Stream) takeAnswer(r *message.Response, h *extprocv3.HttpHeaders) error {
	*r = message.Response{ContentLength: message.Unknown}
	r.Fields = s.takeFields(h.GetHeaders(), func(name string, value []byte) {
		n, err := strconv.ParseInt(string(value), 10, 64)
		switch {
		case err != nil || n < 0:
		case name == pseudoStatus:
			r.Status = int(n)
		case name == lengthField:
			r.ContentLength = n
		}
	})
	if r.Status < 100 || r.Status > 999 {
		return errors.New("the answer has no status")
	}
	s.answered = true
	s.answer = append(s.answer, r.Fields...)
	s.answerEnd = h.GetEndOfStream()
	s.served = s.in.GetMetadataContext().GetFilterMetadata()[destinationSpace].GetFields()[servedKey].GetStringValue()
	return nil
}

// Served is the endpoint that gave the answer ("ip:port"), once its head was read;
// empty where the proxy does not say.
func (s *Stream) Served() string { return s.served }

// Next gives the next piece of the answer's body, valid until the next call; io.EOF
// at its end.
func (s *Stream) Next() ([]byte, error) {
	if s.answerEnd {
		return nil, io.EOF
	}
	if err := s.receive(); err != nil {
		if err == io.EOF {
			if s.mode.response != modev3.ProcessingMode_NONE {
				return nil, io.ErrUnexpectedEOF
			}
			s.answerEnd, s.failed = true, nil // no more than the head is shown
		}
		return nil, err
	}
	switch m := s.in.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_ResponseBody:
		s.piece = true
		s.answerEnd = m.ResponseBody.GetEndOfStream()
		return m.ResponseBody.GetBody(), nil
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		s.answerEnd, s.hasTrailer = true, true
		s.trailers = s.takeFields(m.ResponseTrailers.GetTrailers(), func(string, []byte) {})
		return nil, io.EOF
	default:
		return nil, fmt.Errorf("%T came within the answer's body", m)
	}
}

// Pending tells whether more of the answer is known without waiting: its end.
func (s *Stream) Pending() bool { return s.answerEnd }

// Trailers are those of the answer, at its end.
func (s *Stream) Trailers() []message.Field { return s.trailers }

// SetTimeout does nothing: how long an endpoint may take is the proxy's to say.
func (s *Stream) SetTimeout(time.Duration) {}

// TimedOut is false: see SetTimeout.
func (s *Stream) TimedOut() bool { return false }

// WriteHead gives the head of the answer: of the one that was read, changed; or,
// before there is one, of an answer of our own.
func (s *Stream) WriteHead(r *message.Response) error {
	if !s.started {
		s.immediate = r
		return nil
	}
	if !s.answered {
		return errState
	}
	m := &mutation{}
	m.diff(s.answer, r.Fields)
	if r.ContentLength == message.Unknown && !s.answerEnd {
		m.remove(lengthField)
	}
	s.out.Response = &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{
		Response: &extprocv3.CommonResponse{HeaderMutation: &m.HeaderMutation},
	}}
	return s.send()
}

// Write adds to what the client gets in the place of the pieces that were read.
func (s *Stream) Write(p []byte) (int, error) {
	s.writing = append(s.writing, p...)
	return len(p), s.failed
}

// Flush gives the client what was written.
func (s *Stream) Flush() error {
	if !s.piece || s.immediate != nil {
		return s.failed
	}
	return s.pass(false)
}

// pass answers the last piece that was read.
func (s *Stream) pass(last bool) error {
	s.piece = false
	if s.mode.response == modev3.ProcessingMode_FULL_DUPLEX_STREAMED {
		for len(s.writing) > maxMutation {
			s.out.Response = &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: streamed(s.writing[:maxMutation], false)}
			if err := s.send(); err != nil {
				return err
			}
			s.writing = s.writing[maxMutation:]
		}
		if len(s.writing) == 0 && !last {
			return nil
		}
		s.out.Response = &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: streamed(s.writing, last)}
	} else {
		s.out.Response = &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{
			Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: s.writing}}},
		}}
	}
	err := s.send()
	s.writing = s.writing[:0]
	return err
}

// Finish ends the answer.
func (s *Stream) Finish([]message.Field) error {
	if s.finished {
		return s.failed
	}
	s.finished = true
	switch {
	case s.immediate != nil:
		return s.answerAtOnce()
	case s.piece:
		if err := s.pass(!s.hasTrailer); err != nil {
			return err
		}
	case len(s.writing) > 0 && s.mode.response == modev3.ProcessingMode_FULL_DUPLEX_STREAMED:
		if err := s.pass(!s.hasTrailer); err != nil {
			return err
		}
	}
	if s.hasTrailer {
		s.out.Response = &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}
		return s.send()
	}
	return s.failed
}

// answerAtOnce sends the answer of our own.
func (s *Stream) answerAtOnce() error {
	m := &mutation{}
	m.diff(nil, s.immediate.Fields)
	s.out.Response = &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode(s.immediate.Status)},
		Headers: &m.HeaderMutation,
		Body:    s.writing,
	}}
	return s.send()
}

// Abort breaks the answer off.
func (s *Stream) Abort() {
	if s.failed == nil {
		s.failed = errors.New("the answer was broken off")
	}
}

// Tunnel is not to be had: what follows a switch of protocols passes the proxy alone.
func (s *Stream) Tunnel() (*sock.Conn, error) { return nil, errors.ErrUnsupported }

// Started tells whether the request may have been sent, or answered.
func (s *Stream) Started() bool { return s.started }

// Conn is nil: the request is another proxy's.
func (s *Stream) Conn() net.Conn { return nil }

// RemoteAddr is the proxy's address.
func (s *Stream) RemoteAddr() net.Addr { return remoteAddr(s.Context()) }

// Remote is RemoteAddr as text.
func (s *Stream) Remote() string { return s.RemoteAddr().String() }
