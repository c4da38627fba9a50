package account

import "encoding/binary"

// Trace is a request's place in a distributed trace. Its zero value is that of a request which is not traced.
type Trace struct {
	ID      [16]byte // of the trace
	Span    [8]byte  // of this request
	Parent  [8]byte  // of the span that caused it; zero: none
	Sampled bool     // a span is told of it
}

// On tells whether the request is part of a trace.
func (t *Trace) On() bool { return t.ID != [16]byte{} }

// Tracing says what is told of traces. Nil: nothing, and traceparent fields pass as they come.
type Tracing struct {
	// Ratio is the share of traces that are sampled of those that begin here, 0 to 1. Those that began elsewhere are sampled if
	// they were there.
	Ratio float64
	// Span is told of each exchange that is sampled, at its end. It keeps nothing of the record.
	Span func(*Record)
}

// Samples decides for a trace that begins here: the same for the same trace everywhere (OpenTelemetry's TraceIDRatioBased).
func (t *Tracing) Samples(id [16]byte) bool {
	if t.Ratio >= 1 {
		return true
	}
	return binary.BigEndian.Uint64(id[8:])>>1 < uint64(max(t.Ratio, 0)*(1<<63))
}

// Tracing gives what is told of traces; nil: nothing.
func (r *Recorder) Tracing() *Tracing {
	if r == nil {
		return nil
	}
	return r.tracing
}
