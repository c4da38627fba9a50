package kube

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fairway-proxy/fairway/proxy"
)

// Labels by which Istio binds Services to waypoints (istio.io/api, label).
const (
	labelUseWaypoint          = "istio.io/use-waypoint"
	labelUseWaypointNamespace = "istio.io/use-waypoint-namespace"
	labelWaypointFor          = "istio.io/waypoint-for"

	// A second waypoint, which a share of the Service's connections goes to.
	labelUseCanary          = "istio.io/use-waypoint-canary"
	labelUseCanaryNamespace = "istio.io/use-waypoint-canary-namespace"
)

// The listener of a Gateway that takes the mesh's tunnels.
const (
	protocolHBONE gatewayv1.ProtocolType = "HBONE"
	portHBONE     gatewayv1.PortNumber   = 15008
)

// waypoints finds the Services that are bound to a waypoint that we serve, and who may
// do what with them.
func (t *translator) waypoints() {
	var gateways []*gatewayv1.Gateway
	for _, g := range sorted(t.objects.Gateways, func(g *gatewayv1.Gateway) *metav1.ObjectMeta { return &g.ObjectMeta }) {
		if t.serves(g) {
			gateways = append(gateways, g)
			t.out.claims = append(t.out.claims, claim(nil, g))
		}
	}
	t.out.World.Gateway = t.gatewayScope(gateways)
	misled := make(map[string]bool) // namespaces of Services that are bound
	for _, s := range sorted(t.objects.Services, func(s *corev1.Service) *metav1.ObjectMeta { return &s.ObjectMeta }) {
		g := t.servedWaypoint(s)
		if g == nil {
			continue
		}
		out := t.service(s)
		out.Bound = true
		out.Access = t.scope(s, g)
		out.claim = claim(s, g)
		misled[namespace(&s.ObjectMeta)] = true
	}
	t.misled(misled)
}

// servedWaypoint gives the Gateway that a Service is bound to and that this process serves, nil for none. It
// tells of one that does not take it.
func (t *translator) servedWaypoint(s *corev1.Service) *gatewayv1.Gateway {
	ns := namespace(&s.ObjectMeta)
	for _, k := range t.waypointsOf(s.Labels, ns) {
		g := t.gateways[k]
		switch {
		case g == nil || !t.serves(g) || !servesServices(t.waypointFor(g)):
		case t.takes(g, ns):
			return g
		default:
			about := object{"Service", &s.ObjectMeta}
			t.warn(about.finding("metadata.labels", "", "Gateway %s is no waypoint for Services of this namespace: the allowedRoutes of its listener of protocol HBONE leave it out", k))
		}
	}
	return nil
}

// claim names what policies can be for: a Service, if there is one, and its Gateway, in
// the life that they have now. One that is made anew is another.
func claim(s *corev1.Service, g *gatewayv1.Gateway) string {
	c := key(&g.ObjectMeta) + " " + string(g.UID) + " " + string(g.Spec.GatewayClassName)
	if s != nil {
		c += "\n" + key(&s.ObjectMeta) + " " + string(s.UID)
	}
	return c
}

// workloads finds the pods that use a waypoint of ours that is for pods.
func (t *translator) workloads() {
	services, pods := false, false
	for _, g := range t.objects.Gateways {
		if t.serves(g) {
			to := t.waypointFor(g)
			services, pods = services || servesServices(to), pods || servesPods(to)
		}
	}
	switch {
	case !pods:
		return
	case services:
		t.out.World.WaypointFor = proxy.ForAll
	default:
		t.out.World.WaypointFor = proxy.ForWorkloads
	}
	t.out.World.Workloads = []netip.Addr{}
	for _, p := range t.objects.Pods {
		ns := namespace(&p.ObjectMeta)
		g := t.gateways[waypointOf(p.Labels, ns, t.namespaces)]
		if g == nil || !t.serves(g) || !servesPods(t.waypointFor(g)) || !t.takes(g, ns) {
			continue
		}
		if a, err := netip.ParseAddr(p.Status.PodIP); err == nil && !p.Spec.HostNetwork {
			t.out.World.Workloads = append(t.out.World.Workloads, a.Unmap())
		}
	}
	slices.SortFunc(t.out.World.Workloads, netip.Addr.Compare)
	t.out.World.Workloads = slices.Compact(t.out.World.Workloads)
}

// servesPods tells whether a waypoint takes what is sent to pods themselves.
func servesPods(to proxy.WaypointFor) bool {
	return to == proxy.ForWorkloads || to == proxy.ForAll
}

// waypoint gives the Gateway of a class of ours that a Service of a namespace is
// bound to, nil for none. Another process may serve it, if this one serves none of them.
func (t *translator) waypoint(labels map[string]string, ns string) (found *gatewayv1.Gateway) {
	for _, k := range t.waypointsOf(labels, ns) {
		g := t.gateways[k]
		if g == nil || !t.ours(g) || !servesServices(t.waypointFor(g)) || !t.takes(g, ns) {
			continue
		}
		if t.serves(g) {
			return g
		}
		found = cmp.Or(found, g)
	}
	return found
}

// ours tells whether a Gateway is of a class of ours.
func (t *translator) ours(g *gatewayv1.Gateway) bool {
	return t.ourClass(string(g.Spec.GatewayClassName))
}

func (t *translator) ourClass(name string) bool {
	if c := t.classes[name]; c != nil {
		return c.Spec.ControllerName == ControllerName
	}
	return name == ClassName
}

