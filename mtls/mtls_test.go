package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	domain   = spiffeid.RequireTrustDomainFromString("cluster.local")
	abroad   = spiffeid.RequireTrustDomainFromString("abroad.example")
	waypoint = spiffeid.RequireFromPath(domain, "/ns/default/sa/waypoint")
	vllm     = spiffeid.RequireFromPath(domain, "/ns/default/sa/vllm")
	gateway  = spiffeid.RequireFromPath(abroad, "/ns/edge/sa/gateway")
)

func newCA(t testing.TB, domain spiffeid.TrustDomain) *CA {
	t.Helper()
	ca, err := NewCA(domain)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t testing.TB, ca *CA, id spiffeid.ID, changes ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	cert, err := ca.Issue(id, changes...)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func open(t testing.TB, p Provider) *Source {
	t.Helper()
	s := Open(p, nil)
	t.Cleanup(s.Close)
	return s
}

// trusting is an identity with the roots of some CAs.
func trusting(cert tls.Certificate, cas ...*CA) Identity {
	i := Identity{Certificate: cert, Roots: make(map[spiffeid.TrustDomain][]*x509.Certificate)}
	for _, ca := range cas {
		i.Roots[ca.domain] = append(i.Roots[ca.domain], ca.Roots()...)
	}
	return i
}

// pair is a connection whose both ends have tried to shake hands.
type pair struct {
	server, client       *tls.Conn
	serverErr, clientErr error // of the handshakes
}

// connect makes a connection over TCP, and tries the handshake on both ends.
func connect(t testing.TB, server, client *tls.Config) pair {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var p pair
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			p.serverErr = err
			return
		}
		p.server = tls.Server(conn, server)
		if p.serverErr = p.server.HandshakeContext(ctx); p.serverErr != nil {
			conn.(*net.TCPConn).CloseWrite() // not Close, whose RST could overtake the alert
		}
	})
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p.client = tls.Client(conn, client)
	if p.clientErr = p.client.HandshakeContext(ctx); p.clientErr != nil {
		conn.Close()
	}
	wg.Wait()
	t.Cleanup(func() {
		p.client.NetConn().Close()
		if p.server != nil {
			p.server.NetConn().Close()
		}
	})
	return p
}

// exchange sends a byte each way.
func (p pair) exchange(t testing.TB) {
	t.Helper()
	b := make([]byte, 1)
	for _, way := range []struct{ from, to *tls.Conn }{{p.client, p.server}, {p.server, p.client}} {
		if _, err := way.from.Write([]byte{7}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way.to, b); err != nil {
			t.Fatal(err)
		}
	}
}

func (p pair) ok(t testing.TB) {
	t.Helper()
	if p.serverErr != nil || p.clientErr != nil {
		t.Fatalf("server: %v; client: %v", p.serverErr, p.clientErr)
	}
	p.exchange(t)
}

func TestHandshakeTellsBothEndsWhoTheOtherIs(t *testing.T) {
	ca := newCA(t, domain)
	server, client := open(t, Throwaway{CA: ca, ID: waypoint}), open(t, Throwaway{CA: ca, ID: vllm})
	p := connect(t, server.ServerConfig(), client.ClientConfig(gateway, waypoint))
	p.ok(t)
	for _, end := range []struct {
		conn *tls.Conn
		peer spiffeid.ID
	}{{p.server, vllm}, {p.client, waypoint}} {
		state := end.conn.ConnectionState()
		id, err := PeerID(state)
		if err != nil || id != end.peer {
			t.Errorf("the peer is %v, %v; want %v", id, err, end.peer)
		}
		if state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "h2" || state.ServerName != "" {
			t.Errorf("%x %q %q, want TLS 1.3, h2, no SNI", state.Version, state.NegotiatedProtocol, state.ServerName)
		}
	}
}

func TestPeerIDNeedsACompleteHandshake(t *testing.T) {
	if id, err := PeerID(tls.ConnectionState{}); err == nil {
		t.Error(id)
	}
	if id, err := PeerID(tls.ConnectionState{HandshakeComplete: true}); err == nil {
		t.Error(id)
	}
}

// A session that could be resumed would outlive a root that was taken away.
func TestNothingIsResumed(t *testing.T) {
	ca := newCA(t, domain)
	server, client := open(t, Throwaway{CA: ca, ID: waypoint}), open(t, Throwaway{CA: ca, ID: vllm})
	config := client.ClientConfig(waypoint)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	config.ServerName = "waypoint" // what sessions are cached by
	for range 3 {
		p := connect(t, server.ServerConfig(), config)
		p.ok(t)
		if p.client.ConnectionState().DidResume {
			t.Fatal("resumed")
		}
	}
}

