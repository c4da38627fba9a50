package proxy

import (
	"bufio"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
)

// recorder is an engine that keeps what it was asked.
type recorder struct {
	address string
	asked   atomic.Int64

	mu   sync.Mutex
	body []byte
	head http.Header
}

// startRecorders starts engines that answer "from N", with a trailer.
func startRecorders(t testing.TB, n int) []*recorder {
	all := make([]*recorder, n)
	for i := range all {
		r := &recorder{}
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			r.asked.Add(1)
			body, _ := io.ReadAll(q.Body)
			r.mu.Lock()
			r.body, r.head = body, q.Header
			r.mu.Unlock()
			w.Header().Set("Trailer", "x-end")
			fmt.Fprintf(w, "from %d", i)
			w.(http.Flusher).Flush()
			w.Header().Set("x-end", "yes")
		}))
		t.Cleanup(s.Close)
		r.address = s.Listener.Addr().String()
		all[i] = r
	}
	return all
}

// askingServer serves one pool of these engines that is picked for by p.
func askingServer(t testing.TB, p *Picker, engines []*recorder, more ...string) *Server {
	t.Helper()
	pool := Pool{Name: "pool", Picker: p}
	for _, e := range engines {
		more = append(more, e.address)
	}
	for _, a := range more {
		pool.Endpoints = append(pool.Endpoints, Endpoint{Address: a})
	}
	s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler)})
	s.SetWorld(&World{Pools: []Pool{pool}})
	t.Cleanup(func() { s.Shutdown(t.Context()) })
	return s
}

// long is more time than any picker of these tests takes.
const long = time.Minute

func plainPicker(address string) *Picker {
	return &Picker{Address: address, Plain: true, Timeout: long}
}

// What a picker names is where the request goes, in every way to name it and to be
// asked; it hears all of the request, and who served it.
func TestPickerIsAsked(t *testing.T) {
	engines := startRecorders(t, 3)
	for _, body := range []PickerBody{BodyFullDuplex, BodyBuffered} {
		for _, how := range []says{{}, {onlyHeader: true}, {onlyMeta: true}} {
			for _, size := range []int{0, 10, 61_000, 300_000, 3 << 20} {
				t.Run(fmt.Sprintf("%s/%v%v/%d", body, how.onlyHeader, how.onlyMeta, size), func(t *testing.T) {
					engine := engines[size%3]
					how.destination = engine.address
					epp, address := startEPP(t, "", how)
					p := plainPicker(address)
					p.Body = body
					s := askingServer(t, p, engines)
					text := ""
					if size > 0 {
						text = chat(false, 1, strings.Repeat("x", size))
					}
					m := post("/v1/chat/completions", text, "X-Mine", "1", destinationKey, "10.9.9.9:1")
					if size == 0 {
						m = post("/other", "")
						m.head.Method = []byte("GET")
					}
					s.Handle(m)
					if want := fmt.Sprintf("from %d", size%3); m.answer.Status != 200 || m.seen() != want {
						t.Fatalf("status %d: %s, want %s", m.answer.Status, m.seen(), want)
					}
					if r := s.account.Receipts(account.Query{}); len(r) != 1 || r[0].DecidedBy != account.ByEndpointPicker {
						t.Errorf("the receipts are %+v", r)
					}
					if string(engine.body) != text {
						t.Errorf("the engine got %d bytes, want %d", len(engine.body), len(text))
					}
					if engine.head.Get(destinationKey) != "" {
						t.Error("the destination is told to the engine")
					}
					h := epp.last(t)
					<-h.gone
					if h.body != text || string(h.mode.String()) != string(body) {
						t.Errorf("the picker got %d bytes in mode %v", len(h.body), h.mode)
					}
					if size > 0 && (h.fields["x-mine"] != "1" || h.fields[":path"] != "/v1/chat/completions" || h.fields[":method"] != "POST" ||
						h.fields[":authority"] != "fairway.test" || h.fields["content-length"] != fmt.Sprint(len(text)) || h.fields[destinationKey] != "") {
						t.Errorf("the picker got %v", h.fields)
					}
					if h.served != engine.address || h.status != "200" || h.answer != "" || h.subset != nil {
						t.Errorf("the picker was told of %q, status %q, answer %q, subset %q", h.served, h.status, h.answer, h.subset)
					}
				})
			}
		}
	}
}

// A picker that asks for answers' bodies, or is given them, hears all of them.
func TestPickerIsToldOfAnswers(t *testing.T) {
	engines := startRecorders(t, 1)
	for _, test := range []struct {
		answers       PickerAnswers
		asks          bool
		status, heard string
	}{
		{AnswersNone, false, "", ""}, {AnswersNone, true, "", ""}, {AnswersHead, false, "200", ""},
		{AnswersHead, true, "200", "from 0"}, {AnswersBody, false, "200", "from 0"},
	} {
		epp, address := startEPP(t, "", says{destination: engines[0].address, wantBodies: test.asks})
		p := plainPicker(address)
		p.Answers = test.answers
		s := askingServer(t, p, engines)
		m := post("/v1/chat/completions", chat(false, 1, "x"))
		s.Handle(m)
		h := epp.last(t)
		<-h.gone
		if m.answer.Status != 200 || h.status != test.status || h.answer != test.heard {
			t.Errorf("%+v: status %d, told of status %q and %q", test, m.answer.Status, h.status, h.answer)
		}
		if trailer := h.trailer != ""; trailer != (test.heard != "") {
			t.Errorf("%+v: told of trailers %q", test, h.trailer)
		}
	}
}

