package extproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

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
	maxFields        = 4096   // of one head: on the wire a field takes two bytes, in memory a hundred
)

// A Stream is one request that another proxy holds. It is used by one goroutine.
//
// Until Direct it is the request and the answer to it, which then is an immediate
// one. After it, Send or SendHead, WriteBody and EndBody let the proxy send the
// request to its destination, ReadHead and Next read the answer that came, and
// WriteHead, Write, Flush and Finish say what the client gets of it.
type Stream struct {
	rpc  conversation
	in   request // of the message that was received last
	out  []byte  // of the message to be sent, but for its body
	mode modes

	head   message.Request
	came   []message.Field // the request's fields as they came
	path   string
	host   string
	memory []byte // of the fields that came, both ways
	subset []string
	hinted bool // there was a subset hint, which may be empty

	body     []byte // of the request, received and not yet read
	bodyEnd  bool   // no more of it will come
	bodiless bool   // there is none
	owesEnd  bool   // request trailers came, and wait for their answer

	destination string
	sentHead    bool // the answer to the request's head was given
	sentAll     bool // so was that to its body
	changes     mutation
	held        []byte   // of a body that goes in one piece
	pieces      [][]byte // of a message

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

// conversation is a call of the protocol: an rpc.Call.
type conversation interface {
	// Receive gives the proxy's next message, valid until the next call.
	Receive() ([]byte, error)
	// Send says a message that is made of these parts, which are not kept.
	Send(parts ...[]byte) error
	Context() context.Context
	RemoteAddr() net.Addr
	Remote() string
}

// modes are what the proxy sends.
type modes struct {
	request, response bodyMode
}

// maxKept is the memory of one kind that a stream keeps for the next one.
const maxKept = 256 << 10

// reset begins a stream on another call, in the memory of the one before.
func (s *Stream) reset(c conversation) {
	clear(s.pieces[:cap(s.pieces)])
	next := Stream{
		rpc: c, out: kept(s.out), changes: mutation{kept(s.changes.list)}, memory: kept(s.memory), held: kept(s.held), writing: kept(s.writing),
		pieces: s.pieces[:0], came: s.came[:0], answer: s.answer[:0], trailers: s.trailers[:0],
	}
	next.head.Fields = s.head.Fields[:0]
	*s = next
}

func kept(b []byte) []byte {
	if cap(b) > maxKept {
		return nil
	}
	return b[:0]
}

// errState is for calls out of order.
var errState = errors.New("extproc: called out of order")

// begin takes the request's head, with which every processing begins.
func (s *Stream) begin() error {
	if err := s.receive(); err != nil {
		return err
	}
	if s.in.part != inRequestHeaders {
		return fmt.Errorf("processing began with %s, not with a request's headers: set request_header_mode to SEND", partNames[s.in.part])
	}
	s.mode = modes{modeFullDuplex, modeFullDuplex}
	if s.in.config != nil {
		var err error
		if s.mode, err = s.in.modes(); err != nil {
			return err
		}
	}
	if s.in.observes {
		return errors.New("the filter is in observability mode, in which no destination can be given: set observability_mode to false")
	}
	if err := s.takeSubset(); err != nil {
		return err
	}
	s.head.ContentLength = message.Unknown
	var last bool
	var err error
	s.head.Fields, last, err = s.takeFields(s.head.Fields[:0], func(name string, value []byte) {
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
	if err != nil {
		return err
	}
	s.came = append(s.came[:0], s.head.Fields...)
	if last {
		s.bodyEnd, s.bodiless = true, true
		s.head.ContentLength = 0
		return nil
	}
	switch s.mode.request {
	case modeFullDuplex, modeBuffered:
		return nil
	}
	return fmt.Errorf("request_body_mode is %v: set it to FULL_DUPLEX_STREAMED, or to BUFFERED", s.mode.request)
}

// takeFields appends the header fields, in memory of the stream's, and tells of those that
// are not among a message's Fields. Last says that no body follows.
func (s *Stream) takeFields(fields []message.Field, special func(name string, value []byte)) (_ []message.Field, last bool, err error) {
	n := 0
	last, err = s.in.headers(func(name, value []byte) {
		if n++; n > maxFields {
			return
		}
		at := len(s.memory)
		s.memory = append(append(s.memory, name...), value...)
		name, value = s.memory[at:at+len(name):at+len(name)], s.memory[at+len(name):len(s.memory):len(s.memory)]
		if string(name) == lengthField || len(name) > 0 && name[0] == ':' {
			special(string(name), value)
			return
		}
		fields = append(fields, message.Field{Name: name, Value: value})
	})
	if err == nil && n > maxFields {
		err = fmt.Errorf("a head has %d fields, which is more than %d", n, maxFields)
	}
	return fields, last, err
}

// takeSubset takes the endpoints that the proxy says the destination must be among.
func (s *Stream) takeSubset() error {
	hint, ok, err := s.in.lookUp(subsetSpace, subsetKey)
	if !ok || err != nil {
		return err
	}
	s.hinted = true
	texts, isList, err := readTexts(hint, maxSubset)
	if err != nil {
		return err
	}
	if isList {
		s.subset = texts
		return nil
	}
	for e := range strings.SplitSeq(texts[0], ",") {
		if len(s.subset) == maxSubset {
			break
		}
		s.subset = append(s.subset, strings.TrimSpace(e))
	}
	return nil
}

// Subset lists the endpoints ("ip:port") that the destination must be among; ok
// is false where the proxy leaves the choice free.
func (s *Stream) Subset() (endpoints []string, ok bool) { return s.subset, s.hinted }

// receive waits for the next message; io.EOF when the proxy wants no more of this
// request processed.
func (s *Stream) receive() error {
	if s.failed != nil {
		return s.failed
	}
	b, err := s.rpc.Receive()
	if err == nil {
		err = s.in.read(b)
	}
	s.failed = err
	return err
}

// send says the message that is in out, with a body behind it.
func (s *Stream) send(body ...[]byte) error {
	if s.failed == nil {
		s.pieces = append(append(s.pieces[:0], s.out), body...)
		s.failed = s.rpc.Send(s.pieces...)
	}
	s.out = s.out[:0]
	return s.failed
}

// Context is done when the proxy no longer wants the request processed: its
// client has gone.
func (s *Stream) Context() context.Context { return s.rpc.Context() }

// Head is the request's head.
func (s *Stream) Head() *message.Request { return &s.head }

// Read reads the request's body.
func (s *Stream) Read(p []byte) (int, error) {
	if err := s.await(); err != nil {
		return 0, err
	}
	n := copy(p, s.body)
	s.body = s.body[n:]
	return n, nil
}

// await waits for some of the request's body; io.EOF at its end.
func (s *Stream) await() error {
	for len(s.body) == 0 {
		if s.bodyEnd {
			return io.EOF
		}
		if s.mode.request == modeBuffered && !s.sentHead {
			// The body comes when its head has been let pass.
			s.sentHead = true
			s.out = appendNested(s.out, 0, toRequestHeaders, 1)
			if err := s.send(); err != nil {
				return err
			}
		}
		if err := s.receive(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		switch s.in.part {
		case inRequestBody:
			if s.body, s.bodyEnd, s.failed = s.in.body(); s.failed != nil {
				return s.failed
			}
		case inRequestTrailers:
			s.bodyEnd, s.owesEnd = true, true
		default:
			return fmt.Errorf("%s came before the request's body had ended", partNames[s.in.part])
		}
	}
	return nil
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
	if err := s.endInput(); err != nil {
		return err
	}
	if s.mode.request == modeBuffered {
		return s.sendWhole(body...)
	}
	if s.bodiless {
		return nil
	}
	left := 0
	for _, b := range body {
		left += len(b)
	}
	part, at := []byte(nil), 0
	for first := true; first || left > 0; first = false {
		n := min(left, maxMutation)
		left -= n
		s.out = appendStreamed(s.out, toRequestBody, n, left == 0 && !s.owesEnd)
		s.pieces = append(s.pieces[:0], s.out)
		for n > 0 {
			for len(part) == 0 {
				part, at = body[at], at+1
			}
			k := min(n, len(part))
			s.pieces = append(s.pieces, part[:k])
			part, n = part[k:], n-k
		}
		if s.failed = s.rpc.Send(s.pieces...); s.failed != nil {
			return s.failed
		}
		s.out = s.out[:0]
	}
	return s.endTrailers()
}

// SendHead begins to let the proxy send the request.
func (s *Stream) SendHead(r *message.Request) error {
	if s.destination == "" {
		return errState
	}
	m := &s.changes
	m.reset()
	if string(r.Target) != s.path {
		m.set(pseudoPath, r.Target)
	}
	if string(r.Authority) != s.host {
		m.set(pseudoAuthority, r.Authority)
	}
	m.diff(s.came, r.Fields)
	m.set(destinationField, []byte(s.destination))
	s.started = true
	if s.sentHead { // the body was asked for first: the changes go with it
		m.remove(lengthField)
		return s.failed
	}
	s.sentHead = true
	s.out = appendMetadata(s.out, destinationSpace, destinationField, s.destination)
	s.out = appendHeadersResponse(s.out, toRequestHeaders, m)
	return s.send()
}

// WriteBody adds to the body that the proxy is to send.
func (s *Stream) WriteBody(p []byte) error {
	if s.mode.request == modeBuffered {
		s.held = append(s.held, p...)
		return nil
	}
	for len(p) > 0 {
		n := min(len(p), maxMutation)
		s.out = appendStreamed(s.out, toRequestBody, n, false)
		if err := s.send(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// EndBody ends the request. Trailers stay as they came.
func (s *Stream) EndBody() error {
	if err := s.endInput(); err != nil {
		return err
	}
	switch {
	case s.mode.request == modeBuffered:
		return s.sendWhole(s.held)
	case s.bodiless || s.owesEnd:
		return s.endTrailers()
	}
	s.out = appendStreamed(s.out, toRequestBody, 0, true)
	return s.send()
}

// endInput waits for the end of the body that came: of one whose length was known, it may
// still be on its way.
func (s *Stream) endInput() error {
	if s.sentAll {
		return errState
	}
	s.sentAll = true
	if err := s.await(); err == nil {
		return errors.New("the request's body is longer than its content-length")
	} else if err != io.EOF {
		return err
	}
	return nil
}

// sendWhole answers a body that came in one piece, if there was one.
func (s *Stream) sendWhole(body ...[]byte) error {
	if s.bodiless {
		return s.failed
	}
	n := 0
	for _, b := range body {
		n += len(b)
	}
	s.out = appendMetadata(s.out, destinationSpace, destinationField, s.destination)
	s.out = appendBody(s.out, toRequestBody, &s.changes, n)
	return s.send(body...)
}

// endTrailers lets trailers pass, where they came.
func (s *Stream) endTrailers() error {
	if !s.owesEnd {
		return s.failed
	}
	s.out = appendNested(s.out, 0, toRequestTrailers)
	return s.send()
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
		switch s.in.part {
		case inResponseHeaders:
			return s.takeAnswer(r)
		case inRequestTrailers:
			s.out = appendNested(s.out, 0, toRequestTrailers)
			if err := s.send(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s came in the place of the answer's headers", partNames[s.in.part])
		}
	}
}

func (s *Stream) takeAnswer(r *message.Response) error {
	*r = message.Response{ContentLength: message.Unknown, Fields: r.Fields[:0]}
	var err error
	r.Fields, s.answerEnd, err = s.takeFields(r.Fields, func(name string, value []byte) {
		n, err := strconv.ParseInt(string(value), 10, 64)
		switch {
		case err != nil || n < 0:
		case name == pseudoStatus:
			r.Status = int(n)
		case name == lengthField:
			r.ContentLength = n
		}
	})
	if err != nil {
		return err
	}
	if r.Status < 100 || r.Status > 999 {
		return errors.New("the answer has no status")
	}
	s.answered = true
	s.answer = append(s.answer[:0], r.Fields...)
	served, ok, err := s.in.lookUp(destinationSpace, servedKey)
	if ok && err == nil {
		s.served, err = readText(served, nil)
	}
	return err
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
			if s.mode.response != modeNone {
				return nil, io.ErrUnexpectedEOF
			}
			s.answerEnd, s.failed = true, nil // no more than the head is shown
		}
		return nil, err
	}
	switch s.in.part {
	case inResponseBody:
		var body []byte
		s.piece = true
		body, s.answerEnd, s.failed = s.in.body()
		return body, s.failed
	case inResponseTrailers:
		s.answerEnd, s.hasTrailer = true, true
		s.trailers, _, s.failed = s.takeFields(s.trailers[:0], func(string, []byte) {})
		if s.failed != nil {
			return nil, s.failed
		}
		return nil, io.EOF
	}
	return nil, fmt.Errorf("%s came within the answer's body", partNames[s.in.part])
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
	m := &s.changes
	m.reset()
	m.diff(s.answer, r.Fields)
	if r.ContentLength == message.Unknown && !s.answerEnd {
		m.remove(lengthField)
	}
	s.out = appendHeadersResponse(s.out, toResponseHeaders, m)
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
	p := s.writing
	s.writing = s.writing[:0]
	if s.mode.response != modeFullDuplex {
		s.out = appendBody(s.out, toResponseBody, nil, len(p))
		return s.send(p)
	}
	for len(p) > maxMutation {
		s.out = appendStreamed(s.out, toResponseBody, maxMutation, false)
		if err := s.send(p[:maxMutation]); err != nil {
			return err
		}
		p = p[maxMutation:]
	}
	if len(p) == 0 && !last {
		return nil
	}
	s.out = appendStreamed(s.out, toResponseBody, len(p), last)
	return s.send(p)
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
	case len(s.writing) > 0 && s.mode.response == modeFullDuplex:
		if err := s.pass(!s.hasTrailer); err != nil {
			return err
		}
	}
	if s.hasTrailer {
		s.out = appendNested(s.out, 0, toResponseTrailers)
		return s.send()
	}
	return s.failed
}

// answerAtOnce sends the answer of our own.
func (s *Stream) answerAtOnce() error {
	m := &s.changes
	m.reset()
	m.diff(nil, s.immediate.Fields)
	s.out = appendImmediate(s.out, s.immediate.Status, m, len(s.writing))
	return s.send(s.writing)
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
func (s *Stream) RemoteAddr() net.Addr { return s.rpc.RemoteAddr() }

// Remote is RemoteAddr as text.
func (s *Stream) Remote() string { return s.rpc.Remote() }
