//go:build e2e

package kube_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
)

// The Gateway API's conformance tests say of each case what docs/conformance.md says.
func TestConformance(t *testing.T) {
	if os.Getenv("E2E_NETWORK") == "" {
		t.Skip("pods need addresses that are not loopback's")
	}
	page, err := os.ReadFile("../../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, _ := strings.Cut(string(page), "\n## Inference Extension\n")
	documented := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (pass|fail|not run)").FindAllStringSubmatch(theirs, -1) {
		documented[m[1]] = m[2]
	}

	c := theCluster
	c.apply(t, `
{apiVersion: v1, kind: Namespace, metadata: {name: conformance}}
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: conformance}
spec: {ports: [{name: hbone, port: 15008}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: conformance}
spec: {gatewayClassName: fairway-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}
`)
	f := startFairway(t, "")
	cmd := exec.Command(os.Getenv("E2E_CONFORMANCE"), "-test.v", "-test.timeout=6m")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.writeKubeconfig(t, "default", c.config.BearerToken), "FAIRWAY_HTTP="+f.http, "FAIRWAY_MESH="+openMesh(t, f.client(t, "gateway-conformance-mesh", "default")),
		"CONFORMANCE_ECHO="+os.Getenv("E2E_ECHO"), "CONFORMANCE_NETWORK="+os.Getenv("E2E_NETWORK"))
	out, _ := cmd.CombinedOutput() // failures are read below
	results := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^    --- (PASS|FAIL|SKIP): TestConformance/(\w+) `).FindAllStringSubmatch(string(out), -1) {
		results[m[2]] = map[string]string{"PASS": "pass", "FAIL": "fail", "SKIP": "not run"}[m[1]]
	}
	if path := os.Getenv("E2E_CONFORMANCE_LOG"); path != "" {
		os.WriteFile(path, out, 0o600)
	}
	if len(results) < 50 {
		t.Fatalf("%d cases ran:\n%s", len(results), out[max(0, len(out)-5000):])
	}
	counts := make(map[string]int)
	for name, result := range results {
		counts[result]++
		if documented[name] != result {
			t.Errorf("%s: %s; docs/conformance.md says %q", name, result, documented[name])
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/conformance.md tells of %s, which there is not", name)
	}
	t.Logf("%v", counts)
	for _, ns := range []string{"infra", "app-backend", "web-backend", "mesh", "mesh-consumer"} {
		c.finalize(t, "gateway-conformance-"+ns)
	}
}

// openMesh listens for those who cannot make tunnels by themselves: a connection begins with a line that has an address,
// and is a tunnel to it then.
func openMesh(t *testing.T, client *ztunnel.Client) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				from := bufio.NewReader(conn)
				authority, err := from.ReadString('\n')
				if err != nil {
					return
				}
				tun, err := client.Connect(context.Background(), ztunnel.Request{Authority: strings.TrimSpace(authority), Forwarded: "for=\"10.1.2.3:4567\""})
				if err != nil {
					return
				}
				defer tun.Close()
				var both sync.WaitGroup
				both.Go(func() {
					io.Copy(tun, from)
					tun.CloseWrite()
				})
				both.Go(func() {
					io.Copy(conn, tun)
					conn.(*net.TCPConn).CloseWrite()
				})
				both.Wait()
			})
		}
	})
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}
