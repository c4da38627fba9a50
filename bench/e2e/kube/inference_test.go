//go:build e2e

package kube_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

const (
	inferenceInfra   = "inference-conformance-infra"
	inferenceBackend = "inference-conformance-app-backend"
)

// parentConditions gives the conditions that we report of a parent, as type=status/reason, by the parent's name.
func parentConditions(o *unstructured.Unstructured) map[string]string {
	out := make(map[string]string)
	parents, _, _ := unstructured.NestedSlice(o.Object, "status", "parents")
	for _, p := range parents {
		entry := p.(map[string]any)
		if entry["controllerName"] != ourController {
			continue
		}
		name, _, _ := unstructured.NestedString(entry, "parentRef", "name")
		all, _, _ := unstructured.NestedSlice(entry, "conditions")
		for _, one := range all {
			c := one.(map[string]any)
			out[name] += fmt.Sprintf("%v=%v/%v ", c["type"], c["status"], c["reason"])
		}
	}
	return out
}

// The Inference Extension's conformance cases: its manifests, applied to the API server, and what its tests look for in
// status and in answers. docs/conformance.md lists them.
func TestInferenceConformance(t *testing.T) {
	page, err := os.ReadFile("../../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	c := theCluster
	dir := os.Getenv("E2E_INFERENCE")
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(text), "{GATEWAY_CLASS_NAME}", "fairway-waypoint")
	}
	base, err := parse(read("resources/base.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range base {
		switch o.GetKind() {
		case "Namespace", "Gateway", "Service", "InferencePool":
			if err := c.put(o); err != nil {
				t.Fatal(err)
			}
			if o.GetKind() != "Namespace" {
				t.Cleanup(func() { c.remove(t, o) })
			}
		}
	}
	for _, gateway := range []string{"conformance-primary", "conformance-secondary"} {
		c.apply(t, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: %s}, spec: {ports: [{name: http, port: 80}]}}", gateway, inferenceInfra))
	}
	servers := make(map[string]*echo)
	for _, pool := range []string{"primary", "secondary"} {
		servers[pool] = startEchoAt(t, 3000, inferenceBackend, pool+"-0", fmt.Sprintf("{app: %s-inference-model-server}", pool))
	}
	f := startFairway(t, "pickers: embedded\n") // nothing stands behind the Services of the endpoint pickers
	client := plainClient(t)
	// ask sends a request and gives its status and who answered.
	ask := func(host, path string) (int, string) {
		before := make(map[string]int)
		for pool, e := range servers {
			before[pool] = e.chosen()[""]
		}
		r, err := http.NewRequest("GET", "http://"+f.http+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := client.Do(r)
		if err != nil {
			return 0, ""
		}
		resp.Body.Close()
		for pool, e := range servers {
			if e.chosen()[""] > before[pool] {
				return resp.StatusCode, pool
			}
		}
		return resp.StatusCode, ""
	}
	answers := func(t *testing.T, host, path string, status int, pool string) {
		t.Helper()
		process.Await(t, patience, fmt.Sprintf("%s%s: %d by %q", host, path, status, pool), func() bool {
			gotStatus, gotPool := ask(host, path)
			return gotStatus == status && gotPool == pool
		})
	}
	says := func(t *testing.T, kind, name, parent string, conditions ...string) {
		t.Helper()
		apiVersion := "gateway.networking.k8s.io/v1"
		if kind == "InferencePool" {
			apiVersion = "inference.networking.k8s.io/v1"
		}
		var got string
		process.Await(t, patience, fmt.Sprintf("%s %s says of %s: %v", kind, name, parent, conditions), func() bool {
			got = parentConditions(c.object(t, apiVersion, kind, inferenceBackend, name))[parent]
			for _, want := range conditions {
				if !strings.Contains(got, want+" ") {
					return false
				}
			}
			return len(conditions) > 0 || got == ""
		})
	}
	const primary, secondary, pool = "conformance-primary", "conformance-secondary", "primary-inference-pool"
	cases := map[string]struct {
		manifest string
		test     func(t *testing.T)
	}{
		"InferencePoolAccepted": {"inferencepool_accepted.yaml", func(t *testing.T) {
			says(t, "HTTPRoute", "httproute-for-inferencepool-accepted", primary, "Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs")
			says(t, "InferencePool", pool, primary, "Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs")
			answers(t, "primary.example.com", "/accepted-pool-test", 200, "primary")
		}},
		"InferencePoolInvalidEPPService": {"inferencepool_invalid_epp_service.yaml", func(t *testing.T) {
			says(t, "HTTPRoute", "httproute-for-invalid-epp-pool", primary, "Accepted=True/Accepted")
			says(t, "InferencePool", "pool-with-invalid-epp", primary, "ResolvedRefs=False/InvalidExtensionRef")
		}},
		"HTTPRouteInvalidInferencePoolRef": {"httproute_invalid_inferencepool_ref.yaml", func(t *testing.T) {
			says(t, "HTTPRoute", "httproute-to-non-existent-pool", primary, "Accepted=True/Accepted", "ResolvedRefs=False/BackendNotFound")
			answers(t, "primary.example.com", "/test-non-existent-pool", 500, "")
		}},
		"HTTPRouteMultipleGatewaysDifferentPools": {"httproute_multiple_gateways_different_pools.yaml", func(t *testing.T) {
			answers(t, "primary.example.com", "/test-primary-gateway", 200, "primary")
			answers(t, "secondary.example.com", "/test-secondary-gateway", 200, "secondary")
			answers(t, "primary.example.com", "/test-secondary-gateway", 404, "")
		}},
		"InferencePoolHTTPRoutePortValidation": {"inferencepool_httproute_port_validation.yaml", func(t *testing.T) {
			for _, port := range []string{"unspecified", "matching", "non-matching"} {
				says(t, "HTTPRoute", "httproute-pool-port-"+port, primary, "Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs")
				answers(t, "port-"+port+".example.com", "/test-port-"+port, 200, "primary")
			}
		}},
		"HTTPRouteMultipleRulesDifferentPools": {"inferencepool_multiple_rules_different_pools.yaml", func(t *testing.T) {
			answers(t, "primary.example.com", "/primary", 200, "primary")
			answers(t, "primary.example.com", "/secondary", 200, "secondary")
		}},
		"GatewayWeightedAcrossTwoInferencePools": {"gateway_weighted_two_pools.yaml", func(t *testing.T) {
			answers(t, "primary.example.com", "/weighted-two-pools-test", 200, "primary")
			counts := make(map[string]int)
			for range 300 {
				_, by := ask("primary.example.com", "/weighted-two-pools-test")
				counts[by]++
			}
			if counts["primary"] < 150 || counts["secondary"] < 45 || counts[""] > 0 {
				t.Errorf("70 to 30 was %v", counts)
			}
		}},
		"InferencePoolResolvedRefsCondition": {"inferencepool_resolvedrefs_condition.yaml", func(t *testing.T) {
			for _, gateway := range []string{primary, secondary} {
				says(t, "InferencePool", pool, gateway, "Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs")
			}
			answers(t, "primary.example.com", "/primary-gateway-test", 200, "primary")
			answers(t, "secondary.example.com", "/secondary-gateway-test", 200, "primary")
			for _, gone := range [][2]string{{"httproute-for-primary-gw", primary}, {"httproute-for-secondary-gw", secondary}} {
				c.remove(t, mustParse(t, fmt.Sprintf("{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {namespace: %s, name: %s}}", inferenceBackend, gone[0])))
				says(t, "InferencePool", pool, gone[1])
			}
			answers(t, "primary.example.com", "/primary-gateway-test", 404, "")
		}},
	}
	_, ours, _ := strings.Cut(string(page), "\n## Inference Extension\n")
	listed := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| pass").FindAllStringSubmatch(ours, -1) {
		listed[m[1]] = true
	}
	if len(listed) != len(cases) {
		t.Errorf("docs/conformance.md lists %d as passed, %d are run", len(listed), len(cases))
	}
	for name, one := range cases {
		if !listed[name] {
			t.Errorf("docs/conformance.md does not list %s as passed", name)
		}
		t.Run(name, func(t *testing.T) {
			c.apply(t, read("tests/"+one.manifest))
			one.test(t)
		})
	}
}
