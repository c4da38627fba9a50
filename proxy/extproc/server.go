package extproc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairway-proxy/fairway/proxy/rpc"
)

// Services whose health is told (proposal 004, "Health Check Services"); the empty
// one is the server as a whole, as the gRPC health protocol has it.
const (
	Liveness  = "liveness"
	Readiness = "readiness"
)

// wanting are the services that serve while requests are wanted. The last is what the
// probes of the reference picker's manifests ask for.
var wanting = []string{"", Readiness, extprocv3.ExternalProcessor_ServiceDesc.ServiceName, "inference-extension"}

// A Server is an endpoint picker: it answers the external processing protocol, and
// the gRPC health protocol beside it.
type Server struct {
	// Handler serves one request, to its end. It must be safe for concurrent use.
	Handler func(*Stream)
	// MessageLimit bounds one message in bytes: at least the largest body that is
	// taken in the mode BUFFERED. Zero: 4 MiB.
	MessageLimit int
	// BufferLimit bounds what is held of all messages, in bytes. Zero: 1 GiB.
	BufferLimit int64
	// Connections bounds those that are open at a time, beside ServeHealth's; further
	// clients wait until one has ended. Zero: no bound.
	Connections int
	// Misbehaved is told of each connection that was cut for what it sent: for a flood, or else
	// for breaking HTTP/2. Nil: nobody is.
	Misbehaved func(flood bool)
	// Log is told of proxies that are set up wrongly, at Error once in ten seconds and of
	// the others at Debug; nil: slog.Default.
	Log *slog.Logger

	once          sync.Once
	calls, checks rpc.Server // checks: of health alone
	health        rpc.Health
	loud          rate.Sometimes // is Log told at Error
}

// healthConnections bounds those to ServeHealth's listener.
const healthConnections = 100

// errorEvery is how often Log is told at Error: anybody may ask wrongly, and often.
const errorEvery = 10 * time.Second

// level is at which Log is told of a proxy that is set up wrongly.
func (s *Server) level() slog.Level {
	s.ready()
	level := slog.LevelDebug
	s.loud.Do(func() { level = slog.LevelError })
	return level
}

func (s *Server) ready() {
	s.once.Do(func() {
		s.loud.Interval = errorEvery
		s.calls.Handler, s.calls.MessageLimit, s.calls.BufferLimit = s.serve, s.MessageLimit, s.BufferLimit
		s.calls.Connections, s.checks.Connections = s.Connections, healthConnections
		s.checks.Handler = s.health.Serve
		s.calls.Misbehaved, s.checks.Misbehaved = s.Misbehaved, s.Misbehaved
		s.health.Set(true, Liveness)
		s.health.Set(false, wanting...)
	})
}

// Serve answers what comes to the listener, TLS if it is one of tls, until Shutdown or
// Close: then the error is rpc.ErrServerClosed.
func (s *Server) Serve(l net.Listener) error {
	s.ready()
	return s.calls.Serve(l)
}

// ServeHealth answers health checks alone.
func (s *Server) ServeHealth(l net.Listener) error {
	s.ready()
	return s.checks.Serve(l)
}

// Shutdown lets what is being processed come to its end, or until ctx is done.
func (s *Server) Shutdown(ctx context.Context) {
	s.ready()
	s.calls.Shutdown(ctx)
	s.checks.Close()
}

// Close breaks off what is being processed.
func (s *Server) Close() {
	s.ready()
	s.calls.Close()
	s.checks.Close()
}

// SetReady says whether requests are wanted.
func (s *Server) SetReady(ready bool) {
	s.ready()
	s.health.Set(ready, wanting...)
}

// processMethod is the protocol's one method.
var processMethod = "/" + extprocv3.ExternalProcessor_ServiceDesc.ServiceName + "/Process"

// serve answers one call.
func (s *Server) serve(c *rpc.Call) error {
	if c.Method() != processMethod {
		return s.health.Serve(c)
	}
	return s.process(c)
}

// Streams are used again, for the memory they have.
var streamPool = sync.Pool{New: func() any { return new(Stream) }}

// process serves one request.
func (s *Server) process(c conversation) error {
	st := streamPool.Get().(*Stream)
	defer streamPool.Put(st)
	st.reset(c)
	if err := st.begin(); err != nil {
		if err == io.EOF || c.Context().Err() != nil {
			return nil
		}
		if _, ok := status.FromError(err); ok {
			return err
		}
		log := s.Log
		if log == nil {
			log = slog.Default()
		}
		log.Log(c.Context(), s.level(), "a proxy asks in a way that cannot be answered", "proxy", c.RemoteAddr().String(), "error", err)
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	s.Handler(st)
	if st.failed == nil || errors.Is(st.failed, io.EOF) {
		return nil
	}
	return status.Error(codes.Aborted, st.failed.Error())
}
