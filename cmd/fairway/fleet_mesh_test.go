package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// mesh is a fairway that serves as a waypoint, with what stands around it: an
// authority, ztunnels of clients and of pods, which share no code with it.
type mesh struct {
	*app
	t         testing.TB
	authority *ztunnel.Authority
	address   string
	log       *lines
}

// lines is a log for a test to read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) has(words ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.SplitSeq(l.b.String(), "\n") {
		n := 0
		for _, w := range words {
			if strings.Contains(line, w) {
				n++
			}
		}
		if n == len(words) {
			return true
		}
	}
	return false
}

const vip = "10.96.0.7"

// startMesh runs a waypoint whose file is rest, behind the listener and the identity.
func startMesh(t testing.TB, authority *ztunnel.Authority, rest string) *mesh {
	t.Helper()
	dir := t.TempDir()
	cert, key := issue(t, authority, authority.ID("default", "waypoint"), dir)
	path := filepath.Join(dir, "fairway.yaml")
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, authority.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("listen: {http: \"\", hbone: \"127.0.0.1:0\", sandwich: \"127.0.0.1:0\", metrics: \"\", admin: \"\"}\ntls: {files: {certificate: %q, key: %q, roots: %q}}\nscrape: {interval: 20ms}\ntimeouts: {drain: 10s}\n%s",
		cert, key, roots, rest)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := file.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, authority: authority, log: new(lines)}
	log := slog.New(slog.NewTextHandler(m.log, nil))
	if m.app, err = newApp(c, logs{Logger: log, access: account.NewLog(m.log, account.Text)}, proxy.Config{}); err != nil {
		t.Fatal(err)
	}
	m.address = m.tunnels.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	waitFor(t, "readiness", func() bool { return m.ready() == "" })
	return m
}

func newAuthority(t testing.TB) *ztunnel.Authority {
	t.Helper()
	a, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func certificate(t testing.TB, a *ztunnel.Authority, id string) tls.Certificate {
	t.Helper()
	c, err := a.Issue(id, time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue writes a certificate into files.
func issue(t testing.TB, a *ztunnel.Authority, id, dir string) (cert, key string) {
	t.Helper()
	c, k, err := ztunnel.PEM(certificate(t, a, id))
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := errors.Join(os.WriteFile(cert, c, 0o600), os.WriteFile(key, k, 0o600)); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// client is the ztunnel of a client with that service account.
func (m *mesh) client(account string) *ztunnel.Client {
	c := &ztunnel.Client{Address: m.address,
		TLS: m.authority.Client(certificate(m.t, m.authority, m.authority.ID("default", account)), m.authority.ID("default", "waypoint"))}
	m.t.Cleanup(c.Close)
	return c
}

// meshPod is a pod whose application is reached by its ztunnel alone.
type meshPod struct {
	ztunnel *ztunnel.Server
	address netip.AddrPort // as the mesh knows it
}

// startMeshPod puts a ztunnel before the application at app. Status is the
// ztunnel's policy.
func startMeshPod(t testing.TB, a *ztunnel.Authority, account, app string, status func(string) int) *meshPod {
	t.Helper()
	var l net.Listener
	var ip netip.Addr
	for range 10 { // the port is given; the address is one of many of this machine
		ip = netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(250)), byte(rand.IntN(250)), byte(1 + rand.IntN(250))})
		var err error
		if l, err = net.Listen("tcp", netip.AddrPortFrom(ip, 15008).String()); err == nil {
			break
		}
	}
	if l == nil {
		t.Skip("this machine has one loopback address only")
	}
	p := &meshPod{address: netip.AddrPortFrom(ip, 8000)}
	p.ztunnel = &ztunnel.Server{TLS: a.Server(certificate(t, a, a.ID("default", account))), Pod: ip, Status: status, Handle: func(tun *ztunnel.Tunnel) {
		c, err := net.Dial("tcp", app)
		if err != nil {
			tun.Close()
			return
		}
		var both sync.WaitGroup
		both.Go(func() {
			io.Copy(c, tun)
			c.(*net.TCPConn).CloseWrite()
			if tun.Err() != nil {
				c.Close()
			}
		})
		both.Go(func() {
			io.Copy(tun, c)
			tun.CloseWrite()
		})
		both.Wait()
		c.Close()
		tun.Close()
	}}
	served := make(chan struct{})
	go func() {
		p.ztunnel.Serve(l)
		close(served)
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
		p.ztunnel.Close()
	})
	return p
}

