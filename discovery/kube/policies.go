package kube

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	strict "sigs.k8s.io/json"

	"github.com/fairway-proxy/fairway/proxy/authz"
)

// Who may do what: AuthorizationPolicies and RequestAuthentications of Istio, and what
// each is for.

// DefaultRootNamespace is Istio's own, where policies for a GatewayClass are.
const DefaultRootNamespace = "istio-system"

// Words for a condition of a policy's status (istio/istio pilot/pkg/model,
// WaypointPolicyReason…).
const (
	reasonInvalid          = "Invalid"
	reasonPartiallyInvalid = "PartiallyInvalid"
	reasonTargetNotFound   = "TargetNotFound"
)

const (
	kindAuthorizationPolicy   = "AuthorizationPolicy"
	kindRequestAuthentication = "RequestAuthentication"
)

// pathProvider is where a policy names an external authorizer: whether there is one is
// no matter of the policy alone.
const pathProvider = "spec.provider.name"

// annotationDryRun has an AuthorizationPolicy judged and told of, but not enforced.
const annotationDryRun = "istio.io/dry-run"

// Policy is an AuthorizationPolicy or a RequestAuthentication of security.istio.io, as
// far as it can be understood. One that cannot denies all that it is for.
type Policy struct {
	metav1.TypeMeta
	metav1.ObjectMeta

	Targets []PolicyTarget
	// Lost says that what the policy is for cannot be read: it is for all that it could
	// be for.
	Lost bool
	// Rules is what an AuthorizationPolicy says, or what stands in for a policy that
	// cannot be read; nil for none.
	Rules *authz.Policy
	// Tokens is what a RequestAuthentication says.
	Tokens []*authz.TokenRule
	// Problems are what cannot be understood.
	Problems []PolicyProblem

	status json.RawMessage // what others, and we, have reported
}

// id is a policy's kind and key.
func (p *Policy) id() string { return p.Kind + " " + key(&p.ObjectMeta) }

