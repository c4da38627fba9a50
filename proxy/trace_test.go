package proxy

import (
	"encoding/hex"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
)

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

// tracedServer is a Server without a World that keeps what it tells of traces.
func tracedServer(t testing.TB, ratio float64) *Server {
	s := New(Config{
		Account: account.New(prometheus.NewRegistry(), account.Config{Tracing: &account.Tracing{Ratio: ratio, Span: func(*account.Record) {}}}),
		Log:     slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() { s.Shutdown(t.Context()) })
	return s
}

// traced reads the fields of a head, "name: value" each, and gives the place in a trace and the head as it is sent on.
func traced(s *Server, fields ...string) (account.Trace, map[string]string) {
	x := &Exchange{server: s, progress: progress{head: new(message.Request)}}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		x.head.Fields = append(x.head.Fields, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	x.trace()
	sent := make(map[string]string)
	for _, f := range x.head.Fields {
		sent[string(f.Name)] += string(f.Value)
	}
	return x.record.Trace, sent
}

func TestTraceFields(t *testing.T) {
	const w3c = "00-" + traceID + "-" + spanID
	for _, tt := range []struct {
		name    string
		fields  []string
		goesOn  string // the trace's id; empty: a new one
		parent  string
		sampled bool // with a ratio of 0
		decided bool // and with a ratio of 1 the same
	}{
		{"none", nil, "", "", false, false},
		{"W3C, sampled", []string{"traceparent: " + w3c + "-01"}, traceID, spanID, true, true},
		{"W3C, not sampled", []string{"Traceparent: " + w3c + "-00"}, traceID, spanID, false, true},
		{"W3C, other flags", []string{"traceparent: " + w3c + "-fe"}, traceID, spanID, false, true},
		{"W3C, a later version", []string{"traceparent: cc" + w3c[2:] + "-01-more"}, traceID, spanID, true, true},
		{"W3C, too long", []string{"traceparent: " + w3c + "-01-more"}, "", "", false, false},
		{"W3C, version ff", []string{"traceparent: ff" + w3c[2:] + "-01"}, "", "", false, false},
		{"W3C, capitals", []string{"traceparent: " + strings.ToUpper(w3c) + "-01"}, "", "", false, false},
		{"W3C, no trace", []string{"traceparent: 00-" + strings.Repeat("0", 32) + "-" + spanID + "-01"}, "", "", false, false},
		{"W3C, no span", []string{"traceparent: 00-" + traceID + "-0000000000000000-01"}, "", "", false, false},
		{"W3C before B3", []string{"b3: " + traceID[:16] + traceID[:16] + "-" + spanID + "-0", "traceparent: " + w3c + "-01"}, traceID, spanID, true, true},
		{"B3 where W3C is broken", []string{"traceparent: nonsense", "b3: " + traceID + "-" + spanID + "-1"}, traceID, spanID, true, true},
		{"B3", []string{"b3: " + traceID + "-" + spanID + "-1-05e3ac9a4f6e3b90"}, traceID, spanID, true, true},
		{"B3, debug", []string{"b3: " + traceID + "-" + spanID + "-d"}, traceID, spanID, true, true},
		{"B3, short", []string{"b3: " + traceID[16:] + "-" + spanID + "-0"}, strings.Repeat("0", 16) + traceID[16:], spanID, false, true},
		{"B3, left to us", []string{"b3: " + traceID + "-" + spanID}, traceID, spanID, false, false},
		{"B3, denied", []string{"b3: 0"}, "", "", false, true},
		{"B3, nonsense", []string{"b3: a-b-c-d-e-f"}, "", "", false, false},
		{"B3 in fields", []string{"X-B3-TraceId: " + traceID, "X-B3-SpanId: " + spanID, "X-B3-ParentSpanId: 05e3ac9a4f6e3b90", "X-B3-Sampled: 1"}, traceID, spanID, true, true},
		{"B3 in fields, debug", []string{"x-b3-traceid: " + traceID, "x-b3-spanid: " + spanID, "x-b3-flags: 1"}, traceID, spanID, true, true},
		{"B3 in fields, left to us", []string{"x-b3-traceid: " + traceID, "x-b3-spanid: " + spanID}, traceID, spanID, false, false},
		{"B3 in fields, denied", []string{"x-b3-sampled: 0"}, "", "", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, sent := traced(tracedServer(t, 0), append(tt.fields, "tracestate: a=b", "other: x")...)
			if id := hex.EncodeToString(got.ID[:]); tt.goesOn != "" && id != tt.goesOn || !got.On() {
				t.Errorf("trace %s, want %s", id, tt.goesOn)
			}
			parent := ""
			if got.Parent != [8]byte{} {
				parent = hex.EncodeToString(got.Parent[:])
			}
			if parent != tt.parent || got.Sampled != tt.sampled {
				t.Errorf("parent %q, sampled %v, want %q, %v", parent, got.Sampled, tt.parent, tt.sampled)
			}
			want := "00-" + hex.EncodeToString(got.ID[:]) + "-" + hex.EncodeToString(got.Span[:]) + "-00"
			if tt.sampled {
				want = want[:len(want)-1] + "1"
			}
			if sent["traceparent"] != want || len(sent) != 3 || sent["tracestate"] != "a=b" || got.Span == [8]byte{} || got.Span == got.Parent {
				t.Errorf("sent on: %v, want traceparent %s", sent, want)
			}
			if all, _ := traced(tracedServer(t, 1), tt.fields...); all.Sampled != (tt.sampled || !tt.decided) {
				t.Errorf("sampled with a ratio of 1: %v", all.Sampled)
			}
		})
	}
}

// Without tracing, what clients say of traces passes as it came.
func TestTraceOff(t *testing.T) {
	s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler)})
	defer s.Shutdown(t.Context())
	got, sent := traced(s, "traceparent: nonsense", "b3: 1")
	if got.On() || sent["traceparent"] != "nonsense" || sent["b3"] != "1" {
		t.Errorf("%+v, %v", got, sent)
	}
}

