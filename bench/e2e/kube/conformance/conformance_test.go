// Package conformance_test runs the Gateway API's conformance tests against a Fairway that takes plain HTTP and tunnels.
//
// What of a cluster these tests lean on and the API server alone is not, kubelet does: pods, their endpoints, Services for
// Gateways, and commands that are run in pods.
package conformance_test

import (
	"cmp"
	"context"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/config"
	"sigs.k8s.io/gateway-api/conformance/utils/roundtripper"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// Where things are, as the tests of the folder above say.
var (
	plain = os.Getenv("FAIRWAY_HTTP")     // Fairway's plain listener
	mesh  = os.Getenv("FAIRWAY_MESH")     // takes a line with an address, and is a tunnel to it then
	echo  = os.Getenv("CONFORMANCE_ECHO") // the echo server of the conformance tests
)

func TestConformance(t *testing.T) {
	if plain == "" {
		t.Skip("bench/e2e/kube/e2e.sh runs this")
	}
	k := startKubelet(t)
	t.Setenv("KUBECONFIG", k.kubeconfig)
	opts := conformance.DefaultOptions(t)
	opts.GatewayClassName = "fairway-waypoint"
	opts.NamespaceLabels = map[string]string{"istio.io/use-waypoint": "waypoint", "istio.io/use-waypoint-namespace": "conformance"}
	opts.CleanupBaseResources, opts.CleanupTestResources = true, true
	opts.TimeoutConfig = quick(opts.TimeoutConfig)
	opts.ManifestFS = []fs.FS{manifests{}}
	opts.RoundTripper = toPlain{&roundtripper.DefaultRoundTripper{TimeoutConfig: opts.TimeoutConfig, CustomDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", plain)
	}}}
	opts.WebSocketDialer = toPlain{}
	// It changes HTTPS listeners, and takes minutes to find that they are none.
	opts.SkipTests = []string{"GatewayModifyListeners"}
	all := features.SetsToNamesSet(features.GatewayCoreFeatures, features.HTTPRouteCoreFeatures, features.HTTPRouteExtendedFeatures, features.ReferenceGrantCoreFeatures,
		features.MeshCoreFeatures, features.MeshExtendedFeatures)
	all = all.Difference(sets.New[features.FeatureName](features.SupportMeshConsumerRoute, features.SupportHTTPRouteCORS))
	opts.SupportedFeatures = all.UnsortedList()
	opts.ConformanceProfiles = []suite.ConformanceProfileName{suite.GatewayHTTPConformanceProfileName, suite.MeshHTTPConformanceProfileName}
	conformance.RunConformanceWithOptions(t, opts)
}

// toPlain has all requests to Gateways go to Fairway.
type toPlain struct {
	*roundtripper.DefaultRoundTripper
}

// CaptureRoundTrip has its own way for HTTP/2 without TLS, which dials by the URL.
func (p toPlain) CaptureRoundTrip(r roundtripper.Request) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
	if r.Protocol == roundtripper.H2CPriorKnowledgeProtocol {
		r.Host, r.URL.Host = cmp.Or(r.Host, r.URL.Host), plain
	}
	return p.DefaultRoundTripper.CaptureRoundTrip(r)
}

func (p toPlain) Dial(url, protocol, origin string) (*websocket.Conn, error) {
	c, err := websocket.NewConfig(url, origin)
	if err != nil {
		return nil, err
	}
	if protocol != "" {
		c.Protocol = []string{protocol}
	}
	conn, err := net.Dial("tcp", plain)
	if err != nil {
		return nil, err
	}
	return websocket.NewClient(c, conn)
}

// quick are time-outs for one machine without a network: what has not come about after some seconds will not.
func quick(c config.TimeoutConfig) config.TimeoutConfig {
	for _, d := range []*time.Duration{&c.GatewayMustHaveAddress, &c.GatewayMustHaveCondition, &c.GatewayStatusMustHaveListeners, &c.GatewayListenersMustHaveConditions,
		&c.GWCMustBeAccepted, &c.HTTPRouteMustNotHaveParents, &c.HTTPRouteMustHaveCondition, &c.RouteMustHaveParents, &c.LatestObservedGenerationSet, &c.DefaultTestTimeout, &c.MaxTimeToConsistency} {
		*d = 6 * time.Second
	}
	c.NamespacesMustBeReady, c.RequiredConsecutiveSuccesses = time.Minute, 1
	return c
}

// manifests are those of the conformance tests, with the Gateway for HTTPS out of what has to be ready before any test:
// Fairway has no HTTPS listeners in Kubernetes.
type manifests struct{}

func (manifests) Open(name string) (fs.File, error) {
	f, err := conformance.Manifests.Open(name)
	if err != nil || name != "base/manifests.yaml" {
		return f, err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	const https = "  name: same-namespace-with-https-listener\n"
	changed := strings.Replace(string(text), https, https+"  annotations: {gateway-api/skip-this-for-readiness: \"true\"}\n", 1)
	return fstest.MapFS{name: {Data: []byte(changed)}}.Open(name)
}