// What a picker changes is sent changed, but for what is not its to say.
func TestPickerChangesTheRequest(t *testing.T) {
	engines := startRecorders(t, 1)
	action := func(name, value string, a corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
		o := setField(name, value)
		o.AppendAction = a
		return o
	}
	long := strings.Repeat("y", 200_000)
	for _, mode := range []PickerBody{BodyFullDuplex, BodyBuffered} {
		for name, change := range map[string]func(string) string{
			"model":   func(s string) string { return strings.Replace(s, `"mock"`, `"another"`, 1) },
			"longer":  func(s string) string { return strings.Replace(s, "hello", long, 1) },
			"shorter": func(s string) string { return strings.Replace(s, long, "", 1) },
			"whole":   func(string) string { return `{"model":"z","messages":[{"role":"user","content":"q"}]}` },
		} {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				_, address := startEPP(t, "", says{
					destination: engines[0].address, body: change, remove: []string{"X-Gone", "x-request-id", ":path"},
					set: []*corev3.HeaderValueOption{
						setField("X-Set", "new"), setField("x-new", "1"),
						appended("x-list", "b"),
						action("x-twice", "2", corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD), // as Envoy takes it
						action("x-kept", "no", corev3.HeaderValueOption_ADD_IF_ABSENT),
						action("x-none", "no", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS),
						setField(":path", "/admin"), setField(":authority", "other"), setField("host", "other"), setField("content-length", "1"),
						setField("transfer-encoding", "chunked"), setField("connection", "close"), setField("x-forwarded-for", "10.1.1.1"),
						setField("x-fairway-explain", "1"), setField("x_real_ip", "10.1.1.1"), setField("x-request-id", "forged"),
					},
				})
				p := plainPicker(address)
				p.Body = mode
				s := askingServer(t, p, engines)
				text := chat(false, 1, "hello", long)
				m := post("/v1/chat/completions", text, "x-set", "old", "x-gone", "1", "x-list", "a", "x-kept", "yes", "x-twice", "1", "x-request-id", "mine")
				s.Handle(m)
				if m.answer.Status != 200 {
					t.Fatalf("status %d: %s", m.answer.Status, m.seen())
				}
				e := engines[0]
				if string(e.body) != change(text) {
					t.Errorf("the engine got %.200q of %d bytes, want %d", e.body, len(e.body), len(change(text)))
				}
				got := fmt.Sprintf("%q %q %q %q %q %q %q", e.head["X-Twice"], e.head["X-Set"], e.head["X-New"], e.head["X-List"], e.head["X-Kept"], e.head["X-None"], e.head["X-Gone"])
				if want := `["2"] ["new"] ["1"] ["a" "b"] ["yes"] [] []`; got != want {
					t.Errorf("fields: %s, want %s", got, want)
				}
				for _, protected := range []string{"X-Forwarded-For", "X-Fairway-Explain", "X_real_ip", "Connection"} {
					if e.head[protected] != nil {
						t.Errorf("the picker set %s: %q", protected, e.head[protected])
					}
				}
				if e.head.Get("X-Request-Id") != "mine" {
					t.Errorf("the request's id became %q", e.head.Get("X-Request-Id"))
				}
				if got := s.Buffered(); got != 0 {
					t.Errorf("%d bytes of bodies are still held", got)
				}
			})
		}
	}
}

// A picker that names another model has that judged, and cannot speak for a token.
func TestPickerDoesNotPassPolicies(t *testing.T) {
	engines := startRecorders(t, 1)
	for model, want := range map[string]int{"another": 200, "secret": 403} {
		_, address := startEPP(t, "", says{
			destination: engines[0].address, set: []*corev3.HeaderValueOption{setField("x-from-token", "forged")},
			body: func(s string) string { return strings.Replace(s, `"mock"`, `"`+model+`"`, 1) },
		})
		s := askingServer(t, plainPicker(address), engines)
		w := *s.serving.Load().world
		w.Access = authz.Config{
			Tokens:   []authz.TokenRule{{Issuer: "i", JWKS: `{"keys":[]}`, OutputClaimToHeaders: []authz.ClaimHeader{{Header: "x-from-token", Claim: "sub"}}}},
			Policies: []authz.Policy{policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"secret"}}}})},
		}
		s.SetWorld(&w)
		m := post("/v1/chat/completions", chat(false, 1, "hello"))
		if s.Handle(m); m.answer.Status != want || s.Buffered() != 0 {
			t.Errorf("%s: %d %s, %d bytes are held", model, m.answer.Status, m.seen(), s.Buffered())
		}
		if got := engines[0].head["X-From-Token"]; got != nil {
			t.Errorf("%s: the engine was told %q", model, got)
		}
	}
	if n := engines[0].asked.Load(); n != 1 {
		t.Errorf("the engine was asked %d times", n)
	}
}

