package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/json"
)

// Status is what we report of one object, beside what others do.
type Status struct {
	Resource              schema.GroupVersionResource
	Kind, Namespace, Name string
	// Generation is that of the object that this is about.
	Generation int64

	// Conditions of the object as a whole.
	Conditions []metav1.Condition
	// Addresses of a Gateway; nil leaves those it has.
	Addresses []gatewayv1.GatewayStatusAddress
	// Listeners of a Gateway; nil for other objects.
	Listeners []gatewayv1.ListenerStatus
	// Parents of an HTTPRoute or InferencePool.
	Parents []ParentStatus

	current any // the status that the object had when it was last seen
}

// ParentStatus is what we report of an object beside one of its parents.
type ParentStatus struct {
	Ref gatewayv1.ParentReference
	// Conditions that we report; none leave what a process of ours says that serves
	// that parent.
	Conditions []metav1.Condition
	// Gone has an entry for that parent removed, whoever wrote it.
	Gone bool
}

// Where objects with a status are.
var (
	classResource     = schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: "v1", Resource: "gatewayclasses"}
	gatewayResource   = schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: "v1", Resource: "gateways"}
	routeResource     = schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: "v1", Resource: "httproutes"}
	poolResource      = schema.GroupVersionResource{Group: inferencev1.GroupVersion.Group, Version: "v1", Resource: "inferencepools"}
	alphaPoolResource = schema.GroupVersionResource{Group: alphaGroup, Version: "v1alpha2", Resource: "inferencepools"}
)

// policyResources are where policies are, by kind; the version is that of each.
var policyResources = map[string]schema.GroupVersionResource{
	kindAuthorizationPolicy:   {Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"},
	kindRequestAuthentication: {Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"},
}

// Statuses says what is to be reported of a set of objects, given what it was
// translated to with the same options. Objects that we have nothing to say of are
// left out, unless they have something of ours that has to go.
func Statuses(o *Objects, t *Translation, options Options) []Status {
	r := reporter{translator: newTranslator(o, options), found: t, findings: make(map[string][]Finding)}
	for _, f := range t.Findings {
		id := f.Kind + " " + f.Namespace + "/" + f.Name
		r.findings[id] = append(r.findings[id], f)
	}
	for _, c := range sorted(o.Classes, func(c *gatewayv1.GatewayClass) *metav1.ObjectMeta { return &c.ObjectMeta }) {
		if c.Spec.ControllerName == ControllerName {
			r.add(classResource, object{"GatewayClass", &c.ObjectMeta}, &c.Status, Status{Conditions: []metav1.Condition{yes("Accepted", "Accepted")}})
		}
	}
	for _, g := range sorted(o.Gateways, func(g *gatewayv1.Gateway) *metav1.ObjectMeta { return &g.ObjectMeta }) {
		if r.serves(g) {
			r.add(gatewayResource, object{"Gateway", &g.ObjectMeta}, &g.Status, r.gateway(g))
		}
	}
	for _, h := range sorted(o.Routes, func(h *gatewayv1.HTTPRoute) *metav1.ObjectMeta { return &h.ObjectMeta }) {
		if s := (Status{Parents: r.routeParents(h)}); len(s.Parents) > 0 || slices.ContainsFunc(h.Status.Parents, func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName == ControllerName }) {
			r.add(routeResource, object{"HTTPRoute", &h.ObjectMeta}, &h.Status, s)
		}
	}
	r.inferencePools()
	for _, p := range sorted(o.Policies, func(p *Policy) *metav1.ObjectMeta { return &p.ObjectMeta }) {
		if t.policies[p.id()] {
			r.policy(p)
		}
	}
	return r.out
}

// reporter is a making of statuses under way.
type reporter struct {
	*translator
	found    *Translation
	findings map[string][]Finding // by kind and key
	out      []Status
}

// add completes a status and sets it down.
func (r *reporter) add(resource schema.GroupVersionResource, about object, current any, s Status) {
	s.Resource, s.Kind, s.Namespace, s.Name, s.Generation, s.current = resource, about.kind, about.meta.Namespace, about.meta.Name, about.meta.Generation, current
	observe := func(all []metav1.Condition) {
		for i := range all {
			all[i].ObservedGeneration = s.Generation
		}
	}
	observe(s.Conditions)
	for _, l := range s.Listeners {
		observe(l.Conditions)
	}
	for _, p := range s.Parents {
		observe(p.Conditions)
	}
	r.out = append(r.out, s)
}

func yes(kind, reason string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason}
}

