//go:build e2e

package hbone_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/bench/mock"
)

// The fairway command as a waypoint, by its file alone, between ztunnels that share no
// code with it.

const (
	serviceIP = "10.96.0.7"
	patience  = 30 * time.Second
	chatBody  = `{"model":"mock","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"hello"}]}`
	chatPath  = "/v1/chat/completions"
	jsonType  = "application/json"
	ourName   = "waypoint"
	ofClients = "client"
)

// waypoint is a running fairway process.
type waypoint struct {
	t                     *testing.T
	ca                    *ztunnel.Authority
	hbone, plain, metrics string
	*process.Process
}

// logged tells whether a line of the log has all of these words.
func (w *waypoint) logged(words ...string) bool {
	for line := range strings.SplitSeq(w.Output(), "\n") {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			return true
		}
	}
	return false
}

// startWaypoint runs fairway serve with a file that ends in rest.
func startWaypoint(t *testing.T, ca *ztunnel.Authority, rest string) *waypoint {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	crt, key, err := ztunnel.PEM(issued(t, ca, ourName))
	if err != nil {
		t.Fatal(err)
	}
	w := &waypoint{t: t, ca: ca, hbone: process.FreeAddress(), plain: process.FreeAddress(), metrics: process.FreeAddress()}
	config := write("fairway.yaml", fmt.Appendf(nil, "listen: {http: %q, hbone: %q, metrics: %q, admin: \"\"}\ntls: {files: {certificate: %q, key: %q, roots: %q}}\nscrape: {interval: 50ms}\ntimeouts: {drain: 20s}\n%s",
		w.plain, w.hbone, w.metrics, write("tls.crt", crt), write("tls.key", key), write("roots.pem", ca.PEM()), rest))
	w.Process = process.Start(t, exec.Command(os.Getenv("E2E_FAIRWAY"), "serve", "--config", config))
	w.Await(t, patience, process.Answers("http://"+w.metrics+"/healthz/ready"))
	return w
}

func issued(t *testing.T, ca *ztunnel.Authority, account string) tls.Certificate {
	t.Helper()
	c, err := ca.Issue(ca.ID("default", account), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// client is the ztunnel at the side of a client.
func (w *waypoint) client() *ztunnel.Client {
	c := &ztunnel.Client{Address: w.hbone, TLS: w.ca.Client(issued(w.t, w.ca, ofClients), w.ca.ID("default", ourName))}
	w.t.Cleanup(c.Close)
	return c
}

// through is an HTTP client in tunnels to an authority.
func through(c *ztunnel.Client, authority string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.Connect(ctx, ztunnel.Request{Authority: authority, Forwarded: "for=\"10.1.2.3:4567\";host=llama.default.svc.cluster.local"})
	}}}
}

// metric is what the waypoint counts.
func (w *waypoint) metric(name string, words ...string) float64 {
	w.t.Helper()
	return process.Metric(w.t, "http://"+w.metrics+"/metrics", name, words...)
}

// startPod puts a ztunnel before what listens at app, on an address of its own, and
// gives what the file says of it.
func startPod(t *testing.T, ca *ztunnel.Authority, account, app string) (endpoint string) {
	t.Helper()
	for range 10 {
		ip := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(250)), byte(rand.IntN(250)), byte(1 + rand.IntN(250))})
		l, err := net.Listen("tcp", netip.AddrPortFrom(ip, 15008).String())
		if err != nil {
			continue
		}
		s := &ztunnel.Server{TLS: ca.Server(issued(t, ca, account)), Pod: ip, Handle: func(tun *ztunnel.Tunnel) { join(tun, app) }}
		s.Serve(l)
		t.Cleanup(s.Close)
		return fmt.Sprintf("{url: \"hbone://%s\", identity: %q}", netip.AddrPortFrom(ip, 8000), ca.ID("default", account))
	}
	t.Skip("this machine has one loopback address only")
	return ""
}

// join connects a tunnel with an application, halves apart.
func join(tun *ztunnel.Tunnel, app string) {
	c, err := net.Dial("tcp", app)
	if err != nil {
		tun.Close()
		return
	}
	relay(tun, c.(*net.TCPConn))
}

func relay(tun *ztunnel.Tunnel, c *net.TCPConn) {
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(c, tun)
		c.CloseWrite()
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
}

