package extproc

import (
	"context"
	"io"
	"log/slog"
	"net"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Services whose health is told (proposal 004, "Health Check Services"); the empty
// one is the server as a whole, as the gRPC health protocol has it.
const (
	Liveness  = "liveness"
	Readiness = "readiness"
)

// A Server is an endpoint picker: it answers the external processing protocol, and
// the gRPC health protocol beside it.
type Server struct {
	// Handler serves one request, to its end. It must be safe for concurrent use.
	Handler func(*Stream)
	// MessageLimit bounds one message in bytes: at least the largest body that is
	// taken in the mode BUFFERED. Zero: 4 MiB.
	MessageLimit int
	// Log is told of proxies that are set up wrongly; nil: slog.Default.
	Log *slog.Logger

	extprocv3.UnimplementedExternalProcessorServer
	health *health.Server
}

const (
	ioBuffer     = 128 << 10
	streamWindow = 1 << 20
	// streamWorkers keep their stacks from one request to the next. Requests beyond so
	// many at once get a goroutine each.
	streamWorkers = 256
)

// GRPC gives the server, with options such as credentials.
func (s *Server) GRPC(options ...grpc.ServerOption) *grpc.Server {
	limit := s.MessageLimit
	if limit == 0 {
		limit = 4 << 20
	}
	g := grpc.NewServer(append(options,
		grpc.MaxRecvMsgSize(limit),
		grpc.ForceServerCodecV2(codec{}),
		grpc.SharedWriteBuffer(true),
		grpc.WriteBufferSize(ioBuffer),
		grpc.ReadBufferSize(ioBuffer),
		// Windows for whole bodies of a common size: whoever sends one does not wait for
		// word of how much was read, and no pings find out how much the wire holds.
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(16*streamWindow),
		grpc.NumStreamWorkers(streamWorkers),
	)...)
	s.health = health.NewServer()
	s.health.SetServingStatus(Liveness, healthv1.HealthCheckResponse_SERVING)
	s.SetReady(false)
	extprocv3.RegisterExternalProcessorServer(g, s)
	healthv1.RegisterHealthServer(g, s.health)
	return g
}

// SetReady says whether requests are wanted.
func (s *Server) SetReady(ready bool) {
	state := healthv1.HealthCheckResponse_NOT_SERVING
	if ready {
		state = healthv1.HealthCheckResponse_SERVING
	}
	for _, service := range []string{"", Readiness, extprocv3.ExternalProcessor_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(service, state)
	}
}

// Process serves one request.
func (s *Server) Process(rpc extprocv3.ExternalProcessor_ProcessServer) error {
	st := &Stream{rpc: rpc}
	if err := st.begin(); err != nil {
		if err == io.EOF {
			return nil
		}
		if _, ok := status.FromError(err); ok {
			return err
		}
		log := s.Log
		if log == nil {
			log = slog.Default()
		}
		log.Error("a proxy asks in a way that cannot be answered", "proxy", remoteAddr(rpc.Context()).String(), "error", err)
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	s.Handler(st)
	if st.failed == nil || st.failed == io.EOF {
		return nil
	}
	return status.Error(codes.Aborted, st.failed.Error())
}

func remoteAddr(ctx context.Context) net.Addr {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr
	}
	return &net.TCPAddr{}
}
