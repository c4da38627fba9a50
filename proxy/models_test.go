package proxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// turns gives the bodies of the turns of a conversation, which all share a long system
// prompt: each turn has all of the one before.
func turns(conversation, n int) []string {
	system := fmt.Sprintf(`{"role":"system","content":%q}`, strings.Repeat("You are a helpful assistant. ", 100))
	messages := system + fmt.Sprintf(`,{"role":"user","content":"Question %d"}`, conversation)
	var bodies []string
	for i := range n {
		tools := ""
		if i > 0 { // that a client may give at any time
			tools = fmt.Sprintf(`"tools":[{"type":"function","function":{"name":"f%d"}}],`, i)
		}
		bodies = append(bodies, fmt.Sprintf(`{%s"messages":[%s],"model":"asked","max_tokens":1}`, tools, messages))
		messages += fmt.Sprintf(`,{"role":"assistant","content":"Answer %d"},{"role":"user","content":"And %d?"}`, i, i)
	}
	return bodies
}

// keyOf is the key of the conversation that a body is a turn of.
func keyOf(t *testing.T, kind openai.Kind, body, fairness string) uint64 {
	t.Helper()
	x := Exchange{progress: progress{fairness: fairness}}
	if err := x.read.Read(kind, []byte(body)); err != nil {
		t.Fatal(err)
	}
	key, err := x.conversation()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func split(targets ...Target) *servedModel {
	return newServedModel(Model{Name: "asked", Targets: targets}, nil)
}

// 10,000 conversations that share one system prompt are split by weight, and every turn
// of one goes to its target. The bound is that of a χ² test at 1 %; the keys are always
// the same, so that it cannot fail by chance.
func TestSplitOfConversations(t *testing.T) {
	const conversations = 10_000
	keys := make([]uint64, conversations)
	for i := range keys {
		for j, body := range turns(i, 3) {
			key := keyOf(t, openai.Chat, body, "")
			if j > 0 && key != keys[i] {
				t.Fatalf("turn %d of conversation %d has another key", j, i)
			}
			keys[i] = key
		}
	}
	for _, test := range []struct {
		targets []Target
		bound   float64 // of χ² with one degree of freedom less than there are targets
	}{
		{[]Target{{"v1", 80}, {"v2", 20}}, 6.63},
		{[]Target{{"v1", 50}, {"v2", 50}}, 6.63},
		{[]Target{{"v1", 999_999}, {"v2", 1}}, 6.63},
		{[]Target{{"a", 1}, {"b", 2}, {"c", 3}, {"d", 4}}, 11.34},
	} {
		m, total := split(test.targets...), 0
		got := make(map[string]int)
		for _, k := range keys {
			got[m.target(k)]++
		}
		for _, target := range test.targets {
			total += target.Weight
		}
		chi := 0.0
		for _, target := range test.targets {
			want := conversations * float64(target.Weight) / float64(total)
			chi += (float64(got[target.Name]) - want) * (float64(got[target.Name]) - want) / want
		}
		t.Logf("%v: %v, χ² %.2f", test.targets, got, chi)
		if chi > test.bound {
			t.Errorf("%v: %v, χ² %.2f, want at most %.2f", test.targets, got, chi, test.bound)
		}
	}

	was := split(Target{"v1", 80}, Target{"v2", 20})
	for _, test := range []struct {
		name  string
		now   *servedModel
		moves string  // the only way that anything moves, if it does not go to what is new
		share float64 // that has to move
	}{
		{"the same in other numbers", split(Target{"v1", 8}, Target{"v2", 2}), "", 0},
		{"the same in another order", split(Target{"v2", 20}, Target{"v1", 80}), "", 0},
		{"more for one", split(Target{"v1", 70}, Target{"v2", 30}), "v1→v2", .1},
		{"less for one", split(Target{"v1", 80}, Target{"v2", 5}), "v2→v1", .2 - 5./85},
		{"none for one", split(Target{"v1", 80}, Target{"v2", 0}), "v2→v1", .2},
		{"all for one", split(Target{"v2", 20}), "v1→v2", .8},
		{"one more", split(Target{"v1", 80}, Target{"v2", 20}, Target{"v3", 25}), "→v3", .2},
	} {
		moved := 0
		for _, k := range keys {
			from, to := was.target(k), test.now.target(k)
			if from == to {
				continue
			}
			moved++
			if way := from + "→" + to; !strings.HasSuffix(way, test.moves) || test.moves == "" {
				t.Fatalf("%s: %s", test.name, way)
			}
		}
		if share := float64(moved) / conversations; share < test.share-.015 || share > test.share+.015 {
			t.Errorf("%s: %.3f of the conversations moved, want %.3f", test.name, share, test.share)
		}
	}
}

func TestKeyOfAConversation(t *testing.T) {
	chat := func(messages string) string { return `{"messages":[` + messages + `],"model":"m"}` }
	const system, user = `{"role":"system","content":"s"}`, `{"role":"user","content":"a"}`
	more := `,{"role":"assistant","content":"b"},{"role":"user","content":"c"}`
	base := keyOf(t, openai.Chat, chat(system+","+user), "")
	for name, test := range map[string]struct {
		kind     openai.Kind
		body     string
		fairness string
		same     bool
	}{
		"another turn":            {openai.Chat, chat(system + "," + user + more), "", true},
		"tools":                   {openai.Chat, `{"tools":[1],"messages":[` + system + "," + user + `]}`, "", true},
		"another model":           {openai.Chat, `{"messages":[` + system + "," + user + `],"model":"n"}`, "", true},
		"another first message":   {openai.Chat, chat(system + `,{"role":"user","content":"b"}`), "", false},
		"the system prompt alone": {openai.Chat, chat(system), "", false},
		"another system prompt":   {openai.Chat, chat(user), "", false},
		"somebody else's":         {openai.Chat, chat(system + "," + user), "tenant", false},
	} {
		if same := keyOf(t, test.kind, test.body, test.fairness) == base; same != test.same {
			t.Errorf("%s: the same conversation: %v, want %v", name, same, test.same)
		}
	}
	// Other APIs: a turn, and a later one.
	for kind, bodies := range map[openai.Kind][2]string{
		openai.Messages:  {`{"system":"s","messages":[` + user + `]}`, `{"messages":[` + user + more + `],"system":"s"}`},
		openai.Responses: {`{"instructions":"s","input":[` + user + `]}`, `{"input":[` + user + `,{"type":"function_call","call_id":"1"}` + more + `]}`},
		openai.Chat: {
			chat(`{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},{"type":"text","text":"a"}]}`),
			chat(`{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},{"type":"text","text":"a"}]}` + more),
		},
	} {
		if keyOf(t, kind, bodies[0], "") != keyOf(t, kind, bodies[1], "") {
			t.Errorf("%s: two turns have two keys", kind)
		}
	}
	if keyOf(t, openai.Completions, `{"prompt":"a"}`, "") == keyOf(t, openai.Completions, `{"prompt":"b"}`, "") {
		t.Error("two prompts have one key")
	}
}

// modelOf notes the model of the last request that reached a pod.
func modelOf(p *pod) *atomic.Value {
	var model atomic.Value
	p.SetFaults(mock.Faults{OnRequest: func(_ *http.Request, b []byte) {
		var body struct{ Model string }
		if json.Unmarshal(b, &body) == nil && body.Model != "" {
			model.Store(body.Model)
		}
	}})
	return &model
}

// Through the whole path: each turn of a conversation reaches its target, whatever the
// pod, the client hears of the name it asked for only, and new weights move conversations
// to what grew, and nowhere else.
func TestConversationsKeepTheirTarget(t *testing.T) {
	c := mock.Config{Speed: 1000, Loras: []string{"v1", "v2"}}
	a, b := startPod(t, "", c), startPod(t, "", c)
	atA, atB := modelOf(a), modelOf(b)
	w := World{Models: []Model{{Name: "asked", Pool: "pool", Targets: []Target{{"v1", 80}, {"v2", 20}}}}}
	s := startServer(t, w, a, b)

	ask := func(body string) string {
		atA.Store("")
		atB.Store("")
		m := post("/v1/chat/completions", body)
		s.Handle(m)
		var answer struct{ Model string }
		if err := json.Unmarshal([]byte(m.seen()), &answer); err != nil || m.answer.Status != 200 || answer.Model != "asked" {
			t.Fatalf("%d %s", m.answer.Status, m.seen())
		}
		return atA.Load().(string) + atB.Load().(string)
	}
	const conversations = 100
	first := make([]string, conversations)
	got := make(map[string]int)
	for i := range first {
		for _, body := range turns(i, 3) {
			target := ask(body)
			if first[i] != "" && target != first[i] {
				t.Fatalf("conversation %d went to %s, and then to %s", i, first[i], target)
			}
			first[i] = target
		}
		got[first[i]]++
	}
	if got["v1"] < 65 || got["v1"]+got["v2"] != conversations {
		t.Errorf("the split is %v", got)
	}
	w.Pools = []Pool{{Name: "pool", Endpoints: []Endpoint{{Address: a.address}, {Address: b.address}}}}
	w.Models[0].Targets = []Target{{"v1", 40}, {"v2", 60}}
	s.SetWorld(&w)
	moved := 0
	for i := range first {
		switch target := ask(turns(i, 4)[3]); {
		case target == first[i]:
		case target == "v2":
			moved++
		default:
			t.Fatalf("conversation %d moved from %s to %s", i, first[i], target)
		}
	}
	if moved < 25 || moved > 55 { // 40 are to
		t.Errorf("%d conversations moved", moved)
	}
}

// Whatever the API, streamed or not, the answer calls the model what the client does.
func TestAnswersNameTheModelThatWasAskedFor(t *testing.T) {
	p := startPod(t, "", mock.Config{Speed: 1000, Model: "the-target"})
	w := World{Models: []Model{{Name: `as "asked"`, Pool: "pool", Targets: []Target{{"the-target", 1}}}}}
	for _, names := range []ModelNames{ModelAsked, ModelServed} {
		w.ModelNames = names
		s := startServer(t, w, p)
		for path, body := range map[string]string{
			"/v1/chat/completions": `"messages":[{"role":"user","content":"say \"model\":\"the-target\""}],"max_tokens":4`,
			"/v1/completions":      `"prompt":"hi","max_tokens":4`,
			"/v1/responses":        `"input":"hi","max_output_tokens":4`,
			"/v1/messages":         `"messages":[{"role":"user","content":"hi"}],"max_tokens":4`,
			"/v1/embeddings":       `"input":"hi"`,
			"/v1/rerank":           `"query":"hi","documents":["a","b"]`,
		} {
			for _, stream := range []bool{false, true} {
				if stream && (path == "/v1/embeddings" || path == "/v1/rerank") {
					continue
				}
				m := post(path, fmt.Sprintf(`{%s,"model":"as \"asked\"","stream":%v}`, body, stream))
				s.Handle(m)
				asked, served := strings.Count(m.seen(), `"model":"as \"asked\""`), strings.Count(m.seen(), `"model":"the-target"`)
				if names == ModelServed {
					asked, served = served, asked
				}
				if m.answer.Status != 200 || asked == 0 || served > 0 || !m.finished {
					t.Errorf("%s, model_names %s, stream %v: %d, finished %v\n%s", path, names, stream, m.answer.Status, m.finished, m.seen())
				}
				if names == ModelServed && !stream && m.answer.ContentLength < 0 {
					t.Errorf("%s: an answer that is not changed has lost its length", path)
				}
			}
		}
	}
}

// What says under which name a request is to be served is believed of those who may raise
// priorities, goes by the policies, and is told to no engine.
func TestModelNamedByAField(t *testing.T) {
	p := startPod(t, "", mock.Config{Speed: 1000, Loras: []string{"v1", "v2", "secret"}})
	model := modelOf(p)
	mesh := meshConn{peer: &hbone.Peer{Authority: "10.96.0.7:80", ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/client")}}
	nobody := meshConn{peer: &hbone.Peer{Authority: "10.96.0.7:80"}}
	service := []Service{{Host: "llm", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: []ServicePort{{Port: 80, Protocol: PortHTTP, Pool: "pool"}}}}
	models := []Model{{Name: "asked", Pool: "pool", Targets: []Target{{"v1", 1}}}}
	policies := authz.Config{Policies: []authz.Policy{
		policy(authz.Deny, authz.Rule{When: []authz.Condition{{Key: "request.model", Values: []string{"secret"}}}}),
	}}
	for _, test := range []struct {
		name   string
		raise  RaisePriority
		access authz.Config
		conn   meshConn
		field  string
		says   string
		want   string // "": it is refused
	}{
		{"a stranger", "", authz.Config{}, meshConn{}, "x-gateway-model-name-rewrite", "v2", "v1"},
		{"anyone", RaiseAnyone, authz.Config{}, meshConn{}, "X-Gateway-Model-Name-Rewrite", "v2", "v2"},
		{"the newer name", RaiseAnyone, authz.Config{}, meshConn{}, "x-llm-d-model-name-rewrite", "v2", "v2"},
		{"the mesh, where nobody may", RaiseNobody, authz.Config{}, mesh, "x-gateway-model-name-rewrite", "v2", "v1"},
		{"the mesh", "", authz.Config{}, mesh, "x-gateway-model-name-rewrite", "v2", "v2"},
		{"a peer without identity", "", authz.Config{}, nobody, "x-gateway-model-name-rewrite", "v2", "v1"},
		{"whom another proxy has judged", "", authz.Config{Elsewhere: true}, meshConn{}, "x-gateway-model-name-rewrite", "v2", "v1"},
		{"whom another proxy vouches for", RaiseAnyone, authz.Config{Elsewhere: true}, meshConn{}, "x-gateway-model-name-rewrite", "v2", "v2"},
		{"a name too long", RaiseAnyone, authz.Config{}, meshConn{}, "x-gateway-model-name-rewrite", strings.Repeat("v", openai.MaxModel+1), "v1"},
		{"a model that is denied", RaiseAnyone, policies, meshConn{}, "x-gateway-model-name-rewrite", "secret", ""},
		{"a model that is not", RaiseAnyone, policies, meshConn{}, "x-gateway-model-name-rewrite", "v2", "v2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startServer(t, World{Models: models, Services: service, Access: test.access, RaisePriority: test.raise}, p)
			model.Store("")
			var fields http.Header
			p.SetFaults(mock.Faults{OnRequest: func(r *http.Request, b []byte) {
				fields = r.Header
				var body struct{ Model string }
				json.Unmarshal(b, &body)
				model.Store(body.Model)
			}})
			m := post("/v1/chat/completions", strings.Replace(chat(false, 1, "hi"), `"mock"`, `"asked"`, 1), test.field, test.says)
			if test.conn.peer != nil {
				m.conn = test.conn
			}
			s.Handle(m)
			if test.want == "" {
				if typ, _ := refusal(t, m); m.answer.Status != 403 || typ != "fairway_forbidden" || model.Load() != "" {
					t.Errorf("%d %s, served by %q", m.answer.Status, typ, model.Load())
				}
				return
			}
			if m.answer.Status != 200 || model.Load() != test.want || !strings.Contains(m.seen(), `"model":"asked"`) {
				t.Errorf("%d, served by %q, want %q\n%s", m.answer.Status, model.Load(), test.want, m.seen())
			}
			if fields.Get(test.field) != "" {
				t.Error("the field went upstream")
			}
		})
	}
}

// A body whose start ends before the first message of the user does is received until
// its conversation is known; one whose first message is there is sent on early.
func TestLargeTurnsKeepTheirTarget(t *testing.T) {
	var model atomic.Value
	p := scripted(t, func(c net.Conn, in *bufio.Reader) {
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			_, after, _ := bytes.Cut(body, []byte(`"model":"`))
			name, _, _ := bytes.Cut(after, []byte(`"`))
			model.Store(string(name))
			io.WriteString(c, okAnswer)
		}
	})
	s := startServer(t, World{Models: []Model{{Name: "asked", Pool: "pool", Targets: []Target{{"v1", 1}, {"v2", 1}}}}}, p)
	long := strings.Repeat("A long document. ", 80_000)
	got := make(map[string]bool)
	for i := range 6 {
		opening := fmt.Sprintf(`{"model":"asked","max_tokens":1,"messages":[{"role":"user","content":"Question %d`, i)
		var targets [3]string
		for j, body := range []string{
			opening + `"}]}`,
			opening + `"},{"role":"assistant","content":"` + long + `"}]}`,
			opening + `"},{"role":"assistant","content":"a"},{"role":"user","content":"` + long + `"}]}`,
		} {
			s.Handle(post("/v1/chat/completions", body))
			targets[j] = model.Load().(string)
		}
		if targets[0] != targets[1] || targets[0] != targets[2] {
			t.Errorf("the turns of conversation %d went to %v", i, targets)
		}
		got[targets[0]] = true

		first := opening + long
		s.Handle(post("/v1/chat/completions", first+`"}]}`))
		was := model.Load()
		s.Handle(post("/v1/chat/completions", first+`"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}`))
		if model.Load() != was {
			t.Errorf("the turns of a conversation that begins with a large message went to %v and %v", was, model.Load())
		}
	}
	if len(got) != 2 {
		t.Errorf("all conversations went to %v", got)
	}
}

// The list of models has the names that may be asked for, with what the engines say of
// them: adapters with their base model, and how long a prompt may be.
func TestListOfModels(t *testing.T) {
	a := startPod(t, "", mock.Config{Speed: 1000, Model: "base", Loras: []string{"v1", "v2", "own"}, MaxModelLen: 4096})
	b := startPod(t, "", mock.Config{Speed: 1000, Model: "base", Loras: []string{"v1", "late"}, MaxModelLen: 2048})
	dead := startPod(t, "", quick)
	dead.Close()
	names := []Model{
		{Name: "alias", Pool: "pool", Targets: []Target{{"v1", 80}, {"v2", 20}, {"own", 0}}},
		{Name: "own", Pool: "pool"},
		{Name: "the-base", Pool: "pool", Targets: []Target{{"base", 1}}},
		{Name: "of another pool", Pool: "other", Targets: []Target{{"x", 1}}},
	}
	other := []Pool{{Name: "other", Endpoints: []Endpoint{{Address: dead.address}}}}
	type entry struct {
		ID, Root string
		Parent   *string
		Length   *int `json:"max_model_len"`
	}
	for _, test := range []struct {
		name  string
		world World
		pods  []*pod
		want  string // id<parent:length, in order
	}{
		{"no names", World{}, []*pod{dead, a, b}, "base:4096 v1<base v2<base own<base late<base"},
		{"names", World{Pools: other, Models: names}, []*pod{dead, a, b}, "alias<the-base:4096 own<base the-base:4096 of another pool"},
		{"names of engines that are down", World{Pools: other, Models: names[:1]}, []*pod{dead}, "alias"},
		{"names, and all others", World{Models: []Model{names[0], {Pool: "pool"}}}, []*pod{b}, "alias<base:2048 base:2048 v1<base late<base"},
		{"names, and all others as another", World{Models: []Model{names[0], {Pool: "pool", Targets: []Target{{"base", 1}}}}}, []*pod{b}, "alias<base:2048"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startServer(t, test.world, test.pods...)
			ask := func(path string) *memoryStream {
				m := post(path, "")
				m.head.Method = []byte("GET")
				s.Handle(m)
				return m
			}
			var list struct {
				Object string
				Data   []json.RawMessage
			}
			m := ask("/v1/models")
			if err := json.Unmarshal([]byte(m.seen()), &list); err != nil || m.answer.Status != 200 || list.Object != "list" {
				t.Fatalf("%d %s: %v", m.answer.Status, m.seen(), err)
			}
			var got []string
			for _, raw := range list.Data {
				var e entry
				if err := json.Unmarshal(raw, &e); err != nil {
					t.Fatal(err)
				}
				line := e.ID
				if e.Parent != nil {
					line += "<" + *e.Parent
				}
				if e.Length != nil {
					line += fmt.Sprint(":", *e.Length)
				}
				got = append(got, line)
				// Each alone, as OpenAI's clients retrieve it.
				one := ask("/v1/models/" + strings.ReplaceAll(e.ID, " ", "%20"))
				var same entry
				if err := json.Unmarshal([]byte(one.seen()), &same); err != nil || one.answer.Status != 200 || same.ID != e.ID || same.Root != e.Root {
					t.Errorf("%s alone: %d %s", e.ID, one.answer.Status, one.seen())
				}
			}
			if line := strings.Join(got, " "); line != test.want {
				t.Errorf("lists %s\nwant  %s", line, test.want)
			}
			m = ask("/v1/models/v3")
			if typ, says := refusal(t, m); m.answer.Status != 404 || typ != "fairway_unknown_model" || !strings.Contains(says, "`v3`") {
				t.Errorf("a model that is not there: %d %s %s", m.answer.Status, typ, says)
			}
		})
	}
}