// through is an HTTP client whose every connection is a tunnel to an authority. In
// HTTP/2 it has one.
func through(c *ztunnel.Client, authority string, http2 bool) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.Connect(ctx, ztunnel.Request{Authority: authority, Forwarded: `for="10.1.2.3:4567";host=llama.default.svc.cluster.local`})
	}}
	if http2 {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Transport: tr}
}

func (m *mesh) fleet(authority string, http2 bool) *fleet {
	f := &fleet{app: m.app, url: "http://inner.host.says.nothing", client: through(m.client("client"), authority, http2)}
	m.t.Cleanup(f.client.CloseIdleConnections)
	return f
}

func llamaService(protocol string, endpoints ...string) string {
	return fmt.Sprintf("services: [{host: llama.default.svc.cluster.local, vip: %s, ports: [{port: 80, protocol: %s, pool: llama}]}]\npools: [{name: llama, endpoints: [%s]}]\n",
		vip, protocol, strings.Join(endpoints, ", "))
}

func (p *meshPod) endpoint(identity string) string {
	return fmt.Sprintf("{url: \"hbone://%s\", identity: %q}", p.address, identity)
}

// A chat streams through two tunnels; the engine that nobody can reach but by its
// ztunnel is scraped; the client's leaving ends the engine's work.
func TestMeshChat(t *testing.T) {
	a := newAuthority(t)
	engine := startPod(t, "", mock.Config{})
	pod := startMeshPod(t, a, "vllm", engine.address, nil)
	m := startMesh(t, a, llamaService("http", pod.endpoint(a.ID("default", "vllm"))))
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			f := m.fleet(vip+":80", http2)
			answer := f.mustAsk(t, request{Messages: []message{{"user", "hello"}}, MaxTokens: 20})
			if answer.text == "" || answer.endpoint != "" { // nobody is told through the mesh
				t.Errorf("%+v", answer)
			}
			ctx, cancel := context.WithCancel(t.Context())
			aborted, tokens := engine.Stats().Aborted, engine.Stats().Engine.GenerationTokens
			left := make(chan struct{})
			go func() {
				f.ask(ctx, request{Messages: []message{{"user", "at length"}}, MaxTokens: 100_000})
				close(left)
			}()
			waitFor(t, "the engine streams", func() bool { return engine.Stats().Engine.GenerationTokens > tokens+3 })
			start := time.Now()
			cancel()
			waitFor(t, "the engine gives the request up", func() bool { return engine.Stats().Aborted == aborted+1 })
			t.Logf("cancelled after %v", time.Since(start))
			<-left
		})
	}
	states := m.server.Endpoints()
	waitFor(t, "a scrape through the tunnel", func() bool { return states[0].Endpoint.Load(proxy.Now()).ScrapeAge >= 0 })
	if !m.log.has("msg=access", "path=/v1/chat/completions", "response_code=200", "downstream_peer_uri_san="+a.ID("default", "client"),
		"destination_service=llama.default.svc.cluster.local", "downstream_remote_address=10.1.2.3:4567") {
		t.Error("the access log does not say who asked, and for what")
	}
}

// Trap 4: the inner Host decides nothing, and a VIP that is not ours is refused before
// the 200.
func TestMeshAuthority(t *testing.T) {
	a := newAuthority(t)
	engine, other := startPod(t, "", quick), startPod(t, "", quick)
	pod, second := startMeshPod(t, a, "vllm", engine.address, nil), startMeshPod(t, a, "vllm", other.address, nil)
	id := a.ID("default", "vllm")
	m := startMesh(t, a, "waypoint_for: all\n"+llamaService("http", pod.endpoint(id), second.endpoint(id)))
	c := m.client("client")
	for authority, status := range map[string]int{
		vip + ":80": 200, "llama.default.svc.cluster.local:80": 200, pod.address.String(): 200,
		vip + ":81": 404, "10.96.0.8:80": 404, "other.default.svc.cluster.local:80": 404, pod.address.Addr().String() + ":8001": 404,
	} {
		tun, err := c.Connect(t.Context(), ztunnel.Request{Authority: authority})
		if got, ok := errors.AsType[ztunnel.StatusError](err); ok && int(got) != status || !ok && (err != nil || status != 200) {
			t.Errorf("%s: %v, want %d", authority, err, status)
		}
		if tun != nil {
			tun.Close()
		}
	}
	if !m.log.has("10.96.0.8:80") {
		t.Error("the refusal is not told")
	}
	// The address of a pod leads to that pod.
	f := m.fleet(second.address.String(), false)
	for range 5 {
		f.mustAsk(t, request{Messages: []message{{"user", "hello"}}, MaxTokens: 2})
	}
	if n := other.Stats().Received; n != 5 {
		t.Errorf("the pod that was meant got %d of 5, the other %d", n, engine.Stats().Received)
	}
}

