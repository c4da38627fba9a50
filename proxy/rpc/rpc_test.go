package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/fairway-proxy/fairway/proxy/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tooLong is when a test gives up waiting for what should have happened.
const tooLong = 2 * time.Minute

// listen serves s on the loopback until the test ends, and gives the address.
func listen(t testing.TB, s *rpc.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		if err := s.Serve(l); err != rpc.ErrServerClosed {
			t.Errorf("serving ended with %v", err)
		}
	})
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
	return l.Addr().String()
}

// bare passes messages as the bytes they are.
type bare struct{}

func (bare) Name() string                    { return "bare" }
func (bare) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (bare) Unmarshal(b []byte, v any) error { *v.(*[]byte) = bytes.Clone(b); return nil }

// client is grpc-go's: how another reads the protocol.
func client(t testing.TB, address string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bare{}), grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var both = &grpc.StreamDesc{StreamName: "Talk", ServerStreams: true, ClientStreams: true}

func call(t testing.TB, c *grpc.ClientConn, options ...grpc.CallOption) (grpc.ClientStream, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tooLong)
	t.Cleanup(cancel)
	s, err := c.NewStream(ctx, both, "/test/Talk", options...)
	if err != nil {
		t.Fatal(err)
	}
	return s, cancel
}

func hear(t testing.TB, s grpc.ClientStream) []byte {
	t.Helper()
	var b []byte
	if err := s.RecvMsg(&b); err != nil {
		t.Fatal(err)
	}
	return b
}

// echo says each message again, in two parts.
func echo(c *rpc.Call) error {
	for {
		b, err := c.Receive()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.Send(b[:len(b)/2], b[len(b)/2:]); err != nil {
			return err
		}
	}
}

// Messages of any length go both ways, also beyond every window.
func TestConversation(t *testing.T) {
	c := client(t, listen(t, &rpc.Server{Handler: echo, MessageLimit: 32 << 20}))
	s, _ := call(t, c)
	for _, n := range []int{0, 1, 5, 1000, 16 << 10, 70_000, 512 << 10, 1 << 20, 20 << 20, 3} {
		b := bytes.Repeat([]byte{byte(n), 'x', byte(n >> 8)}, n/3+1)[:n]
		if err := s.SendMsg(b); err != nil {
			t.Fatal(n, err)
		}
		if got := hear(t, s); !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back as %d, or others", n, len(got))
		}
	}
	s.CloseSend()
	if err := s.RecvMsg(new([]byte)); err != io.EOF {
		t.Errorf("it ended with %v", err)
	}
}

