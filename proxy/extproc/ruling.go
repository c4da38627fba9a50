package extproc

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairway-proxy/fairway/proxy/message"
)

const (
	maxEndpoints = 1024     // that a picker may name for one request
	maxHeadMade  = 64 << 10 // bytes of fields that it may set
	tellAhead    = 16       // messages about an answer that may wait to be sent
	lastWords    = time.Second
)

// A Ruling is what a picker says of one request, and the way to tell it of the
// answer. It is used by one goroutine.
type Ruling struct {
	// Endpoints is where the request goes, as "ip:port", to be tried in order.
	Endpoints []string
	// Immediate is the answer to give instead, with Body; nil for none.
	Immediate *message.Response
	// Fields are how the request's head is to be changed, one after the other.
	Fields []FieldChange
	// Body is the body to send, or that of Immediate. Changed tells whether it is
	// another than was asked about: else it is nil.
	Body    []byte
	Changed bool

	rpc      extprocv3.ExternalProcessor_ProcessClient
	cancel   context.CancelCauseFunc
	stay     func() bool // has it outlive the request
	limit    int
	buffered bool
	tellHead bool
	tellBody bool

	asked     echo
	headMade  int           // bytes of Fields
	letPass   chan struct{} // closed when the head was answered
	sent      chan struct{} // closed when nothing of the question is being sent any more
	news      chan *extprocv3.ProcessingRequest
	lost      chan struct{} // closed when the picker hears no more
	finished  bool
	headTold  bool
	endTold   bool
	header    destination
	metadata  destination
	immediate *extprocv3.ImmediateResponse
}

// destination is what one of the two places says, which may name it.
type destination struct {
	value string
	given bool
}

// FieldChange is one change of a head.
type FieldChange struct {
	Name  []byte // in lower case
	Value []byte // nil has the field removed
	// Append keeps what there is of that name, Absent changes nothing unless there is
	// none, Present nothing unless there is one.
	Append, Absent, Present bool
}

func newRuling(c ClientConfig, rpc extprocv3.ExternalProcessor_ProcessClient, cancel context.CancelCauseFunc) *Ruling {
	return &Ruling{
		rpc: rpc, cancel: cancel, limit: c.MessageLimit, buffered: c.Buffered, tellHead: c.TellHead || c.TellBody, tellBody: c.TellBody,
		letPass: make(chan struct{}), sent: make(chan struct{}), lost: make(chan struct{}),
		news: make(chan *extprocv3.ProcessingRequest, tellAhead),
	}
}

// ask sends the question and hears what is said to it.
func (r *Ruling) ask(q *Question) error {
	go r.send(q, r.headOf(q)) // before what is heard changes what it is made of
	err := r.hear(q)
	if err == nil {
		err = r.judge()
	}
	if err != nil || r.Immediate != nil {
		r.cancel(nil) // and whatever is still being sent
	}
	<-r.sent // the body is the caller's again
	if err != nil {
		close(r.news)
		return err
	}
	go r.listen()
	return nil
}

// send sends the question, and then what is told of the answer.
func (r *Ruling) send(q *Question, head *extprocv3.ProcessingRequest) {
	ok := r.sendQuestion(q, head)
	close(r.sent)
	for m := range r.news {
		ok = ok && r.rpc.Send(m) == nil
	}
	r.rpc.CloseSend()
}

func (r *Ruling) sendQuestion(q *Question, head *extprocv3.ProcessingRequest) bool {
	if r.rpc.Send(head) != nil {
		return false
	}
	if len(q.Body) == 0 {
		return true
	}
	if r.buffered {
		select {
		case <-r.letPass:
		case <-r.rpc.Context().Done():
			return false
		}
		return r.rpc.Send(requestBody(bytes.Join(q.Body, nil), true)) == nil
	}
	last := len(q.Body) - 1
	for i, b := range q.Body {
		for len(b) > maxMutation {
			if r.rpc.Send(requestBody(b[:maxMutation], false)) != nil {
				return false
			}
			b = b[maxMutation:]
		}
		if r.rpc.Send(requestBody(b, i == last)) != nil {
			return false
		}
	}
	return true
}

func requestBody(p []byte, last bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: p, EndOfStream: last}}}
}

