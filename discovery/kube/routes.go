package kube

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// Reasons of a route's conditions (Gateway API, RouteConditionReason).
const (
	reasonUnsupported     = string(gatewayv1.RouteReasonUnsupportedValue)
	reasonInvalidKind     = string(gatewayv1.RouteReasonInvalidKind)
	reasonBackendNotFound = string(gatewayv1.RouteReasonBackendNotFound)
	reasonNotPermitted    = string(gatewayv1.RouteReasonRefNotPermitted)
	reasonNoParent        = string(gatewayv1.RouteReasonNoMatchingParent)
	reasonNotAllowed      = string(gatewayv1.RouteReasonNotAllowedByListeners)
)

// routes attaches each HTTPRoute to its parents: ports of Services, and Gateways.
func (t *translator) routes() {
	for _, r := range sorted(t.objects.Routes, func(r *gatewayv1.HTTPRoute) *metav1.ObjectMeta { return &r.ObjectMeta }) {
		about := object{"HTTPRoute", &r.ObjectMeta}
		out := t.route(about, r)
		for i, ref := range r.Spec.ParentRefs {
			a := attachment{translator: t, about: about, path: index("spec.parentRefs", i), Attachment: Attachment{Route: out.Name, Parent: i}}
			switch group, kind := groupOf(ref.Group, gatewayv1.GroupName), value(ref.Kind); {
			case group == corev1.GroupName && kind == "Service":
				a.toService(ref, out)
			case group == gatewayv1.GroupName && (kind == "" || kind == "Gateway"):
				a.toGateway(ref, out)
			default:
				t.find(about.finding(a.path, reasonNoParent, "a route hangs on a Service or a Gateway, not on %s %s", kind, ref.Name))
			}
			if a.Gateway != "" {
				t.out.Attachments = append(t.out.Attachments, a.Attachment)
			}
		}
	}
}

func parentKey(about object, ref gatewayv1.ParentReference) string {
	in := namespace(about.meta)
	if ref.Namespace != nil {
		in = string(*ref.Namespace)
	}
	return in + "/" + string(ref.Name)
}

// attachment attaches a route to one of its parents.
type attachment struct {
	*translator
	about object
	path  string
	Attachment
}

// refuse tells why the route is not attached.
func (a *attachment) refuse(reason, format string, args ...any) {
	f := a.about.finding(a.path, reason, format, args...)
	a.Reason, a.Message = f.Reason, f.Message
	a.find(f)
}

// toService hangs a route on a port of a Service, by its number, its name (which is what
// a sectionName means there) or both, or else on all. There its hostnames
// count for nothing: the mesh routes by the address that was called.
func (a *attachment) toService(ref gatewayv1.ParentReference, r route.Route) {
	k := parentKey(a.about, ref)
	ns, _, _ := strings.Cut(k, "/")
	s := a.services[k]
	var labels map[string]string
	if s != nil {
		labels = s.Labels
	}
	g := a.waypoint(labels, ns)
	if g != nil && a.serves(g) {
		a.Gateway = key(&g.ObjectMeta)
	}
	switch {
	case s == nil:
		a.refuse(reasonNoParent, "there is no Service %s", k)
		return
	case namespace(a.about.meta) != ns:
		a.refuse(reasonNotAllowed, "Service %s is of another namespace: routes for the clients of one namespace alone are not served", k)
		return
	}
	if len(r.Hostnames) > 0 {
		a.warn(a.about.finding("spec.hostnames", "", "hostnames count for nothing on Service %s", k))
	}
	r.Hostnames = nil
	out := a.service(s)
	if g == nil {
		a.warn(a.about.finding(a.path, "", "Service %s uses no waypoint of Fairway: its label %s, or that of its namespace, has to name a Gateway of class %s", k, labelUseWaypoint, ClassName))
	}
	attached := false
	for i, port := range tcpPorts(s) {
		if ref.Port != nil && int32(*ref.Port) != port.Port || ref.SectionName != nil && string(*ref.SectionName) != port.Name {
			continue
		}
		p := &out.Ports[i]
		if p.Protocol == proxy.PortTCP && ref.Port == nil && ref.SectionName == nil {
			continue // TLS, say, is not HTTP for a route that is for the others
		}
		if p.Protocol == proxy.PortAuto || p.Protocol == proxy.PortTCP {
			p.Protocol = proxy.PortHTTP
		}
		p.Routes, attached = append(p.Routes, r), true
	}
	switch {
	case attached:
	case ref.SectionName != nil:
		a.refuse(reasonNoParent, "Service %s has no such port named %q", k, *ref.SectionName)
	case ref.Port != nil:
		a.refuse(reasonNoParent, "Service %s has no port %d", k, *ref.Port)
	default:
		a.refuse(reasonNoParent, "Service %s has no port at which HTTP could be spoken: name the one that is meant", k)
	}
}