// The body of a gRPC call, which no picker is shown, cannot be replaced.
func TestPickerReplacesTheBodyOfACall(t *testing.T) {
	engines := startRecorders(t, 1)
	r := toRequestHead(engines[0].address)
	r.GetRequestHeaders().Response.Status = extprocv3.CommonResponse_CONTINUE_AND_REPLACE
	r.GetRequestHeaders().Response.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: []byte("other")}}
	_, address := startEPP(t, "", says{instead: saying(r)})
	s := askingServer(t, plainPicker(address), engines)
	m := post("/pkg.Service/Method", "x")
	m.head.Fields[0].Value = []byte("application/grpc")
	s.Handle(duplexStream{m})
	if typ, _ := refusal(t, m); m.answer.Status != 503 || typ != "fairway_picker_failed" {
		t.Errorf("%d %s", m.answer.Status, m.seen())
	}
}

// A call of gRPC goes where the picker says, in every kind of call; the picker is shown
// its head alone. With FailOpen it goes without the picker, too.
func TestPickerNamesForCalls(t *testing.T) {
	address, checks := startChecks(t)
	epp, asked := startEPP(t, "", says{destination: address})
	passesGRPC(t, askingServer(t, plainPicker(asked), nil, process.ClosedAddress(t), address), checks)
	epp.mu.Lock()
	heard := slices.Clone(epp.heard)
	epp.mu.Unlock()
	if len(heard) != 4 {
		t.Errorf("the picker was asked about %d calls, of 4", len(heard))
	}
	for _, h := range heard {
		<-h.gone
		if h.body != "" || h.fields["content-type"] != "application/grpc" {
			t.Errorf("the picker got %v and %q", h.fields, h.body)
		}
		// A watch ends with its client, who may be gone before the picker is told of the answer.
		if told := h.served == address && h.status == "200"; !told && !strings.HasSuffix(h.fields[":path"], "/Watch") {
			t.Errorf("%s: the picker was told of %q, status %q", h.fields[":path"], h.served, h.status)
		}
	}

	address, checks = startChecks(t)
	p := plainPicker(process.ClosedAddress(t))
	p.FailureMode = FailOpen
	passesGRPC(t, askingServer(t, p, nil, address), checks)
}

// So does a WebSocket, whose picker is told of nothing but the switch.
func TestPickerNamesForWebSockets(t *testing.T) {
	p := startTunnelProxy(t, Timeouts{}, echoWebSocket)
	w := *p.serving.Load().world
	engine := w.Pools[0].Endpoints[0]
	epp, asked := startEPP(t, "", says{destination: engine.Address, wantBodies: true})
	w.Pools = []Pool{{Name: "pool", Picker: plainPicker(asked), Endpoints: []Endpoint{{Address: process.ClosedAddress(t)}, engine}}}
	p.SetWorld(&w)
	c, r := p.open(t)
	for _, opcode := range []byte{textFrame, closeFrame} {
		c.Write(frame(opcode, "hello", true))
		if got, text, err := readFrame(r); got != opcode || text != "hello" || err != nil {
			t.Fatalf("opcode %d, %q, %v", got, text, err)
		}
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the close frame: %v", err)
	}
	c.Close()
	h := epp.last(t)
	<-h.gone
	if h.body != "" || h.fields[":path"] != "/v1/realtime?model=m" || h.served != engine.Address || h.status != "101" || h.answer != "" {
		t.Errorf("the picker got %v and %q, and was told of %q, status %q, %q", h.fields, h.body, h.served, h.status, h.answer)
	}

	_, refusing := startEPP(t, "", says{answer: immediately(429, "later")})
	w.Pools = []Pool{{Name: "pool", Picker: plainPicker(refusing), Endpoints: []Endpoint{engine}}}
	p.SetWorld(&w)
	_, r = p.dial(t, upgradeRequest)
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != 429 {
		t.Errorf("a switch that the picker refuses: %v, %v", answer, err)
	}
}

