package kube

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	inferencev1alpha2 "sigs.k8s.io/gateway-api-inference-extension/apix/v1alpha2"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// Translate says what a set of objects means.
func Translate(o *Objects, options Options) *Translation {
	t := newTranslator(o, options)
	t.inferencePools()
	t.models()
	t.indexPolicies()
	t.waypoints()
	t.workloads()
	t.routes()
	t.out.World.Services = bound(t.out.Services)
	t.dropUnreached()
	slices.SortFunc(t.out.World.Pools, func(a, b proxy.Pool) int { return cmp.Compare(a.Name, b.Name) })
	return &t.out
}

// dropUnreached drops the pools that the one Gateway of this process does not lead to: their
// engines are asked for their load by those that send them requests.
func (t *translator) dropUnreached() {
	w := &t.out.World
	if t.options.Gateway == "" || len(w.Routes) == 0 && !slices.Contains(t.options.Closed, gatewayv1.HTTPProtocolType) {
		return // to the plain listener, names of models may mean any
	}
	reached := make(map[string]bool)
	lead := func(routes []route.Route) {
		for _, r := range routes {
			for i := range r.Rules {
				for _, b := range r.Rules[i].Backends {
					reached[b.Pool] = true
				}
				for _, m := range r.Rules[i].Filters.Mirrors {
					reached[m.Pool] = true
				}
			}
		}
	}
	lead(w.Routes)
	for i := range w.Services {
		for _, p := range w.Services[i].Ports {
			reached[p.Pool] = true
			lead(p.Routes)
		}
	}
	unreached := func(pool string) bool { return !reached[pool] }
	w.Pools = slices.DeleteFunc(w.Pools, func(p proxy.Pool) bool { return unreached(p.Name) && !t.hasWorkload(p) })
	for _, p := range w.Pools {
		reached[p.Name] = true
	}
	w.Models = slices.DeleteFunc(w.Models, func(m proxy.Model) bool { return unreached(m.Pool) })
	w.Objectives = slices.DeleteFunc(w.Objectives, func(o proxy.Objective) bool { return unreached(o.Pool) })
}

// hasWorkload tells whether a pool has a pod whose own address tunnels may lead to.
func (t *translator) hasWorkload(p proxy.Pool) bool {
	return slices.ContainsFunc(p.Endpoints, func(e proxy.Endpoint) bool {
		a, err := netip.ParseAddrPort(e.Address)
		_, found := slices.BinarySearchFunc(t.out.World.Workloads, a.Addr(), netip.Addr.Compare)
		return err == nil && found
	})
}

// newTranslator has the objects at hand by their keys.
func newTranslator(o *Objects, options Options) *translator {
	t := &translator{
		objects:    o,
		options:    options,
		pools:      make(map[string]bool),
		classes:    make(map[string]*gatewayv1.GatewayClass),
		gateways:   make(map[string]*gatewayv1.Gateway),
		namespaces: make(map[string]map[string]string, len(o.Namespaces)),
		services:   make(map[string]*corev1.Service),
		slices:     make(map[string][]*discoveryv1.EndpointSlice),
		pods:       make(map[string][]*corev1.Pod),
		byUID:      make(map[types.UID]*corev1.Pod, len(o.Pods)),
		told:       make(map[*Policy]bool),
	}
	t.out.policies = make(map[string]bool)
	for _, c := range o.Classes {
		t.classes[c.Name] = c
	}
	for _, g := range o.Gateways {
		t.gateways[key(&g.ObjectMeta)] = g
	}
	for _, n := range o.Namespaces {
		t.namespaces[n.Name] = n.Labels
	}
	for _, s := range o.Services {
		t.services[key(&s.ObjectMeta)] = s
	}
	for _, s := range o.Slices {
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
			k := namespace(&s.ObjectMeta) + "/" + name
			t.slices[k] = append(t.slices[k], s)
		}
	}
	for _, p := range o.Pods {
		t.pods[namespace(&p.ObjectMeta)] = append(t.pods[namespace(&p.ObjectMeta)], p)
		t.byUID[p.UID] = p
	}
	return t
}

