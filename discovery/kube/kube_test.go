package kube

import (
	"cmp"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/klog/v2"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/route"
)

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

var update = flag.Bool("update", false, "write the .want files anew")

// showScope writes the policies of a destination.
func showScope(s authz.Scope) (says string) {
	for _, p := range s.Policies {
		says += fmt.Sprintf(", %s by %s/%s", cmp.Or(p.Action, authz.Allow), p.Namespace, p.Name)
		if p.DryRun {
			says += " (dry run)"
		}
	}
	for _, r := range s.Tokens {
		says += ", tokens of " + r.Issuer
	}
	if s.Withheld != "" {
		says += ", withheld: " + s.Withheld
	}
	return says
}

// show writes what a translation says, a thing a line.
func show(m *Manifests, t *Translation) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	routes := func(indent string, routes []route.Route) {
		for _, r := range routes {
			for i := range r.Rules {
				rule := &r.Rules[i]
				var to []string
				for _, backend := range rule.Backends {
					to = append(to, fmt.Sprintf("%s %d", backend.Pool, backend.Weight))
				}
				line("%s", strings.TrimRight(fmt.Sprintf("%sroute %s %s: %s %s %s", indent, r.Name, r.Hostnames, rule.Matches, strings.Join(to, ", "), strings.Join(rule.Texts(), "; ")), " "))
			}
		}
	}
	for _, p := range t.World.Pools {
		var all []string
		kind := "pool"
		if p.Plain {
			kind = "plain pool"
		}
		for _, e := range p.Endpoints {
			if e.Ranks > 0 {
				e.UID += fmt.Sprintf(" ranks %d", e.Ranks)
			}
			if e.Role != "" {
				e.UID += " " + string(e.Role)
			}
			all = append(all, strings.TrimSpace(strings.TrimPrefix(string(e.Scheme)+"://", "://")+e.Address+" "+e.UID+" "+strings.TrimPrefix(e.Identity.String(), "spiffe://cluster.local")))
		}
		line("%s", strings.TrimRight(kind+" "+p.Name+": "+strings.Join(all, ", "), " "))
		if picker := p.Picker; picker != nil {
			line("  asks %s, %s, plain %t", picker.Address, picker.FailureMode, picker.Plain)
		}
	}
	for _, o := range t.World.Objectives {
		line("objective %s of %s: %d", o.Name, o.Pool, o.Priority)
	}
	if t.World.WaypointFor != "" {
		line("waypoint for %s: %s", t.World.WaypointFor, t.World.Workloads)
	}
	for _, model := range t.World.Models {
		var to []string
		for _, target := range model.Targets {
			to = append(to, fmt.Sprintf("%s %d", target.Name, target.Weight))
		}
		line("%s", strings.TrimRight(fmt.Sprintf("model %s of %s, %s: %s", model.Name, model.Pool, model.Criticality, strings.Join(to, ", ")), " "))
	}
	routes("", t.World.Routes)
	if says := showScope(t.World.Gateway); says != "" {
		line("gateway%s", strings.TrimPrefix(says, ","))
	}
	for _, s := range t.Services {
		for _, p := range s.Ports {
			says := ""
			if s.Bound {
				says += ", bound"
			}
			says += showScope(s.Access)
			says += fmt.Sprintf(", port %d %s:", p.Port, p.Protocol)
			if len(p.Routes) == 0 {
				says += " pool " + p.Pool
			}
			line("service %s %s %s%s", s.Key, s.Host, s.VIPs, says)
			routes("  ", p.Routes)
		}
	}
	for _, p := range m.Problems {
		line("%s", p)
	}
	for _, f := range t.Findings {
		says := m.Where(f) + ": " + f.String()
		if f.Reason != "" {
			says += " [" + f.Reason + "]"
		}
		if f.Warning {
			says += " (warning)"
		}
		line("%s", says)
	}
	if m.Others > 0 {
		line("%d objects of other kinds", m.Others)
	}
	return b.String()
}