// headOf is the first message, which says how the rest will come.
func (r *Ruling) headOf(q *Question) *extprocv3.ProcessingRequest {
	length := 0
	for _, b := range q.Body {
		length += len(b)
	}
	h := newHeaders(5 + len(q.Head.Fields))
	h.add(pseudoMethod, q.Head.Method)
	h.add(pseudoScheme, []byte("http"))
	h.add(pseudoAuthority, q.Head.Authority)
	h.add(pseudoPath, q.Head.Target)
	if length > 0 {
		h.add(lengthField, strconv.AppendInt(nil, int64(length), 10))
	}
	h.addAll(q.Head.Fields)
	m := &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &h.made, EndOfStream: len(q.Body) == 0}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{
			RequestBodyMode: modev3.ProcessingMode_FULL_DUPLEX_STREAMED,
		},
	}
	if r.buffered {
		m.ProtocolConfig.RequestBodyMode = modev3.ProcessingMode_BUFFERED
	}
	if r.tellBody {
		m.ProtocolConfig.ResponseBodyMode = modev3.ProcessingMode_FULL_DUPLEX_STREAMED
	}
	if q.Subset != nil {
		list := make([]*structpb.Value, len(q.Subset))
		for i, e := range q.Subset {
			list[i] = structpb.NewStringValue(e)
		}
		m.MetadataContext = metadata(subsetSpace, subsetKey, structpb.NewListValue(&structpb.ListValue{Values: list}))
	}
	return m
}

func metadata(space, key string, v *structpb.Value) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{space: {Fields: map[string]*structpb.Value{key: v}}}}
}

// headers is a head in the making, with room for as many fields as it was made for.
type headers struct {
	made  corev3.HeaderMap
	rooms []corev3.HeaderValue
}

func newHeaders(n int) *headers {
	h := &headers{rooms: make([]corev3.HeaderValue, n)}
	h.made.Headers = make([]*corev3.HeaderValue, 0, n)
	return h
}

func (h *headers) add(name string, value []byte) {
	v := &h.rooms[len(h.made.Headers)]
	v.Key, v.RawValue = name, value
	h.made.Headers = append(h.made.Headers, v)
}

func (h *headers) addAll(fields []message.Field) {
	for _, f := range fields {
		h.add(strings.ToLower(string(f.Name)), f.Value)
	}
}

// hear takes in what is said to the question, up to where nothing more is owed.
func (r *Ruling) hear(q *Question) error {
	r.asked.original = q.Body
	owesBody := len(q.Body) > 0
	for owesHead := true; owesHead || owesBody; {
		m, err := r.rpc.Recv()
		if err != nil {
			return err
		}
		if err := r.takeMetadata(m.GetDynamicMetadata()); err != nil {
			return err
		}
		switch said := m.GetResponse().(type) {
		case *extprocv3.ProcessingResponse_ImmediateResponse:
			r.immediate = said.ImmediateResponse
			return nil
		case *extprocv3.ProcessingResponse_RequestHeaders:
			if !owesHead {
				return fmt.Errorf("%w: it answered the request's head twice", ErrProtocol)
			}
			owesHead = false
			common := said.RequestHeaders.GetResponse()
			if err := r.takeFields(common.GetHeaderMutation()); err != nil {
				return err
			}
			if mode := m.GetModeOverride(); mode != nil && r.tellHead {
				r.tellBody = r.tellBody || streams(mode.GetResponseBodyMode())
			}
			if common.GetStatus() == extprocv3.CommonResponse_CONTINUE_AND_REPLACE {
				r.Body, r.Changed, owesBody = common.GetBodyMutation().GetBody(), true, false
			}
			close(r.letPass)
		case *extprocv3.ProcessingResponse_RequestBody:
			if owesHead || !owesBody {
				return fmt.Errorf("%w: it answered the request's body out of order", ErrProtocol)
			}
			common := said.RequestBody.GetResponse()
			if err := r.takeFields(common.GetHeaderMutation()); err != nil {
				return err
			}
			last, err := r.takeBody(common.GetBodyMutation())
			if err != nil {
				return err
			}
			owesBody = !last
		default:
			return fmt.Errorf("%w: it said %T to a request", ErrProtocol, said)
		}
	}
	return nil
}

// streams tells whether a mode has pieces sent as they come.
func streams(m modev3.ProcessingMode_BodySendMode) bool {
	return m == modev3.ProcessingMode_STREAMED || m == modev3.ProcessingMode_FULL_DUPLEX_STREAMED
}

// takeMetadata takes the destination, where it is named there.
func (r *Ruling) takeMetadata(s *structpb.Struct) error {
	v, ok := s.GetFields()[destinationSpace].GetStructValue().GetFields()[destinationField]
	if !ok {
		return nil
	}
	return r.metadata.take(v.GetStringValue())
}