func TestPickerAnswers(t *testing.T) {
	engines := startRecorders(t, 1)
	for _, mode := range []FailureMode{FailClose, FailOpen} {
		for _, code := range []int{429, 503, 200} {
			_, address := startEPP(t, "", says{answer: immediately(code, "later", setField("retry-after", "7"), setField("content-length", "99"), setField("x-fairway-endpoint", "forged"))})
			p := plainPicker(address)
			p.FailureMode = mode
			s := askingServer(t, p, engines)
			m := post("/v1/chat/completions", chat(false, 1, strings.Repeat("x", 100_000)))
			s.Handle(m)
			if m.answer.Status != code || m.seen() != "later" || m.field("retry-after") != "7" || m.answer.ContentLength != 5 {
				t.Errorf("%s: status %d: %s %v", mode, m.answer.Status, m.seen(), m.fields)
			}
			if m.field("x-fairway-endpoint") != "" || m.field("x-request-id") == "" {
				t.Errorf("%s: fields %s", mode, m.fields)
			}
			if s.Pickers()[0].Outcomes[PickerAnswered] != 1 {
				t.Errorf("%+v", s.Pickers())
			}
		}
	}
	if n := engines[0].asked.Load(); n != 0 {
		t.Errorf("%d requests came to the engine", n)
	}
}

// The endpoints that a picker names are tried in its order, and none besides; with
// FailOpen, others too once those have failed.
func TestPickerNamesSeveral(t *testing.T) {
	engines := startRecorders(t, 2)
	dead := []string{process.ClosedAddress(t), process.ClosedAddress(t)}
	for _, test := range []struct {
		mode FailureMode
		list []string
		want int // the engine that answers; −1: none
	}{
		{FailClose, []string{dead[0], dead[1], engines[1].address}, 1},
		{FailClose, []string{engines[0].address, engines[1].address}, 0},
		{FailClose, []string{"10.9.9.9:1", " " + engines[1].address + " ", engines[0].address}, 1}, // one that the pool does not have
		{FailClose, dead, -1},
		{FailOpen, dead, 0},
	} {
		_, address := startEPP(t, "", says{destination: strings.Join(test.list, ",")})
		p := plainPicker(address)
		p.FailureMode = test.mode
		s := askingServer(t, p, engines[:max(test.want, 0)+1], dead...)
		m := post("/v1/chat/completions", chat(false, 1, "x"))
		s.Handle(m)
		if test.want < 0 {
			if m.answer.Status != 502 {
				t.Errorf("%+v: status %d: %s", test, m.answer.Status, m.seen())
			}
		} else if m.answer.Status != 200 || m.seen() != fmt.Sprint("from ", test.want) {
			t.Errorf("%+v: status %d: %s", test, m.answer.Status, m.seen())
		}
		// What takes no connections is not among what may be named next time.
		if test.list[0] == dead[0] {
			m = post("/v1/chat/completions", chat(false, 1, "x"))
			s.Handle(m)
		}
	}
}

// The next request says which endpoints there are to choose from.
func TestPickerIsToldWhichEndpointsAreLeft(t *testing.T) {
	engines := startRecorders(t, 2)
	dead := process.ClosedAddress(t)
	epp, address := startEPP(t, "", says{destination: dead + "," + engines[0].address})
	s := askingServer(t, plainPicker(address), engines, dead)
	for range 2 {
		s.Handle(post("/v1/chat/completions", chat(false, 1, "x")))
	}
	if got := epp.last(t).subset; len(got) != 2 || got[0] != engines[0].address || got[1] != engines[1].address {
		t.Errorf("the subset is %q", got)
	}
}

// toRequestHead is an answer to a request's head, toRequestBody one to a piece of its body.
func toRequestHead(destination string) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
		Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{setField(destinationKey, destination)}}},
	}}}
}

func toRequestBody(piece string, last bool) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{
		Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{
			StreamedResponse: &extprocv3.StreamedBodyResponse{Body: []byte(piece), EndOfStream: last},
		}}},
	}}}
}

