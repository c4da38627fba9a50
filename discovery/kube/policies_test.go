package kube

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/message"
)

var seed = flag.Uint64("seed", 1, "of random clusters")

// raw is an object of the API, as JSON has it.
type raw = map[string]any

// naive decides whether policies, as they stand in the API, let a request for a Service
// in that is bound to a Gateway, by reading all of them anew.
type naive struct {
	policies                       []raw
	service, namespace             string
	gateway, gatewayNamespace, cls string
	path, peerNamespace            string
}

func at(o raw, path ...string) any {
	for _, p := range path[:len(path)-1] {
		o, _ = o[p].(raw)
	}
	return o[path[len(path)-1]]
}

func (n naive) denied() bool {
	var deny, allows, allowed bool
	for _, p := range n.policies {
		if !n.applies(p) {
			continue
		}
		if p["bad"] == true {
			deny = true
			continue
		}
		matched := slices.ContainsFunc(at(p, "spec", "rules").([]any), func(r any) bool { return n.matches(r.(raw)) })
		if at(p, "spec", "action") == "DENY" {
			deny = deny || matched
		} else {
			allows, allowed = true, allowed || matched
		}
	}
	return deny || allows && !allowed
}

func (n naive) applies(p raw) bool {
	in := at(p, "metadata", "namespace").(string)
	refs, _ := at(p, "spec", "targetRefs").([]any)
	for _, ref := range refs {
		r := ref.(raw)
		if to, ok := r["namespace"]; ok && to != in {
			continue
		}
		switch r["kind"] {
		case "Service":
			if r["name"] == n.service && in == n.namespace {
				return true
			}
		case "Gateway":
			if r["name"] == n.gateway && in == n.gatewayNamespace {
				return true
			}
		case "GatewayClass":
			if r["name"] == n.cls && in == "istio-system" {
				return true
			}
		}
	}
	return false
}

func (n naive) matches(r raw) bool {
	if paths, ok := r["path"]; ok && paths != n.path {
		return false
	}
	ns, ok := r["namespace"]
	return !ok || ns == n.peerNamespace
}