func TestOneTrustDomainHasSeveralRootsAndIntermediates(t *testing.T) {
	old, new := newCA(t, domain), newCA(t, domain)
	below, err := new.Intermediate()
	if err != nil {
		t.Fatal(err)
	}
	further, err := below.Intermediate()
	if err != nil {
		t.Fatal(err)
	}
	server := open(t, trusting(issue(t, old, waypoint), old, new))
	for _, ca := range []*CA{old, new, below, further} {
		client := open(t, trusting(issue(t, ca, vllm), new, old))
		connect(t, server.ServerConfig(), client.ClientConfig(waypoint)).ok(t)
	}
}

// Each trust domain's roots vouch for its own members only.
func TestFederatedTrustDomains(t *testing.T) {
	ours, theirs := newCA(t, domain), newCA(t, abroad)
	server := open(t, Throwaway{CA: ours, ID: waypoint, Federated: []*CA{theirs}})
	client := open(t, Throwaway{CA: theirs, ID: gateway, Federated: []*CA{ours}})
	p := connect(t, server.ServerConfig(), client.ClientConfig(waypoint))
	p.ok(t)
	if id, err := PeerID(p.server.ConnectionState()); id != gateway {
		t.Error(id, err)
	}
	impostor := open(t, trusting(issue(t, theirs, vllm), theirs, ours))
	p = connect(t, server.ServerConfig(), impostor.ClientConfig(waypoint))
	if e := server.Explain(p.serverErr); e == nil || e.Reason != UnknownAuthority || e.Peer != vllm {
		t.Errorf("%v, want %s", e, UnknownAuthority)
	}
}

func twoIDs(c *x509.Certificate) { c.URIs = append(c.URIs, gateway.URL()) }
func noID(c *x509.Certificate)   { c.URIs, c.DNSNames = nil, []string{"vllm.default.svc"} }
func noPath(c *x509.Certificate) { c.URIs[0] = domain.ID().URL() }
func isCA(c *x509.Certificate)   { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }
func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
}
func notYetValid(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }
func wrongPurpose(c *x509.Certificate) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
}

// wrong are certificates that nobody may show, and what is said of them.
func wrong(t *testing.T, ca *CA) map[string]struct {
	cert   tls.Certificate
	reason Reason
	says   string
} {
	return map[string]struct {
		cert   tls.Certificate
		reason Reason
		says   string
	}{
		"expired":             {issue(t, ca, vllm, expired), Expired, "peer spiffe://cluster.local/ns/default/sa/vllm: x509: certificate has expired or is not yet valid: current time"},
		"not yet valid":       {issue(t, ca, vllm, notYetValid), NotYetValid, "is before"},
		"wrong trust domain":  {issue(t, newCA(t, abroad), gateway), UnknownTrustDomain, "peer spiffe://abroad.example/ns/edge/sa/gateway: no roots for trust domain abroad.example, only for cluster.local (federate it"},
		"unknown authority":   {issue(t, newCA(t, domain), vllm), UnknownAuthority, "signed by unknown authority"},
		"two SPIFFE IDs":      {issue(t, ca, vllm, twoIDs), NotSPIFFE, "more than one URI SAN (want a certificate with exactly one"},
		"no SPIFFE ID":        {issue(t, ca, vllm, noID), NotSPIFFE, "no URI SAN"},
		"ID without path":     {issue(t, ca, vllm, noPath), NotSPIFFE, "spiffe://cluster.local is the ID of a trust domain"},
		"certificate of a CA": {issue(t, ca, vllm, isCA), NotSPIFFE, "is that of a CA"},
		"wrong purpose":       {issue(t, ca, vllm, wrongPurpose), InvalidCertificate, "incompatible key usage"},
	}
}

