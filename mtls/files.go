package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/watch"
)

// Files provides what PEM files hold, and takes up what changes in them: a
// Kubernetes Secret's, say, or those that spiffe-helper or cert-manager's CSI
// driver write. Contents that make no identity together, such as a key that is
// not the certificate's, change nothing.
type Files struct {
	// Certificate holds our X.509-SVID, leaf first, then intermediates; Key its
	// private key. They may be one file.
	Certificate, Key string
	// Roots holds the roots of our own trust domain, one or several.
	Roots string
	// Federated are files with the roots of other trust domains.
	Federated map[spiffeid.TrustDomain]string
	// Every is how often the files are looked at; zero means
	// watch.DefaultEvery.
	Every time.Duration
}

func (f Files) open(s *Source) func(context.Context) {
	domains := slices.SortedFunc(maps.Keys(f.Federated), spiffeid.TrustDomain.Compare)
	files := &watch.Files{Paths: []string{f.Certificate, f.Key, f.Roots}, Every: f.Every}
	for _, domain := range domains {
		files.Paths = append(files.Paths, f.Federated[domain])
	}
	take := func(contents [][]byte, err error) {
		if err == nil {
			var i Identity
			if i, err = f.identity(contents, domains); err == nil {
				s.offer(i)
				return
			}
		}
		s.fail(err)
	}
	take(files.Read())
	return func(ctx context.Context) { files.Run(ctx, take) }
}

// identity is what the contents of the files make together, in the order in
// which they are watched.
func (f Files) identity(contents [][]byte, domains []spiffeid.TrustDomain) (Identity, error) {
	cert, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return Identity{}, fmt.Errorf("%s and %s: %w", f.Certificate, f.Key, err)
	}
	i := Identity{Certificate: cert, Roots: make(map[spiffeid.TrustDomain][]*x509.Certificate)}
	id, err := leafID(cert.Leaf)
	if err != nil {
		return Identity{}, fmt.Errorf("%s: not an X.509-SVID: %w", f.Certificate, err)
	}
	for n, domain := range append([]spiffeid.TrustDomain{id.TrustDomain()}, domains...) {
		path := f.Roots
		if n > 0 {
			path = f.Federated[domain]
		}
		roots, err := certificates(contents[2+n])
		if err != nil {
			return Identity{}, fmt.Errorf("%s: %w", path, err)
		}
		i.Roots[domain] = append(i.Roots[domain], roots...)
	}
	return i, nil
}

// certificates reads every certificate of a text in PEM; there must be one.
func certificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("no certificate in it: want PEM")
	}
	return certs, nil
}