// toGateway hangs a route on the HTTP listeners of a Gateway that we serve. All of
// them are the plain listener.
func (a *attachment) toGateway(ref gatewayv1.ParentReference, r route.Route) {
	k := parentKey(a.about, ref)
	g := a.gateways[k]
	if g == nil || !a.serves(g) {
		return // another controller's
	}
	a.Gateway = k
	matching, allowed := false, false
	var hostnames []string
	all := false
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if l.Protocol != gatewayv1.HTTPProtocolType || ref.SectionName != nil && *ref.SectionName != l.Name || ref.Port != nil && int32(*ref.Port) != int32(l.Port) {
			continue
		}
		matching = true
		if !a.allows(g, l, namespace(a.about.meta)) || !allowsKind(l) {
			continue
		}
		allowed = true
		those, any := intersect(r.Hostnames, string(value(l.Hostname)))
		if any || len(those) > 0 {
			a.Listeners = append(a.Listeners, l.Name)
		}
		hostnames, all = append(hostnames, those...), all || any
	}
	switch {
	case !matching:
		a.refuse(reasonNoParent, "Gateway %s has no listener of protocol HTTP that this means: in the mesh, routes hang on Services", k)
	case !allowed:
		a.refuse(reasonNotAllowed, "the listeners of Gateway %s take no HTTPRoutes of this namespace", k)
	case len(a.Listeners) == 0:
		a.refuse(string(gatewayv1.RouteReasonNoMatchingListenerHostname), "none of the route's hostnames is one of Gateway %s", k)
	default:
		r.Hostnames = hostnames
		if all {
			r.Hostnames = nil
		}
		slices.Sort(r.Hostnames)
		r.Hostnames = slices.Compact(r.Hostnames)
		a.out.World.Routes = append(a.out.World.Routes, r)
	}
}

// allowsKind tells whether a listener takes HTTPRoutes.
func allowsKind(l *gatewayv1.Listener) bool {
	return l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 || slices.ContainsFunc(l.AllowedRoutes.Kinds, isHTTPRoute)
}

func isHTTPRoute(k gatewayv1.RouteGroupKind) bool {
	return k.Kind == "HTTPRoute" && groupOf(k.Group, gatewayv1.GroupName) == gatewayv1.GroupName
}

// allows tells whether a listener takes routes of a namespace.
func (t *translator) allows(g *gatewayv1.Gateway, l *gatewayv1.Listener, ns string) bool {
	from := gatewayv1.NamespacesFromSame
	var by *metav1.LabelSelector
	if a := l.AllowedRoutes; a != nil && a.Namespaces != nil {
		if a.Namespaces.From != nil {
			from = *a.Namespaces.From
		}
		by = a.Namespaces.Selector
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return ns == namespace(&g.ObjectMeta)
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(by)
		of, known := t.namespaces[ns]
		return err == nil && known && selector.Matches(labels.Set(of))
	}
	return false
}

// intersect gives those hosts of a route that a listener has too: any tells that
// it is all there are.
func intersect(hostnames []string, listener string) (both []string, any bool) {
	if listener == "" {
		return hostnames, len(hostnames) == 0
	}
	if len(hostnames) == 0 {
		return []string{listener}, false
	}
	for _, h := range hostnames {
		switch {
		case strings.EqualFold(h, listener) || covers(listener, h):
			both = append(both, h)
		case covers(h, listener):
			both = append(both, listener)
		}
	}
	return both, false
}

// covers tells whether a wildcard has another hostname in it.
func covers(wildcard, h string) bool {
	suffix, ok := strings.CutPrefix(strings.ToLower(wildcard), "*")
	h = strings.TrimPrefix(strings.ToLower(h), "*")
	return ok && len(h) > len(suffix) && strings.HasSuffix(h, suffix)
}

