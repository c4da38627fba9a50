// Package kube makes a proxy.World out of Kubernetes objects: InferencePools and
// what is said of their models, HTTPRoutes, and the Services that a waypoint
// stands in front of.
//
// Translate is a pure function from a set of objects to a Translation: the World,
// the Services, and Findings about what cannot be served as it was meant. A bad
// object takes nothing down but itself. The set may come from an API server or,
// offline, from manifests (Manifests).
package kube

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	inferencev1alpha2 "sigs.k8s.io/gateway-api-inference-extension/apix/v1alpha2"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fairway-proxy/fairway/proxy"
)

// What our objects are called.
const (
	ClassName      = "fairway-waypoint"
	ControllerName = "fairway-proxy.github.io/waypoint-controller"
)

// Objects is a set of objects as they were declared. Nil fields that the API
// server would fill in mean its defaults. Translate only reads it.
type Objects struct {
	Pools      []*inferencev1.InferencePool
	AlphaPools []*AlphaPool // of the same name as one of Pools: left out
	Models     []*InferenceModel
	Objectives []*inferencev1alpha2.InferenceObjective
	Rewrites   []*inferencev1alpha2.InferenceModelRewrite
	Routes     []*gatewayv1.HTTPRoute
	Grants     []*gatewayv1.ReferenceGrant
	Gateways   []*gatewayv1.Gateway
	Classes    []*gatewayv1.GatewayClass
	Services   []*corev1.Service
	Slices     []*discoveryv1.EndpointSlice
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
	Policies   []*Policy
}

// Options are what the objects do not say.
type Options struct {
	// TrustDomain is that of the mesh's identities. Pods that are in the mesh are
	// reached by tunnels then; empty: all in plain text.
	TrustDomain string
	// Cluster is what metrics call the cluster; empty: DefaultCluster.
	Cluster string
	// ClusterDomain is that of the names of Services; empty: DefaultClusterDomain.
	ClusterDomain string
	// Gateway is the one that this process serves, "namespace/name"; empty: all of
	// our classes.
	Gateway string
	// RootNamespace is where policies for a GatewayClass are; empty:
	// DefaultRootNamespace.
	RootNamespace string
	// Providers are the names of the external authorizers that there are; nil: they are
	// not known.
	Providers []string
	// CostLabel is the label of engines' pods that says what a second of them costs;
	// empty: none does.
	CostLabel string
	// Closed are the protocols of listeners that this process has not open.
	Closed []gatewayv1.ProtocolType
}

// DefaultCluster is what Istio calls a cluster that was given no name.
const DefaultCluster = "Kubernetes"

// DefaultClusterDomain is the domain of a cluster's names unless it was given
// another one.
const DefaultClusterDomain = "cluster.local"

// Translation is what a set of Objects says.
type Translation struct {
	// World has the pools, the models, the routes of the plain listener (those of
	// HTTPRoutes whose parent is a Gateway of ours), and the Services that are bound
	// to a waypoint of ours. Its settings are left zero.
	World proxy.World
	// Services are those of the World, and those that have routes without being
	// bound, in the order of their keys.
	Services []Service
	// Attachments are what became of the parentRefs of HTTPRoutes, as far as they
	// are ours to judge.
	Attachments []Attachment
	Findings    []Finding

	claims   []string        // of the Gateways of ours
	policies map[string]bool // those that are in force with us, or would be, by kind and key
}

// Attachment is what became of a parentRef that means a Gateway we serve, or a
// Service that uses one for its waypoint.
type Attachment struct {
	Route   string // the HTTPRoute's key
	Parent  int    // which of its parentRefs
	Gateway string // the Gateway's key
	// Listeners of the Gateway that have the route; none for a parent that is a
	// Service.
	Listeners []gatewayv1.SectionName
	// Reason and Message say why the route is not attached, as in its condition
	// Accepted; empty: it is.
	Reason, Message string
}

// Service is a Service that a waypoint stands, or could stand, in front of.
type Service struct {
	Key string // "namespace/name"
	// Bound tells whether it uses a waypoint of ours.
	Bound bool
	claim string // of a Service that is bound, and its Gateway
	proxy.Service
}

// Finding is something that is not served as it was meant.
type Finding struct {
	// Warning is one that takes nothing away.
	Warning bool
	// Kind, Namespace and Name say which object it is about, and Path where in it:
	// "spec.rules[0].backendRefs[1]".
	Kind, Namespace, Name, Path string
	// Reason is the word for a condition of a route's status, such as
	// BackendNotFound; empty where the API has none.
	Reason  string
	Message string
}

func (f Finding) String() string {
	where := f.Kind + " " + f.Namespace + "/" + f.Name
	if f.Path != "" {
		where += ": " + f.Path
	}
	return where + ": " + f.Message
}

// object names one in findings.
type object struct {
	kind string
	meta *metav1.ObjectMeta
}

func (o object) finding(path, reason, format string, args ...any) Finding {
	return Finding{Kind: o.kind, Namespace: namespace(o.meta), Name: o.meta.Name, Path: path, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// namespace is an object's; a manifest may leave it out.
func namespace(m *metav1.ObjectMeta) string {
	if m.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return m.Namespace
}

// key names an object in its kind: "namespace/name".
func key(m *metav1.ObjectMeta) string { return namespace(m) + "/" + m.Name }

// older has the older object first, and of one age that whose key comes first: the
// Gateway API's way to settle conflicts.
func older(a, b *metav1.ObjectMeta) int {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	}
	return strings.Compare(key(a), key(b))
}