func no(kind, reason, format string, args ...any) metav1.Condition {
	return metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// conditionPolicy is the condition of a policy that is Fairway's own: whether all that
// the policy says is understood.
const conditionPolicy = "fairway-proxy.github.io/Accepted"

// policy reports of a policy that cannot be understood as it is meant, and once it is
// mended, that it is understood: by what it says itself, on which all processes that have
// it in force agree.
func (r *reporter) policy(p *Policy) {
	var wrong *Finding
	for _, f := range r.findings[p.id()] {
		if !f.Warning && f.Path != pathProvider && (wrong == nil || wrong.Reason != reasonInvalid && f.Reason == reasonInvalid) {
			wrong = &f
		}
	}
	var current map[string]any // with numbers as they are in any object
	if len(p.status) > 0 && json.UnmarshalCaseSensitivePreserveInts(p.status, &current) != nil {
		return // no status that anything could be put into
	}
	var c metav1.Condition
	list, _ := current["conditions"].([]any)
	switch {
	case wrong != nil:
		c = no(conditionPolicy, wrong.Reason, "%s: %s", wrong.Path, wrong.Message)
	case slices.ContainsFunc(list, func(c any) bool { was, _ := c.(map[string]any); return was["type"] == conditionPolicy }):
		c = yes(conditionPolicy, "Accepted")
	default:
		return
	}
	resource := policyResources[p.Kind]
	if gv, err := schema.ParseGroupVersion(p.APIVersion); err == nil {
		resource.Version = gv.Version
	}
	r.add(resource, object{p.Kind, &p.ObjectMeta}, current, Status{Conditions: []metav1.Condition{c}})
}

// gateway is what is to be reported of a Gateway that we serve. Its addresses are
// never taken back: whoever uses it for a waypoint would go round it, and round the
// policies that are in force there.
func (r *reporter) gateway(g *gatewayv1.Gateway) (s Status) {
	var faulty []string // listeners
	programmed := false
	for i := range g.Spec.Listeners {
		l := r.listener(g, i)
		if slices.ContainsFunc(l.Conditions, func(c metav1.Condition) bool { return c.Type == "Programmed" && c.Status == metav1.ConditionTrue }) {
			programmed = true
		} else {
			faulty = append(faulty, string(l.Name))
		}
		s.Listeners = append(s.Listeners, l)
	}
	accepted := yes("Accepted", "Accepted")
	switch {
	case len(faulty) > 0 && programmed:
		accepted.Reason, accepted.Message = "ListenersNotValid", "not served: listeners "+strings.Join(faulty, ", ")
	case len(faulty) > 0:
		accepted = no("Accepted", "ListenersNotValid", "no listener can be served")
	}
	address, problem := r.address(g)
	switch {
	case problem != "":
		s.Conditions = []metav1.Condition{accepted, no("Programmed", "AddressNotAssigned", "%s", problem)}
	case !programmed:
		s.Conditions = []metav1.Condition{accepted, no("Programmed", "Invalid", "no listener can be served")}
	default:
		s.Conditions = []metav1.Condition{accepted, yes("Programmed", "Programmed")}
	}
	if address != "" {
		kind := gatewayv1.HostnameAddressType
		s.Addresses = []gatewayv1.GatewayStatusAddress{{Type: &kind, Value: address}}
	}
	return s
}

// address is the name of the Service that leads to the processes behind a Gateway:
// the one of the Gateway's name, or else one that is labelled with it. Without a port
// for tunnels it does not do for a waypoint. One is given its first address when a pod
// is ready: from then on ztunnels go by it and by no other way (Istio,
// gatewayToWaypointTransform in pilot/pkg/serviceregistry/ambient/waypoints.go).
func (r *reporter) address(g *gatewayv1.Gateway) (name, problem string) {
	ns := namespace(&g.ObjectMeta)
	s := r.services[key(&g.ObjectMeta)]
	if s == nil {
		for _, other := range sorted(r.objects.Services, func(s *corev1.Service) *metav1.ObjectMeta { return &s.ObjectMeta }) {
			if namespace(&other.ObjectMeta) == ns && other.Labels[labelGatewayName] == g.Name {
				s = other
				break
			}
		}
	}
	if s == nil {
		return "", fmt.Sprintf("no Service leads here: want one of the Gateway's name, or with the label %s: %s", labelGatewayName, g.Name)
	}
	mesh := slices.ContainsFunc(g.Spec.Listeners, func(l gatewayv1.Listener) bool { return l.Protocol == protocolHBONE })
	if mesh && !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == int32(portHBONE) }) {
		return "", fmt.Sprintf("Service %s has no port %d, where the mesh's tunnels come in", key(&s.ObjectMeta), portHBONE)
	}
	if mesh && len(g.Status.Addresses) == 0 && !r.hasReady(s) {
		return "", fmt.Sprintf("no pod behind Service %s is ready yet", key(&s.ObjectMeta))
	}
	return r.host(s), ""
}