// saying sends these, and goes on listening.
func saying(all ...*extprocv3.ProcessingResponse) func(extprocv3.ExternalProcessor_ProcessServer) error {
	return func(s extprocv3.ExternalProcessor_ProcessServer) error {
		if _, err := s.Recv(); err != nil {
			return err
		}
		for _, r := range all {
			if err := s.Send(r); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return nil
	}
}

// Whatever a picker does wrong: with FailOpen the embedded one serves the request in
// its place, as the client sent it; with FailClose nobody does.
func TestPickerFails(t *testing.T) {
	engines := startRecorders(t, 2)
	there := engines[0].address
	hang := func(s extprocv3.ExternalProcessor_ProcessServer) error { <-s.Context().Done(); return nil }
	many := &extprocv3.HeaderMutation{}
	for i := range 2000 {
		many.SetHeaders = append(many.SetHeaders, setField(fmt.Sprint("x-", i), strings.Repeat("x", 50)))
	}
	twoPlaces := toRequestHead(there)
	twoPlaces.DynamicMetadata, _ = structpb.NewStruct(map[string]any{"envoy.lb": map[string]any{destinationKey: engines[1].address}})
	swollen := toRequestHead(there)
	swollen.GetRequestHeaders().Response.HeaderMutation = many
	newline := toRequestHead(there)
	newline.GetRequestHeaders().Response.HeaderMutation.SetHeaders = append(newline.GetRequestHeaders().Response.HeaderMutation.SetHeaders, setField("x-a", "b\r\nx-c: d"))
	for name, test := range map[string]struct {
		says    says
		outcome PickerOutcome
	}{
		"hangs":                 {says{instead: hang}, PickerTimeout},
		"hangs after the head":  {says{instead: saying(toRequestHead(there))}, PickerTimeout},
		"hangs within the body": {says{instead: saying(toRequestHead(there), toRequestBody("{", false))}, PickerTimeout},
		"says a byte now and then": {says{instead: func(s extprocv3.ExternalProcessor_ProcessServer) error {
			if err := s.Send(toRequestHead(there)); err != nil {
				return err
			}
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					if err := s.Send(toRequestBody("x", false)); err != nil {
						return err
					}
				case <-s.Context().Done():
					return nil
				}
			}
		}}, PickerTimeout},
		"ends at once":        {says{instead: func(extprocv3.ExternalProcessor_ProcessServer) error { return nil }}, PickerProtocol},
		"ends after the head": {says{instead: func(s extprocv3.ExternalProcessor_ProcessServer) error { return s.Send(toRequestHead(there)) }}, PickerProtocol},
		"fails":               {says{instead: func(extprocv3.ExternalProcessor_ProcessServer) error { return status.Error(codes.Internal, "no") }}, PickerProtocol},
		"does not know the protocol": {says{instead: func(extprocv3.ExternalProcessor_ProcessServer) error {
			return status.Error(codes.Unimplemented, "no")
		}}, PickerProtocol},
		"breaks off": {says{instead: func(s extprocv3.ExternalProcessor_ProcessServer) error {
			s.Send(toRequestHead(there))
			return status.Error(codes.Unavailable, "going")
		}}, PickerUnavailable},
		"says nothing":                {says{instead: saying(&extprocv3.ProcessingResponse{})}, PickerProtocol},
		"names nothing":               {says{}, PickerProtocol},
		"names what is no address":    {says{destination: "somewhere"}, PickerOutside},
		"names what is not its own":   {says{destination: "10.9.9.9:8000,10.9.9.8:8000"}, PickerOutside},
		"names two":                   {says{instead: saying(twoPlaces, toRequestBody("{}", true))}, PickerProtocol},
		"the body first":              {says{instead: saying(toRequestBody("{}", true), toRequestHead(there))}, PickerProtocol},
		"the head twice":              {says{instead: saying(toRequestHead(there), toRequestHead(there))}, PickerProtocol},
		"answers an answer":           {says{instead: saying(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{}})}, PickerProtocol},
		"no piece of a body":          {says{instead: saying(toRequestHead(there), &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}})}, PickerProtocol},
		"a head without end":          {says{instead: saying(swollen, toRequestBody("{}", true))}, PickerProtocol},
		"a field of two lines":        {says{instead: saying(newline, toRequestBody("{}", true))}, PickerProtocol},
		"a body that says nothing":    {says{destination: there, body: func(string) string { return `{"model":` }}, PickerProtocol},
		"a body without end":          {says{destination: there, body: func(string) string { return strings.Repeat("x", 3<<20) }}, PickerProtocol},
		"answers with status 42":      {says{answer: immediately(42, "")}, PickerProtocol},
		"answers with status 100":     {says{answer: immediately(100, "")}, PickerProtocol},
		"answers fields of two lines": {says{answer: immediately(429, "", setField("x-a", "b\nc: d"))}, PickerProtocol},
	} {
		for _, mode := range []FailureMode{FailOpen, FailClose} {
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				t.Parallel()
				engines := startRecorders(t, 1)
				say := test.says
				if say.destination == there {
					say.destination = engines[0].address
				}
				_, address := startEPP(t, "", say)
				p := plainPicker(address)
				p.FailureMode = mode
				if test.outcome == PickerTimeout {
					p.Timeout = 300 * time.Millisecond
				}
				s := New(Config{Account: account.New(prometheus.NewRegistry(), account.Config{}), Log: slog.New(slog.DiscardHandler)})
				w := &World{Pools: []Pool{{Name: "pool", Picker: p, Endpoints: []Endpoint{{Address: engines[0].address}}}}, Limits: Limits{Body: 1 << 20}}
				s.SetWorld(w)
				t.Cleanup(func() { s.Shutdown(t.Context()) })
				text := chat(false, 1, strings.Repeat("x", 200_000))
				m := post("/v1/chat/completions", text)
				s.Handle(m)
				if mode == FailOpen {
					if m.answer.Status != 200 || string(engines[0].body) != text {
						t.Errorf("status %d: %s; the engine got %d bytes of %d", m.answer.Status, m.seen(), len(engines[0].body), len(text))
					}
				} else if kind, _ := refusal(t, m); m.answer.Status != 503 || kind != "fairway_picker_failed" || engines[0].asked.Load() != 0 {
					t.Errorf("status %d: %s; the engine was asked %d times", m.answer.Status, m.seen(), engines[0].asked.Load())
				}
				state := s.Pickers()[0]
				if state.Outcomes[test.outcome] != 1 || state.Fallbacks != map[FailureMode]uint64{FailOpen: 1}[mode] {
					t.Errorf("counted %+v, want one %s", state, test.outcome)
				}
				if s.Buffered() != 0 {
					t.Errorf("%d bytes of bodies are still held", s.Buffered())
				}
			})
		}
	}
}