// startEngine runs a mock engine.
func startEngine(t *testing.T, c mock.Config) (*mock.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := mock.New(c)
	served := make(chan struct{})
	go func() {
		s.Serve(l)
		close(served)
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return s, l.Addr().String()
}

// service is the part of the file that says where the Service's port leads.
func service(protocol, endpoint string) string {
	return fmt.Sprintf("services: [{host: llama.default.svc.cluster.local, vip: %s, ports: [{port: 80, protocol: %s, pool: app}]}]\npools: [{name: app, endpoints: [%s]}]\n", serviceIP, protocol, endpoint)
}

func TestWaypointChat(t *testing.T) {
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	engine, at := startEngine(t, mock.Config{})
	w := startWaypoint(t, ca, service("http", startPod(t, ca, "vllm", at)))
	// The engine is reached by its ztunnel alone, and its metrics are read before anybody
	// has asked it anything.
	process.Await(t, patience, "a scrape", func() bool {
		return w.metric("fairway_endpoint_scrape_age_seconds") > 0 && engine.Stats().Connections > 0
	})
	client := through(w.client(), serviceIP+":80")

	resp, err := client.Post("http://inner"+chatPath, jsonType, strings.NewReader(fmt.Sprintf(chatBody, 50)))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if n := strings.Count(string(answer), "data: "); resp.StatusCode != 200 || err != nil || n < 51 || !strings.HasSuffix(string(answer), "data: [DONE]\n\n") {
		t.Errorf("%d, %v, %d events", resp.StatusCode, err, n)
	}
	if h := resp.Header; h.Get("X-Request-Id") == "" || h.Get("X-Fairway-Endpoint") != "" {
		t.Errorf("%v", h)
	}

	process.Await(t, patience, "the line that says whose request it was", func() bool {
		return w.logged("msg=access", "downstream_peer_uri_san="+ca.ID("default", ofClients), "destination_service=llama.default.svc.cluster.local", "downstream_remote_address=10.1.2.3:4567")
	})

	// Whoever leaves ends the engine's work.
	var took []time.Duration
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		aborted, tokens := engine.Stats().Aborted, engine.Stats().Engine.GenerationTokens
		r, _ := http.NewRequestWithContext(ctx, "POST", "http://inner"+chatPath, strings.NewReader(fmt.Sprintf(chatBody, 100_000)))
		r.Header.Set("Content-Type", jsonType)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		process.Await(t, patience, "tokens", func() bool { return engine.Stats().Engine.GenerationTokens > tokens+3 })
		start := time.Now()
		cancel()
		process.Await(t, patience, "the end of the work", func() bool { return engine.Stats().Aborted == aborted+1 })
		took = append(took, time.Since(start))
		resp.Body.Close()
	}
	slices.Sort(took)
	t.Logf("the engine has given the work up after %v", took)

	// SIGTERM: the peer is told, what streams ends whole, the process ends with 0.
	resp, err = client.Post("http://inner"+chatPath, jsonType, strings.NewReader(fmt.Sprintf(chatBody, 300)))
	if err != nil {
		t.Fatal(err)
	}
	w.Signal(syscall.SIGTERM)
	answer, err = io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.HasSuffix(string(answer), "data: [DONE]\n\n") {
		t.Errorf("the stream was not let end: %v, %d bytes", err, len(answer))
	}
	select {
	case <-w.Ended:
		if !w.Cmd.ProcessState.Success() {
			t.Errorf("fairway ended with %v", w.Cmd.ProcessState)
		}
	case <-time.After(patience):
		t.Error("fairway does not end")
	}
}

