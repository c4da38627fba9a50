package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"istio.io/api/security/v1alpha1"
)

// istiod is a CA that speaks Istio's protocol, over TLS.
type istiod struct {
	v1alpha1.UnimplementedIstioCertificateServiceServer
	ca   *CA
	life time.Duration

	mu     sync.Mutex
	tokens map[string]spiffeid.ID // who may ask, and as whom
	asked  []request
	refuse error // what everybody is answered; nil: a certificate
}

// request is one that istiod was sent.
type request struct {
	at      time.Time
	token   string
	cluster []string
	uris    []string // of the CSR
	life    int64
}

func (d *istiod) CreateCertificate(ctx context.Context, r *v1alpha1.IstioCertificateRequest) (*v1alpha1.IstioCertificateResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	token, _ := strings.CutPrefix(strings.Join(md.Get("authorization"), " "), "Bearer ")
	block, _ := pem.Decode([]byte(r.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no CSR")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	asked := request{at: time.Now(), token: token, cluster: md.Get("clusterid"), life: r.GetValidityDuration()}
	for _, u := range csr.URIs {
		asked.uris = append(asked.uris, u.String())
	}
	d.asked = append(d.asked, asked)
	id, known := d.tokens[token]
	switch {
	case d.refuse != nil:
		return nil, d.refuse
	case !known:
		return nil, status.Error(codes.Unauthenticated, "authentication failure")
	}
	chain, err := d.ca.Sign(csr.PublicKey, id, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(d.life) })
	if err != nil {
		return nil, err
	}
	answer := &v1alpha1.IstioCertificateResponse{}
	for _, c := range chain {
		answer.CertChain = append(answer.CertChain, string(PEM(c)))
	}
	answer.CertChain = append(answer.CertChain, string(PEM(d.ca.Roots()...)))
	return answer, nil
}

// set changes what istiod does.
func (d *istiod) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *istiod) requests() []request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]request(nil), d.asked...)
}

// serve serves istiod's protocol over TLS with a certificate for host.
func (d *istiod) serve(t testing.TB, l net.Listener, ca *CA, host string) {
	t.Helper()
	cert := issue(t, ca, spiffeid.RequireFromPath(domain, "/ns/istio-system/sa/istiod"), func(c *x509.Certificate) {
		c.NotAfter = time.Now().Add(caLife)
		if ip := net.ParseIP(host); ip != nil {
			c.IPAddresses = []net.IP{ip}
		} else {
			c.DNSNames = []string{host}
		}
	})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	v1alpha1.RegisterIstioCertificateServiceServer(server, d)
	var done sync.WaitGroup
	done.Go(func() { server.Serve(l) })
	t.Cleanup(func() { server.Stop(); done.Wait() })
}