// About as many are sampled as are asked for, and the same ones everywhere.
func TestTraceRatio(t *testing.T) {
	a, b := tracedServer(t, .25), tracedServer(t, .25)
	n := 0
	for range 4000 {
		got, _ := traced(a)
		if got.Sampled {
			n++
		}
		if b.account.Tracing().Samples(got.ID) != got.Sampled {
			t.Fatal("another replica decides otherwise")
		}
	}
	if n < 800 || n > 1200 {
		t.Errorf("%d of 4000 are sampled", n)
	}
}

func TestTraceAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector")
	}
	x := &Exchange{server: tracedServer(t, 0), progress: progress{head: &message.Request{Fields: make([]message.Field, 0, 4)}}}
	field := message.Field{Name: []byte("traceparent"), Value: []byte("00-" + traceID + "-" + spanID + "-01")}
	trace := func() {
		x.record.Trace = account.Trace{}
		x.head.Fields = append(x.head.Fields[:0], field)
		x.trace()
	}
	trace()
	if n := testing.AllocsPerRun(100, trace); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// Nothing that stands in such a field does more than begin another trace.
func FuzzTraceFields(f *testing.F) {
	f.Add("00-"+traceID+"-"+spanID+"-01", "", "", "", "", "")
	f.Add("", traceID+"-"+spanID+"-1-"+spanID, traceID, spanID, "1", "1")
	f.Add("x", "d", "-", "--", "true", "0")
	s := tracedServer(f, .5)
	f.Fuzz(func(t *testing.T, w3c, b3, id, span, sampled, flags string) {
		got, sent := traced(s, "traceparent: "+w3c, "b3: "+b3, "x-b3-traceid: "+id, "x-b3-spanid: "+span, "x-b3-sampled: "+sampled, "x-b3-flags: "+flags)
		var back account.Trace
		if !got.On() || len(sent) != 1 || !readTraceparent(&back, []byte(sent["traceparent"])) || back.ID != got.ID || back.Parent != got.Span || back.Sampled != got.Sampled {
			t.Errorf("%+v, sent on as %v", got, sent)
		}
	})
}