// route translates the rules of an HTTPRoute. One that cannot be served as it is
// meant answers 500, as the Gateway API has it.
func (t *translator) route(about object, r *gatewayv1.HTTPRoute) route.Route {
	out := route.Route{Name: key(&r.ObjectMeta)}
	for i, h := range r.Spec.Hostnames {
		if wrong := route.CheckHostname(string(h)); wrong != "" {
			t.find(about.finding(index("spec.hostnames", i), reasonUnsupported, "%s", wrong))
		}
		out.Hostnames = append(out.Hostnames, string(h))
	}
	for i := range r.Spec.Rules {
		path := index("spec.rules", i)
		b := ruleBuilder{translator: t, about: about, path: path}
		rule := b.rule(&r.Spec.Rules[i])
		rule.Check(func(at, problem string) { b.reject(path+"."+at, "%s", problem) })
		if b.broken {
			rule = route.Rule{Name: rule.Name, Matches: rule.Matches}
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

// ruleBuilder translates one rule.
type ruleBuilder struct {
	*translator
	about  object
	path   string
	broken bool // it cannot be served as it is meant
}

// reject tells of something without which the rule cannot be served.
func (b *ruleBuilder) reject(path, format string, args ...any) {
	b.broken = true
	b.find(b.about.finding(path, reasonUnsupported, format, args...))
}

func (b *ruleBuilder) rule(r *gatewayv1.HTTPRouteRule) route.Rule {
	out := route.Rule{Name: string(value(r.Name))}
	for _, m := range r.Matches {
		out.Matches = append(out.Matches, match(m))
	}
	out.Filters = b.filters(b.path+".filters", r.Filters)
	for i, ref := range r.BackendRefs {
		path := index(b.path+".backendRefs", i)
		backend := route.Backend{Pool: b.backend(path, ref.BackendObjectReference), Weight: 1}
		if ref.Weight != nil {
			backend.Weight = int(*ref.Weight)
		}
		f := b.filters(path+".filters", ref.Filters)
		if f.Redirect != nil || f.Rewrite != nil || len(f.Mirrors) > 0 {
			b.reject(path+".filters", "of a backend's own filters only header modifiers are served")
		}
		backend.RequestHeaders, backend.ResponseHeaders = f.RequestHeaders, f.ResponseHeaders
		out.Backends = append(out.Backends, backend)
	}
	if r.Timeouts != nil {
		out.Timeouts.Request = b.duration(b.path+".timeouts.request", r.Timeouts.Request)
		out.Timeouts.BackendRequest = b.duration(b.path+".timeouts.backendRequest", r.Timeouts.BackendRequest)
	}
	if r.Retry != nil {
		out.Retry = &route.Retry{Attempts: 1}
		for _, c := range r.Retry.Codes {
			out.Retry.Codes = append(out.Retry.Codes, int(c))
		}
		if r.Retry.Attempts != nil {
			out.Retry.Attempts = *r.Retry.Attempts
		}
		if d := b.duration(b.path+".retry.backoff", r.Retry.Backoff); d != nil {
			out.Retry.Backoff = *d
		}
	}
	if r.SessionPersistence != nil {
		b.warn(b.about.finding(b.path+".sessionPersistence", "", "sessions are not kept to a backend: the picker goes by what each engine has cached"))
	}
	return out
}

func match(m gatewayv1.HTTPRouteMatch) (out route.Match) {
	if m.Path != nil {
		out.Path = route.PathMatch{Type: route.PathPrefix, Value: "/"}
		if m.Path.Type != nil {
			out.Path.Type = route.MatchType(*m.Path.Type)
		}
		if m.Path.Value != nil {
			out.Path.Value = *m.Path.Value
		}
	}
	out.Method = string(value(m.Method))
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, route.ValueMatch{Type: route.MatchType(value(h.Type)), Name: string(h.Name), Value: h.Value})
	}
	for _, q := range m.QueryParams {
		out.Query = append(out.Query, route.ValueMatch{Type: route.MatchType(value(q.Type)), Name: string(q.Name), Value: q.Value})
	}
	return out
}

// filters translates a rule's filters, or those of one of its backends.
func (b *ruleBuilder) filters(path string, filters []gatewayv1.HTTPRouteFilter) (out route.Filters) {
	seen := make(map[gatewayv1.HTTPRouteFilterType]bool)
	for i, f := range filters {
		at := index(path, i)
		if seen[f.Type] && f.Type != gatewayv1.HTTPRouteFilterRequestMirror {
			b.reject(at, "a second filter of type %s", f.Type)
			continue
		}
		seen[f.Type] = true
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out.RequestHeaders = modifier(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out.ResponseHeaders = modifier(f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			d := f.RequestRedirect
			out.Redirect = &route.Redirect{
				Scheme: value(d.Scheme), Hostname: string(value(d.Hostname)), Port: int(value(d.Port)), Status: value(d.StatusCode),
				Path: b.pathModifier(at+".requestRedirect.path", d.Path),
			}
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			out.Rewrite = &route.Rewrite{Hostname: string(value(f.URLRewrite.Hostname)), Path: b.pathModifier(at+".urlRewrite.path", f.URLRewrite.Path)}
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
			m := route.Mirror{Pool: b.backend(at+".requestMirror.backendRef", f.RequestMirror.BackendRef)}
			if f.RequestMirror.Percent != nil {
				m.Numerator, m.Denominator = int(*f.RequestMirror.Percent), 100
			} else if fraction := f.RequestMirror.Fraction; fraction != nil {
				m.Numerator, m.Denominator = int(fraction.Numerator), 100
				if fraction.Denominator != nil {
					m.Denominator = int(*fraction.Denominator)
				}
			}
			if m.Pool != "" {
				out.Mirrors = append(out.Mirrors, m)
			}
		default:
			b.reject(at, "a filter of type %s is not served, or has no settings: requests of this rule are answered with 500", f.Type)
		}
	}
	return out
}

func modifier(f *gatewayv1.HTTPHeaderFilter) *route.HeaderModifier {
	fields := func(headers []gatewayv1.HTTPHeader) (out []message.Field) {
		for _, h := range headers {
			out = append(out, message.Field{Name: []byte(h.Name), Value: []byte(h.Value)})
		}
		return out
	}
	m := &route.HeaderModifier{Set: fields(f.Set), Add: fields(f.Add)}
	for _, name := range f.Remove {
		m.Remove = append(m.Remove, strings.ToLower(name))
	}
	return m
}

func (b *ruleBuilder) pathModifier(path string, m *gatewayv1.HTTPPathModifier) *route.PathModifier {
	switch {
	case m == nil:
		return nil
	case m.Type == gatewayv1.FullPathHTTPPathModifier && m.ReplaceFullPath != nil:
		return &route.PathModifier{Replacement: *m.ReplaceFullPath}
	case m.Type == gatewayv1.PrefixMatchHTTPPathModifier && m.ReplacePrefixMatch != nil:
		return &route.PathModifier{Prefix: true, Replacement: *m.ReplacePrefixMatch}
	}
	b.reject(path, "a path modifier of type %s is not served, or has no replacement", m.Type)
	return nil
}

func (b *ruleBuilder) duration(path string, d *gatewayv1.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	out, err := time.ParseDuration(string(*d))
	if err != nil {
		b.reject(path, "%q is not a duration: want one such as 100ms, 2s or 5m", *d)
	}
	return &out
}

// backend gives the pool that a reference means; "", after telling why, if there
// is none.
func (b *ruleBuilder) backend(path string, ref gatewayv1.BackendObjectReference) string {
	group, kind := groupOf(ref.Group, corev1.GroupName), "Service"
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	in := namespace(b.about.meta)
	if ref.Namespace != nil {
		in = string(*ref.Namespace)
	}
	name := in + "/" + string(ref.Name)
	if in != namespace(b.about.meta) && !b.granted(in, group, kind, string(ref.Name)) {
		b.find(b.about.finding(path, reasonNotPermitted, "%s %s is of another namespace, and no ReferenceGrant there allows HTTPRoutes of namespace %s to refer to it", kind, name, namespace(b.about.meta)))
		return ""
	}
	switch {
	case kind == "InferencePool" && (group == "inference.networking.k8s.io" || group == alphaGroup):
		if !b.pools[name] {
			b.find(b.about.finding(path, reasonBackendNotFound, "there is no InferencePool %s", name))
			return ""
		}
		return name
	case kind == "Service" && group == corev1.GroupName:
		s := b.services[name]
		if s == nil || s.Spec.Type == corev1.ServiceTypeExternalName {
			b.find(b.about.finding(path, reasonBackendNotFound, "there is no Service %s with endpoints in the cluster", name))
			return ""
		}
		for i := range s.Spec.Ports {
			if p := &s.Spec.Ports[i]; ref.Port != nil && p.Port == int32(*ref.Port) {
				return b.servicePool(s, p)
			}
		}
		wrong := "missing: want a port"
		if ref.Port != nil {
			wrong = fmt.Sprintf("%d: not a port", *ref.Port)
		}
		b.find(b.about.finding(path+".port", reasonBackendNotFound, "%s of Service %s", wrong, name))
		return ""
	}
	b.find(b.about.finding(path, reasonInvalidKind, "%s of group %q: want a Service or an InferencePool", kind, group))
	return ""
}

// granted tells whether a ReferenceGrant of a namespace lets the HTTPRoutes of the
// rule's refer to an object there.
func (b *ruleBuilder) granted(in, group, kind, name string) bool {
	for _, g := range b.objects.Grants {
		if namespace(&g.ObjectMeta) != in {
			continue
		}
		from := slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
			return f.Group == gatewayv1.GroupName && f.Kind == "HTTPRoute" && string(f.Namespace) == namespace(b.about.meta)
		})
		to := slices.ContainsFunc(g.Spec.To, func(to gatewayv1.ReferenceGrantTo) bool {
			return string(to.Group) == group && string(to.Kind) == kind && (to.Name == nil || *to.Name == "" || string(*to.Name) == name)
		})
		if from && to {
			return true
		}
	}
	return false
}