// Where no picker listens, asking fails at once; with FailClose one is waited for.
func TestPickerIsNotThere(t *testing.T) {
	engines := startRecorders(t, 1)
	for _, mode := range []FailureMode{FailOpen, FailClose} {
		p := plainPicker(process.ClosedAddress(t))
		p.FailureMode = mode
		if mode == FailClose {
			p.Timeout = 200 * time.Millisecond // which it waits for one to come
		}
		s := askingServer(t, p, engines)
		m := post("/v1/chat/completions", chat(false, 1, "x"))
		s.Handle(m)
		if want := map[FailureMode]int{FailOpen: 200, FailClose: 503}[mode]; m.answer.Status != want {
			t.Errorf("%s: status %d: %s", mode, m.answer.Status, m.seen())
		}
	}
}

func TestPickerThatSaysItDoesNotServe(t *testing.T) {
	engines := startRecorders(t, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	h := health.NewServer()
	h.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	healthv1.RegisterHealthServer(g, h)
	epp := &ownEPP{server: g}
	epp.says.Store(&says{destination: engines[0].address})
	extprocv3.RegisterExternalProcessorServer(g, epp)
	go g.Serve(l)
	t.Cleanup(g.Stop)

	p := plainPicker(l.Addr().String())
	p.FailureMode = FailOpen
	s := askingServer(t, p, engines)
	m := post("/v1/chat/completions", chat(false, 1, "x"))
	s.Handle(m)
	if m.answer.Status != 200 || epp.ruled.Load() != 0 {
		t.Errorf("status %d; the picker was asked %d times", m.answer.Status, epp.ruled.Load())
	}
	h.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	for deadline := time.Now().Add(time.Minute); epp.ruled.Load() == 0; {
		s.Handle(post("/v1/chat/completions", chat(false, 1, "x")))
		if time.Now().After(deadline) {
			t.Fatal("the picker serves, and is never asked")
		}
	}
}

// A picker speaks TLS with a certificate that it made up, as a rule; with roots it is
// verified.
func TestPickerOverTLS(t *testing.T) {
	engines := startRecorders(t, 1)
	certificate := httptest.NewTLSServer(nil)
	t.Cleanup(certificate.Close)
	roots := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate().Raw}))
	_, address := startEPP(t, "", says{destination: engines[0].address}, withTLS(certificate.TLS.Certificates[0]))
	for name, test := range map[string]struct {
		picker Picker
		status int
	}{
		"unverified":    {Picker{}, 200},
		"verified":      {Picker{Roots: roots}, 200},
		"by name":       {Picker{Roots: roots, ServerName: "example.com"}, 200},
		"another name":  {Picker{Roots: roots, ServerName: "picker.test"}, 503},
		"without roots": {Picker{Roots: "no certificate"}, 503},
		"in plain text": {Picker{Plain: true}, 503},
	} {
		p := test.picker
		p.Address, p.Timeout = address, long
		if test.status == 503 {
			p.Timeout = 500 * time.Millisecond
		}
		s := askingServer(t, &p, engines)
		m := post("/v1/chat/completions", chat(false, 1, "x"))
		s.Handle(m)
		if m.answer.Status != test.status {
			t.Errorf("%s: status %d: %s", name, m.answer.Status, m.seen())
		}
	}
}

// The picker hears that the client has gone, and the client's leaving ends the wait
// for it.
func TestClientLeavesWhileThePickerThinks(t *testing.T) {
	engines := startRecorders(t, 1)
	asked, left := make(chan struct{}), make(chan struct{})
	_, address := startEPP(t, "", says{instead: func(s extprocv3.ExternalProcessor_ProcessServer) error {
		close(asked)
		<-s.Context().Done()
		close(left)
		return nil
	}})
	s := askingServer(t, plainPicker(address), engines)
	m := post("/v1/chat/completions", chat(false, 1, "x"))
	done := make(chan struct{})
	go func() { s.Handle(m); close(done) }()
	<-asked
	m.leave()
	<-done
	<-left
	if !m.aborted || engines[0].asked.Load() != 0 {
		t.Errorf("status %d; the engine was asked %d times", m.answer.Status, engines[0].asked.Load())
	}
}

