package main

import (
	"io"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
)

const clientsOnly = `policies:
- name: clients
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/client], namespaces: [default], trustDomains: [cluster.local], ipBlocks: [127.0.0.0/8]}}]
    to: [{operation: {ports: ["80"]}}]
    when: [{key: destination.ip, values: [10.96.0.7]}]
`

// Policies know who is at the other end of a tunnel by its certificate, and where the
// tunnel was going by its authority.
func TestMeshPolicies(t *testing.T) {
	a := newAuthority(t)
	engine := startPod(t, "", quick)
	pod := startMeshPod(t, a, "vllm", engine.address, nil)
	m := startMesh(t, a, clientsOnly+llamaService("http", pod.endpoint(a.ID("default", "vllm"))))
	for account, want := range map[string]int{"client": 200, "other": 403} {
		client := through(m.client(account), vip+":80", false)
		resp, err := client.Post("http://x/v1/chat/completions", "application/json", strings.NewReader(`{"model":"mock","messages":[{"role":"user","content":"hi"}],"max_tokens":2}`))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		client.CloseIdleConnections()
		if resp.StatusCode != want {
			t.Errorf("%s: %d %s", account, resp.StatusCode, body)
		}
	}
	waitFor(t, "the line that says whom the policies denied, and why", func() bool {
		return m.log.has("response_code=403", "denied_by=default", "downstream_peer_uri_san="+a.ID("default", "other"))
	})
	if n := engine.Stats().Received; n != 1 {
		t.Errorf("the engine got %d requests", n)
	}
}

// A connection that is not HTTP is judged by its ends.
func TestMeshPoliciesOfTCP(t *testing.T) {
	a := newAuthority(t)
	pod := startMeshPod(t, a, "vllm", talker(t, ""), nil)
	m := startMesh(t, a, clientsOnly+llamaService("tcp", pod.endpoint(a.ID("default", "vllm"))))
	for account, want := range map[string]string{"client": "5 bytes: hello", "other": ""} {
		tun, err := m.client(account).Connect(t.Context(), ztunnel.Request{Authority: vip + ":80"})
		if err != nil { // the reset may be there as soon as the answer
			if want != "" {
				t.Error(err)
			}
			continue
		}
		tun.Write([]byte("hello"))
		tun.CloseWrite()
		if got, _ := io.ReadAll(tun); string(got) != want {
			t.Errorf("%s got %q", account, got)
		}
		tun.Close()
	}
	waitFor(t, "the line that says whom the policies denied", func() bool {
		return m.log.has("protocol=tcp", "fairway_forbidden", "denied_by=default", a.ID("default", "other"))
	})
}