// jwt is a token that says it is for that service account.
func jwt(namespace, account, mark string) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"aud":["istio-ca"],"sub":"system:serviceaccount:%s:%s","jti":%q}`, namespace, account, mark)) + "." + part("x")
}

// write replaces a file.
func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Over real TLS and TCP.
func TestIstioCA(t *testing.T) {
	root, theirs := newCA(t, domain), newCA(t, abroad)
	below, err := root.Intermediate()
	if err != nil {
		t.Fatal(err)
	}
	// The last element of an answer may hold several roots.
	below.roots = append(newCA(t, domain).Roots(), root.Roots()...)
	d := &istiod{ca: below, life: 2 * time.Second, tokens: map[string]spiffeid.ID{jwt("default", "waypoint", "1"): waypoint}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.serve(t, listener, root, "127.0.0.1")
	dir := t.TempDir()
	token, roots, federated := filepath.Join(dir, "token"), filepath.Join(dir, "root.pem"), filepath.Join(dir, "abroad.pem")
	write(t, token, []byte(jwt("default", "waypoint", "1")+"\n"))
	write(t, roots, PEM(root.Roots()...))
	s := open(t, IstioCA{
		Address: listener.Addr().String(), Token: token, Roots: roots, ClusterID: "Kubernetes",
		Federated: map[spiffeid.TrustDomain]string{abroad: federated},
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if c := s.current.Load(); c.id != waypoint || len(c.cert.Certificate) != 2 || c.domains != "cluster.local" {
		t.Errorf("%s, %d certificates, roots of %s", c.id, len(c.cert.Certificate), c.domains)
	}
	asked := d.requests()
	if last := asked[len(asked)-1]; last.life != 24*60*60 || fmt.Sprint(last.cluster) != "[Kubernetes]" || fmt.Sprint(last.uris) != "[spiffe://cluster.local/ns/default/sa/waypoint]" {
		t.Errorf("asked %+v", last)
	}

	// The token is read anew for each request, and roots of others come when
	// they come.
	write(t, federated, PEM(theirs.Roots()...))
	write(t, token, []byte(jwt("default", "waypoint", "2")))
	d.set(func() {
		d.life = time.Hour // long enough for a slow machine
		d.tokens = map[string]spiffeid.ID{jwt("default", "waypoint", "2"): waypoint}
	})
	await(t, "a renewal with the new token, and the roots of others", func() bool {
		return s.Err() == nil && time.Until(s.Expiry()) > time.Minute && s.current.Load().domains == "abroad.example, cluster.local"
	})
	client := open(t, Throwaway{CA: theirs, ID: gateway, Federated: []*CA{root}})
	connect(t, s.ServerConfig(), client.ClientConfig(waypoint)).ok(t)
}

// dialIn connects to a listener in memory, where a bubble's time can pass while
// connections wait.
func dialIn(l *bufconn.Listener) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
}

func TestIstioCAFailuresNameTheirRemedy(t *testing.T) {
	dir := t.TempDir()
	token, roots := filepath.Join(dir, "token"), filepath.Join(dir, "root.pem")
	synctest.Test(t, func(t *testing.T) {
		ca, other := newCA(t, domain), newCA(t, domain)
		d := &istiod{ca: ca, life: time.Hour}
		listener := bufconn.Listen(1 << 16)
		d.serve(t, listener, ca, "ca.example")
		s := Open(IstioCA{Address: "ca.example:15012", Token: token, Roots: roots, dial: dialIn(listener)}, nil)
		defer s.Close()
		told := func(text string) {
			t.Helper()
			time.Sleep(mostSignWait)
			synctest.Wait()
			if err := s.Err(); err == nil || !strings.Contains(err.Error(), text) || s.Ready() {
				t.Errorf("\ntold %v\nwant %s", err, text)
			}
		}
		told("token: no such file or directory (mount a projected token for the audience istio-ca)")
		write(t, token, []byte(jwt("default", "waypoint", "1")))
		told("root.pem: no such file")
		write(t, roots, []byte("x"))
		told("root.pem: no certificate in it")
		write(t, roots, PEM(other.Roots()...))
		told("does its certificate chain to the roots given for it?")
		write(t, roots, PEM(ca.Roots()...))
		told("the CA at ca.example:15012: rpc error: code = Unauthenticated desc = authentication failure (is the token for the audience istio-ca")
		d.set(func() { d.tokens = map[string]spiffeid.ID{jwt("default", "waypoint", "1"): waypoint} })
		time.Sleep(mostSignWait)
		synctest.Wait()
		if !s.Ready() || s.Err() != nil {
			t.Error("not ready when all is well:", s.Err())
		}
	})
}

// TestIstioCAOutages lives through days with outages of all kinds, for minutes
// and hours, in a bubble's time: whoever has a certificate that is good keeps
// serving, nobody hammers the CA, and nobody gives up.
func TestIstioCAOutages(t *testing.T) {
	dir := t.TempDir()
	token, rootFile := filepath.Join(dir, "token"), filepath.Join(dir, "root.pem")
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, domain)
		write(t, token, []byte(jwt("default", "waypoint", "1")))
		write(t, rootFile, PEM(ca.Roots()...))
		d := &istiod{ca: ca, life: 24 * time.Hour, tokens: map[string]spiffeid.ID{jwt("default", "waypoint", "1"): waypoint}}
		listener := bufconn.Listen(1 << 16)
		d.serve(t, listener, ca, "istiod.istio-system.svc")

		refused := func(context.Context) error { return errors.New("connection refused") }
		silent := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		var mu sync.Mutex
		fault := refused // what becomes of attempts to connect; nil: they succeed
		var dials []time.Time
		s := Open(IstioCA{Token: token, Roots: rootFile, dial: func(ctx context.Context, address string) (net.Conn, error) {
			mu.Lock()
			dials = append(dials, time.Now())
			f := fault
			mu.Unlock()
			if address != DefaultIstioCAAddress {
				t.Error("dials", address)
			}
			if f != nil {
				if err := f(ctx); err != nil {
					return nil, err
				}
			}
			return listener.DialContext(ctx)
		}}, nil)
		defer s.Close()
		outage := func(f func(context.Context) error) {
			mu.Lock()
			defer mu.Unlock()
			fault, dials = f, nil
		}
		attempts := func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(dials)
		}
		serverConfig, peer := s.ServerConfig(), Open(Throwaway{CA: ca, ID: vllm, Life: 100 * 24 * time.Hour}, nil)
		defer peer.Close()
		clientConfig := peer.ClientConfig(waypoint)
		var open []pair
		defer func() {
			for _, p := range open {
				p.server.NetConn().Close()
				p.client.NetConn().Close()
			}
		}()
		// load opens a connection and uses the old ones as well.
		load := func() {
			t.Helper()
			p := pipe(t, serverConfig, clientConfig)
			if len(open) < 10 {
				open = append(open, p)
			} else {
				defer p.client.NetConn().Close()
				defer p.server.NetConn().Close()
			}
			for _, p := range append(open, p) {
				p.pass(t)
			}
		}
		// pass lets time pass under load.
		pass := func(d time.Duration) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); {
				time.Sleep(min(time.Hour, time.Until(end)))
				load()
			}
		}

		// It comes up before its CA does.
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := attempts(); s.Ready() || n < 10 || n > 30 || !strings.Contains(fmt.Sprint(s.Err()), "connection refused") {
			t.Errorf("ten minutes without a CA: ready %t, %d attempts, %v", s.Ready(), n, s.Err())
		}
		outage(nil)
		time.Sleep(mostSignWait)
		synctest.Wait()
		if !s.Ready() || s.Err() != nil {
			t.Fatal("the CA is back, and there is no identity:", s.Err())
		}

		// Renewal at half-life, more or less.
		outage(nil)
		first := s.Expiry()
		pass(10 * time.Hour)
		if attempts() != 0 {
			t.Error("renewed long before it was due")
		}
		pass(4 * time.Hour)
		if got := s.Expiry().Sub(first); attempts() != 1 || got < 10*time.Hour || got > 14*time.Hour {
			t.Errorf("%d attempts, expires %s later", attempts(), got)
		}

		// Outages of every kind from when a renewal is due.
		for _, kind := range []struct {
			name   string
			dial   func(context.Context) error
			says   error
			length time.Duration
		}{
			{"refused", refused, nil, 3 * time.Hour},
			{"silent", silent, nil, 5 * time.Minute},
			{"overloaded", nil, status.Error(codes.ResourceExhausted, "busy"), 5 * time.Minute},
			{"unauthenticated", nil, status.Error(codes.Unauthenticated, "no keys yet"), 45 * time.Minute},
		} {
			const soonest = 24 * time.Hour * 45 / 100
			pass(time.Until(s.Expiry().Add(soonest - 24*time.Hour - time.Minute)))
			outage(kind.dial)
			d.set(func() { d.refuse = kind.says })
			for s.Err() == nil {
				pass(10 * time.Minute)
			}
			before := len(d.requests())
			outage(kind.dial)
			pass(kind.length)
			n := max(attempts(), len(d.requests())-before)
			if most := 10 + int(kind.length/(mostSignWait/2)); s.Err() == nil || n < 3 || n > most {
				t.Errorf("%s for %s: %d attempts, want no more than %d; %v", kind.name, kind.length, n, most, s.Err())
			}
			outage(nil)
			d.set(func() { d.refuse = nil })
			pass(mostSignWait + signTimeout)
			if s.Err() != nil || time.Until(s.Expiry()) < 23*time.Hour {
				t.Errorf("%s for %s: not renewed once the CA was back: %v", kind.name, kind.length, s.Err())
			}
		}

		// Longer than the certificate is good: not ready, then ready again.
		outage(refused)
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if s.Ready() {
			t.Error("ready with a certificate that has expired")
		}
		outage(nil)
		time.Sleep(mostSignWait)
		synctest.Wait()
		if !s.Ready() {
			t.Error("not ready again:", s.Err())
		}
		load()

		// An answer that makes no sense is a failure like another.
		d.set(func() { d.life = -time.Hour })
		time.Sleep(14 * time.Hour)
		synctest.Wait()
		if err := s.Err(); !s.Ready() || err == nil || !strings.Contains(err.Error(), "expired at") {
			t.Error(s.Ready(), err)
		}
	})
}

// pipe is connect in memory.
func pipe(t testing.TB, server, client *tls.Config) pair {
	t.Helper()
	near, far := net.Pipe()
	p := pair{server: tls.Server(far, server), client: tls.Client(near, client)}
	var wg sync.WaitGroup
	wg.Go(func() { p.serverErr = p.server.Handshake() })
	p.clientErr = p.client.Handshake()
	wg.Wait()
	if p.serverErr != nil || p.clientErr != nil {
		t.Fatalf("server: %v; client: %v", p.serverErr, p.clientErr)
	}
	return p
}

// pass sends a byte over a pipe.
func (p pair) pass(t testing.TB) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() { p.client.Write([]byte{7}) })
	if _, err := io.ReadFull(p.server, make([]byte, 1)); err != nil {
		t.Error("a connection broke:", err)
	}
	wg.Wait()
}

func TestSignedBy(t *testing.T) {
	ca := newCA(t, domain)
	leaf, root := string(PEM(issue(t, ca, waypoint).Leaf)), string(PEM(ca.Roots()...))
	for want, answer := range map[string][]string{
		"0 elements":                         nil,
		"1 elements":                         {leaf},
		"element 1: no certificate":          {"", root},
		"element 2: no certificate":          {leaf, "x", root},
		"element 3: no certificate":          {leaf, root, ""},
		"not an X.509-SVID":                  {root, root},
		"element 1: certificate 1: x509: ma": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", root},
	} {
		if _, err := signedBy(answer); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestRequestNamesWhoTheTokenIsFor(t *testing.T) {
	for token, want := range map[string]string{
		jwt("default", "waypoint", "1"): "[spiffe://cluster.local/ns/default/sa/waypoint]",
		"opaque":                        "[]",
		"a.b.c":                         "[]",
		"a.!.c":                         "[]",
		"a." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"somebody"}`)) + ".c": "[]",
		jwt("", "", "1"): "[]",
	} {
		if got := fmt.Sprint(IstioCA{TrustDomain: domain}.template([]byte(token)).URIs); got != want {
			t.Errorf("%s: %s, want %s", token, got, want)
		}
	}
}

func FuzzSignedBy(f *testing.F) {
	ca := newCA(f, domain)
	f.Add(string(PEM(issue(f, ca, waypoint).Leaf)), "", string(PEM(ca.Roots()...)))
	f.Fuzz(func(t *testing.T, leaf, between, root string) {
		for _, answer := range [][]string{{leaf, root}, {leaf, between, root}} {
			if i, err := signedBy(answer); err == nil {
				i.prepare()
			}
		}
	})
}