// hasReady tells whether a Service has an endpoint that is ready.
func (r *reporter) hasReady(s *corev1.Service) bool {
	return slices.ContainsFunc(r.slices[key(&s.ObjectMeta)], func(slice *discoveryv1.EndpointSlice) bool {
		return slices.ContainsFunc(slice.Endpoints, isReady)
	})
}

// labelGatewayName names the Gateway that an object is there for.
const labelGatewayName = "gateway.networking.k8s.io/gateway-name"

// listener is what is to be reported of a Gateway's listener.
func (r *reporter) listener(g *gatewayv1.Gateway, i int) gatewayv1.ListenerStatus {
	l := &g.Spec.Listeners[i]
	s := gatewayv1.ListenerStatus{Name: l.Name, SupportedKinds: []gatewayv1.RouteGroupKind{}}
	accepted, resolved, conflicted := yes("Accepted", "Accepted"), yes("ResolvedRefs", "ResolvedRefs"), no("Conflicted", "NoConflicts", "")
	serves := l.Protocol == gatewayv1.HTTPProtocolType || l.Protocol == protocolHBONE
	if !serves {
		accepted = no("Accepted", "UnsupportedProtocol", "want HTTP, or HBONE for the mesh's tunnels")
	}
	if l.Protocol == protocolHBONE && l.Port != portHBONE {
		accepted = no("Accepted", "PortUnavailable", "the mesh's tunnels come in at port %d", portHBONE)
	}
	if l.Protocol == gatewayv1.HTTPProtocolType {
		var others []string
		group := gatewayv1.Group(gatewayv1.GroupName)
		if allowsKind(l) {
			s.SupportedKinds = append(s.SupportedKinds, gatewayv1.RouteGroupKind{Group: &group, Kind: "HTTPRoute"})
		}
		if l.AllowedRoutes != nil {
			for _, k := range l.AllowedRoutes.Kinds {
				if !isHTTPRoute(k) {
					others = append(others, string(k.Kind))
				}
			}
		}
		if len(others) > 0 {
			resolved = no("ResolvedRefs", "InvalidRouteKinds", "%s: want HTTPRoute", strings.Join(others, ", "))
		}
	}
	for j := range g.Spec.Listeners {
		switch other := &g.Spec.Listeners[j]; {
		case i == j || l.Port != other.Port:
		case l.Protocol != other.Protocol:
			conflicted = metav1.Condition{Type: "Conflicted", Status: metav1.ConditionTrue, Reason: "ProtocolConflict", Message: fmt.Sprintf("listener %s has the port for another protocol", other.Name)}
		case strings.EqualFold(string(value(l.Hostname)), string(value(other.Hostname))):
			conflicted = metav1.Condition{Type: "Conflicted", Status: metav1.ConditionTrue, Reason: "HostnameConflict", Message: fmt.Sprintf("listener %s has the same port and hostname", other.Name)}
		}
	}
	programmed := yes("Programmed", "Programmed")
	switch {
	case accepted.Status != metav1.ConditionTrue:
		programmed = no("Programmed", "Invalid", "%s", accepted.Message)
	case conflicted.Status == metav1.ConditionTrue:
		accepted = no("Accepted", conflicted.Reason, "%s", conflicted.Message)
		programmed = no("Programmed", "Invalid", "%s", conflicted.Message)
	case len(s.SupportedKinds) == 0 && resolved.Status != metav1.ConditionTrue:
		programmed = no("Programmed", "Invalid", "%s", resolved.Message)
	case slices.Contains(r.options.Closed, l.Protocol):
		programmed = no("Programmed", "Invalid", "this waypoint listens for no %s", l.Protocol)
	}
	for _, a := range r.found.Attachments {
		if a.Gateway == key(&g.ObjectMeta) && a.Reason == "" && slices.Contains(a.Listeners, l.Name) {
			s.AttachedRoutes++
		}
	}
	s.Conditions = []metav1.Condition{accepted, programmed, resolved, conflicted}
	return s
}

