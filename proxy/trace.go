package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
)

// Traces: what clients say of them in the fields of W3C (Trace Context, traceparent) or Zipkin (B3, in one field or several), and
// what engines are told.

var fieldTraceparent = []byte("traceparent")

// traceparentLen is the length of a traceparent of version 00.
const traceparentLen = len("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")

// traceField is one of the fields that tell of a trace.
type traceField int

const (
	traceparent traceField = iota
	b3Single
	b3TraceID
	b3SpanID
	b3SampledField
	b3Flags
	b3ParentSpanID
	noTraceField
)

var traceFields = [noTraceField]string{
	traceparent: "traceparent", b3Single: "b3", b3TraceID: "x-b3-traceid", b3SpanID: "x-b3-spanid", b3SampledField: "x-b3-sampled",
	b3Flags: "x-b3-flags", b3ParentSpanID: "x-b3-parentspanid",
}

// traceFieldOf finds one by its name.
func traceFieldOf(name []byte) traceField {
	for of, known := range traceFields {
		if message.EqualFold(name, known) {
			return traceField(of)
		}
	}
	return noTraceField
}

// mayTrace tells whether a field may be one of them. Few others begin as they do.
func mayTrace(name []byte) bool {
	if len(name) < 2 {
		return false
	}
	c := name[0] | 0x20
	return c == 'x' && name[1] == '-' && len(name) > 2 && name[2]|0x20 == 'b' || c == 't' || c == 'b'
}

// trace finds the request's place in a trace, or begins one, and has the engine told of it in the request's own fields.
func (x *Exchange) trace() {
	tracing := x.server.account.Tracing()
	if tracing == nil {
		return
	}
	t := &x.record.Trace
	decided := x.readTrace(t)
	if !t.On() {
		binary.BigEndian.PutUint64(t.ID[:8], rand.Uint64())
		binary.BigEndian.PutUint64(t.ID[8:], rand.Uint64()|1)
	}
	binary.BigEndian.PutUint64(t.Span[:], rand.Uint64()|1)
	if !decided {
		t.Sampled = tracing.Samples(t.ID)
	}
	x.traceparent = appendTraceparent(x.traceparent[:0], t)
	x.head.Fields = append(x.head.Fields, message.Field{Name: fieldTraceparent, Value: x.traceparent})
}

// readTrace reads the fields of a trace and takes them away, for the engine is told of another span. Decided tells whether they say
// if the trace is sampled. What cannot be read is as if it were not there (Trace Context section 3.2.2.6).
func (x *Exchange) readTrace(t *account.Trace) (decided bool) {
	var told [noTraceField][]byte
	fields, n := x.head.Fields, 0
	for i := range fields {
		f, of := &fields[i], noTraceField
		if mayTrace(f.Name) {
			of = traceFieldOf(f.Name)
		}
		if of == noTraceField {
			if n < i {
				fields[n] = *f
			}
			n++
		} else if told[of] == nil {
			told[of] = f.Value
		}
	}
	x.head.Fields = fields[:n]
	if readTraceparent(t, told[traceparent]) {
		return true
	}
	b3, id, sampled, flags := told[b3Single], told[b3TraceID], told[b3SampledField], told[b3Flags]
	if b3 != nil {
		return readB3(t, b3)
	}
	if id == nil && sampled == nil && flags == nil {
		// A tunnel says whose trace it is opened in, which is as near as it gets.
		return x.peer != nil && readTraceparent(t, []byte(x.peer.Traceparent))
	}
	readB3IDs(t, id, told[b3SpanID])
	if string(flags) == "1" {
		sampled = flags
	}
	return b3Sampled(t, sampled)
}

// readTraceparent reads a traceparent (Trace Context section 3.2.2). A version that is not known is read as the one that is.
func readTraceparent(t *account.Trace, v []byte) bool {
	var version, flags [1]byte
	var read account.Trace
	if len(v) < traceparentLen || v[2] != '-' || v[35] != '-' || v[52] != '-' ||
		!unhex(version[:], v[:2]) || !unhex(read.ID[:], v[3:35]) || !unhex(read.Parent[:], v[36:52]) || !unhex(flags[:], v[53:55]) ||
		version[0] == 0xff || version[0] == 0 && len(v) > traceparentLen || len(v) > traceparentLen && v[traceparentLen] != '-' ||
		!read.On() || read.Parent == [8]byte{} {
		return false
	}
	read.Sampled = flags[0]&1 != 0
	*t = read
	return true
}

// readB3 reads B3 in one field: {trace}-{span}[-{sampled}[-{parent}]], or {sampled} alone.
func readB3(t *account.Trace, v []byte) (decided bool) {
	var parts [4][]byte
	n := 0
	for start, i := 0, 0; i <= len(v) && n < len(parts); i++ {
		if i == len(v) || v[i] == '-' {
			parts[n] = v[start:i]
			n++
			start = i + 1
		}
	}
	if n == 1 {
		return b3Sampled(t, parts[0])
	}
	readB3IDs(t, parts[0], parts[1])
	return b3Sampled(t, parts[2])
}

// readB3IDs reads the ids of a trace, which may be half as long as W3C's, and of its span.
func readB3IDs(t *account.Trace, id, span []byte) {
	var read account.Trace
	ok := len(id) == 32 && unhex(read.ID[:], id) || len(id) == 16 && unhex(read.ID[8:], id)
	if ok && len(span) == 16 && unhex(read.Parent[:], span) && read.On() && read.Parent != [8]byte{} {
		*t = read
	}
}

func b3Sampled(t *account.Trace, v []byte) (decided bool) {
	switch string(v) {
	case "1", "d", "true":
		t.Sampled = true
		return true
	case "0", "false":
		return true
	}
	return false
}

// unhex reads hexadecimal digits, which are lower case in every one of these fields.
func unhex(dst, src []byte) bool {
	for _, c := range src {
		if 'A' <= c && c <= 'F' {
			return false
		}
	}
	n, err := hex.Decode(dst, src)
	return err == nil && n == len(dst)
}

func appendTraceparent(b []byte, t *account.Trace) []byte {
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, t.ID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, t.Span[:])
	if t.Sampled {
		return append(b, "-01"...)
	}
	return append(b, "-00"...)
}