// One setting has the embedded picker pick, and a World may take a picker away or
// bring another, while requests go on.
func TestWorldsChangePickers(t *testing.T) {
	engines := startRecorders(t, 2)
	one, oneAt := startEPP(t, "", says{destination: engines[0].address})
	two, twoAt := startEPP(t, "", says{destination: engines[1].address})
	s := askingServer(t, plainPicker(oneAt), engines)
	world := func(choice PickerChoice, p *Picker) {
		w := *s.World()
		w.Pickers = choice
		w.Pools = []Pool{{Name: "pool", Endpoints: w.Pools[0].Endpoints, Picker: p}}
		s.SetWorld(&w)
	}
	var stop atomic.Bool
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				m := post("/v1/chat/completions", chat(false, 1, "x"))
				s.Handle(m)
				if m.answer.Status != 200 {
					t.Errorf("status %d: %s", m.answer.Status, m.seen())
					return
				}
			}
		})
	}
	for range 20 {
		for _, w := range []struct {
			choice PickerChoice
			picker *Picker
			asked  *ownEPP
		}{{HonourPickers, plainPicker(twoAt), two}, {"", plainPicker(oneAt), one}, {EmbeddedPicker, plainPicker(oneAt), nil}, {HonourPickers, nil, nil}} {
			world(w.choice, w.picker)
			before := one.ruled.Load() + two.ruled.Load()
			if w.asked != nil {
				before = w.asked.ruled.Load()
			}
			m := post("/v1/chat/completions", chat(false, 1, "x"))
			s.Handle(m)
			if m.answer.Status != 200 {
				t.Fatalf("%+v: status %d: %s", w, m.answer.Status, m.seen())
			}
			if w.asked != nil && w.asked.ruled.Load() == before {
				t.Errorf("%+v: the picker was not asked", w)
			}
		}
	}
	stop.Store(true)
	clients.Wait()
	before := one.ruled.Load() + two.ruled.Load()
	s.Handle(post("/v1/chat/completions", chat(false, 1, "x")))
	if one.ruled.Load()+two.ruled.Load() != before || s.Pickers() != nil {
		t.Error("a picker was asked that no World has")
	}
}

// load has clients ask all the time, until it is stopped.
type load struct {
	stop           atomic.Bool
	clients        sync.WaitGroup
	served, failed atomic.Int64
}