// bound are the Services that a World has.
func bound(all []Service) (services []proxy.Service) {
	for _, s := range all {
		if s.Bound {
			services = append(services, s.Service)
		}
	}
	return services
}

// translator is a translation under way.
type translator struct {
	objects    *Objects
	options    Options
	classes    map[string]*gatewayv1.GatewayClass      // by name
	gateways   map[string]*gatewayv1.Gateway           // by key
	namespaces map[string]map[string]string            // labels, by name
	services   map[string]*corev1.Service              // by key
	slices     map[string][]*discoveryv1.EndpointSlice // by the key of their Service
	pods       map[string][]*corev1.Pod                // by namespace
	byUID      map[types.UID]*corev1.Pod
	pools      map[string]bool // names of those made so far
	policies   policyIndex
	told       map[*Policy]bool // those of whose problems it is told

	out Translation
}

func (t *translator) find(f Finding) { t.out.Findings = append(t.out.Findings, f) }

func (t *translator) warn(f Finding) {
	f.Warning = true
	t.find(f)
}

// inferencePools makes a pool of each InferencePool, named by its key: every port
// of every pod that it selects and that is ready is an endpoint of its own.
func (t *translator) inferencePools() {
	for _, p := range sorted(t.objects.Pools, func(p *inferencev1.InferencePool) *metav1.ObjectMeta { return &p.ObjectMeta }) {
		about := object{"InferencePool", &p.ObjectMeta}
		selector := make(map[string]string, len(p.Spec.Selector.MatchLabels))
		for k, v := range p.Spec.Selector.MatchLabels {
			selector[string(k)] = string(v)
		}
		var ports []int32
		for _, port := range p.Spec.TargetPorts {
			ports = append(ports, int32(port.Number))
		}
		var scheme proxy.Scheme // HTTP
		switch p.Spec.AppProtocol {
		case "", inferencev1.AppProtocolHTTP:
		case inferencev1.AppProtocolH2C:
			scheme = proxy.SchemeH2C
		default:
			t.find(about.finding("spec.appProtocol", "", "%q: want http or kubernetes.io/h2c; its engines are asked by HTTP/1.1", p.Spec.AppProtocol))
		}
		ref := p.Spec.EndpointPickerRef
		port := int32(0)
		if ref.Port != nil {
			port = int32(ref.Port.Number)
		}
		picker := t.endpointPicker(about, "spec.endpointPickerRef", string(ref.Name), port, string(ref.FailureMode))
		t.inferencePool(about, selector, "spec.selector.matchLabels", ports, "spec.targetPorts", scheme, picker)
	}
	for _, p := range sorted(t.objects.AlphaPools, func(p *AlphaPool) *metav1.ObjectMeta { return &p.ObjectMeta }) {
		about := object{"InferencePool", &p.ObjectMeta}
		if t.pools[key(&p.ObjectMeta)] {
			t.warn(about.finding("", "", "there is one of this name in inference.networking.k8s.io/v1 as well: that one counts"))
			continue
		}
		var picker *proxy.Picker
		if ref := p.Spec.ExtensionRef; ref != nil {
			picker = t.endpointPicker(about, "spec.extensionRef", ref.Name, cmp.Or(value(ref.PortNumber), defaultPickerPort), value(ref.FailureMode))
		}
		t.inferencePool(about, p.Spec.Selector, "spec.selector", []int32{p.Spec.TargetPortNumber}, "spec.targetPortNumber", "", picker)
	}
}

// defaultPickerPort is where a pool of v1alpha2 has its endpoint picker asked.
const defaultPickerPort = 9002

