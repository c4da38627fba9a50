//go:build e2e

package kube_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// settings are ways to install the chart.
var settings = map[string][]string{
	"as it is": nil,
	"all that can be on": {"--set", "plain.enabled=true,autoscaling.enabled=true,metrics.serviceMonitor.enabled=true,gateway.allowedRoutes=All,gateway.waypointFor=all",
		"--set", "image.pullSecrets={registry},priorityClassName=system-cluster-critical,nodeSelector.pool=cpu,commonLabels.team=ai,podAnnotations.a=b,podLabels.c=d,extraArgs={--log-level=debug}",
		"--set-json", `tolerations=[{"key":"cpu","operator":"Exists"}]`, "--set-json", `affinity={"podAntiAffinity":{}}`,
		"--set-json", `config={"limits":{"body":"16MiB"},"timeouts":{"stream_idle":"5m"}}`,
		"--set-json", `extraVolumes=[{"name":"keys","secret":{"secretName":"keys"}}]`, "--set-json", `extraVolumeMounts=[{"name":"keys","mountPath":"/keys"}]`, "--set-json", `extraEnv=[{"name":"SSL_CERT_FILE","value":"/keys/ca.pem"}]`},
	"all that can be off": {"--set", "gatewayClass.create=false,gateway.create=false,mesh.enabled=false,plain.enabled=true,serviceAccount.create=false,serviceAccount.name=other,rbac.create=false",
		"--set", "podDisruptionBudget.enabled=false,metrics.annotations=false,topologySpread=false,accessLog=false"},
	"without a mesh": {"--set", "mesh.enabled=false,plain.enabled=true"},
	"with SPIRE":     {"--set-json", `mesh={"trustDomain":"example.org","identity":{"spiffe":{}}}`},
}

// The chart is what helm lints, and the API server takes each manifest of each way to install it.
func TestChart(t *testing.T) {
	c := theCluster
	c.set(t, "{apiVersion: v1, kind: Namespace, metadata: {name: chart}}")
	for name, flags := range settings {
		t.Run(name, func(t *testing.T) {
			out, err := helm(append([]string{"lint", chart, "--strict", "--namespace", "chart"}, flags...)...)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out, "0 chart(s) failed") {
				t.Errorf("helm lint: %s", out)
			}
			text, err := helm(append([]string{"template", "release", chart, "--namespace", "chart"}, flags...)...)
			if err != nil {
				t.Fatal(err)
			}
			objects, err := parse(text)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range objects {
				c.dryRun(t, o)
			}
			if len(objects) < 3 {
				t.Errorf("%d manifests", len(objects))
			}
			t.Logf("%d manifests taken", len(objects))
			readable(t, objects)
			led(t, objects)
			uncaptured(t, objects)
		})
	}
}

// led holds that the Service leads to each listener that the Gateway has: else it would never get an address.
func led(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	ports := func(kind, field string) (all []any) {
		for _, o := range objects {
			if o.GetKind() != kind {
				continue
			}
			list, _, _ := unstructured.NestedSlice(o.Object, "spec", field)
			for _, each := range list {
				all = append(all, each.(map[string]any)["port"])
			}
		}
		return all
	}
	served := ports("Service", "ports")
	for _, port := range ports("Gateway", "listeners") {
		if !slices.Contains(served, port) {
			t.Errorf("the Gateway listens at %v, the Service has %v", port, served)
		}
	}
}

// uncaptured holds that no mesh takes in what the pods send, whatever the namespace says.
func uncaptured(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() != "Deployment" {
			continue
		}
		labels, _, _ := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "labels")
		if labels["istio.io/dataplane-mode"] != "none" || labels["sidecar.istio.io/inject"] != "false" {
			t.Errorf("pods are captured: %v", labels)
		}
	}
}