func TestServerRefuses(t *testing.T) {
	ca := newCA(t, domain)
	server := open(t, Throwaway{CA: ca, ID: waypoint})
	refused := func(t *testing.T, client *tls.Config, reason Reason, says string) pair {
		t.Helper()
		p := connect(t, server.ServerConfig(), client)
		e := server.Explain(p.serverErr)
		if e == nil || e.Reason != reason || !strings.Contains(e.Error(), says) {
			t.Errorf("\nrefused with %v\nwant %s: … %s …", e, reason, says)
		}
		return p
	}
	for name, test := range wrong(t, ca) {
		t.Run(name, func(t *testing.T) {
			p := refused(t, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{test.cert}, NextProtos: []string{"h2"}}, test.reason, test.says)
			// The client's handshake is over before the server has seen its
			// certificate: it learns at the first Read.
			if p.clientErr != nil {
				t.Fatal(p.clientErr)
			}
			if p.serverErr == nil {
				t.FailNow() // and there is nothing to read
			}
			_, err := p.client.Read(make([]byte, 1))
			if e := open(t, Throwaway{CA: ca, ID: vllm}).Explain(err); e == nil || e.Reason != Rejected ||
				!strings.Contains(e.Error(), "refused us, spiffe://cluster.local/ns/default/sa/vllm: remote error: tls: bad certificate") {
				t.Errorf("the client reads %v, want %s", e, Rejected)
			}
		})
	}
	t.Run("no client certificate", func(t *testing.T) {
		refused(t, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}, NoCertificate, "didn't provide a certificate")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		p := refused(t, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{issue(t, ca, vllm)}}, TLSVersion, "unsupported versions")
		if e := server.Explain(p.clientErr); e == nil || e.Reason != TLSVersion {
			t.Errorf("the client fails with %v, want %s", e, TLSVersion)
		}
	})
	t.Run("another protocol", func(t *testing.T) {
		refused(t, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{issue(t, ca, vllm)}, NextProtos: []string{"imap"}}, HandshakeFailed, "imap")
	})
}