// routeParents is what is to be reported of a route's parents: of those that are
// ours, and that others of our processes may report of.
func (r *reporter) routeParents(h *gatewayv1.HTTPRoute) (out []ParentStatus) {
	about := object{"HTTPRoute", &h.ObjectMeta}
	var partly, unresolved *Finding
	broken := make(map[string]bool) // rules, by path
	for _, f := range r.findings["HTTPRoute "+key(&h.ObjectMeta)] {
		switch {
		case f.Warning || strings.HasPrefix(f.Path, "spec.parentRefs"):
		case f.Reason == reasonUnsupported:
			rule, _, _ := strings.Cut(f.Path, "]")
			if partly == nil {
				partly = &f
			}
			broken[rule] = true
		case slices.Contains([]string{reasonInvalidKind, reasonBackendNotFound, reasonNotPermitted}, f.Reason) && unresolved == nil:
			unresolved = &f
		}
	}
	resolved := yes("ResolvedRefs", "ResolvedRefs")
	if unresolved != nil {
		resolved = no("ResolvedRefs", unresolved.Reason, "%s: %s", unresolved.Path, unresolved.Message)
	}
	for i, ref := range h.Spec.ParentRefs {
		p := ParentStatus{Ref: ref}
		at := slices.IndexFunc(r.found.Attachments, func(a Attachment) bool { return a.Route == key(&h.ObjectMeta) && a.Parent == i })
		if at < 0 {
			if r.elsewhere(about, ref) {
				out = append(out, p)
			}
			continue
		}
		switch a := r.found.Attachments[at]; {
		case a.Reason != "":
			p.Conditions = append(p.Conditions, no("Accepted", a.Reason, "%s", a.Message))
		case partly != nil && len(broken) >= len(h.Spec.Rules):
			p.Conditions = append(p.Conditions, no("Accepted", partly.Reason, "%s: %s", partly.Path, partly.Message))
		case partly != nil:
			p.Conditions = append(p.Conditions, yes("Accepted", "Accepted"),
				metav1.Condition{Type: "PartiallyInvalid", Status: metav1.ConditionTrue, Reason: partly.Reason, Message: "answered with 500: " + partly.Path + ": " + partly.Message})
		default:
			p.Conditions = append(p.Conditions, yes("Accepted", "Accepted"))
		}
		p.Conditions = append(p.Conditions, resolved)
		out = append(out, p)
	}
	return out
}

// elsewhere tells whether a parent is of ours but served by another process.
func (r *reporter) elsewhere(about object, ref gatewayv1.ParentReference) bool {
	k := parentKey(about, ref)
	ns, _, _ := strings.Cut(k, "/")
	g := r.gateways[k]
	if groupOf(ref.Group, gatewayv1.GroupName) == corev1.GroupName {
		var labels map[string]string
		if s := r.services[k]; s != nil {
			labels = s.Labels
		}
		g = r.waypoint(labels, ns)
	}
	return g != nil && r.ours(g) && !r.serves(g)
}

// inferencePools reports of the pools that routes of ours refer to: their parents
// are the Gateways behind these routes.
func (r *reporter) inferencePools() {
	users := make(map[string]map[string]bool) // pool → Gateway → whether a route of its that uses the pool is attached
	byRoute := make(map[string][]Attachment)
	for _, a := range r.found.Attachments {
		byRoute[a.Route] = append(byRoute[a.Route], a)
	}
	for _, h := range r.objects.Routes {
		for _, pool := range r.poolsOf(h) {
			for _, a := range byRoute[key(&h.ObjectMeta)] {
				if users[pool] == nil {
					users[pool] = make(map[string]bool)
				}
				users[pool][a.Gateway] = users[pool][a.Gateway] || a.Reason == ""
			}
		}
	}
	others := make(map[string]bool) // Gateways of ours that other processes serve
	for k, g := range r.gateways {
		others[k] = r.ours(g) && !r.serves(g)
	}
	parents := func(pool string, resolved metav1.Condition) (out []ParentStatus) {
		for k := range r.gateways {
			attached, ours := users[pool][k]
			if !ours && !others[k] {
				continue
			}
			ns, name, _ := strings.Cut(k, "/")
			group, kind, in := gatewayv1.Group(gatewayv1.GroupName), gatewayv1.Kind("Gateway"), gatewayv1.Namespace(ns)
			p := ParentStatus{Ref: gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &in, Name: gatewayv1.ObjectName(name)}}
			switch {
			case !ours:
			case attached:
				p.Conditions = []metav1.Condition{yes("Accepted", "Accepted"), resolved}
			default:
				p.Conditions = []metav1.Condition{no("Accepted", string(inferencev1.InferencePoolReasonHTTPRouteNotAccepted), "no route that refers to it is accepted"), resolved}
			}
			out = append(out, p)
		}
		slices.SortFunc(out, func(a, b ParentStatus) int {
			return cmp.Or(cmp.Compare(*a.Ref.Namespace, *b.Ref.Namespace), cmp.Compare(a.Ref.Name, b.Ref.Name))
		})
		return out
	}
	for _, p := range sorted(r.objects.Pools, func(p *inferencev1.InferencePool) *metav1.ObjectMeta { return &p.ObjectMeta }) {
		all := parents(key(&p.ObjectMeta), r.picker(p))
		if len(users[key(&p.ObjectMeta)]) > 0 || slices.ContainsFunc(p.Status.Parents, func(s inferencev1.ParentStatus) bool { return s.ControllerName == ControllerName }) {
			r.add(poolResource, object{"InferencePool", &p.ObjectMeta}, &p.Status, Status{Parents: all})
		}
	}
	for _, p := range sorted(r.objects.AlphaPools, func(p *AlphaPool) *metav1.ObjectMeta { return &p.ObjectMeta }) {
		r.alphaPool(p, parents(key(&p.ObjectMeta), yes("ResolvedRefs", "ResolvedRefs")))
	}
}

