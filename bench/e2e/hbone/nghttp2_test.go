//go:build e2e

// Package hbone_test holds Fairway's tunnels against HTTP/2 and TLS that are not Go's.
package hbone_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy/hbone"
)

// mesh is a trust domain with us, the waypoint, and a foreign program.
type mesh struct {
	ca              *ztunnel.Authority
	us              *mtls.Source
	roots, crt, key string // files for the program
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	ca, err := ztunnel.NewAuthority("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(account string) tls.Certificate {
		c, err := ca.Issue(ca.ID("default", account), time.Now().Add(-time.Minute), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	m := &mesh{ca: ca}
	m.us = mtls.Open(mtls.Identity{Certificate: issue("waypoint"), Roots: map[spiffeid.TrustDomain][]*x509.Certificate{
		spiffeid.RequireTrustDomainFromString("cluster.local"): {ca.Cert}}}, nil)
	t.Cleanup(m.us.Close)
	crt, key, err := ztunnel.PEM(issue("foreign"))
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
	m.roots, m.crt, m.key = write("roots.pem", ca.PEM()), write("tls.crt", crt), write("tls.key", key)
	return m
}

func (m *mesh) id(account string) spiffeid.ID {
	return spiffeid.RequireFromString(m.ca.ID("default", account))
}

// listen serves HTTP inside of tunnels, by a server that knows nothing of them.
func (m *mesh) listen(t *testing.T) *hbone.Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := hbone.NewListener(inner, hbone.Config{TLS: m.us.ServerConfig(), Explain: m.us.Explain})
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %d", r.Host, len(body))
		}),
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(l) })
	t.Cleanup(func() {
		server.Close()
		serving.Wait()
	})
	return l
}

// program finds a program, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here: %v", name, err)
	}
	return path
}

// nghttpx starts nghttp2's proxy at an address, and waits until it listens.
func nghttpx(t *testing.T, address string, args ...string) {
	t.Helper()
	p := process.Start(t, exec.Command(program(t, "nghttpx"),
		append([]string{"--conf=/dev/null", "--http2-proxy", "--workers=1", "--errorlog-file=/dev/stderr"}, args...)...))
	p.Await(t, patience, process.Listens(address))
}

func commas(address string) string { return strings.Replace(address, ":", ",", 1) }

const vip = "10.96.0.7:80"

// nghttp2 asks us for tunnels, on OpenSSL, and curl speaks HTTP inside.
func TestNghttp2CallsUs(t *testing.T) {
	m := newMesh(t)
	l := m.listen(t)
	front := process.FreeAddress()
	nghttpx(t, front, "-f", commas(front)+";no-tls", "-b", commas(l.Addr().String())+";;proto=h2;tls",
		"--insecure", "--client-cert-file="+m.crt, "--client-private-key-file="+m.key)

	t.Run("curl", func(t *testing.T) {
		body := filepath.Join(t.TempDir(), "body")
		if err := os.WriteFile(body, make([]byte, 5<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{nil, {"--data-binary", "@" + body}} {
			args = append(args, "--silent", "--show-error", "--max-time", "60", "--proxytunnel", "--proxy", "http://"+front, "http://"+vip+"/")
			got, err := exec.Command(program(t, "curl"), args...).CombinedOutput()
			want := "10.96.0.7 0"
			if len(args) > 8 {
				want = fmt.Sprintf("10.96.0.7 %d", 5<<20)
			}
			if err != nil || string(got) != want {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		}
	})
	t.Run("many", func(t *testing.T) {
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				c, err := net.Dial("tcp", front)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", vip, vip)
				r := bufio.NewReader(c)
				answer, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"})
				if err != nil || answer.StatusCode != 200 {
					t.Errorf("got %v, %v", answer, err)
					return
				}
				for range 20 {
					fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: llama\r\nContent-Length: 3\r\n\r\nabc")
					answer, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Error(err)
						return
					}
					if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "llama 3" {
						t.Errorf("got %q, %v", body, err)
					}
				}
			})
		}
		all.Wait()
	})
	if l.Counters.Opened.Load() < 50 {
		t.Errorf("only %d tunnels: what was tested?", l.Counters.Opened.Load())
	}
}

// curl without a tunnel is told that this is no web server; its HTTP/2 is nghttp2's.
func TestCurlIsRefused(t *testing.T) {
	m := newMesh(t)
	l := m.listen(t)
	got, err := exec.Command(program(t, "curl"), "--silent", "--show-error", "--max-time", "60", "--insecure", "--http2", "--cert", m.crt, "--key", m.key,
		"--write-out", "%{http_code} %{http_version}", "https://"+l.Addr().String()+"/", "https://"+l.Addr().String()+"/again").CombinedOutput()
	if err != nil || string(got) != "400 2400 2" {
		t.Errorf("got %q, %v", got, err)
	}
	if n := l.Counters.Refused(hbone.ReasonMethod); n != 2 {
		t.Errorf("%d counted", n)
	}
}

// We ask nghttp2 for tunnels, as we do a pod's ztunnel.
func TestWeCallNghttp2(t *testing.T) {
	m := newMesh(t)
	// Behind it is a proxy that speaks HTTP/1.1 and connects as it is told.
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := inner.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				request, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				if request.Method != "CONNECT" || request.Host != "127.0.0.1:8000" {
					fmt.Fprintf(c, "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n\r\n")
				io.Copy(c, r)
			})
		}
	})
	t.Cleanup(func() {
		inner.Close()
		serving.Wait()
	})
	pod := process.FreeAddress()
	nghttpx(t, pod, "-f", commas(pod), "-b", commas(inner.Addr().String()), "--verify-client", "--verify-client-cacert="+m.roots, m.key, m.crt)

	_, port, _ := net.SplitHostPort(pod)
	d := &hbone.Dialer{TLS: func(id spiffeid.ID) *tls.Config { return m.us.ClientConfig(id) }, Explain: m.us.Explain}
	fmt.Sscan(port, &d.Port)
	defer d.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			c, err := d.DialContext(t.Context(), "127.0.0.1:8000", m.id("foreign"))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			go c.Write(sent)
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("what comes back is not what was sent: %v", err)
			}
		})
	}
	all.Wait()
	if n := d.Counters.Dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if _, err := d.DialContext(t.Context(), "127.0.0.1:9", m.id("foreign")); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v", err)
	}
	if _, err := d.DialContext(t.Context(), "127.0.0.1:8000", m.id("vllm")); err == nil || !strings.Contains(err.Error(), "expected spiffe://cluster.local/ns/default/sa/vllm") {
		t.Errorf("got %v", err)
	}
}
