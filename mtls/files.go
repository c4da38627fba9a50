package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
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
	others := newFederation(f.Federated)
	files := &watch.Files{Paths: append([]string{f.Certificate, f.Key, f.Roots}, others.paths...), Every: f.Every}
	take := func(contents [][]byte, err error) {
		if err == nil {
			var i Identity
			if i, err = f.identity(contents, others); err == nil {
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
func (f Files) identity(contents [][]byte, others federation) (Identity, error) {
	cert, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return Identity{}, fmt.Errorf("%s and %s: %w", f.Certificate, f.Key, err)
	}
	id, err := leafID(cert.Leaf)
	if err != nil {
		return Identity{}, fmt.Errorf("%s: not an X.509-SVID: %w", f.Certificate, err)
	}
	roots, err := certificates(contents[2])
	if err != nil {
		return Identity{}, fmt.Errorf("%s: %w", f.Roots, err)
	}
	foreign, err := others.roots(contents[3:], nil)
	if err != nil {
		return Identity{}, err
	}
	i := Identity{Certificate: cert, Roots: map[spiffeid.TrustDomain][]*x509.Certificate{id.TrustDomain(): roots}}
	return i.with(foreign), nil
}

// federation is where the roots of other trust domains are.
type federation struct {
	domains []spiffeid.TrustDomain
	paths   []string // of each domain
}

func newFederation(files map[spiffeid.TrustDomain]string) federation {
	f := federation{domains: slices.SortedFunc(maps.Keys(files), spiffeid.TrustDomain.Compare)}
	for _, domain := range f.domains {
		f.paths = append(f.paths, files[domain])
	}
	return f
}

// roots reads the contents of paths.
func (f federation) roots(contents [][]byte, err error) (map[spiffeid.TrustDomain][]*x509.Certificate, error) {
	if err != nil {
		return nil, fmt.Errorf("the roots of other trust domains: %w", err)
	}
	all := make(map[spiffeid.TrustDomain][]*x509.Certificate)
	for n, domain := range f.domains {
		if all[domain], err = certificates(contents[n]); err != nil {
			return nil, fmt.Errorf("the roots of %s: %s: %w", domain, f.paths[n], err)
		}
	}
	return all, nil
}

// with is i with further roots.
func (i Identity) with(roots map[spiffeid.TrustDomain][]*x509.Certificate) Identity {
	i.Roots = maps.Clone(i.Roots)
	for domain, more := range roots {
		i.Roots[domain] = slices.Concat(i.Roots[domain], more)
	}
	return i
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
		return nil, errors.New("no certificate in it: want PEM")
	}
	return certs, nil
}