// PolicyTarget is what a policy is for: a Service, a Gateway or a GatewayClass.
type PolicyTarget struct {
	Group     string `json:"group"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// PolicyProblem is something in a policy that cannot be understood. Whole says that all
// that the policy is for is denied for it.
type PolicyProblem struct {
	Path, Text     string
	Whole, Warning bool
}

// targetSpec is what the two kinds have in common.
type targetSpec struct {
	Selector   any            `json:"selector"` // chooses pods, which is not the business of a waypoint
	TargetRef  *PolicyTarget  `json:"targetRef"`
	TargetRefs []PolicyTarget `json:"targetRefs"`
}

func (s *targetSpec) targets() []PolicyTarget {
	if s.TargetRef != nil {
		return append(slices.Clip(s.TargetRefs), *s.TargetRef)
	}
	return s.TargetRefs
}

// authorizationSpec is that of an AuthorizationPolicy.
type authorizationSpec struct {
	targetSpec
	Action   authz.Action `json:"action"`
	Provider *struct {
		Name string `json:"name"`
	} `json:"provider"`
	Rules []struct {
		From []struct {
			Source authz.Source `json:"source"`
		} `json:"from"`
		To []struct {
			Operation authz.Operation `json:"operation"`
		} `json:"to"`
		When []authz.Condition `json:"when"`
	} `json:"rules"`
}

// authenticationSpec is that of a RequestAuthentication.
type authenticationSpec struct {
	targetSpec
	JWTRules []struct {
		authz.TokenRule
		Timeout string `json:"timeout"`
	} `json:"jwtRules"`
}

// UnmarshalJSON reads a policy. There is an error only where it has no name; anything
// else that is wrong is one of its Problems.
func (p *Policy) UnmarshalJSON(data []byte) error {
	var o struct {
		metav1.TypeMeta
		metav1.ObjectMeta `json:"metadata"`
		Spec              json.RawMessage `json:"spec"`
		Status            json.RawMessage `json:"status"`
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return err
	}
	*p = Policy{TypeMeta: o.TypeMeta, ObjectMeta: o.ObjectMeta, status: o.Status}
	if len(o.Spec) == 0 {
		o.Spec = []byte("{}")
	}
	var err error
	if p.Kind == kindRequestAuthentication {
		err = p.readAuthentication(o.Spec)
	} else {
		err = p.readAuthorization(o.Spec)
	}
	if err == nil {
		return nil
	}
	becomes := "is"
	dry := p.dryRun()
	if dry {
		becomes = "would be"
	}
	p.Problems = append(p.Problems, PolicyProblem{Path: "spec", Text: err.Error() + ": all that the policy is for " + becomes + " denied", Whole: true})
	p.Rules, p.Tokens = &authz.Policy{Namespace: namespace(&p.ObjectMeta), Name: p.Name, Action: authz.Deny, DryRun: dry, Rules: []authz.Rule{{}}}, nil
	var only targetSpec
	if p.Lost = json.Unmarshal(o.Spec, &only) != nil; !p.Lost {
		p.Targets = only.targets()
	}
	return nil
}

// decode reads a spec, in which nothing may stand that is not known.
func decode(data []byte, into any) error {
	unknown, err := strict.UnmarshalStrict(data, into)
	if err == nil && len(unknown) > 0 {
		err = unknown[0]
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		path := strings.NewReplacer("targetSpec.", "", "TokenRule.", "").Replace(wrong.Field) // the names of what is embedded
		return fmt.Errorf("cannot be read: %s: a %s cannot stand there", path, wrong.Value)
	}
	if err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	return nil
}

func (p *Policy) readAuthorization(data []byte) error {
	var spec authorizationSpec
	if err := decode(data, &spec); err != nil {
		return err
	}
	p.Targets = spec.targets()
	out := &authz.Policy{Namespace: namespace(&p.ObjectMeta), Name: p.Name, Action: spec.Action}
	if spec.Provider != nil {
		out.Provider = spec.Provider.Name
	}
	for _, r := range spec.Rules {
		rule := authz.Rule{When: r.When}
		for _, f := range r.From {
			rule.From = append(rule.From, f.Source)
		}
		for _, to := range r.To {
			rule.To = append(rule.To, to.Operation)
		}
		out.Rules = append(out.Rules, rule)
	}
	out.DryRun = p.dryRun()
	p.Rules = out
	p.findings(&authz.Config{Policies: []authz.Policy{*out}})
	return nil
}

// dryRun tells whether an AuthorizationPolicy is not to be enforced.
func (p *Policy) dryRun() bool {
	says, ok := p.Annotations[annotationDryRun]
	if !ok || p.Kind == kindRequestAuthentication {
		return false
	}
	dry, err := strconv.ParseBool(says)
	if err != nil {
		p.Problems = append(p.Problems, PolicyProblem{Path: "metadata.annotations", Text: fmt.Sprintf("%s: %q is neither true nor false: the policy is enforced", annotationDryRun, says)})
	}
	return dry
}

func (p *Policy) readAuthentication(data []byte) error {
	var spec authenticationSpec
	if err := decode(data, &spec); err != nil {
		return err
	}
	var all []authz.TokenRule
	for i := range spec.JWTRules {
		r := &spec.JWTRules[i].TokenRule
		if text := spec.JWTRules[i].Timeout; text != "" {
			d, err := time.ParseDuration(text)
			if err != nil || d <= 0 {
				return fmt.Errorf("jwtRules[%d].timeout: %q is no time: want one such as 5s", i, text)
			}
			r.Timeout = d
		}
		p.Tokens, all = append(p.Tokens, r), append(all, *r)
	}
	p.Targets = spec.targets()
	p.findings(&authz.Config{Tokens: all})
	return nil
}

// findings keeps what authz does not understand.
func (p *Policy) findings(c *authz.Config) {
	for _, f := range c.Check() {
		path := "spec." + f.Path
		if strings.HasPrefix(f.Path, "metadata.") {
			path = f.Path
		}
		p.Problems = append(p.Problems, PolicyProblem{Path: path, Text: f.Text})
	}
}

// policyIndex says which policies are for what.
type policyIndex struct {
	all []*Policy        // in order of precedence
	by  map[string][]int // by kind and key, indices of all
}

// indexPolicies finds out what each policy is for.
func (t *translator) indexPolicies() {
	x := &t.policies
	x.by = make(map[string][]int)
	x.all = slices.SortedStableFunc(slices.Values(t.objects.Policies), func(a, b *Policy) int {
		return cmp.Or(older(&a.ObjectMeta, &b.ObjectMeta), cmp.Compare(a.Kind, b.Kind))
	})
	for i, p := range x.all {
		in := namespace(&p.ObjectMeta)
		if p.Lost {
			x.add(i, "Namespace "+in)
			if in == t.rootNamespace() {
				x.add(i, "Namespace")
			}
		}
		for j, target := range p.Targets {
			t.indexTarget(i, p, target, index("spec.targetRefs", j))
		}
	}
}

func (x *policyIndex) add(i int, what string) { x.by[what] = append(x.by[what], i) }

// indexTarget notes a target of the i-th policy, as istio/istio
// pilot/pkg/model/policyattachment.go (ShouldAttachPolicy) has it.
func (t *translator) indexTarget(i int, p *Policy, target PolicyTarget, path string) {
	about := object{p.Kind, &p.ObjectMeta}
	in := namespace(&p.ObjectMeta)
	if target.Namespace != "" && target.Namespace != in {
		t.find(about.finding(path+".namespace", reasonInvalid, "a policy is for what is in its own namespace: this target counts for nothing"))
		return
	}
	group := target.Group
	if group == "core" {
		group = corev1.GroupName
	}
	switch {
	case target.Kind == "Service" && group == corev1.GroupName:
		k := in + "/" + target.Name
		if t.services[k] == nil {
			t.warn(about.finding(path, reasonTargetNotFound, "there is no Service %s", k))
		}
		t.policies.add(i, "Service "+k)
	case target.Kind == "Gateway" && group == gatewayv1.GroupName:
		t.policies.add(i, "Gateway "+in+"/"+target.Name)
	case target.Kind == "GatewayClass" && group == gatewayv1.GroupName:
		switch {
		case in == t.rootNamespace():
			t.policies.add(i, "GatewayClass "+target.Name)
		case t.ourClass(target.Name):
			t.out.policies[p.id()] = true
			t.find(about.finding(path, reasonInvalid, "a policy for a GatewayClass is in namespace %s: this target counts for nothing", t.rootNamespace()))
		}
	case target.Kind == "ServiceEntry": // of which nothing is served here
	default:
		t.find(about.finding(path, reasonInvalid, "%s of group %q: want a Service, a Gateway or a GatewayClass; this target counts for nothing", target.Kind, target.Group))
	}
}

func (t *translator) rootNamespace() string {
	return cmp.Or(t.options.RootNamespace, DefaultRootNamespace)
}

// scope is what policies say of a Service that is bound to a Gateway; without one, of
// the Gateway alone. It tells what of them cannot be understood.
func (t *translator) scope(s *corev1.Service, g *gatewayv1.Gateway) (out authz.Scope) {
	x := &t.policies
	at := slices.Concat(x.by["Namespace"], x.by["Namespace "+namespace(&g.ObjectMeta)],
		x.by["GatewayClass "+string(g.Spec.GatewayClassName)], x.by["Gateway "+key(&g.ObjectMeta)])
	if s != nil {
		at = append(at, x.by["Namespace "+namespace(&s.ObjectMeta)]...)
		at = append(at, x.by["Service "+key(&s.ObjectMeta)]...)
	}
	slices.Sort(at)
	for _, i := range slices.Compact(at) {
		p := x.all[i]
		if p.Rules != nil {
			out.Policies = append(out.Policies, p.Rules)
		}
		out.Tokens = append(out.Tokens, p.Tokens...)
		t.bind(p)
	}
	return out
}

// bind notes that a policy is in force, and tells once what of it is not understood.
func (t *translator) bind(p *Policy) {
	if t.told[p] {
		return
	}
	t.told[p], t.out.policies[p.id()] = true, true
	about := object{p.Kind, &p.ObjectMeta}
	for _, problem := range p.Problems {
		reason := reasonPartiallyInvalid
		if problem.Whole {
			reason = reasonInvalid
		}
		f := about.finding(problem.Path, reason, "%s", problem.Text)
		f.Warning = problem.Warning
		t.find(f)
	}
	if p.Rules != nil && p.Rules.Action == authz.Custom && p.Rules.Provider != "" && t.options.Providers != nil && !slices.Contains(t.options.Providers, p.Rules.Provider) {
		t.find(about.finding(pathProvider, reasonInvalid, "there is no external authorizer %q in the configuration: what the policy matches is denied", p.Rules.Provider))
	}
}

// gatewayScope is what policies say of what is for no Service: the plain listener
// stands for all Gateways of ours, so they have to be of one mind.
func (t *translator) gatewayScope(gateways []*gatewayv1.Gateway) (out authz.Scope) {
	for i, g := range gateways {
		scope := t.scope(nil, g)
		if i > 0 && (!slices.Equal(scope.Policies, out.Policies) || !slices.Equal(scope.Tokens, out.Tokens)) {
			return authz.Scope{Withheld: fmt.Sprintf("the policies for Gateway %s are not those for Gateway %s, and one listener cannot be both", key(&g.ObjectMeta), key(&gateways[0].ObjectMeta))}
		}
		out = scope
	}
	return out
}

// misled tells of policies that a waypoint goes past, where somebody could think that
// it does not: they choose pods in a namespace in which Services are bound to it.
func (t *translator) misled(namespaces map[string]bool) {
	for _, p := range t.policies.all {
		if len(p.Targets) > 0 || p.Lost || !namespaces[namespace(&p.ObjectMeta)] {
			continue
		}
		about := object{p.Kind, &p.ObjectMeta}
		switch {
		case p.Rules == nil || p.Rules.Action == authz.Custom || p.Rules.Action == authz.Audit || asksHTTP(p.Rules):
			t.warn(about.finding("spec", "", "without targetRefs it is not for a waypoint, and ztunnel does not read HTTP: name the Service or the Gateway in targetRefs"))
		case asksSource(p.Rules):
			t.warn(about.finding("spec", "", "without targetRefs ztunnel judges by it, and of what comes through a waypoint it sees the waypoint's identity: allow that one, and name the Service in targetRefs for who calls it"))
		}
	}
}

// asksHTTP tells whether a policy is about what only HTTP has.
func asksHTTP(p *authz.Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r authz.Rule) bool {
		return slices.ContainsFunc(r.From, func(s authz.Source) bool {
			return len(s.RequestPrincipals)+len(s.NotRequestPrincipals)+len(s.RemoteIPBlocks)+len(s.NotRemoteIPBlocks) > 0
		}) || slices.ContainsFunc(r.To, func(o authz.Operation) bool {
			return len(o.Hosts)+len(o.NotHosts)+len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) > 0
		}) || slices.ContainsFunc(r.When, func(c authz.Condition) bool {
			return strings.HasPrefix(c.Key, "request.") || strings.HasPrefix(c.Key, "experimental.")
		})
	})
}

// asksSource tells whether a policy is about who calls.
func asksSource(p *authz.Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r authz.Rule) bool {
		return len(r.From) > 0 || slices.ContainsFunc(r.When, func(c authz.Condition) bool { return strings.HasPrefix(c.Key, "source.") })
	})
}
