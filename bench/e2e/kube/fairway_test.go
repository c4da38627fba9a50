//go:build e2e

package kube_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
)

// The mesh of these tests.
const trustDomain = "cluster.local"

// fairway is a running `fairway serve --kubernetes`, with the rights that the chart gives it.
type fairway struct {
	*process.Process
	ca                           *ztunnel.Authority
	id                           string // in the mesh
	http, hbone, metrics, admins string

	mu      sync.Mutex
	applied []application // guarded by mu
	moved   *sync.Cond    // one more has been
}

// application is what the log says when a change is in force.
type application struct {
	at        time.Time
	endpoints int
	findings  int
}

// startFairway runs one; what rest says is the end of its settings.
func startFairway(t *testing.T, rest string) *fairway {
	t.Helper()
	return startFairwayAs(t, systemNamespace, "fairway", rest)
}

// startFairwayAs has it be a ServiceAccount's.
func startFairwayAs(t *testing.T, namespace, account, rest string) *fairway {
	t.Helper()
	ca, err := ztunnel.NewAuthority(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certificate, err := ca.Issue(ca.ID(namespace, account), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	crt, key, err := ztunnel.PEM(certificate)
	if err != nil {
		t.Fatal(err)
	}
	f := &fairway{ca: ca, id: ca.ID(namespace, account), http: process.FreeAddress(), hbone: process.FreeAddress(), metrics: process.FreeAddress(), admins: process.FreeAddress()}
	f.moved = sync.NewCond(&f.mu)
	config := write("fairway.yaml", fmt.Appendf(nil, "listen: {http: %q, hbone: %q, metrics: %q, admin: %q}\ntls: {files: {certificate: %q, key: %q, roots: %q}}\n%s",
		f.http, f.hbone, f.metrics, f.admins, write("tls.crt", crt), write("tls.key", key), write("roots.pem", ca.PEM()), rest))
	cmd := exec.Command(filepath.Join(os.Getenv("E2E_BIN"), "fairway"), "serve", "--kubernetes",
		"--kubeconfig", theCluster.kubeconfig(t, namespace, account), "--config", config, "--trust-domain", trustDomain, "--json", "--no-access-log")
	cmd.Stdout = &lines{line: f.read}
	f.Process = start(t, "http://"+f.metrics+"/healthz/ready", cmd)
	return f
}

// read takes a line of the log.
func (f *fairway) read(text string, at time.Time) {
	var said struct {
		Msg                 string
		Endpoints, Findings int
	}
	if json.Unmarshal([]byte(text), &said) != nil || said.Msg != "objects in force" {
		return
	}
	f.mu.Lock()
	f.applied = append(f.applied, application{at, said.Endpoints, said.Findings})
	f.moved.Broadcast()
	f.mu.Unlock()
}

// inForce is how many changes have been put in force.
func (f *fairway) inForce() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.applied)
}

// endpoints is how many there are since the last change.
func (f *fairway) endpoints() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.applied) == 0 {
		return 0
	}
	return f.applied[len(f.applied)-1].endpoints
}

// awaitEndpoints waits for a change after the first `after` ones that has so many endpoints in force, and gives when
// that was.
func (f *fairway) awaitEndpoints(t *testing.T, after, want int) time.Time {
	t.Helper()
	expired := false
	timer := time.AfterFunc(time.Minute, func() {
		f.mu.Lock()
		expired = true
		f.moved.Broadcast()
		f.mu.Unlock()
	})
	defer timer.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		for ; after < len(f.applied); after++ {
			if f.applied[after].endpoints == want {
				return f.applied[after].at
			}
		}
		if expired {
			t.Fatalf("never came about: %d endpoints; last: %+v", want, f.applied[max(0, len(f.applied)-3):])
		}
		f.moved.Wait()
	}
}