// endpointPicker is the one that a pool names, a Service of its namespace; nil for
// none. One that is not there is not waited for: we pick as well.
func (t *translator) endpointPicker(about object, path, name string, port int32, mode string) *proxy.Picker {
	if name == "" {
		return nil
	}
	k := namespace(about.meta) + "/" + name
	s := t.services[k]
	if s == nil {
		t.warn(about.finding(path, "", "there is no Service %s: Fairway picks by itself", k))
		return nil
	}
	at := slices.IndexFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == port })
	if at < 0 {
		t.warn(about.finding(path, "", "Service %s has no port %d: Fairway picks by itself", k, port))
		return nil
	}
	return &proxy.Picker{
		Address:     net.JoinHostPort(t.host(s), strconv.Itoa(int(port))),
		FailureMode: proxy.FailureMode(cmp.Or(mode, string(proxy.FailClose))),
		Plain:       value(s.Spec.Ports[at].AppProtocol) == "kubernetes.io/h2c",
	}
}

func (t *translator) inferencePool(about object, selector map[string]string, selectorPath string, ports []int32, portPath string, scheme proxy.Scheme, picker *proxy.Picker) {
	if len(selector) == 0 {
		t.find(about.finding(selectorPath, "", "it selects nothing: want labels of the engines' pods"))
	}
	if len(ports) == 0 || slices.ContainsFunc(ports, func(p int32) bool { return p < 1 || p > 65535 }) {
		t.find(about.finding(portPath, "", "want the ports that the engines listen on, from 1 to 65535"))
		ports = nil
	}
	pool := proxy.Pool{Name: key(about.meta), Picker: picker}
	for _, pod := range t.pods[namespace(about.meta)] {
		if len(selector) == 0 || !selects(selector, pod.Labels) || !serves(pod) {
			continue
		}
		role, ok := t.role(pod)
		if !ok {
			continue
		}
		ranks := t.ranks(pod)
		cost := t.cost(pod)
		for _, port := range ports {
			e := proxy.Endpoint{Address: net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(int(port))), UID: string(pod.UID), Scheme: scheme, Ranks: ranks, Role: role}
			t.tunnel(&e, pod)
			e.Cost = cost
			pool.Endpoints = append(pool.Endpoints, e)
		}
	}
	if len(pool.Endpoints) > 0 && !slices.ContainsFunc(pool.Endpoints, func(e proxy.Endpoint) bool { return e.Role != proxy.RolePrefill }) {
		t.find(about.finding(selectorPath, "", "the pods that are ready all have a role of prefill (%s): no request is served", labelRole))
	}
	t.addPool(pool)
}

// annotationRanks says how many data-parallel engines are behind each port of a pod.
const annotationRanks = "fairway-proxy.github.io/ranks"

// ranks is how many engines a pod says that there are behind each of its ports; 0: it does not.
func (t *translator) ranks(p *corev1.Pod) int {
	said, ok := p.Annotations[annotationRanks]
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(said)
	if err != nil || n < 1 || n > proxy.MaxRanks {
		t.find(object{"Pod", &p.ObjectMeta}.finding("metadata.annotations["+annotationRanks+"]", "", "%.64q: want from 1 to %d; it counts as 1", said, proxy.MaxRanks))
		return 0
	}
	return n
}

// labelRole says what a pod does of a request (llm-d, its filter bylabel).
const labelRole = "llm-d.ai/role"

// role is what a pod's label makes it: as in llm-d, one without it serves requests and
// computes no prompts for others. Ok is false for one that does neither.
func (t *translator) role(p *corev1.Pod) (role proxy.Role, ok bool) {
	switch said := p.Labels[labelRole]; said {
	case "", "decode":
		return "", true
	case "both", "prefill-decode", "encode-prefill-decode":
		return proxy.RoleBoth, true
	case "prefill", "encode-prefill":
		return proxy.RolePrefill, true
	case "encode":
		return "", false
	default:
		t.find(object{"Pod", &p.ObjectMeta}.finding("metadata.labels["+labelRole+"]", "", "%q: want prefill, decode, prefill-decode (or both), or one of llm-d's with encode: it gets no requests", said))
		return "", false
	}
}