// Many calls of one connection get their own answers, whatever their number.
func TestManyAtOnce(t *testing.T) {
	c := client(t, listen(t, &rpc.Server{Handler: echo}))
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			s, cancel := call(t, c)
			defer cancel()
			for n := range 5 {
				b := bytes.Repeat(fmt.Append(nil, i, n), 1+n*2000)
				if err := s.SendMsg(b); err != nil {
					t.Error(err)
					return
				}
				var got []byte
				if err := s.RecvMsg(&got); err != nil || !bytes.Equal(got, b) {
					t.Errorf("call %d, message %d: %d bytes, %v", i, n, len(got), err)
					return
				}
			}
			s.CloseSend()
			if err := s.RecvMsg(new([]byte)); err != io.EOF {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// What a handler returns is the call's status, to the letter.
func TestStatus(t *testing.T) {
	long := strings.Repeat("long ", 100)
	for _, tt := range []struct {
		err     error
		code    codes.Code
		message string
	}{
		{nil, codes.OK, ""},
		{status.Error(codes.FailedPrecondition, "set this: 100 % é\n"), codes.FailedPrecondition, "set this: 100 % é\n"},
		{errors.New("plain"), codes.Unknown, "plain"},
		{status.Error(codes.Aborted, long), codes.Aborted, long},
	} {
		for _, said := range []bool{false, true} {
			c := client(t, listen(t, &rpc.Server{Handler: func(c *rpc.Call) error {
				if said {
					c.Send([]byte("before"))
				}
				return tt.err
			}}))
			s, _ := call(t, c)
			if said {
				hear(t, s)
			}
			err := s.RecvMsg(new([]byte))
			if err == io.EOF {
				err = nil
			}
			if got := status.Convert(err); got.Code() != tt.code || got.Message() != tt.message {
				t.Errorf("%v became %v", tt.err, err)
			}
		}
	}
}

// A client that cancels, or is gone, ends the wait and the context.
func TestClientLeaves(t *testing.T) {
	for _, how := range []string{"cancels", "closes the connection"} {
		begun, over := make(chan struct{}), make(chan error, 1)
		c := client(t, listen(t, &rpc.Server{Handler: func(c *rpc.Call) error {
			close(begun)
			_, err := c.Receive()
			<-c.Context().Done()
			if c.Send([]byte("x")) == nil {
				t.Error("something was sent")
			}
			over <- err
			return err
		}}))
		_, cancel := call(t, c)
		<-begun
		if how == "cancels" {
			cancel()
		} else {
			c.Close()
		}
		select {
		case err := <-over:
			if err == nil || err == io.EOF {
				t.Errorf("%s: the wait ended with %v", how, err)
			}
		case <-time.After(tooLong):
			t.Fatalf("%s: not noticed", how)
		}
	}
}

// Messages that are not taken end the call with the reason.
func TestRefusedMessages(t *testing.T) {
	c := client(t, listen(t, &rpc.Server{Handler: echo, MessageLimit: 1000}))
	for _, tt := range []struct {
		n       int
		options []grpc.CallOption
		code    codes.Code
	}{{1001, nil, codes.ResourceExhausted}, {1000, nil, codes.OK}, {999, []grpc.CallOption{grpc.UseCompressor(gzip.Name)}, codes.Unimplemented}} {
		s, _ := call(t, c, tt.options...)
		s.SendMsg(make([]byte, tt.n))
		s.CloseSend()
		var b []byte
		if err := s.RecvMsg(&b); status.Code(err) != tt.code {
			t.Errorf("%d bytes, %v: %v", tt.n, tt.options, err)
		}
	}
}

// Shutdown lets calls come to their end, and ends what does not within the time.
func TestShutdown(t *testing.T) {
	begun := make(chan struct{}, 2)
	s := &rpc.Server{Handler: func(c *rpc.Call) error {
		begun <- struct{}{}
		return echo(c)
	}}
	c := client(t, listen(t, s))
	first, _ := call(t, c)
	<-begun
	down := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		s.Shutdown(ctx)
		close(down)
	}()
	for state := c.GetState(); state.String() == "READY"; state = c.GetState() { // until it has heard of it
		c.WaitForStateChange(t.Context(), state)
	}
	if err := first.SendMsg([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	if got := hear(t, first); string(got) != "still here" {
		t.Errorf("%q came back", got)
	}
	select {
	case <-down:
		t.Error("it is down while a call goes on")
	default:
	}
	first.CloseSend()
	if err := first.RecvMsg(new([]byte)); err != io.EOF {
		t.Error(err)
	}
	<-down

	s = &rpc.Server{Handler: func(c *rpc.Call) error {
		begun <- struct{}{}
		return echo(c)
	}}
	c = client(t, listen(t, s))
	stays, _ := call(t, c)
	<-begun
	cancel()
	s.Shutdown(ctx)
	if err := stays.RecvMsg(new([]byte)); status.Code(err) != codes.Unavailable {
		t.Errorf("a call that stayed ends with %v", err)
	}
	if err := s.Serve(another(t)); err != rpc.ErrServerClosed {
		t.Errorf("serving again: %v", err)
	}
}

// another is a listener that is not needed any more.
func another(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The gRPC health protocol: questions, and a watch that tells of changes.
func TestHealth(t *testing.T) {
	var h rpc.Health
	h.Set(true, "", "one")
	c, err := grpc.NewClient(listen(t, &rpc.Server{Handler: h.Serve}), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client := healthv1.NewHealthClient(c)
	ask := func(service string) healthv1.HealthCheckResponse_ServingStatus {
		t.Helper()
		r, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStatus()
	}
	if ask("one") != healthv1.HealthCheckResponse_SERVING {
		t.Error("one does not serve")
	}
	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "two"}); status.Code(err) != codes.NotFound {
		t.Errorf("two: %v", err)
	}
	if _, err := client.List(t.Context(), &healthv1.HealthListRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("another method: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), tooLong)
	defer cancel()
	watch, err := client.Watch(ctx, &healthv1.HealthCheckRequest{Service: "two"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		r, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.GetStatus() != want {
			t.Errorf("two is %v, want %v", r.GetStatus(), want)
		}
	}
	next(healthv1.HealthCheckResponse_SERVICE_UNKNOWN)
	h.Set(false, "one", "two")
	next(healthv1.HealthCheckResponse_NOT_SERVING)
	h.Set(true, "two")
	next(healthv1.HealthCheckResponse_SERVING)
	if ask("one") != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Error("one serves")
	}
}
