//go:build e2e

package kube_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// The commands of docs/install.md, but for those that want nodes, a mesh or the internet, do what the page says: the
// request that it sends is answered, and nothing is left after its teardown.
func TestDocumentedInstall(t *testing.T) {
	c := theCluster
	page, err := os.ReadFile("../../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	install, teardown, _ := strings.Cut(string(page), "\n## Teardown\n")
	teardown, _, _ = strings.Cut(teardown, "\n## ")
	config := c.writeKubeconfig(t, "default", c.config.BearerToken)
	bin := t.TempDir()
	for name, path := range map[string]string{"kubectl": filepath.Join(os.Getenv("E2E_KUBERNETES"), "kubectl"), "helm": os.Getenv("E2E_HELM")} {
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := regexp.MustCompile(`^(istioctl|make|kind) |https://|rollout status| run curl `)
	run := func(text string) (ran int) {
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
			for line := range strings.Lines(block[1]) {
				line = strings.TrimSpace(line)
				if elsewhere.MatchString(line) {
					continue
				}
				cmd := exec.Command("bash", "-c", line)
				cmd.Dir = "../../.."
				cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "PATH="+bin+":"+os.Getenv("PATH"))
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%s: %v\n%s", line, err, out)
				}
				t.Logf("%s\n%s", line, out)
				ran++
			}
		}
		return ran
	}
	t.Cleanup(func() { c.finalize(t, "ai-workloads") })
	// The chart of all tests has brought the GatewayClass, which is another release's then.
	c.remove(t, mustParse(t, "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: fairway-waypoint}}"))
	defer func() {
		if err := c.installChart(); err != nil {
			t.Error(err)
		}
	}()
	if n := run(install); n < 4 {
		t.Fatalf("%d commands: this test shows little", n)
	}

	// What the Deployment's pods would be.
	deployment := c.object(t, "apps/v1", "Deployment", "ai-workloads", "llama-server")
	containers := deployment.Object["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)
	args := []string{"--speed", "100"}
	for _, a := range containers[0].(map[string]any)["args"].([]any) {
		args = append(args, a.(string))
	}
	startPod(t, &pod{namespace: "ai-workloads", name: "llama-server-0", labels: "{app: llama-server, version: v1}", args: args})
	f := startFairwayAs(t, "ai-workloads", "waypoint", "")
	process.Await(t, patience, "the engine is an endpoint", func() bool { return f.endpoints() > 0 })
	m := regexp.MustCompile(`curl -sS http://(\S+?)(/\S+) .* -d '(.*)'`).FindStringSubmatch(string(page))
	service := c.object(t, "v1", "Service", "ai-workloads", m[1])
	vip := service.Object["spec"].(map[string]any)["clusterIP"].(string)
	client := through(t, f.client(t, "ai-workloads", "default"), net.JoinHostPort(vip, "80"))
	process.Await(t, patience, "the waypoint takes the Service", func() bool {
		a, err := post(client, "http://"+m[1]+m[2], m[3])
		return err == nil && a.status == 200
	})

	if n := run(teardown); n < 4 {
		t.Fatalf("%d commands: this test shows little", n)
	}
	for _, kind := range []string{"deployments", "services", "gateways", "inferencepools.inference.networking.x-k8s.io", "httproutes", "serviceaccounts", "clusterroles", "gatewayclasses"} {
		out, err := exec.Command(filepath.Join(bin, "kubectl"), "--kubeconfig", config, "-n", "ai-workloads", "get", kind, "-o", "name").CombinedOutput()
		if err != nil || strings.Contains(string(out), "waypoint") || strings.Contains(string(out), "llama") {
			t.Errorf("left of %s: %v %s", kind, err, out)
		}
	}
}