func startLoad(t *testing.T, s *Server, clients int, wrong func(*memoryStream) bool) *load {
	l := &load{}
	text := chat(false, 1, strings.Repeat("x", 100_000))
	for range clients {
		l.clients.Go(func() {
			for !l.stop.Load() {
				m := post("/v1/chat/completions", text)
				s.Handle(m)
				if m.answer.Status == 200 {
					l.served.Add(1)
				} else {
					l.failed.Add(1)
				}
				if wrong(m) {
					t.Errorf("status %d: %s", m.answer.Status, m.seen())
					return
				}
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() {
	l.stop.Store(true)
	l.clients.Wait()
}

// more waits until so many more have been served.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	until := l.served.Load() + n
	for deadline := time.Now().Add(2 * time.Minute); l.served.Load() < until; {
		if time.Now().After(deadline) || t.Failed() {
			t.Fatal("no more requests are served")
		}
		yield()
	}
}

// yield lets others run.
func yield() {
	timer := time.NewTimer(time.Millisecond)
	<-timer.C
}

// A picker that is killed and started again under load costs no request with FailOpen,
// and with FailClose none is served that it has not ruled on.
func TestPickerRestarts(t *testing.T) {
	for _, mode := range []FailureMode{FailOpen, FailClose} {
		t.Run(string(mode), func(t *testing.T) {
			engines := startRecorders(t, 2)
			there := engines[0].address
			first, address := startEPP(t, "", says{destination: there})
			p := plainPicker(address)
			p.FailureMode = mode
			s := askingServer(t, p, engines)
			l := startLoad(t, s, 4, func(m *memoryStream) bool {
				return m.answer.Status != 200 && (mode == FailOpen || m.answer.Status != 503)
			})
			ruled := first.ruled.Load
			total := int64(0)
			for range 5 {
				for before := ruled(); ruled() < before+20; {
					yield()
				}
				first.server.Stop()
				total += ruled()
				if mode == FailOpen {
					l.more(t, 20)
				}
				next, _ := startEPP(t, address, says{destination: there})
				ruled = next.ruled.Load
				first = next
			}
			l.more(t, 20)
			l.end()
			total += ruled()
			if mode == FailClose {
				if engines[0].asked.Load() > total || engines[1].asked.Load() != 0 {
					t.Errorf("%d requests were served, the picker ruled on %d", engines[0].asked.Load(), total)
				}
			}
			t.Logf("%d served, %d refused, %+v", l.served.Load(), l.failed.Load(), s.Pickers())
		})
	}
}

// A picker that is frozen holds no request for longer than it is given, and is spared
// until it answers again.
func TestPickerIsFrozen(t *testing.T) {
	engines := startRecorders(t, 2)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), pickerProcess+"=127.0.0.1:0 "+engines[0].address)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p := plainPicker(strings.TrimSpace(address))
	p.FailureMode = FailOpen
	p.Timeout = 300 * time.Millisecond
	s := askingServer(t, p, engines)
	named := func() uint64 { return s.Pickers()[0].Outcomes[PickerNamed] }
	l := startLoad(t, s, 4, func(m *memoryStream) bool { return m.answer.Status != 200 })
	for range 2 {
		for before := named(); named() < before+20 && !t.Failed(); {
			yield()
		}
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		l.more(t, 200)
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	for before := named(); named() < before+20 && !t.Failed(); {
		yield()
	}
	if o := s.Pickers()[0].Outcomes; o[PickerTimeout] == 0 || o[PickerSpared] == 0 {
		t.Errorf("counted %+v", o)
	}
	l.end()
}

// A picker that is killed while it has half of a body costs no request with FailOpen, and
// with FailClose none is served.
func TestPickerIsKilledWithinTheBody(t *testing.T) {
	for _, body := range []PickerBody{BodyFullDuplex, BodyBuffered} {
		for _, mode := range []FailureMode{FailOpen, FailClose} {
			engines := startRecorders(t, 1)
			var epp *ownEPP
			ready := make(chan struct{})
			epp, address := startEPP(t, "", says{instead: func(s extprocv3.ExternalProcessor_ProcessServer) error {
				<-ready
				if _, err := s.Recv(); err != nil {
					return err
				}
				if err := s.Send(toRequestHead(engines[0].address)); err != nil {
					return err
				}
				if body == BodyFullDuplex {
					if _, err := s.Recv(); err != nil { // the first piece
						return err
					}
					s.Send(toRequestBody(`{"model":`, false))
				}
				go epp.server.Stop()
				<-s.Context().Done()
				return nil
			}})
			close(ready)
			p := plainPicker(address)
			p.Body, p.FailureMode = body, mode
			if mode == FailClose {
				p.Timeout = 300 * time.Millisecond // which it waits for one to come back
			}
			s := askingServer(t, p, engines)
			text := chat(false, 1, strings.Repeat("x", 200_000))
			m := post("/v1/chat/completions", text)
			s.Handle(m)
			switch {
			case mode == FailClose && (m.answer.Status != 503 || engines[0].asked.Load() > 0):
				t.Errorf("%s: status %d: %s", body, m.answer.Status, m.seen())
			case mode == FailOpen && (m.answer.Status != 200 || string(engines[0].body) != text):
				t.Errorf("%s: status %d: %s; the engine got %d bytes", body, m.answer.Status, m.seen(), len(engines[0].body))
			}
		}
	}
}

// A picker that is killed while it is told of an answer costs nothing of that.
func TestPickerIsKilledWithinTheAnswer(t *testing.T) {
	for _, mode := range []FailureMode{FailOpen, FailClose} {
		killed := make(chan struct{})
		engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("content-type", "text/event-stream")
			for i := range 20 {
				fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"%d \"}}]}\n\n", i)
				w.(http.Flusher).Flush()
				if i == 5 {
					<-killed
				}
			}
			io.WriteString(w, "data: [DONE]\n\n")
		}))
		t.Cleanup(engine.Close)
		there := engine.Listener.Addr().String()
		var epp *ownEPP
		ready := make(chan struct{})
		epp, address := startEPP(t, "", says{instead: func(s extprocv3.ExternalProcessor_ProcessServer) error {
			<-ready
			for {
				m, err := s.Recv()
				switch {
				case err != nil:
					return err
				case m.GetRequestHeaders() != nil:
					err = s.Send(toRequestHead(there))
				case m.GetRequestBody() != nil:
					err = s.Send(toRequestBody(string(m.GetRequestBody().GetBody()), m.GetRequestBody().GetEndOfStream()))
				case m.GetResponseBody() != nil:
					go func() {
						epp.server.Stop()
						close(killed)
					}()
					<-s.Context().Done()
					return nil
				}
				if err != nil {
					return err
				}
			}
		}})
		close(ready)
		p := plainPicker(address)
		p.FailureMode, p.Answers = mode, AnswersBody
		s := askingServer(t, p, nil, there)
		m := post("/v1/chat/completions", chat(true, 1, "x"))
		s.Handle(m)
		if got := strings.Count(m.seen(), "content"); m.answer.Status != 200 || got != 20 || !strings.HasSuffix(m.seen(), "data: [DONE]\n\n") {
			t.Errorf("%s: status %d, %d events: %s", mode, m.answer.Status, got, m.seen())
		}
	}
}

// A picker whose machine says a byte now and then is one that does not answer.
func TestPickerDribbles(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var talking sync.WaitGroup
	talking.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			talking.Go(func() {
				defer c.Close()
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				for range tick.C {
					// The head of a frame of settings, and then those, without end.
					if _, err := c.Write([]byte{0}); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(talking.Wait)
	t.Cleanup(func() { l.Close() })
	engines := startRecorders(t, 1)
	for _, mode := range []FailureMode{FailOpen, FailClose} {
		p := plainPicker(l.Addr().String())
		p.FailureMode, p.Timeout = mode, 300*time.Millisecond
		s := askingServer(t, p, engines)
		m := post("/v1/chat/completions", chat(false, 1, "x"))
		s.Handle(m)
		if want := map[FailureMode]int{FailOpen: 200, FailClose: 503}[mode]; m.answer.Status != want {
			t.Errorf("%s: status %d: %s", mode, m.answer.Status, m.seen())
		}
	}
}