func TestWaypointRefusals(t *testing.T) {
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ztunnel.NewAuthority("elsewhere.example")
	if err != nil {
		t.Fatal(err)
	}
	impostor, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	_, at := startEngine(t, mock.Config{})
	w := startWaypoint(t, ca, service("http", startPod(t, ca, "vllm", at)))
	expired, err := ca.Issue(ca.ID("default", ofClients), time.Now().Add(-2*time.Hour), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	us := ca.ID("default", ourName)
	with := func(change func(*tls.Config)) *tls.Config {
		c := ca.Client(issued(t, ca, ofClients), us)
		change(c)
		return c
	}
	certificate := func(c tls.Certificate) *tls.Config {
		return with(func(config *tls.Config) {
			config.Certificates = nil
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
		})
	}
	for _, test := range []struct {
		name    string
		tls     *tls.Config
		request ztunnel.Request
		status  int    // of the answer; 0: the handshake fails
		counted string // reason
	}{
		{"no certificate", certificate(tls.Certificate{}), ztunnel.Request{Authority: serviceIP + ":80"}, 0, "handshake"},
		{"expired", certificate(expired), ztunnel.Request{Authority: serviceIP + ":80"}, 0, "handshake"},
		{"another trust domain", certificate(issued(t, foreign, ofClients)), ztunnel.Request{Authority: serviceIP + ":80"}, 0, "handshake"},
		{"another root", certificate(issued(t, impostor, ofClients)), ztunnel.Request{Authority: serviceIP + ":80"}, 0, "handshake"},
		{"TLS 1.2", with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), ztunnel.Request{Authority: serviceIP + ":80"}, 0, "handshake"},
		{"not CONNECT", with(func(*tls.Config) {}), ztunnel.Request{Authority: serviceIP + ":80", Method: "GET"}, 400, "method"},
		{"an address that is not ours", with(func(*tls.Config) {}), ztunnel.Request{Authority: "10.96.0.8:80"}, 404, "admit"},
		{"a port that is not ours", with(func(*tls.Config) {}), ztunnel.Request{Authority: serviceIP + ":81"}, 404, "admit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			refused := func() float64 { return w.metric("fairway_hbone_refused_total", fmt.Sprintf("reason=%q", test.counted)) }
			before := refused()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c := &ztunnel.Client{Address: w.hbone, TLS: test.tls}
			defer c.Close()
			_, err := c.Connect(ctx, test.request)
			answered, _ := errors.AsType[ztunnel.StatusError](err)
			if err == nil || int(answered) != test.status {
				t.Errorf("got %v, want status %d", err, test.status)
			}
			process.Await(t, patience, "the count", func() bool { return refused() > before })
		})
	}
	process.Await(t, patience, "its line in the log", func() bool { return w.logged("10.96.0.8:80") })
}

// A waypoint that is not who it has to be: ztunnel closes, and so do we to a pod.
func TestWaypointWrongPod(t *testing.T) {
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	engine, at := startEngine(t, mock.Config{})
	endpoint := strings.Replace(startPod(t, ca, "impostor", at), "sa/impostor", "sa/vllm", 1)
	w := startWaypoint(t, ca, service("http", endpoint))
	resp, err := through(w.client(), serviceIP+":80").Post("http://inner"+chatPath, jsonType, strings.NewReader(fmt.Sprintf(chatBody, 5)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Error struct{ Type, Message string }
	}
	json.NewDecoder(resp.Body).Decode(&answer)
	if resp.StatusCode != 502 || answer.Error.Type != "fairway_upstream_failed" || engine.Stats().Connections != 0 {
		t.Errorf("%d %+v, %d connections", resp.StatusCode, answer, engine.Stats().Connections)
	}
	t.Log(answer.Error.Message)
}

// A gRPC health check goes through both tunnels as HTTP/2 in the clear.
func TestWaypointGRPC(t *testing.T) {
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	backend := grpc.NewServer()
	checks := health.NewServer()
	checks.SetServingStatus("engine", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(backend, checks)
	go backend.Serve(l)
	t.Cleanup(backend.Stop)
	for _, protocol := range []string{"grpc", "h2c", "http", "auto"} {
		t.Run(protocol, func(t *testing.T) {
			w := startWaypoint(t, ca, service(protocol, startPod(t, ca, "grpc", l.Addr().String())))
			z := w.client()
			conn, err := grpc.NewClient("passthrough:///llama", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
					return z.Connect(ctx, ztunnel.Request{Authority: serviceIP + ":80"})
				}))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			client := grpc_health_v1.NewHealthClient(conn)
			if answer, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "engine"}); err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
				t.Errorf("%v, %v", answer, err)
			}
			if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "nobody"}); status.Code(err) != codes.NotFound {
				t.Errorf("%v", err)
			}
			watch, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: "engine"})
			if err != nil {
				t.Fatal(err)
			}
			if answer, err := watch.Recv(); err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
				t.Errorf("%v, %v", answer, err)
			}
		})
	}
}

