package extproc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// scriptedPicker is a picker whose messages are all there.
type scriptedPicker struct {
	grpc.ClientStream
	ctx  context.Context
	data []byte // each message behind its length, in two bytes
}

func (s *scriptedPicker) Context() context.Context                { return s.ctx }
func (s *scriptedPicker) Send(*extprocv3.ProcessingRequest) error { return nil }
func (s *scriptedPicker) CloseSend() error                        { return nil }
func (s *scriptedPicker) Recv() (*extprocv3.ProcessingResponse, error) {
	if len(s.data) < 2 {
		return nil, io.EOF
	}
	n := min(int(s.data[0])<<8|int(s.data[1]), len(s.data)-2)
	m := new(extprocv3.ProcessingResponse)
	err := proto.Unmarshal(s.data[2:2+n], m)
	s.data = s.data[2+n:]
	if err != nil {
		return nil, err
	}
	return m, nil
}

func script(t testing.TB, messages ...*extprocv3.ProcessingResponse) []byte {
	var all []byte
	for _, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, byte(len(b)>>8), byte(len(b)))
		all = append(all, b...)
	}
	return all
}

// Whatever a picker says is a ruling that can be followed, or a failure.
func FuzzAsk(f *testing.F) {
	head := func(c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: c}}}
	}
	body := func(m *extprocv3.BodyMutation) *extprocv3.ProcessingResponse {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: m}}}}
	}
	named := &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{
		SetHeaders: []*corev3.HeaderValueOption{
			{Header: &corev3.HeaderValue{Key: destinationField, RawValue: []byte("10.0.0.1:8000, 10.0.0.2:8000")}},
			{Header: &corev3.HeaderValue{Key: "X-Set", Value: "1"}, AppendAction: corev3.HeaderValueOption_ADD_IF_ABSENT},
		},
		RemoveHeaders: []string{"x-gone"},
	}}
	piece := func(p string, last bool) *extprocv3.BodyMutation {
		return &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &extprocv3.StreamedBodyResponse{Body: []byte(p), EndOfStream: last}}}
	}
	asks := head(named)
	asks.ModeOverride = &modev3.ProcessingMode{ResponseBodyMode: modev3.ProcessingMode_STREAMED}
	f.Add(script(f, head(named), body(piece("bo", false)), body(piece("dy", true))), false, "body")
	f.Add(script(f, asks, body(&extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte("other")}})), true, "body")
	f.Add(script(f, head(named)), false, "")
	f.Add(script(f, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode_TooManyRequests}, Body: []byte("later"), Headers: named.HeaderMutation,
	}}}), false, "body")
	replaced := proto.CloneOf(named)
	replaced.Status, replaced.BodyMutation = extprocv3.CommonResponse_CONTINUE_AND_REPLACE, &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte("new")}}
	f.Add(script(f, head(replaced)), true, "body")
	f.Fuzz(func(t *testing.T, said []byte, buffered bool, text string) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := newRuling(ClientConfig{Buffered: buffered, TellHead: true, MessageLimit: 1 << 20}, &scriptedPicker{ctx: ctx, data: said}, cancel)
		q := &Question{Head: &message.Request{Method: []byte("POST"), Target: []byte("/"), Authority: []byte("a")}}
		if text != "" {
			half := len(text) / 2
			q.Body = [][]byte{[]byte(text[:half]), []byte(text[half:])}
		}
		if err := r.ask(q); err != nil {
			cancel(nil)
			return
		}
		defer r.End()
		if (len(r.Endpoints) == 0) == (r.Immediate == nil) {
			t.Errorf("endpoints %q, and the answer %v", r.Endpoints, r.Immediate)
		}
		if r.Immediate != nil && (r.Immediate.Status < 200 || r.Immediate.Status > 599) {
			t.Errorf("an answer with status %d", r.Immediate.Status)
		}
		if !r.Changed && r.Body != nil {
			t.Errorf("a body as it was, and %q", r.Body)
		}
		for _, c := range r.Fields {
			if !message.ValidToken(c.Name) || !message.ValidValue(c.Value) || bytes.HasPrefix(c.Name, []byte(":")) {
				t.Errorf("the field %q: %q", c.Name, c.Value)
			}
		}
		r.Answered(&message.Response{Status: 200, ContentLength: message.Unknown}, "10.0.0.1:8000")
		r.Passed([]byte("answer"))
		r.Ended(nil)
	})
}

// A body that comes back as it was is not held, whatever the pieces; any other is told
// as it came.
func TestEcho(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	cut := func(b []byte) (pieces [][]byte) {
		for len(b) > 0 {
			n := 1 + random.IntN(len(b))
			pieces = append(pieces, b[:n])
			b = b[n:]
		}
		return pieces
	}
	for range 2000 {
		sent := make([]byte, random.IntN(30))
		for i := range sent {
			sent[i] = 'a' + byte(random.IntN(2))
		}
		back := bytes.Clone(sent)
		switch random.IntN(4) {
		case 0:
		case 1:
			back = back[:random.IntN(len(back)+1)]
		case 2:
			back = append(back, 'z')
		case 3:
			if len(back) > 0 {
				back[random.IntN(len(back))] = 'z'
			}
		}
		e := echo{original: cut(sent)}
		for _, p := range cut(back) {
			e.add(p)
		}
		body, changed := e.end()
		if changed != !bytes.Equal(sent, back) || changed && !bytes.Equal(body, back) || !changed && body != nil {
			t.Fatalf("%q came back as %q: changed %v, %q", sent, back, changed, body)
		}
	}
}

// Errors say which of the three they are.
func TestAskErrors(t *testing.T) {
	c := NewClient(ClientConfig{Address: "127.0.0.1:1", MessageLimit: 1 << 20})
	defer c.Close()
	q := &Question{Head: &message.Request{Method: []byte("GET"), Target: []byte("/"), Authority: []byte("a")}, Timeout: lastWords}
	if _, err := c.Ask(t.Context(), q); !errors.Is(err, ErrUnavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Ask(gone, q); err != context.Canceled {
		t.Errorf("the client has gone: %v", err)
	}
}