// take keeps a value, of which there is one.
func (d *destination) take(value string) error {
	if d.given && d.value != value {
		return fmt.Errorf("%w: it named two destinations, %.100q and %.100q", ErrProtocol, d.value, value)
	}
	d.value, d.given = value, true
	return nil
}

// takeFields takes changes of the request's head, and the destination among them.
func (r *Ruling) takeFields(m *extprocv3.HeaderMutation) error {
	for _, name := range m.GetRemoveHeaders() {
		if err := r.change(FieldChange{Name: []byte(strings.ToLower(name))}); err != nil {
			return err
		}
	}
	for _, o := range m.GetSetHeaders() {
		name, value := strings.ToLower(o.GetHeader().GetKey()), o.GetHeader().GetRawValue()
		if len(value) == 0 {
			value = []byte(o.GetHeader().GetValue())
		}
		if name == destinationField {
			if err := r.header.take(string(value)); err != nil {
				return err
			}
			continue
		}
		c := FieldChange{Name: []byte(name), Value: value}
		// Envoy's ext_proc goes by append, which is false unless set, so pickers do not
		// mean the zero value of append_action, which is to append.
		//lint:ignore SA1019 see above
		c.Append = o.GetAppend().GetValue()
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_ADD_IF_ABSENT:
			c.Absent = true
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			c.Present = true
		}
		if err := r.change(c); err != nil {
			return err
		}
	}
	return nil
}

func (r *Ruling) change(c FieldChange) error {
	if r.headMade += len(c.Name) + len(c.Value); r.headMade > maxHeadMade {
		return fmt.Errorf("%w: it sets more than %d bytes of fields", ErrProtocol, maxHeadMade)
	}
	if strings.HasPrefix(string(c.Name), ":") || string(c.Name) == lengthField {
		return nil // what a request is judged by, and its framing, are not the picker's to say
	}
	if !message.ValidToken(c.Name) || !message.ValidValue(c.Value) {
		return fmt.Errorf("%w: it sets a field that cannot be sent: %.100q", ErrProtocol, c.Name)
	}
	r.Fields = append(r.Fields, c)
	return nil
}

// takeBody takes what a piece of the request's body, or all of it, becomes. Last
// tells whether nothing comes behind it.
func (r *Ruling) takeBody(m *extprocv3.BodyMutation) (last bool, err error) {
	if r.buffered {
		switch body := m.GetMutation().(type) {
		case nil:
		case *extprocv3.BodyMutation_Body:
			r.Body, r.Changed = body.Body, true
		case *extprocv3.BodyMutation_ClearBody:
			r.Changed = body.ClearBody
		default:
			return false, fmt.Errorf("%w: it said %T to a body in one piece", ErrProtocol, body)
		}
		return true, nil
	}
	piece := m.GetStreamedResponse()
	if piece == nil {
		return false, fmt.Errorf("%w: it said %T to a body in pieces", ErrProtocol, m.GetMutation())
	}
	r.asked.add(piece.GetBody())
	if len(r.asked.other) > r.limit {
		return false, fmt.Errorf("%w: it makes the body longer than %d bytes", ErrProtocol, r.limit)
	}
	if piece.GetEndOfStream() {
		r.Body, r.Changed = r.asked.end()
	}
	return piece.GetEndOfStream(), nil
}

// judge says what was heard.
func (r *Ruling) judge() error {
	if r.immediate != nil {
		return r.judgeImmediate()
	}
	d := r.header
	if d.given && r.metadata.given {
		if err := d.take(r.metadata.value); err != nil {
			return err
		}
	} else if !d.given {
		d = r.metadata
	}
	for e := range strings.SplitSeq(d.value, ",") {
		if e = strings.TrimSpace(e); e != "" {
			r.Endpoints = append(r.Endpoints, e)
		}
		if len(r.Endpoints) > maxEndpoints {
			return fmt.Errorf("%w: it named more than %d endpoints", ErrProtocol, maxEndpoints)
		}
	}
	if len(r.Endpoints) == 0 {
		return fmt.Errorf("%w: it named no endpoint", ErrProtocol)
	}
	return nil
}