// showStatuses writes what the status of objects is to say, a thing a line: in whole,
// if anything changes.
func showStatuses(all []Status) string {
	var b strings.Builder
	conditions := func(what string, list any) {
		conditions, _ := list.([]any)
		var says []string
		for _, c := range conditions {
			c := c.(map[string]any)
			text := fmt.Sprintf("%s=%s %s", c["type"], c["status"], c["reason"])
			if c["lastTransitionTime"] != "2026-11-01T00:00:00Z" {
				text += fmt.Sprint(" since ", c["lastTransitionTime"])
			}
			if c["message"] != "" {
				text += fmt.Sprintf(" (%s)", c["message"])
			}
			if c["observedGeneration"] != nil {
				text += fmt.Sprint(" of ", c["observedGeneration"])
			}
			says = append(says, text)
		}
		fmt.Fprintf(&b, "  %s: %s\n", what, strings.Join(says, ", "))
	}
	list := func(v any) []any {
		l, _ := v.([]any)
		return l
	}
	for _, s := range all {
		merged, changed := s.merge(rawStatus(s.current), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC))
		fmt.Fprintf(&b, "status of %s %s/%s", s.Kind, s.Namespace, s.Name)
		if !changed {
			b.WriteString(" stays\n")
			continue
		}
		b.WriteString("\n")
		if merged["conditions"] != nil {
			conditions("conditions", merged["conditions"])
		}
		for _, a := range list(merged["addresses"]) {
			fmt.Fprintf(&b, "  address %v\n", a)
		}
		for _, l := range list(merged["listeners"]) {
			l := l.(map[string]any)
			conditions(fmt.Sprintf("listener %v, %v routes, kinds %v", l["name"], l["attachedRoutes"], l["supportedKinds"]), l["conditions"])
		}
		for _, p := range list(merged[parentsField(s.Resource)]) {
			ref := parentOf(p)
			p := p.(map[string]any)
			who := "ours"
			if c := p["controllerName"]; c != nil && c != ControllerName {
				who = fmt.Sprint(c)
			}
			conditions("parent "+refKey(ref, s.Namespace)+" by "+who, p["conditions"])
		}
	}
	return b.String()
}

// Each set of manifests in testdata means what is in the .want file beside it.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var m Manifests
			m.Add(filepath.Base(name), data)
			options := Options{TrustDomain: "cluster.local", Providers: []string{}}
			translation := Translate(&m.Objects, options)
			got := show(&m, translation) + showStatuses(Statuses(&m.Objects, translation, options))
			wanted := strings.TrimSuffix(name, ".yaml") + ".want"
			if *update {
				if err := os.WriteFile(wanted, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(wanted)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// The order in which objects come makes no difference.
func TestTranslateOrder(t *testing.T) {
	for _, files := range [][]string{{"pools.yaml", "routes.yaml", "bound.yaml", "waypoint.yaml"}, {"policies.yaml"}} {
		type document struct{ name, text string }
		var all []document
		for _, name := range files {
			data, err := os.ReadFile("testdata/" + name)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range strings.Split(string(data), "\n---\n") {
				all = append(all, document{name, text})
			}
		}
		translated := func() string {
			var m Manifests
			for _, d := range all {
				m.Add(d.name, []byte(d.text))
			}
			return show(&m, Translate(&m.Objects, Options{}))
		}
		forth := translated()
		slices.Reverse(all)
		if back := translated(); forth != back {
			t.Errorf("got\n%s\nand in another order\n%s", forth, back)
		}
	}
}

// A process may serve one Gateway of several, and names have the cluster's domain.
func TestOneGateway(t *testing.T) {
	m, err := ReadManifests("testdata/bound.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for gateway, want := range map[string]string{"": "by-namespace headless by-label", "mesh/w": "by-namespace headless by-label", "mesh/strict": "", "mesh/gone": ""} {
		var got []string
		for _, s := range Translate(&m.Objects, Options{Gateway: gateway, ClusterDomain: "example.org"}).World.Services {
			name, rest, _ := strings.Cut(s.Host, ".")
			got = append(got, name)
			if !strings.HasSuffix(rest, ".svc.example.org") {
				t.Error(s.Host)
			}
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("with %q: %q", gateway, got)
		}
	}
}

// A process that serves one Gateway of several has nothing to do with the engines that others lead to.
func TestPoolsOfOneGateway(t *testing.T) {
	var m Manifests
	for i, tenant := range []string{"a", "b"} {
		m.Add(tenant+".yaml", []byte(strings.NewReplacer("NS", tenant, "NUMBER", fmt.Sprint(i)).Replace(`
{apiVersion: v1, kind: Namespace, metadata: {name: NS, labels: {istio.io/use-waypoint: w}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: NS, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: fairway-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
{apiVersion: v1, kind: Service, metadata: {name: llm, namespace: NS}, spec: {clusterIP: 10.96.0.NUMBER, ports: [{name: http, port: 80}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: llm, namespace: NS}
spec:
  parentRefs: [{group: "", kind: Service, name: llm}]
  rules:
  - backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: routed}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {group: inference.networking.k8s.io, kind: InferencePool, name: mirrored}}}]
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: NS, labels: {app: own}}, status: {podIP: 10.0.0.NUMBER, conditions: [{type: Ready, status: "True"}]}}
`)))
		for _, pool := range []string{"routed", "mirrored", "own", "unused"} {
			m.Add(tenant+"-"+pool+".yaml", []byte(strings.NewReplacer("NS", tenant, "POOL", pool).Replace(`
{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: POOL, namespace: NS}, spec: {selector: {matchLabels: {app: POOL}}, targetPorts: [{number: 8000}]}}
---
{apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferenceModel, metadata: {name: POOL, namespace: NS}, spec: {modelName: NS-POOL, poolRef: {name: POOL}}}
---
{apiVersion: inference.networking.x-k8s.io/v1alpha2, kind: InferenceObjective, metadata: {name: POOL, namespace: NS}, spec: {priority: 1, poolRef: {name: POOL}}}
`)))
		}
	}
	if len(m.Problems) > 0 {
		t.Fatal(m.Problems)
	}
	all := Translate(&m.Objects, Options{}).World
	if len(all.Pools) != 10 || len(all.Models) != 8 || len(all.Objectives) != 8 {
		t.Fatalf("of all: %d pools, %d models, %d objectives", len(all.Pools), len(all.Models), len(all.Objectives))
	}
	if open := Translate(&m.Objects, Options{Gateway: "a/w"}).World; len(open.Pools) != 10 {
		t.Errorf("%d pools where names of models choose among them", len(open.Pools))
	}
	w := Translate(&m.Objects, Options{Gateway: "a/w", Closed: []gatewayv1.ProtocolType{gatewayv1.HTTPProtocolType}}).World
	var got []string
	for _, p := range w.Pools {
		got = append(got, p.Name)
	}
	for _, model := range w.Models {
		got = append(got, model.Name)
	}
	for _, o := range w.Objectives {
		got = append(got, o.Pool+" "+o.Name)
	}
	if got, want := strings.Join(got, ", "), "a/llm:80, a/mirrored, a/own, a/routed, a-mirrored, a-own, a-routed, a/mirrored mirrored, a/own own, a/routed routed"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A label says what a second of a pod costs, if the options name it; what is no cost is told, and counts for nothing.
func TestCostLabel(t *testing.T) {
	const pool = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: p, namespace: ns}\n" +
		"spec: {selector: {matchLabels: {app: vllm}}, targetPorts: [{number: 8000}]}\n"
	manifests := pool
	for i, cost := range []string{`"2.5"`, `cheap`, `"0"`, `"-1"`, `"NaN"`, ``} {
		label := ""
		if cost != "" {
			label = ", gpu-cost: " + cost
		}
		manifests += fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: pod-%d, namespace: ns, labels: {app: vllm%s}}\n"+
			"status: {podIP: 10.0.0.%d, conditions: [{type: Ready, status: \"True\"}]}\n", i, label, i+1)
	}
	var m Manifests
	m.Add("f.yaml", []byte(manifests))
	for label, want := range map[string]struct {
		cost     float64 // of the first pod
		findings int
	}{"gpu-cost": {2.5, 4}, "": {}, "other": {}} {
		got := Translate(&m.Objects, Options{CostLabel: label})
		var costs []float64
		for _, e := range got.World.Pools[0].Endpoints {
			costs = append(costs, e.Cost)
		}
		if !slices.Equal(costs, []float64{want.cost, 0, 0, 0, 0, 0}) || len(got.Findings) != want.findings {
			t.Errorf("label %q: costs %v, findings %v", label, costs, got.Findings)
		}
	}
}