// client is the ztunnel of a pod that calls.
func (f *fairway) client(t *testing.T, namespace, account string) *ztunnel.Client {
	t.Helper()
	certificate, err := f.ca.Issue(f.ca.ID(namespace, account), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := &ztunnel.Client{Address: f.hbone, TLS: f.ca.Client(certificate, f.id)}
	t.Cleanup(c.Close)
	return c
}

// through is an HTTP client in tunnels of c, whose every connection goes to one authority.
func through(t *testing.T, c *ztunnel.Client, authority string) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.Connect(ctx, ztunnel.Request{Authority: authority, Forwarded: "for=\"10.1.2.3:4567\""})
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// plainClient is one without a mesh.
func plainClient(t *testing.T) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// network is the second byte of the loopback addresses of this run's pods.
var network, lastPod = byte(2 + rand.IntN(250)), uint16(0)

// podIP is an address that no pod has had.
func podIP() netip.Addr {
	lastPod++
	return netip.AddrFrom4([4]byte{127, network, byte(lastPod / 250), byte(1 + lastPod%250)})
}

// pod is one with a mock engine.
type pod struct {
	namespace, name string
	ip              netip.Addr
	labels          string // in YAML's flow style
	captured        bool   // by a ztunnel
	args            []string
	listen          string // of the engine, if something stands before it
	engine          *process.Process
}

// startPod runs an engine and declares its pod, which is ready.
func startPod(t *testing.T, p *pod) *pod {
	t.Helper()
	if !p.ip.IsValid() {
		p.ip = podIP()
	}
	p.startEngine(t)
	theCluster.apply(t, p.yaml("True"))
	return p
}

func (p *pod) address() string { return netip.AddrPortFrom(p.ip, 8000).String() }

func (p *pod) startEngine(t *testing.T) {
	t.Helper()
	at := cmp.Or(p.listen, p.address())
	p.engine = start(t, "http://"+at+"/health", exec.Command(filepath.Join(os.Getenv("E2E_BIN"), "mockvllm"), append([]string{"--listen", at}, p.args...)...))
}

func (p *pod) stopEngine() { p.engine.End(syscall.SIGTERM) }

// yaml is the pod as a kubelet has it.
func (p *pod) yaml(ready string) string {
	annotations := "{}"
	if p.captured {
		annotations = `{ambient.istio.io/redirection: enabled}`
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: %s, annotations: %s}
spec: {serviceAccountName: vllm, nodeName: node, containers: [{name: vllm, image: vllm}]}
status: {phase: Running, podIP: %[5]s, podIPs: [{ip: %[5]s}], conditions: [{type: Ready, status: %[6]q}]}
`, p.name, p.namespace, p.labels, annotations, p.ip, ready)
}

// metric is what its engine counts.
func (p *pod) metric(t *testing.T, name string) float64 {
	t.Helper()
	return process.Metric(t, "http://"+p.address()+"/metrics", name)
}

// capture has a ztunnel take the pod's tunnels.
func (p *pod) capture(t *testing.T, ca *ztunnel.Authority) {
	t.Helper()
	certificate, err := ca.Issue(ca.ID(p.namespace, "vllm"), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(p.ip, 15008).String())
	if err != nil {
		t.Fatal(err)
	}
	s := &ztunnel.Server{TLS: ca.Server(certificate), Pod: p.ip, Handle: func(tun *ztunnel.Tunnel) { join(tun, p.address()) }}
	s.Serve(l)
	t.Cleanup(s.Close)
	p.captured = true
}

// chat is a request's body.
func chat(model string, messages ...string) string {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	body := struct {
		Model     string    `json:"model"`
		MaxTokens int       `json:"max_tokens"`
		Messages  []message `json:"messages"`
	}{model, 2, []message{{"system", messages[0]}}}
	for _, m := range messages[1:] {
		body.Messages = append(body.Messages, message{"user", m})
	}
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// answer is what came back.
type answer struct {
	status int
	model  string
	body   string
}

// post asks and reads all of the answer.
func post(client *http.Client, url, body string, fields ...string) (answer, error) {
	r, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("content-type", "application/json")
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	resp, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	var said struct{ Model string }
	raw := json.RawMessage{}
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		return answer{status: resp.StatusCode}, err
	}
	json.Unmarshal(raw, &said)
	return answer{resp.StatusCode, said.Model, string(raw)}, nil
}

// join connects a tunnel with an application, halves apart.
func join(tun *ztunnel.Tunnel, app string) {
	c, err := net.Dial("tcp", app)
	if err != nil {
		tun.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(c, tun)
		c.(*net.TCPConn).CloseWrite()
	})
	both.Go(func() {
		io.Copy(tun, c)
		tun.CloseWrite()
	})
	both.Wait()
	c.Close()
	tun.Close()
}