// serves tells whether a Gateway is one that this process serves.
func (t *translator) serves(g *gatewayv1.Gateway) bool {
	return t.ours(g) && (t.options.Gateway == "" || t.options.Gateway == key(&g.ObjectMeta))
}

// waypointFor tells whose traffic a waypoint takes, by its label or else that of its
// class.
func (t *translator) waypointFor(g *gatewayv1.Gateway) proxy.WaypointFor {
	to := g.Labels[labelWaypointFor]
	if c := t.classes[string(g.Spec.GatewayClassName)]; to == "" && c != nil {
		to = c.Labels[labelWaypointFor]
	}
	return proxy.WaypointFor(cmp.Or(to, string(proxy.ForServices)))
}

// servesServices tells whether that takes in the traffic of Services.
func servesServices(to proxy.WaypointFor) bool {
	return to == proxy.ForServices || to == proxy.ForAll
}

// takes tells whether the Services and pods of a namespace may use a waypoint: the
// allowedRoutes of its listener for tunnels say so, and without any only its own may
// (Istio, makeAllowedRoutes in pilot/pkg/serviceregistry/ambient/waypoints.go).
func (t *translator) takes(g *gatewayv1.Gateway, ns string) bool {
	for i := range g.Spec.Listeners {
		if l := &g.Spec.Listeners[i]; l.Protocol == protocolHBONE && l.Port == portHBONE {
			return t.allows(g, l, ns)
		}
	}
	return ns == namespace(&g.ObjectMeta)
}

// waypointOf gives the key of the Gateway that an object wants for its waypoint,
// empty for none. What the object says goes before what its namespace says.
func waypointOf(labels map[string]string, ns string, namespaces map[string]map[string]string) string {
	for _, labels := range []map[string]string{labels, namespaces[ns]} {
		name, said := labels[labelUseWaypoint]
		if !said {
			continue
		}
		if name == "" || name == "none" {
			return ""
		}
		return cmp.Or(labels[labelUseWaypointNamespace], ns) + "/" + name
	}
	return ""
}

// waypointsOf gives the keys of the Gateways that a Service wants for its waypoints: the one of
// waypointOf and, beside one, the canary. Its namespace says which only where the Service names no
// waypoint itself (Istio, ResolveUseWaypointCanary).
func (t *translator) waypointsOf(labels map[string]string, ns string) (keys []string) {
	first := waypointOf(labels, ns, t.namespaces)
	if first == "" {
		return nil
	}
	keys = append(keys, first)
	_, own := labels[labelUseWaypoint]
	if _, canary := labels[labelUseCanary]; !canary && !own {
		labels = t.namespaces[ns]
	}
	if name := labels[labelUseCanary]; name != "" && name != "none" {
		keys = append(keys, cmp.Or(labels[labelUseCanaryNamespace], ns)+"/"+name)
	}
	return keys
}

// service gives what the translation says of a Service, making it if it is new.
func (t *translator) service(s *corev1.Service) *Service {
	at, found := slices.BinarySearchFunc(t.out.Services, key(&s.ObjectMeta), func(a Service, want string) int { return strings.Compare(a.Key, want) })
	if !found {
		out := Service{Key: key(&s.ObjectMeta)}
		out.Host = t.host(s)
		ips := s.Spec.ClusterIPs
		if len(ips) == 0 {
			ips = []string{s.Spec.ClusterIP}
		}
		for _, ip := range ips {
			if a, err := netip.ParseAddr(ip); err == nil { // none of "None"
				out.VIPs = append(out.VIPs, a.Unmap())
			}
		}
		for _, p := range tcpPorts(s) {
			out.Ports = append(out.Ports, proxy.ServicePort{Port: uint16(p.Port), Protocol: protocol(p), Pool: t.servicePool(s, p)})
		}
		t.out.Services = slices.Insert(t.out.Services, at, out)
	}
	return &t.out.Services[at]
}

// tcpPorts are the ports of a Service that connections come to.
func tcpPorts(s *corev1.Service) (ports []*corev1.ServicePort) {
	for i := range s.Spec.Ports {
		if p := &s.Spec.Ports[i]; p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP {
			ports = append(ports, p)
		}
	}
	return ports
}

// host is a Service's full name.
func (t *translator) host(s *corev1.Service) string {
	return s.Name + "." + namespace(&s.ObjectMeta) + ".svc." + cmp.Or(t.options.ClusterDomain, DefaultClusterDomain)
}

// protocol is what a port is declared to speak, by its appProtocol or by the
// beginning of its name, or known by its number (Istio, "Protocol selection"; ConvertProtocol
// in pkg/config/kube/conversion.go).
func protocol(p *corev1.ServicePort) proxy.PortProtocol {
	name := p.Name
	if p.AppProtocol != nil {
		name = strings.TrimPrefix(strings.ToLower(*p.AppProtocol), "kubernetes.io/")
	}
	if strings.HasPrefix(name, "grpc-web") {
		return proxy.PortHTTP
	}
	kind, _, _ := strings.Cut(name, "-")
	switch kind {
	case "http", "ws":
		return proxy.PortHTTP
	case "http2", "h2c":
		return proxy.PortH2C
	case "grpc":
		return proxy.PortGRPC
	case "tcp", "tls", "https", "mongo", "mysql", "redis", "wss":
		return proxy.PortTCP
	}
	switch p.Port {
	case 25, 53, 3306, 27017: // SMTP, DNS, MySQL and MongoDB, of which the server may have the first word
		return proxy.PortTCP
	}
	return proxy.PortAuto
}