// cost is what a label of a pod says that a second of it costs; 0: it says nothing.
func (t *translator) cost(p *corev1.Pod) float64 {
	text, labelled := p.Labels[t.options.CostLabel]
	if !labelled || t.options.CostLabel == "" {
		return 0
	}
	cost, err := strconv.ParseFloat(text, 64)
	if err != nil || !(cost > 0 && cost <= proxy.MaxCost) {
		about := object{"Pod", &p.ObjectMeta}
		t.warn(about.finding("metadata.labels", "", "%s: %q: want a number above 0, up to %v; it counts as 1", t.options.CostLabel, text, proxy.MaxCost))
		return 0
	}
	return cost
}

// annotationRedirection says whether a ztunnel takes in a pod's traffic.
const annotationRedirection = "ambient.istio.io/redirection"

// tunnel has an endpoint reached through a tunnel if its pod is in the mesh: a
// ztunnel redirects its traffic, or it takes tunnels by itself (Istio, the annotation
// ambient.istio.io/redirection and the label networking.istio.io/tunnel).
func (t *translator) tunnel(e *proxy.Endpoint, p *corev1.Pod) {
	domain, err := spiffeid.TrustDomainFromString(t.options.TrustDomain)
	if err != nil || p.Spec.HostNetwork || p.Annotations[annotationRedirection] != "enabled" && p.Labels["networking.istio.io/tunnel"] != "http" {
		return
	}
	id, err := spiffeid.FromSegments(domain, "ns", namespace(&p.ObjectMeta), "sa", cmp.Or(p.Spec.ServiceAccountName, "default"))
	if err == nil {
		e.Scheme, e.Identity = proxy.SchemeHBONE, id
	}
}