// PostgreSQL is passed on unread, on a port that says tcp and on one that says nothing.
func TestWaypointPostgreSQL(t *testing.T) {
	psql := program(t, "psql")
	at := startPostgreSQL(t)
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"tcp", "auto"} {
		t.Run(protocol, func(t *testing.T) {
			w := startWaypoint(t, ca, service(protocol, startPod(t, ca, "postgres", at)))
			z := w.client()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() { // what the client's ztunnel does with its connections
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					tun, err := z.Connect(t.Context(), ztunnel.Request{Authority: serviceIP + ":80"})
					if err != nil {
						c.Close()
						continue
					}
					go relay(tun, c.(*net.TCPConn))
				}
			}()
			host, port, _ := net.SplitHostPort(l.Addr().String())
			cmd := exec.Command(psql, "-X", "-q", "-t", "-A", "-h", host, "-p", port, "-U", "fairway", "-d", "postgres", "-v", "ON_ERROR_STOP=1",
				"-c", "CREATE TEMP TABLE t AS SELECT i, repeat('x', 100) AS x FROM generate_series(1, 100000) AS i",
				"-c", "SELECT count(*), sum(i) FROM t", "-c", "SELECT x FROM t")
			out, err := cmd.Output()
			first, rest, _ := strings.Cut(string(out), "\n")
			if err != nil || first != "100000|5000050000" || len(rest) != 100000*101 {
				var stderr []byte
				if e, ok := errors.AsType[*exec.ExitError](err); ok {
					stderr = e.Stderr
				}
				t.Fatalf("%v, %q and %d bytes: %s", err, first, len(rest), stderr)
			}
			process.Await(t, patience, "the connection's line", func() bool { return w.logged("protocol=tcp", "upstream_cluster=app", ca.ID("default", ofClients)) })
			process.Await(t, patience, "its count", func() bool { return w.metric("fairway_tcp_connections_total", `reason=""`) >= 1 })
		})
	}
}

// startPostgreSQL runs a server of its own, not as root, and gives its address.
func startPostgreSQL(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		t.Skip("no PostgreSQL here")
	}
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("", "fairway-pg") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attributes := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		u, err := user.Lookup("nobody")
		if err != nil {
			t.Skip("no user to run PostgreSQL as")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(bin, name), args...)
		c.Dir, c.SysProcAttr = dir, attributes
		c.Env = []string{"HOME=" + dir, "LC_ALL=C", "PATH=" + os.Getenv("PATH")}
		return c
	}
	data := filepath.Join(dir, "data")
	if out, err := run("initdb", "-D", data, "-U", "fairway", "-A", "trust", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	address := process.FreeAddress()
	host, port, _ := net.SplitHostPort(address)
	server := process.Start(t, run("postgres", "-D", data, "-k", dir, "-h", host, "-p", port, "-F"))
	t.Cleanup(func() { server.End(syscall.SIGINT) }) // fast shutdown
	server.Await(t, patience, func() error { return run("pg_isready", "-h", host, "-p", port).Run() })
	return address
}

// The plain listener speaks HTTP/2 with clients that are not Go's.
func TestPlainHTTP2(t *testing.T) {
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	_, at := startEngine(t, mock.Config{Speed: 100})
	w := startWaypoint(t, ca, service("http", "http://"+at))
	t.Run("curl", func(t *testing.T) {
		out, err := exec.Command(program(t, "curl"), "-sS", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}", "-H", "Content-Type: "+jsonType,
			"-d", fmt.Sprintf(chatBody, 20), "http://"+w.plain+chatPath).Output()
		if err != nil || !strings.HasSuffix(string(out), "data: [DONE]\n\n2 200") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("h2load", func(t *testing.T) {
		body := filepath.Join(t.TempDir(), "body")
		if err := os.WriteFile(body, fmt.Appendf(nil, chatBody, 5), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(program(t, "h2load"), "-n", "500", "-c", "4", "-m", "20", "-d", body, "-H", "content-type: "+jsonType, "http://"+w.plain+chatPath).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "500 succeeded, 0 failed") {
			t.Errorf("%v: %s", err, out)
		}
	})
}