func TestIsManifest(t *testing.T) {
	for text, want := range map[string]bool{
		"apiVersion: v1\nkind: Pod\n":            true,
		"# a comment\n---\napiVersion: v1\n":     true,
		`{"apiVersion": "v1"}`:                   true,
		"pools: []\n":                            false,
		"":                                       false,
		"- apiVersion: v1":                       false,
		"a: {apiVersion: v1}":                    false,
		": : :":                                  false,
		"a: 1\n---\napiVersion: v1\nkind: Pod\n": true,
	} {
		if got := IsManifest([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// FuzzManifests: whatever a file holds, it is read and translated without harm,
// and every problem has its file and line.
func FuzzManifests(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Manifests
		m.Add("f", data)
		for _, p := range m.Problems {
			if !strings.HasPrefix(p, "f:") {
				t.Errorf("a problem without its place: %s", p)
			}
		}
		options := Options{TrustDomain: "cluster.local", Providers: []string{}}
		translation := Translate(&m.Objects, options)
		show(&m, translation)
		// What is reported once stays as it is.
		for _, s := range Statuses(&m.Objects, translation, options) {
			merged, _ := s.merge(rawStatus(s.current), time.Unix(0, 0))
			if again, changed := s.merge(merged, time.Unix(1, 0)); changed {
				t.Errorf("%s %s/%s:\n%v\n%v", s.Kind, s.Namespace, s.Name, merged, again)
			}
		}
		IsManifest(data)
	})
}