func (t *translator) addPool(p proxy.Pool) {
	slices.SortFunc(p.Endpoints, func(a, b proxy.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.UID, b.UID))
	})
	p.Endpoints = slices.CompactFunc(p.Endpoints, func(a, b proxy.Endpoint) bool { return a.Address == b.Address })
	t.pools[p.Name] = true
	t.out.World.Pools = append(t.out.World.Pools, p)
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// serves tells whether a pod takes requests: it is ready and does not end.
func serves(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || p.Status.PodIP == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// models makes a model of each InferenceModel, and of each name that an
// InferenceModelRewrite gives another. Of two for one name in one pool the rewrite
// goes first, then the older.
func (t *translator) models() {
	taken := make(map[[2]string]string) // by pool and name: what it was taken by
	add := func(about object, path string, m proxy.Model) {
		id := about.kind + " " + key(about.meta)
		if by, twice := taken[[2]string{m.Pool, m.Name}]; twice {
			t.find(about.finding(path, "", "model %q of pool %s is that of %s already: this one does not count", m.Name, m.Pool, by))
			return
		}
		taken[[2]string{m.Pool, m.Name}] = id
		t.out.World.Models = append(t.out.World.Models, m)
	}
	t.rewrites(add)
	t.inferenceModels(add)
	t.objectives()
}

// addModel enters a model that an object names at a path, unless another object was first.
type addModel func(about object, path string, m proxy.Model)

func (t *translator) rewrites(add addModel) {
	for _, r := range sorted(t.objects.Rewrites, func(r *inferencev1alpha2.InferenceModelRewrite) *metav1.ObjectMeta { return &r.ObjectMeta }) {
		about := object{"InferenceModelRewrite", &r.ObjectMeta}
		if r.Spec.PoolRef == nil {
			t.find(about.finding("spec.poolRef", "", "missing: want the InferencePool it is for"))
			continue
		}
		pool, ok := t.poolRef(about, string(r.Spec.PoolRef.Kind), string(r.Spec.PoolRef.Name))
		if !ok {
			continue
		}
		for i, rule := range r.Spec.Rules {
			path := index("spec.rules", i)
			var targets []proxy.Target
			for _, target := range rule.Targets {
				targets = append(targets, proxy.Target{Name: target.ModelRewrite, Weight: int(cmp.Or(target.Weight, 1))})
			}
			if len(rule.Matches) == 0 {
				add(about, path, proxy.Model{Pool: pool, Targets: targets})
			}
			for j, m := range rule.Matches {
				if m.Model == nil {
					add(about, index(path+".matches", j), proxy.Model{Pool: pool, Targets: targets})
				} else {
					add(about, index(path+".matches", j), proxy.Model{Name: m.Model.Value, Pool: pool, Targets: targets})
				}
			}
		}
		// What no rule matches is passed on as it is asked.
		if !t.hasModels(pool) && !slices.ContainsFunc(t.out.World.Models, func(m proxy.Model) bool { return m.Pool == pool && m.Name == "" }) {
			add(about, "spec.rules", proxy.Model{Pool: pool})
		}
	}
}

func (t *translator) inferenceModels(add addModel) {
	for _, m := range sorted(t.objects.Models, func(m *InferenceModel) *metav1.ObjectMeta { return &m.ObjectMeta }) {
		about := object{"InferenceModel", &m.ObjectMeta}
		pool, ok := t.poolRef(about, m.Spec.PoolRef.Kind, m.Spec.PoolRef.Name)
		if !ok {
			continue
		}
		model := proxy.Model{Name: m.Spec.ModelName, Pool: pool, Criticality: proxy.Standard}
		if c := m.Spec.Criticality; c != nil {
			model.Criticality = proxy.Criticality(*c)
			if !slices.Contains([]proxy.Criticality{proxy.Critical, proxy.Standard, proxy.Sheddable}, model.Criticality) {
				t.find(about.finding("spec.criticality", "", "%q: want Critical, Standard or Sheddable; it counts as Standard", *c))
				model.Criticality = proxy.Standard
			}
		}
		if model.Name == "" {
			t.find(about.finding("spec.modelName", "", "missing: want the name that users ask for"))
			continue
		}
		sum := 0
		for i, target := range m.Spec.TargetModels {
			weight := 1
			if target.Weight != nil {
				weight = int(*target.Weight)
			}
			if (target.Weight == nil) != (m.Spec.TargetModels[0].Weight == nil) {
				t.find(about.finding(index("spec.targetModels", i)+".weight", "", "want a weight on all targets or on none; without one it counts as 1"))
			}
			if weight < 0 || target.Name == "" {
				t.find(about.finding(index("spec.targetModels", i), "", "want a name and a weight of 0 or more: it gets nothing"))
				continue
			}
			sum += weight
			model.Targets = append(model.Targets, proxy.Target{Name: target.Name, Weight: weight})
		}
		if len(model.Targets) > 0 && sum == 0 {
			t.find(about.finding("spec.targetModels", "", "the weights sum to 0: the model is asked for by its own name"))
			model.Targets = nil
		}
		add(about, "spec.modelName", model)
	}
}

func (t *translator) objectives() {
	ranked := make(map[[2]string]bool) // objectives by pool and name, which may stand in both groups
	for _, o := range sorted(t.objects.Objectives, func(o *inferencev1alpha2.InferenceObjective) *metav1.ObjectMeta { return &o.ObjectMeta }) {
		about := object{"InferenceObjective", &o.ObjectMeta}
		pool, ok := t.poolRef(about, string(o.Spec.PoolRef.Kind), string(o.Spec.PoolRef.Name))
		switch id := [2]string{pool, o.Name}; {
		case !ok:
		case ranked[id]:
			t.warn(about.finding("", "", "there is an older one of this name for pool %s in another group: that one counts", pool))
		default:
			ranked[id] = true
			t.out.World.Objectives = append(t.out.World.Objectives, proxy.Objective{Name: o.Name, Pool: pool, Priority: int(value(o.Spec.Priority))})
		}
	}
}

// hasModels tells whether an InferenceModel is for the pool: then the names it
// serves are all listed.
func (t *translator) hasModels(pool string) bool {
	return slices.ContainsFunc(t.objects.Models, func(m *InferenceModel) bool {
		return namespace(&m.ObjectMeta)+"/"+m.Spec.PoolRef.Name == pool
	})
}

// poolRef finds the pool that an object of the same namespace refers to.
func (t *translator) poolRef(about object, kind, name string) (pool string, ok bool) {
	pool = namespace(about.meta) + "/" + name
	if kind != "" && kind != "InferencePool" {
		t.find(about.finding("spec.poolRef.kind", "", "%s: want InferencePool", kind))
		return "", false
	}
	if !t.pools[pool] {
		t.find(about.finding("spec.poolRef.name", "", "there is no InferencePool %s", pool))
		return "", false
	}
	return pool, true
}

// servicePool makes the plain pool of a Service's port, unless there is one, and gives
// its name.
func (t *translator) servicePool(s *corev1.Service, port *corev1.ServicePort) string {
	name := key(&s.ObjectMeta) + ":" + strconv.Itoa(int(port.Port))
	if t.pools[name] {
		return name
	}
	pool := proxy.Pool{Name: name, Plain: true}
	var scheme proxy.Scheme // HTTP
	if speaks := protocol(port); speaks == proxy.PortH2C || speaks == proxy.PortGRPC {
		scheme = proxy.SchemeH2C
	}
	for _, slice := range t.family(s) {
		for _, p := range slice.Ports {
			if p.Port == nil || value(p.Name) != port.Name || value(p.Protocol) == corev1.ProtocolUDP {
				continue
			}
			for _, e := range slice.Endpoints {
				if !isReady(e) || len(e.Addresses) == 0 {
					continue
				}
				endpoint := proxy.Endpoint{Address: net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))), Scheme: scheme}
				if e.TargetRef != nil {
					endpoint.UID = string(e.TargetRef.UID)
					if pod := t.byUID[e.TargetRef.UID]; pod != nil {
						t.tunnel(&endpoint, pod)
					}
				}
				pool.Endpoints = append(pool.Endpoints, endpoint)
			}
		}
	}
	t.addPool(pool)
	return name
}

