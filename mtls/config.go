package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ServerConfig is for those who accept connections of the mesh: TLS 1.3 only,
// ALPN h2, no resumption, a client certificate that chains to the roots of its
// trust domain. PeerID then tells who came. It stays good across rotations.
func (s *Source) ServerConfig() *tls.Config {
	c := s.hybrid.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if prefersClassical(hello.SupportedCurves) {
			return s.classical, nil
		}
		return s.hybrid, nil
	}
	return c
}

// prefersClassical says whether a client's first key exchange that we know is
// one without post-quantum keys. It has then sent a share for that: ztunnel
// lists X25519 first and offers a share for it alone, and under a post-quantum
// policy lists X25519MLKEM768 alone. Go's server takes post-quantum ones first
// whatever the client's order and ours, at the cost of a HelloRetryRequest, a
// round trip more, if no share came for it.
func prefersClassical(offered []tls.CurveID) bool {
	for _, curve := range offered {
		switch curve {
		case tls.X25519, tls.CurveP256, tls.CurveP384:
			return true
		case tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024:
			return false
		}
	}
	return false
}

// serverConfigs are the two that ServerConfig chooses from.
func (s *Source) serverConfigs() (classical, hybrid *tls.Config) {
	hybrid = base()
	hybrid.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate() }
	// Any certificate passes crypto/tls, so that no list of CAs is sent, which
	// would make clients withhold theirs; verify judges it.
	hybrid.ClientAuth = tls.RequireAnyClientCert
	hybrid.SessionTicketsDisabled = true
	hybrid.VerifyConnection = func(state tls.ConnectionState) error {
		_, err := s.verify(state.PeerCertificates, x509.ExtKeyUsageClientAuth)
		return err
	}
	classical = hybrid.Clone()
	classical.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}
	return classical, hybrid
}

// ClientConfig is for those who connect to a peer that must be one of expected;
// none at all fits nobody. TLS 1.3 only, ALPN h2, no SNI, no resumption. It stays
// good across rotations. A server that rejects our certificate says so only
// after the handshake, at the first Read: see Explain.
func (s *Source) ClientConfig(expected ...spiffeid.ID) *tls.Config {
	expected = slices.Clone(expected)
	c := base()
	// Certificates of the mesh name no host. verify does what this leaves out.
	c.InsecureSkipVerify = true
	// A Certificate in Certificates would be withheld from a server whose list
	// of CAs does not name its issuer, as with an intermediate or a second root.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate() }
	c.VerifyConnection = func(state tls.ConnectionState) error {
		id, err := s.verify(state.PeerCertificates, x509.ExtKeyUsageServerAuth)
		if err != nil {
			return err
		}
		if !slices.Contains(expected, id) {
			return &Error{Reason: WrongIdentity, Peer: id, Err: fmt.Errorf("expected %s", anyOf(expected))}
		}
		return nil
	}
	return c
}

// base is what both sides have in common.
func base() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// Many small writes are coalesced by what sends them; full records
		// from the beginning then cost less.
		DynamicRecordSizingDisabled: true,
	}
}

// certificate is the one to show.
func (s *Source) certificate() (*tls.Certificate, error) {
	c, err := s.usable()
	if err != nil {
		return nil, err
	}
	return c.cert, nil
}

// verify says who a peer is, if its certificate proves it to us.
func (s *Source) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, &Error{Reason: NoCertificate}
	}
	id, err := leafID(chain[0])
	if err != nil {
		return spiffeid.ID{}, &Error{Reason: NotSPIFFE, Err: err}
	}
	c := s.current.Load()
	if c == nil {
		return spiffeid.ID{}, &Error{Reason: NoIdentity, Err: s.Err()}
	}
	roots := c.roots[id.TrustDomain()]
	if roots == nil {
		return spiffeid.ID{}, &Error{Reason: UnknownTrustDomain, Peer: id, Err: fmt.Errorf("no roots for trust domain %s, only for %s", id.TrustDomain(), c.domains)}
	}
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return spiffeid.ID{}, invalid(id, err)
	}
	return id, nil
}

// PeerID is who is at the other end of a connection whose handshake was made
// with a configuration of a Source, which verified it.
func PeerID(state tls.ConnectionState) (spiffeid.ID, error) {
	if !state.HandshakeComplete {
		return spiffeid.ID{}, errors.New("the handshake is not complete: nobody is known yet")
	}
	if len(state.PeerCertificates) == 0 {
		return spiffeid.ID{}, &Error{Reason: NoCertificate}
	}
	return leafID(state.PeerCertificates[0])
}

func anyOf(ids []spiffeid.ID) string {
	if len(ids) == 0 {
		return "nobody: no identity was given for this address"
	}
	all := make([]string, len(ids))
	for i, id := range ids {
		all[i] = id.String()
	}
	return strings.Join(all, " or ")
}