func (r *Ruling) judgeImmediate() error {
	status := int(r.immediate.GetStatus().GetCode())
	if status == 0 {
		status = 200
	}
	if status < 200 || status > 599 {
		return fmt.Errorf("%w: it answered at once with status %d", ErrProtocol, status)
	}
	r.Fields = nil
	if err := r.takeFields(r.immediate.GetHeaders()); err != nil {
		return err
	}
	r.Body, r.Changed = r.immediate.GetBody(), true
	r.Immediate = &message.Response{Status: status, ContentLength: int64(len(r.Body))}
	for _, c := range r.Fields {
		if c.Value != nil {
			r.Immediate.Fields = append(r.Immediate.Fields, message.Field{Name: c.Name, Value: c.Value})
		}
	}
	return nil
}

// echo compares a body that comes back with the one that was sent, so that it is held
// only where it is another.
type echo struct {
	original [][]byte
	at, of   int // of the original: what has come back of the at-th piece
	same     int // bytes that came back as they were
	differs  bool
	other    []byte // all that has come, once it differs
}

func (e *echo) add(p []byte) {
	for !e.differs && len(p) > 0 {
		if e.at == len(e.original) {
			e.diverge()
			break
		}
		rest := e.original[e.at][e.of:]
		n := min(len(rest), len(p))
		if !bytes.Equal(rest[:n], p[:n]) {
			e.diverge()
			break
		}
		p = p[n:]
		e.same += n
		if e.of += n; n == len(rest) {
			e.at, e.of = e.at+1, 0
		}
	}
	if e.differs {
		e.other = append(e.other, p...)
	}
}

// diverge begins to hold what comes.
func (e *echo) diverge() {
	e.differs = true
	for i, left := 0, e.same; left > 0; i++ {
		n := min(left, len(e.original[i]))
		e.other = append(e.other, e.original[i][:n]...)
		left -= n
	}
}

// end gives the body that came, if it is another.
func (e *echo) end() (body []byte, changed bool) {
	for e.at < len(e.original) && e.of == len(e.original[e.at]) {
		e.at, e.of = e.at+1, 0 // nothing is left of an empty piece
	}
	if !e.differs && e.at < len(e.original) {
		e.diverge() // it ended before
	}
	return e.other, e.differs
}

// listen hears out what the picker says to what it is told, which changes nothing any
// more.
func (r *Ruling) listen() {
	defer close(r.lost)
	for {
		if _, err := r.rpc.Recv(); err != nil {
			return
		}
	}
}

// tell has m sent. A picker that does not take what it is told is told no more.
func (r *Ruling) tell(m *extprocv3.ProcessingRequest) {
	select {
	case r.news <- m:
	case <-r.lost:
		r.tellBody = false
	default:
		r.tellBody = false
		r.cancel(nil)
	}
}

// Answered tells of the answer's head, and of the endpoint that gave it.
func (r *Ruling) Answered(head *message.Response, by string) {
	if !r.tellHead {
		return
	}
	h := newHeaders(2 + len(head.Fields))
	h.add(pseudoStatus, strconv.AppendInt(nil, int64(head.Status), 10))
	if head.ContentLength != message.Unknown {
		h.add(lengthField, strconv.AppendInt(nil, head.ContentLength, 10))
	}
	for _, f := range head.Fields {
		h.add(strings.ToLower(string(f.Name)), bytes.Clone(f.Value))
	}
	r.headTold, r.endTold = true, head.ContentLength == 0
	r.tell(&extprocv3.ProcessingRequest{
		Request:         &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{Headers: &h.made, EndOfStream: r.endTold}},
		MetadataContext: metadata(destinationSpace, servedKey, structpb.NewStringValue(by)),
	})
}

// Passed tells of a piece of the answer's body.
func (r *Ruling) Passed(p []byte) {
	if r.tellBody && r.headTold && !r.endTold && len(p) > 0 {
		r.tell(responseBody(bytes.Clone(p), false))
	}
}

// Ended tells that the answer's body has ended, with these trailers.
func (r *Ruling) Ended(trailers []message.Field) {
	if !r.tellBody || !r.headTold || r.endTold {
		return
	}
	r.endTold = true
	if len(trailers) == 0 {
		r.tell(responseBody(nil, true))
		return
	}
	h := newHeaders(len(trailers))
	for _, f := range trailers {
		h.add(strings.ToLower(string(f.Name)), bytes.Clone(f.Value))
	}
	r.tell(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{Trailers: &h.made}}})
}

func responseBody(p []byte, last bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: p, EndOfStream: last}}}
}

// End lets the picker go, which has a second to take what it was told. It does not
// wait.
func (r *Ruling) End() {
	if r.finished {
		return
	}
	r.finished = true
	if r.stay != nil {
		r.stay()
	}
	close(r.news)
	time.AfterFunc(lastWords, func() { r.cancel(nil) })
}