// isReady tells whether an endpoint takes requests; nothing said means that it does.
func isReady(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }

// family gives the slices of a Service whose addresses are of one kind: in dual stack
// a pod is in one of each, and counts once. The Service's first family goes first.
func (t *translator) family(s *corev1.Service) (out []*discoveryv1.EndpointSlice) {
	kinds := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	if len(s.Spec.IPFamilies) > 0 && s.Spec.IPFamilies[0] == corev1.IPv6Protocol {
		slices.Reverse(kinds)
	}
	for _, kind := range kinds {
		some := false
		for _, slice := range t.slices[key(&s.ObjectMeta)] {
			if slice.AddressType == kind || slice.AddressType == "" && kind == discoveryv1.AddressTypeIPv4 {
				out, some = append(out, slice), some || len(slice.Endpoints) > 0
			}
		}
		if some {
			break
		}
		out = nil
	}
	return out
}

// sorted gives objects in their order of precedence, the oldest first.
func sorted[T any](objects []T, meta func(T) *metav1.ObjectMeta) []T {
	out := slices.Clone(objects)
	slices.SortStableFunc(out, func(a, b T) int { return older(meta(a), meta(b)) })
	return out
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// value is what p points to, or else the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// groupOf is the group of a reference, which may leave it out.
func groupOf(g *gatewayv1.Group, otherwise string) string {
	if g == nil {
		return otherwise
	}
	return string(*g)
}