// What docs/kubernetes.md says that Fairway needs is what the chart lets it do.
func TestDocumentedRights(t *testing.T) {
	page, err := os.ReadFile("../../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, documented, _ := strings.Cut(string(page), "```yaml\napiVersion: rbac.authorization.k8s.io/v1\n")
	documented, _, _ = strings.Cut("apiVersion: rbac.authorization.k8s.io/v1\n"+documented, "```")
	charted, err := helm("template", "fairway", chart)
	if err != nil {
		t.Fatal(err)
	}
	rights := func(text string) (all []string) {
		objects, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
			for _, rule := range rules {
				list := func(name string) []string {
					values, _, _ := unstructured.NestedStringSlice(rule.(map[string]any), name)
					return values
				}
				for _, verb := range list("verbs") {
					for _, group := range list("apiGroups") {
						for _, resource := range list("resources") {
							all = append(all, verb+" "+resource+"."+group)
						}
					}
				}
			}
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	said, given := rights(documented), rights(charted)
	for _, right := range said {
		if !slices.Contains(given, right) {
			t.Errorf("the chart does not let it %s", right)
		}
	}
	for _, right := range given {
		if !slices.Contains(said, right) {
			t.Errorf("docs/kubernetes.md does not say that it has to %s", right)
		}
	}
	if len(given) < 20 {
		t.Errorf("%d rights: %s", len(given), given)
	}
}

// readable holds that Fairway takes the settings that a ConfigMap of the chart has.
func readable(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	at := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "ConfigMap" })
	text, _, _ := unstructured.NestedString(objects[at].Object, "data", "fairway.yaml")
	path := filepath.Join(t.TempDir(), "fairway.yaml")
	text += "\npools: [{name: p, endpoints: [\"http://127.0.0.1:1\"]}]\n" // the rest of what a file without Kubernetes has to say
	if strings.Contains(text, "hbone: :15008") {
		text += "waypoint_for: workload\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(os.Getenv("E2E_BIN"), "fairway"), "check", "-f", path).CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, text)
	}
}

// Values that mean nothing are refused.
func TestChartRefuses(t *testing.T) {
	for _, set := range []string{"replicas=many", "replica=2", "gateway.allowedRoutes=Some", "config.pools[0].name=x", "mesh.identity.password=x", "logLevel=loud", "mesh.enabled=false", "drainSeconds=0", "config.timeouts.drain=10m"} {
		if out, err := helm("template", "release", chart, "--set", set); err == nil {
			t.Errorf("--set %s is taken:\n%.300s", set, out)
		}
	}
}

// The API server takes the example manifests, and `fairway check` finds nothing wrong with them.
func TestExamples(t *testing.T) {
	c := theCluster
	n := 0
	err := filepath.WalkDir("../../../deploy/kubernetes", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		objects, err := parse(string(text))
		for _, o := range objects {
			if o.GetNamespace() != "" {
				err = errors.Join(err, c.put(namespaceNamed(o.GetNamespace())))
			}
			c.dryRun(t, o)
			n++
		}
		return err
	})
	if err != nil || n < 5 {
		t.Fatalf("%d manifests: %v", n, err)
	}
	t.Logf("%d manifests taken", n)

	// With what the chart installs, Services of the namespace are bound to its waypoint.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../../deploy/kubernetes")); err != nil {
		t.Fatal(err)
	}
	text, err := helm("template", "waypoint", chart, "--namespace", "ai-workloads")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "chart.yaml"), []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(os.Getenv("E2E_BIN"), "fairway"), "check", "-f", dir).CombinedOutput()
	if err != nil || strings.Contains(string(out), "uses no waypoint") {
		t.Errorf("%v: %s", err, out)
	}
}

// dryRun has the API server say whether it would take an object.
func (c *cluster) dryRun(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	data, err := json.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.resource(o).Patch(context.Background(), o.GetName(), types.ApplyPatchType, data,
		metav1.PatchOptions{FieldManager: "e2e", Force: new(true), DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
	}
}

// What the chart lets Fairway do is enough to see everything that it asks for, and not more than it needs.
func TestRights(t *testing.T) {
	f := startFairway(t, "")
	if text := f.Output(); strings.Contains(text, "does not let us see") {
		t.Errorf("something is hidden:\n%s", text)
	}
	config := theCluster.kubeconfig(t, systemNamespace, "fairway")
	can := func(args ...string) string {
		out, _ := exec.Command(filepath.Join(os.Getenv("E2E_KUBERNETES"), "kubectl"), append([]string{"--kubeconfig", config, "auth", "can-i", "-n", systemNamespace}, args...)...).CombinedOutput()
		lines := strings.Fields(string(out)) // warnings come first
		return lines[len(lines)-1]
	}
	for _, beyond := range []string{"get secrets", "list secrets", "list configmaps", "create pods", "delete pods", "update services", "patch deployments", "create pods/exec", "impersonate users", "create clusterrolebindings", "update gateways", "delete httproutes"} {
		if got := can(strings.Fields(beyond)...); got != "no" {
			t.Errorf("it can %s: %s", beyond, got)
		}
	}
	for _, needed := range []string{"watch pods", "list inferencepools.inference.networking.k8s.io", "watch httproutes.gateway.networking.k8s.io"} {
		if got := can(strings.Fields(needed)...); got != "yes" {
			t.Errorf("it cannot %s: %s", needed, got)
		}
	}
}
