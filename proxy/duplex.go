package proxy

import (
	"bytes"
	"io"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// gRPC: a call may go both ways at once, so its body is not taken in before it is
// sent, and is sent while the answer comes. Nothing of it is read for routing.

// duplex is a Stream whose body may be read beside the writing of the answer.
type duplex interface {
	Stream
	// Duplex lets a Read wait for as long as it takes.
	Duplex()
	// StopReading has a Read that waits, and all that follow, fail.
	StopReading()
}

// call is a gRPC call under way.
type call struct {
	stream   duplex
	received int64         // bytes of its body
	pumped   chan struct{} // closed when no more of it is sent; nil before it begins
}

var grpcType = []byte("application/grpc")

// isGRPC tells whether the request is a gRPC call, which only HTTP/2 carries.
func (x *Exchange) isGRPC() bool {
	if _, ok := x.stream.(duplex); !ok {
		return false
	}
	kind := message.Get(x.head.Fields, "content-type")
	return len(kind) >= len(grpcType) && bytes.EqualFold(kind[:len(grpcType)], grpcType)
}

// guessed tells whether endpoints are asked in HTTP/2 for no better reason than what
// the client says its body is. That one of them cannot be says nothing against it.
func (x *Exchange) guessed() bool { return x.http2 && (x.dest == nil || !x.dest.http2()) }

// failed is what it says of an endpoint that an attempt on it fails.
func (x *Exchange) failed() picker.Outcome {
	if x.guessed() {
		return picker.ClientGone
	}
	return picker.Failed
}

// beginCall finds out whether the request is a gRPC call that goes both ways. Such
// a one has no body that is read for routing; what asks a model of an engine has
// one, whatever it says of itself. What has no body goes one way, and can be sent again.
func (x *Exchange) beginCall() bool {
	if !x.http2 || x.head.ContentLength == 0 || openai.KindOf(x.head.Method, x.head.Path()) != openai.Other {
		return false
	}
	s, ok := x.stream.(duplex)
	if !ok {
		return false
	}
	s.Duplex()
	x.call = &call{stream: s}
	x.read.Reset()
	x.kind = openai.Other
	return true
}

// connect gives a connection to the endpoint, a new one when an idle one must not
// fail the request a second time.
func (x *Exchange) connect(t *upstream.Transport) (*upstream.Conn, error) {
	if err := x.ctx.Err(); err != nil { // a connection that is there would be given all the same
		return nil, err
	}
	again := x.resends > 0
	switch {
	case x.http2 && again:
		return t.DialHTTP2(x.ctx)
	case x.http2:
		return t.GetHTTP2(x.ctx)
	case again:
		return t.Dial(x.ctx)
	}
	return t.Get(x.ctx)
}

// sendCall sends the head of the call, and its body from a goroutine of its own.
func (x *Exchange) sendCall(conn carrier) error {
	if err := conn.SendHead(x.head); err != nil {
		return err
	}
	x.body.lost = true
	x.call.pumped = make(chan struct{})
	go x.call.pump(conn)
	return nil
}

// pump sends the body of the call as it comes.
func (c *call) pump(conn carrier) {
	defer close(c.pumped)
	buf := getBuffer(windowSize)
	defer putBuffer(buf)
	for {
		n, err := c.stream.Read(*buf)
		c.received += int64(n)
		if n > 0 && conn.WriteBody((*buf)[:n]) != nil {
			return // ReadHead and Next tell why
		}
		if err != nil {
			if err == io.EOF {
				conn.EndBody()
			} else {
				conn.Interrupt()
			}
			return
		}
	}
}

// endCall ends what is still sent of the call, after its answer.
func (x *Exchange) endCall(conn carrier) {
	if x.call == nil || x.call.pumped == nil {
		return
	}
	x.call.stream.StopReading()
	conn.Interrupt()
	<-x.call.pumped
	x.record.BytesIn += x.call.received
	x.call.received = 0
}