// inAPI writes the rules of a naive policy as the API has them.
func inAPI(p raw) string {
	spec := raw{"action": at(p, "spec", "action"), "targetRefs": at(p, "spec", "targetRefs")}
	var rules []any
	for _, r := range at(p, "spec", "rules").([]any) {
		rule := raw{}
		if path, ok := r.(raw)["path"]; ok {
			rule["to"] = []any{raw{"operation": raw{"paths": []any{path}}}}
		}
		if ns, ok := r.(raw)["namespace"]; ok {
			rule["from"] = []any{raw{"source": raw{"namespaces": []any{ns}}}}
		}
		rules = append(rules, rule)
	}
	spec["rules"] = rules
	if p["bad"] == true {
		spec["unheard"] = "of"
	}
	text, err := json.Marshal(raw{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": p["metadata"], "spec": spec})
	if err != nil {
		panic(err)
	}
	return string(text)
}

// In random clusters, the policies that each Service's Guard was compiled of let in and
// keep out what the API's own words say.
func TestPoliciesJudgeAsTheNaiveOneDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(*seed, 0))
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	counts := make(map[bool]int)
	for range 400 {
		var m Manifests
		add := func(text string) { m.Add("f", []byte(text)) }
		for _, g := range []string{"w1", "w2"} {
			add(fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":%q,"namespace":"mesh"},"spec":{"gatewayClassName":%q,
				"listeners":[{"name":"mesh","port":15008,"protocol":"HBONE","allowedRoutes":{"namespaces":{"from":"All"}}}]}}`, g, "fairway-"+g))
			add(fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":%q},"spec":{"controllerName":%q}}`, "fairway-"+g, ControllerName))
		}
		bound := make(map[string]string)
		for _, ns := range []string{"a", "b"} {
			for _, name := range []string{"s1", "s2"} {
				g := pick("w1", "w2")
				bound[name+"."+ns] = g
				add(fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":%q,"labels":{"istio.io/use-waypoint":%q,"istio.io/use-waypoint-namespace":"mesh"}},
					"spec":{"ports":[{"port":80,"name":"http"}]}}`, name, ns, g))
			}
		}
		var policies []raw
		for i := range 1 + r.IntN(6) {
			spec := raw{"action": pick("ALLOW", "DENY")}
			if r.IntN(8) > 0 {
				var refs []any
				for range 1 + r.IntN(2) {
					ref := raw{"kind": pick("Service", "Service", "Gateway", "GatewayClass")}
					ref["group"], ref["name"] = "", pick("s1", "s2")
					if ref["kind"] != "Service" {
						ref["group"], ref["name"] = "gateway.networking.k8s.io", pick("w1", "w2")
					}
					if ref["kind"] == "GatewayClass" {
						ref["name"] = "fairway-" + ref["name"].(string)
					}
					if r.IntN(6) == 0 {
						ref["namespace"] = pick("a", "b")
					}
					refs = append(refs, ref)
				}
				spec["targetRefs"] = refs
			}
			var rules []any
			for range r.IntN(3) {
				rule := raw{}
				if r.IntN(3) > 0 {
					rule["path"] = pick("/x", "/y")
				}
				if r.IntN(3) == 0 {
					rule["namespace"] = pick("a", "b")
				}
				rules = append(rules, rule)
			}
			spec["rules"] = rules
			p := raw{"metadata": raw{"name": fmt.Sprint("p", i), "namespace": pick("a", "b", "mesh", "istio-system")}, "spec": spec, "bad": r.IntN(8) == 0}
			policies = append(policies, p)
			add(inAPI(p))
		}
		if len(m.Problems) > 0 {
			t.Fatal(m.Problems)
		}
		tr := Translate(&m.Objects, Options{})
		guards := authz.NewCompiler(&tr.World.Access, nil)
		for i := range tr.World.Services {
			s := &tr.World.Services[i]
			labels := strings.Split(s.Host, ".")
			g := bound[labels[0]+"."+labels[1]]
			guard := guards.Guard(&s.Access)
			for _, path := range []string{"/x", "/y", "/z"} {
				for _, from := range []string{"a", "b"} {
					n := naive{policies, labels[0], labels[1], g, "mesh", "fairway-" + g, path, from}
					got := guard.Judge(&authz.Request{
						Peer: authz.ParsePeer("spiffe://cluster.local/ns/" + from + "/sa/x"),
						Head: &message.Request{Method: []byte("GET"), Target: []byte(path)},
					}).Denied
					counts[got]++
					if want := n.denied(); got != want {
						t.Fatalf("%+v: denied %v, want %v", n, got, want)
					}
				}
			}
		}
	}
	if counts[true] < 1000 || counts[false] < 1000 {
		t.Errorf("%v: this shows little", counts)
	}
}

// With several Gateways the plain listener, which stands for all, takes the policies
// that they agree on, and lets nothing in where they do not.
func TestPoliciesOfSeveralGateways(t *testing.T) {
	const gateways = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w1, namespace: mesh}
spec: {gatewayClassName: fairway-waypoint}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w2, namespace: mesh}
spec: {gatewayClassName: fairway-waypoint}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: %s}
spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: %s, name: %s}], rules: [{}]}
`
	for _, tt := range []struct {
		namespace, kind, name string
		withheld              bool
	}{{"istio-system", "GatewayClass", "fairway-waypoint", false}, {"mesh", "Gateway", "w1", true}, {"mesh", "Gateway", "w3", false}} {
		var m Manifests
		m.Add("f", fmt.Appendf(nil, gateways, tt.namespace, tt.kind, tt.name))
		if s := Translate(&m.Objects, Options{}).World.Gateway; (s.Withheld != "") != tt.withheld {
			t.Errorf("%+v: %+v", tt, s)
		}
	}
}

// FuzzPolicy: whatever a policy says, it is read, and one that cannot be denies.
func FuzzPolicy(f *testing.F) {
	for _, spec := range []string{
		`{"targetRefs":[{"kind":"Service","name":"s"}],"rules":[{}]}`, `{"targetRef":{"kind":"Service","name":"s"},"action":"DENY","rules":[{"from":[{"source":{"principals":["*"]}}]}]}`,
		`{"jwtRules":[{"issuer":"i","jwksUri":"https://x/","timeout":"5s"}]}`, `{"targetRefs":"s"}`, `[]`, `null`, `{"rules":null,"action":1}`,
	} {
		f.Add(true, spec)
		f.Add(false, spec)
	}
	f.Fuzz(func(t *testing.T, authorization bool, spec string) {
		kind := kindRequestAuthentication
		if authorization {
			kind = kindAuthorizationPolicy
		}
		if !json.Valid([]byte(spec)) {
			return
		}
		var p Policy
		if err := json.Unmarshal([]byte(`{"kind":"`+kind+`","metadata":{"name":"p","namespace":"a"},"spec":`+spec+`}`), &p); err != nil {
			t.Fatal(err)
		}
		whole := slices.ContainsFunc(p.Problems, func(problem PolicyProblem) bool { return problem.Whole })
		if p.Lost && !whole {
			t.Error("it is not known what it is for, and it does not deny")
		}
		if !whole {
			return
		}
		g := authz.NewCompiler(new(authz.Config), nil).Guard(&authz.Scope{Policies: []*authz.Policy{p.Rules}})
		if !g.Judge(&authz.Request{Head: new(message.Request)}).Denied || !g.JudgeConn(new(authz.Request)).Denied {
			t.Error("it cannot be read and does not deny")
		}
	})
}