// alphaPool reports of a pool of v1alpha2, whose entries do not say whose they are:
// ours are those of the Gateways that we serve.
func (r *reporter) alphaPool(p *AlphaPool, parents []ParentStatus) {
	about := object{"InferencePool", &p.ObjectMeta}
	parents = slices.DeleteFunc(parents, func(s ParentStatus) bool { return len(s.Conditions) == 0 })
	for _, e := range entriesOf(rawStatus(p.Status), alphaPoolResource) {
		ref := parentOf(e)
		g := r.gateways[parentKey(about, ref)]
		if value(ref.Kind) != "Gateway" && ref.Kind != nil || g == nil || !r.serves(g) {
			continue
		}
		if id := refKey(ref, about.meta.Namespace); !slices.ContainsFunc(parents, func(s ParentStatus) bool { return refKey(s.Ref, about.meta.Namespace) == id }) {
			parents = append(parents, ParentStatus{Ref: ref, Gone: true})
		}
	}
	if len(parents) > 0 {
		r.add(alphaPoolResource, about, p.Status, Status{Parents: parents})
	}
}

// picker tells whether the endpoint picker of a pool is there.
func (r *reporter) picker(p *inferencev1.InferencePool) metav1.Condition {
	ref := p.Spec.EndpointPickerRef
	name := namespace(&p.ObjectMeta) + "/" + string(ref.Name)
	const kind, reason = "ResolvedRefs", string(inferencev1.InferencePoolReasonInvalidExtensionRef)
	switch s := r.services[name]; {
	case ref.Name == "":
	case value(ref.Group) != "" || ref.Kind != "" && ref.Kind != "Service":
		return no(kind, reason, "spec.endpointPickerRef: want a Service")
	case s == nil:
		return no(kind, reason, "spec.endpointPickerRef: there is no Service %s", name)
	case ref.Port == nil || !slices.ContainsFunc(s.Spec.Ports, func(port corev1.ServicePort) bool { return port.Port == int32(ref.Port.Number) }):
		return no(kind, reason, "spec.endpointPickerRef.port: not a port of Service %s", name)
	}
	return yes(kind, "ResolvedRefs")
}

// poolsOf gives the pools that a route's rules refer to, and may.
func (r *reporter) poolsOf(h *gatewayv1.HTTPRoute) (pools []string) {
	b := ruleBuilder{translator: r.translator, about: object{"HTTPRoute", &h.ObjectMeta}}
	add := func(ref gatewayv1.BackendObjectReference) {
		group, in := groupOf(ref.Group, corev1.GroupName), cmp.Or(string(value(ref.Namespace)), namespace(&h.ObjectMeta))
		if string(value(ref.Kind)) != "InferencePool" || group != inferencev1.GroupVersion.Group && group != alphaGroup {
			return
		}
		if in == namespace(&h.ObjectMeta) || b.granted(in, group, "InferencePool", string(ref.Name)) {
			pools = append(pools, in+"/"+string(ref.Name))
		}
	}
	for _, rule := range h.Spec.Rules {
		for _, b := range rule.BackendRefs {
			add(b.BackendObjectReference)
		}
		for _, f := range rule.Filters {
			if f.RequestMirror != nil {
				add(f.RequestMirror.BackendRef)
			}
		}
	}
	return pools
}
