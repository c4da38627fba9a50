package rpc

import (
	"sync"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Health answers the gRPC health protocol (doc/health-checking.md of grpc/grpc). The
// zero value knows no service. It is safe for concurrent use.
type Health struct {
	mu      sync.Mutex
	serving map[string]bool // guarded by mu
	changed chan struct{}   // closed at the next change, nil while nobody waits; guarded by mu
}

// Set says whether services serve.
func (h *Health) Set(serving bool, services ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.serving == nil {
		h.serving = make(map[string]bool)
	}
	for _, s := range services {
		h.serving[s] = serving
	}
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// state is a service's, and what tells of the next change.
func (h *Health) state(service string) (state healthv1.HealthCheckResponse_ServingStatus, changed chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	serving, known := h.serving[service]
	switch {
	case !known:
		state = healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	case serving:
		state = healthv1.HealthCheckResponse_SERVING
	default:
		state = healthv1.HealthCheckResponse_NOT_SERVING
	}
	return state, h.changed
}

// Serve answers a call of the protocol, or of any other method, which is not
// implemented.
func (h *Health) Serve(c *Call) error {
	watch := c.Method() == healthv1.Health_Watch_FullMethodName
	if !watch && c.Method() != healthv1.Health_Check_FullMethodName {
		return status.Errorf(codes.Unimplemented, "unknown method %.200s", c.Method())
	}
	message, err := c.Receive()
	if err != nil {
		return err
	}
	var r healthv1.HealthCheckRequest
	if err := proto.Unmarshal(message, &r); err != nil {
		return status.Error(codes.InvalidArgument, "this is no HealthCheckRequest")
	}
	state, changed := h.state(r.GetService())
	if !watch {
		if state == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
			return status.Error(codes.NotFound, "unknown service")
		}
		return say(c, state)
	}
	for {
		if err := say(c, state); err != nil {
			return err
		}
		c.Flush()
		for was := state; state == was; state, changed = h.state(r.GetService()) {
			select {
			case <-changed:
			case <-c.Context().Done():
				return nil
			}
		}
	}
}

func say(c *Call, state healthv1.HealthCheckResponse_ServingStatus) error {
	b, err := proto.Marshal(&healthv1.HealthCheckResponse{Status: state})
	if err != nil {
		return err
	}
	return c.Send(b)
}
