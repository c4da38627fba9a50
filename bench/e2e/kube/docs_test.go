//go:build e2e

package kube_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
)

// The commands of docs/kubernetes.md and docs/doctor.md that ask a cluster do what the pages say, of the objects that the
// former has: those that serve become ready and serve the pool, the doctor finds its engine well.
func TestDocumentedCommands(t *testing.T) {
	if os.Getenv("E2E_NETWORK") == "" {
		t.Skip("they listen at the ports of the contract, which takes a network of its own")
	}
	block := func(page, language string) []string {
		text, err := os.ReadFile("../../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
		return all
	}
	c := theCluster
	c.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: ai-workloads}}")
	c.apply(t, block("docs/kubernetes.md", "yaml")[0])
	startPod(t, &pod{namespace: "ai-workloads", name: "documented", labels: "{app: llama-server}",
		args: []string{"--model", "llama-3-8b", "--lora", "llama-3-8b-customer-v1", "--lora", "llama-3-8b-customer-v2"}})

	dir := t.TempDir()
	ca, err := ztunnel.NewAuthority(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ca.Issue(ca.ID("ai-workloads", "waypoint"), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	crt, key, err := ztunnel.PEM(certificate)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"settings.yaml": "tls: {files: {certificate: tls.crt, key: tls.key, roots: root.pem}}\n", "tls.crt": string(crt), "tls.key": string(key), "root.pem": string(ca.PEM())} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := c.writeKubeconfig(t, "default", c.config.BearerToken)
	served, asked := 0, 0
	for _, text := range append(block("docs/kubernetes.md", "sh"), block("docs/doctor.md", "sh")...) {
		for line := range strings.Lines(text) {
			if !strings.Contains(line, " --kubernetes") {
				continue // e2e-observe runs it
			}
			line = strings.TrimSpace(line)
			cmd := exec.Command("bash", "-c", "exec "+line)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "PATH="+os.Getenv("E2E_BIN")+":"+os.Getenv("PATH"))
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if strings.HasPrefix(line, "fairway doctor ") {
				if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), `"ok": true`) {
					t.Errorf("%s: %v\n%s", line, err, out)
				}
				asked++
				continue
			}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			process.Await(t, patience, line, func() bool {
				status, page := get("http://127.0.0.1:15000/endpoints")
				return status == 200 && strings.Contains(page, `"pool": "ai-workloads/llama-pool"`)
			})
			cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v\n%s", line, err, &out)
			}
			served++
		}
	}
	if served < 2 || asked < 1 {
		t.Errorf("%d and %d commands were run: this test shows little", served, asked)
	}
}
