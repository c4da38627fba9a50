package mtls

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// CA is a certificate authority of one trust domain whose key lives in this
// process's memory and dies with it. It is safe for concurrent use.
type CA struct {
	domain spiffeid.TrustDomain
	chain  []*x509.Certificate // its own certificate, then those up to a root, which is left out
	roots  []*x509.Certificate
	key    *ecdsa.PrivateKey
}

// caLife is how long the certificate of a CA is good.
const caLife = 10 * 365 * 24 * time.Hour

// DefaultLife is how long a CA's certificates are good unless told otherwise.
const DefaultLife = time.Hour

// backdating is by how much certificates are good before they are made, for
// clocks that are a little behind.
const backdating = time.Minute

// NewCA makes a root of a trust domain.
func NewCA(domain spiffeid.TrustDomain) (*CA, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	ca := &CA{domain: domain, key: key}
	root, err := ca.certify(ca.authority(), nil, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	ca.roots = []*x509.Certificate{root}
	return ca, nil
}

// Intermediate makes a CA whose certificates chain to the roots of ca.
func (ca *CA) Intermediate() (*CA, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := ca.certify(ca.authority(), ca.issuer(), &key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &CA{domain: ca.domain, chain: append([]*x509.Certificate{cert}, ca.chain...), roots: ca.roots, key: key}, nil
}

// Roots are what those must trust who are to trust ca.
func (ca *CA) Roots() []*x509.Certificate { return ca.roots }

// Sign makes a certificate for the key of a workload, and returns it with the
// intermediates that lead to Roots. Each change may alter what is to be signed;
// so tests get wrong ones.
func (ca *CA) Sign(public crypto.PublicKey, id spiffeid.ID, changes ...func(*x509.Certificate)) ([]*x509.Certificate, error) {
	template := &x509.Certificate{
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             time.Now().Add(-backdating),
		NotAfter:              time.Now().Add(DefaultLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, change := range changes {
		change(template)
	}
	leaf, err := ca.certify(template, ca.issuer(), public)
	if err != nil {
		return nil, fmt.Errorf("no certificate for %s: %w", id, err)
	}
	return append([]*x509.Certificate{leaf}, ca.chain...), nil
}

// Issue makes a key and its certificate, as Sign does.
func (ca *CA) Issue(id spiffeid.ID, changes ...func(*x509.Certificate)) (tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := ca.Sign(&key.PublicKey, id, changes...)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// authority is what a CA asks to have certified.
func (ca *CA) authority() *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Fairway throw-away CA"}, CommonName: ca.domain.Name()},
		URIs:                  []*url.URL{ca.domain.ID().URL()},
		NotBefore:             time.Now().Add(-backdating),
		NotAfter:              time.Now().Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
}

// issuer is whom ca's certificates name as such.
func (ca *CA) issuer() *x509.Certificate {
	if len(ca.chain) > 0 {
		return ca.chain[0]
	}
	return ca.roots[0]
}

// certify signs a certificate; without an issuer, the one it is for signs.
func (ca *CA) certify(template, issuer *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Throwaway provides an identity that a CA of this process issues, and issues
// again when half of its life is over.
type Throwaway struct {
	CA *CA
	ID spiffeid.ID
	// Life of each certificate; zero means DefaultLife.
	Life time.Duration
	// Federated are the CAs of other trust domains to trust.
	Federated []*CA
}

func (t Throwaway) open(s *Source) func(context.Context) {
	life := t.Life
	if life <= 0 {
		life = DefaultLife
	}
	renew := func() {
		i, err := t.identity(life)
		if err != nil {
			s.fail(err)
			return
		}
		s.offer(i)
	}
	renew()
	return func(ctx context.Context) {
		tick := time.NewTicker(life / 2)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				renew()
			}
		}
	}
}

func (t Throwaway) identity(life time.Duration) (Identity, error) {
	cert, err := t.CA.Issue(t.ID, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) })
	if err != nil {
		return Identity{}, err
	}
	i := Identity{Certificate: cert, Roots: make(map[spiffeid.TrustDomain][]*x509.Certificate)}
	for _, ca := range append([]*CA{t.CA}, t.Federated...) {
		i.Roots[ca.domain] = append(i.Roots[ca.domain], ca.roots...)
	}
	return i, nil
}

// PEM writes certificates as a file of them is read.
func PEM(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