// Trap 8: a pod whose policy refuses us says 401, and the error names who we are.
func TestMeshPodRefuses(t *testing.T) {
	a := newAuthority(t)
	engine := startPod(t, "", quick)
	pod := startMeshPod(t, a, "vllm", engine.address, func(string) int { return 401 })
	m := startMesh(t, a, llamaService("http", pod.endpoint(a.ID("default", "vllm"))))
	resp, err := m.fleet(vip+":80", false).client.Post("http://x/v1/chat/completions", "application/json", strings.NewReader(`{"model":"mock","messages":[{"role":"user","content":"hi"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 502 || !bytes.Contains(body, []byte(a.ID("default", "waypoint"))) || !bytes.Contains(body, []byte("401")) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if !m.log.has("endpoint does not take connections", a.ID("default", "waypoint")) {
		t.Error("the log does not name our identity")
	}
}

// A pod that is not who it has to be gets nothing.
func TestMeshPodWithTheWrongIdentity(t *testing.T) {
	a := newAuthority(t)
	engine := startPod(t, "", quick)
	pod := startMeshPod(t, a, "impostor", engine.address, nil)
	m := startMesh(t, a, llamaService("http", pod.endpoint(a.ID("default", "vllm"))))
	resp, err := m.fleet(vip+":80", false).client.Get("http://x/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 502 || engine.Stats().Connections != 0 {
		t.Errorf("%d, %d connections to the engine", resp.StatusCode, engine.Stats().Connections)
	}
}

// talker is a TCP server for a test. With first, it speaks first.
func talker(t testing.TB, first string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				io.WriteString(c, first)
				said, _ := io.ReadAll(c) // until the client's half-close
				fmt.Fprintf(c, "%d bytes: %s", len(said), said[:min(len(said), 10)])
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// What is not HTTP is passed on both ways, half-closes too; a server that speaks first
// is heard.
func TestMeshTCP(t *testing.T) {
	a := newAuthority(t)
	for _, protocol := range []string{"tcp", "auto"} {
		for _, first := range []string{"", "220 welcome\r\n"} {
			for _, says := range []string{"\x00\x00\x00\x08\x04\xd2\x16\x2f", "EHLO me\r\n", "", strings.Repeat("x", 1<<20)} {
				t.Run(fmt.Sprintf("%s, first %q, %.10q", protocol, first, says), func(t *testing.T) {
					t.Parallel()
					pod := startMeshPod(t, a, "db", talker(t, first), nil)
					m := startMesh(t, a, llamaService(protocol, pod.endpoint(a.ID("default", "db"))))
					tun, err := m.client("client").Connect(t.Context(), ztunnel.Request{Authority: vip + ":80"})
					if err != nil {
						t.Fatal(err)
					}
					if first != "" {
						got := make([]byte, len(first))
						if _, err := io.ReadFull(tun, got); err != nil || string(got) != first {
							t.Fatalf("first came %q, %v", got, err)
						}
					}
					io.WriteString(tun, says)
					tun.CloseWrite()
					got, err := io.ReadAll(tun)
					if want := fmt.Sprintf("%d bytes: %.10s", len(says), says); string(got) != want || err != nil {
						t.Errorf("got %q, %v, want %q", got, err, want)
					}
					waitFor(t, "the line in the access log", func() bool {
						return m.log.has("protocol=tcp", "upstream_cluster=llama", fmt.Sprintf("bytes_received=%d", len(says)), a.ID("default", "client"))
					})
				})
			}
		}
	}
}

// On a port of which nothing is known, HTTP of either version is HTTP.
func TestMeshAutoIsHTTP(t *testing.T) {
	a := newAuthority(t)
	engine := startPod(t, "", quick)
	pod := startMeshPod(t, a, "vllm", engine.address, nil)
	m := startMesh(t, a, llamaService("auto", pod.endpoint(a.ID("default", "vllm"))))
	for _, http2 := range []bool{false, true} {
		m.fleet(vip+":80", http2).mustAsk(t, request{Messages: []message{{"user", "hello"}}, MaxTokens: 2})
	}
	tun, err := m.client("client").Connect(t.Context(), ztunnel.Request{Authority: vip + ":80"})
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{"GE", "T /v1/mod", "els HTTP/1.1\r", "\nHost: x\r\n", "\r\n"} {
		io.WriteString(tun, piece)
	}
	resp, err := http.ReadResponse(bufio.NewReader(tun), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	tun.Close()
	if m.log.has("protocol=tcp") {
		t.Error("taken for TCP")
	}
}

// A waypoint that drains tells its peers, takes the tunnels that are on their way, and
// lets what streams end.
func TestMeshDrain(t *testing.T) {
	a := newAuthority(t)
	engine := startPod(t, "", mock.Config{})
	pod := startMeshPod(t, a, "vllm", engine.address, nil)
	m := startMesh(t, a, llamaService("http", pod.endpoint(a.ID("default", "vllm"))))
	f := m.fleet(vip+":80", false)
	got := make(chan string, 1)
	go func() {
		answer, err := f.ask(context.Background(), request{Messages: []message{{"user", "at length"}}, MaxTokens: 200})
		got <- fmt.Sprint(answer.done, err)
	}()
	waitFor(t, "the engine streams", func() bool { return engine.Stats().Engine.GenerationTokens > 3 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := m.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if s := <-got; s != "true <nil>" {
		t.Error(s)
	}
}

// In a sandwich it is ztunnel that says who asks, and for what.
func TestMeshSandwich(t *testing.T) {
	a := newAuthority(t)
	engine := startPod(t, "", quick)
	pod := startMeshPod(t, a, "vllm", engine.address, nil)
	m := startMesh(t, a, llamaService("http", pod.endpoint(a.ID("default", "vllm")))+
		"policies: [{name: not-them, action: DENY, rules: [{from: [{source: {ipBlocks: [10.9.0.0/16]}}]}]}]\n")
	from := "10.1.2.3"
	header := func(vip string, id string) []byte {
		b := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11")
		tlv := append([]byte{0xD0, byte(len(id) >> 8), byte(len(id))}, id...)
		b = binary.BigEndian.AppendUint16(b, uint16(12+len(tlv)))
		from, to := netip.MustParseAddr(from).As4(), netip.MustParseAddr(vip).As4()
		b = append(append(b, from[:]...), to[:]...)
		b = binary.BigEndian.AppendUint16(b, 4567)
		b = binary.BigEndian.AppendUint16(b, 80)
		return append(b, tlv...)
	}
	connect := func(vip string) net.Conn {
		c, err := net.Dial("tcp", m.sandwich.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Write(header(vip, a.ID("default", "client")))
		return c
	}
	f := &fleet{app: m.app, url: "http://inner", client: &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return connect(vip), nil }}}}
	defer f.client.CloseIdleConnections()
	f.mustAsk(t, request{Messages: []message{{"user", "hello"}}, MaxTokens: 2})
	waitFor(t, "the line in the access log", func() bool {
		return m.log.has("msg=access", "downstream_peer_uri_san="+a.ID("default", "client"), "downstream_remote_address=10.1.2.3:4567", "response_code=200")
	})
	// What policies say of addresses is about the workload's, not about the ztunnel's.
	f.client.CloseIdleConnections()
	from = "10.9.1.1"
	if _, err := f.ask(t.Context(), request{Messages: []message{{"user", "hello"}}, MaxTokens: 2}); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("from where nobody may come: %v", err)
	}
	c := connect("10.96.0.8")
	defer c.Close()
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes for what is not ours", n)
	}
}