func TestClientRefuses(t *testing.T) {
	ca := newCA(t, domain)
	client := open(t, Throwaway{CA: ca, ID: waypoint})
	refused := func(t *testing.T, server *tls.Config, expected spiffeid.ID, reason Reason, says string) {
		t.Helper()
		p := connect(t, server, client.ClientConfig(expected))
		e := client.Explain(p.clientErr)
		if e == nil || e.Reason != reason || !strings.Contains(e.Error(), says) {
			t.Errorf("\nrefused with %v\nwant %s: … %s …", e, reason, says)
		}
	}
	for name, test := range wrong(t, ca) {
		t.Run(name, func(t *testing.T) {
			refused(t, &tls.Config{Certificates: []tls.Certificate{test.cert}, NextProtos: []string{"h2"}}, vllm, test.reason, test.says)
		})
	}
	good := &tls.Config{Certificates: []tls.Certificate{issue(t, ca, vllm)}, NextProtos: []string{"h2"}}
	t.Run("wrong SPIFFE ID", func(t *testing.T) {
		refused(t, good, waypoint, WrongIdentity, "peer spiffe://cluster.local/ns/default/sa/vllm: expected spiffe://cluster.local/ns/default/sa/waypoint")
	})
	t.Run("nobody expected", func(t *testing.T) {
		p := connect(t, good, client.ClientConfig())
		if e := client.Explain(p.clientErr); e == nil || e.Reason != WrongIdentity {
			t.Errorf("%v, want %s", e, WrongIdentity)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		old := good.Clone()
		old.MaxVersion = tls.VersionTLS12
		refused(t, old, vllm, TLSVersion, "1.3")
	})
}

// Go's client withholds a certificate whose issuer the server's list of CAs does
// not name, unless GetClientCertificate gives it.
func TestClientShowsItsCertificateWhateverTheListOfCAs(t *testing.T) {
	ca, other := newCA(t, domain), newCA(t, abroad)
	client := open(t, Throwaway{CA: ca, ID: waypoint})
	list := x509.NewCertPool()
	list.AddCert(other.Roots()[0])
	p := connect(t, &tls.Config{
		Certificates: []tls.Certificate{issue(t, ca, vllm)}, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAnyClientCert, ClientCAs: list,
	}, client.ClientConfig(vllm))
	p.ok(t)
}

func TestWhatIsNotTLSIsToldApart(t *testing.T) {
	server := open(t, Throwaway{CA: newCA(t, domain), ID: waypoint})
	for what, test := range map[string]struct {
		send string
		want Reason
	}{
		"plain HTTP":  {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", NotTLS},
		"nothing":     {"", Disconnected},
		"half a head": {"\x16\x03\x01", Disconnected},
	} {
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			io.WriteString(far, test.send)
			far.Close()
		})
		if e := server.Explain(tls.Server(near, server.ServerConfig()).Handshake()); e == nil || e.Reason != test.want {
			t.Errorf("%s: %v, want %s", what, e, test.want)
		}
		near.Close()
		wg.Wait()
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if e := server.Explain(tls.Server(near, server.ServerConfig()).HandshakeContext(ctx)); e == nil || e.Reason != Timeout {
		t.Errorf("silence: %v, want %s", e, Timeout)
	}
	if e := server.Explain(nil); e != nil {
		t.Errorf("nothing happened: %v", e)
	}
}

// later is a Provider whose time the test chooses.
type later struct{ source *Source }

func (l *later) open(s *Source) func(context.Context) {
	l.source = s
	return nil
}

func TestWithoutAnIdentityNothingIsAcceptedNorDialled(t *testing.T) {
	ca := newCA(t, domain)
	var provider later
	s := open(t, &provider)
	if s.Ready() || !s.ID().IsZero() || !s.Expiry().IsZero() {
		t.Errorf("ready %t as %v until %v", s.Ready(), s.ID(), s.Expiry())
	}
	s.fail(errors.New("the agent does not answer"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the agent does not answer") {
		t.Error(err)
	}
	p := connect(t, s.ServerConfig(), open(t, Throwaway{CA: ca, ID: vllm}).ClientConfig(waypoint))
	if e := s.Explain(p.serverErr); e == nil || e.Reason != NoIdentity || !strings.Contains(e.Error(), "the agent does not answer") {
		t.Error("as a server:", e)
	}
	p = connect(t, open(t, Throwaway{CA: ca, ID: vllm}).ServerConfig(), s.ClientConfig(vllm))
	if e := s.Explain(p.clientErr); e == nil || e.Reason != NoIdentity {
		t.Error("as a client:", e)
	}

	cert := issue(t, ca, waypoint)
	s.offer(trusting(cert, ca))
	if err := s.Wait(t.Context()); err != nil || !s.Ready() || s.ID() != waypoint || !s.Expiry().Equal(cert.Leaf.NotAfter) || s.Err() != nil {
		t.Errorf("%v; ready %t as %v until %v, %v", err, s.Ready(), s.ID(), s.Expiry(), s.Err())
	}
	connect(t, s.ServerConfig(), open(t, Throwaway{CA: ca, ID: vllm}).ClientConfig(waypoint)).ok(t)
}

func TestRotationBreaksNoConnection(t *testing.T) {
	before, after := newCA(t, domain), newCA(t, domain)
	var serving, dialling later
	server, client := open(t, &serving), open(t, &dialling)
	server.offer(trusting(issue(t, before, waypoint), before))
	client.offer(trusting(issue(t, before, vllm), before))
	serverConfig, clientConfig := server.ServerConfig(), client.ClientConfig(waypoint)
	old := connect(t, serverConfig, clientConfig)
	old.ok(t)

	// Everything changes, the roots too.
	server.offer(trusting(issue(t, after, waypoint), after))
	client.offer(trusting(issue(t, after, vllm), after))
	old.exchange(t)
	new := connect(t, serverConfig, clientConfig)
	new.ok(t)
	if err := new.client.ConnectionState().PeerCertificates[0].CheckSignatureFrom(after.Roots()[0]); err != nil {
		t.Error("the new connection shows an old certificate:", err)
	}
	// What the roots that are gone signed is not taken any more.
	p := connect(t, serverConfig, open(t, trusting(issue(t, before, vllm), before, after)).ClientConfig(waypoint))
	if e := server.Explain(p.serverErr); e == nil || e.Reason != UnknownAuthority {
		t.Errorf("%v, want %s", e, UnknownAuthority)
	}
}

func TestBadIdentitiesAreNotTaken(t *testing.T) {
	ca := newCA(t, domain)
	var provider later
	s := open(t, &provider)
	good := issue(t, ca, waypoint)
	s.offer(trusting(good, ca))
	stranger := issue(t, ca, waypoint)
	stranger.PrivateKey = issue(t, ca, waypoint).PrivateKey
	garbled := issue(t, ca, waypoint)
	garbled.Certificate = [][]byte{[]byte("garbled")}
	keyless := issue(t, ca, waypoint)
	keyless.PrivateKey = nil
	for want, bad := range map[string]Identity{
		"without a certificate":       {},
		"cannot be read":              trusting(garbled, ca),
		"the key is not that of":      trusting(stranger, ca),
		"the key is not that of ":     trusting(keyless, ca),
		"expired at":                  trusting(issue(t, ca, waypoint, expired), ca),
		"no X.509-SVID":               trusting(issue(t, ca, waypoint, twoIDs), ca),
		"no root certificate of":      trusting(issue(t, ca, waypoint), newCA(t, abroad)),
		"no root certificate of clus": {Certificate: good, Roots: map[spiffeid.TrustDomain][]*x509.Certificate{domain: nil}},
	} {
		if err := s.offer(bad); err == nil || !strings.Contains(err.Error(), want) || s.Err() != err {
			t.Errorf("%v, want %s", err, want)
		}
		if s.ID() != waypoint || !s.Ready() || !s.Expiry().Equal(good.Leaf.NotAfter) {
			t.Errorf("after %q, the good one is not in force", want)
		}
	}
}

// While roots change, and when files were mixed up, it is told but not refused:
// keeping the old roots would be worse.
func TestCertificateThatItsOwnRootsDoNotVouchForIsTold(t *testing.T) {
	var log logged
	ca := newCA(t, domain)
	s := Open(trusting(issue(t, ca, waypoint), newCA(t, domain)), slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(s.Close)
	if text := log.take(); !s.Ready() || !strings.Contains(text, "does not chain to the roots we trust") {
		t.Error(s.Ready(), text)
	}
	s = Open(trusting(issue(t, ca, waypoint), ca), slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(s.Close)
	if text := log.take(); strings.Contains(text, "WARN") {
		t.Error(text)
	}
}

// logged is where a Source logs to.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// take returns what was logged since it was last called.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}

func TestExpiryIsToldLongBefore(t *testing.T) {
	var log logged
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, domain) // in the bubble's time
		cert := func(life time.Duration) tls.Certificate {
			return issue(t, ca, waypoint, func(c *x509.Certificate) {
				c.NotBefore = time.Now()
				c.NotAfter = time.Now().Add(life)
			})
		}
		var provider later
		s := Open(&provider, slog.New(slog.NewTextHandler(&log, nil)))
		defer s.Close()
		s.offer(trusting(cert(24*time.Hour), ca))
		time.Sleep(17 * time.Hour)
		synctest.Wait()
		if text := log.take(); strings.Contains(text, "WARN") {
			t.Error("told too early:", text)
		}
		s.fail(errors.New("the CA is down"))
		log.take()
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if text := log.take(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "WARN") || !strings.Contains(text, "left=6h0m0s") || !strings.Contains(text, "the CA is down") {
			t.Error("with a quarter left:", text)
		}
		time.Sleep(6*time.Hour - 2*time.Second)
		synctest.Wait()
		if text := log.take(); strings.Count(text, "\n") < 3 || strings.Count(text, "\n") > 12 || !s.Ready() {
			t.Error("until it expires:", text)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if text := log.take(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "ERROR") || s.Ready() {
			t.Error("when it expired:", text)
		}
		if err := s.Err(); err == nil || err.Error() != "the certificate of spiffe://cluster.local/ns/default/sa/waypoint expired at 2000-01-02T00:00:00Z; the CA is down" {
			t.Error(err)
		}
		if _, err := s.certificate(); err == nil || !strings.Contains(err.Error(), "waypoint expired at 2000-01-02T00:00:00Z") {
			t.Error("it is still shown:", err)
		}
		s.offer(trusting(cert(time.Hour), ca))
		if !s.Ready() {
			t.Error("not ready with a new one")
		}
		log.take()
		time.Sleep(44 * time.Minute)
		synctest.Wait()
		if text := log.take(); text != "" {
			t.Error("of the new one:", text)
		}
	})
}

func TestThrowawayRenewsAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := Open(Throwaway{CA: newCA(t, domain), ID: waypoint, Life: 10 * time.Minute}, nil)
		defer s.Close()
		first := s.Expiry()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := s.Expiry().Sub(first); !s.Ready() || got < 24*time.Hour-time.Second {
			t.Errorf("expires %s later than the first", got)
		}
	})
}

func TestCloseMayBeCalledAgain(t *testing.T) {
	s := Open(Throwaway{CA: newCA(t, domain), ID: waypoint}, nil)
	s.Close()
	s.Close()
	if !s.Ready() {
		t.Error("what was in force is not any more")
	}
}

// BenchmarkHandshake is a whole handshake, both ends of it, as ztunnel makes it.
func BenchmarkHandshake(b *testing.B) {
	ca := newCA(b, domain)
	server, client := open(b, Throwaway{CA: ca, ID: waypoint}), open(b, Throwaway{CA: ca, ID: vllm})
	for _, kind := range []struct {
		name   string
		groups []tls.CurveID
	}{{"X25519", []tls.CurveID{tls.X25519}}, {"X25519MLKEM768", []tls.CurveID{tls.X25519MLKEM768}}} {
		b.Run(kind.name, func(b *testing.B) {
			serverConfig, clientConfig := server.ServerConfig(), client.ClientConfig(waypoint)
			clientConfig.CurvePreferences = kind.groups
			b.ReportAllocs()
			for b.Loop() {
				p := pipe(b, serverConfig, clientConfig)
				p.server.NetConn().Close()
				p.client.NetConn().Close()
			}
		})
	}
}
