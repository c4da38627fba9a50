// Package mtls is who we are and whom we trust: an X.509-SVID with its key, and
// the roots of each trust domain (SPIFFE, X509-SVID and Trust Domain and Bundle
// specifications). Whatever issues and renews them is a Provider: a SPIFFE
// Workload API, Istio's CA, or files. Open makes a Source of a Provider, and its
// TLS configurations are all that the listener and the dialer of a mesh need.
//
// A handshake uses what is in force when it begins. A rotation therefore breaks
// no connection: those that are established go on, new ones get the new
// certificate. There is no session resumption that could outlive a root.
//
// A peer is who its certificate says, and only if that chains to a root of its
// own trust domain: what cannot be verified is refused, with an *Error that
// holds a Reason to count by. An identity of ours that has expired is not shown
// to anyone.
package mtls

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// A Provider is where an identity and the roots come from: a WorkloadAPI, an
// IstioCA, Files, or an Identity that stays as it is.
type Provider interface {
	// open gives s what can be had without waiting, and returns what keeps s
	// fresh until its context is done; nil: nothing has to.
	open(s *Source) (run func(context.Context))
}

// Identity is what a Provider provides. As a Provider itself, it is one that
// never changes.
type Identity struct {
	// Certificate is our X.509-SVID, leaf first, then intermediates, and its key.
	Certificate tls.Certificate
	// Roots of each trust domain, ours among them.
	Roots map[spiffeid.TrustDomain][]*x509.Certificate
}

func (i Identity) open(s *Source) func(context.Context) {
	s.offer(i)
	return nil
}

// A Source is who we are and whom we trust, kept fresh by a Provider. It is safe
// for concurrent use. Open makes it, Close ends it.
type Source struct {
	log  *slog.Logger
	stop context.CancelFunc
	done sync.WaitGroup

	current atomic.Pointer[current] // nil before there is an identity
	renewed chan struct{}           // has a value when watchExpiry has not seen current yet
	first   chan struct{}           // closed with the first identity

	mu      sync.Mutex
	failure error // guarded by mu: why the last attempt to get an identity failed; nil: it did not

	// The configurations that a server chooses from by what its client offers.
	classical, hybrid *tls.Config
}

// current is an Identity made ready. It never changes.
type current struct {
	id      spiffeid.ID
	cert    *tls.Certificate
	chain   []*x509.Certificate // cert, parsed
	expiry  time.Time           // of the certificate in the chain that expires first
	life    time.Duration
	roots   map[spiffeid.TrustDomain]*x509.CertPool
	domains string // that there are roots for, for errors
}

// Open makes a Source of what p provides. It waits for nothing: Ready says when
// there is an identity, Err why there is none. A nil log discards.
func Open(p Provider, log *slog.Logger) *Source {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Source{log: log, stop: stop, renewed: make(chan struct{}, 1), first: make(chan struct{})}
	s.classical, s.hybrid = s.serverConfigs()
	run := p.open(s)
	if run != nil {
		s.done.Go(func() { run(ctx) })
	}
	s.done.Go(func() { s.watchExpiry(ctx) })
	return s
}

// Close ends the renewal and returns when it has ended. What is in force stays
// so until it expires. It may be called again.
func (s *Source) Close() {
	s.stop()
	s.done.Wait()
}

// ID is who we are; zero before there is an identity.
func (s *Source) ID() spiffeid.ID {
	if c := s.current.Load(); c != nil {
		return c.id
	}
	return spiffeid.ID{}
}

// Ready says whether there is an identity that has not expired.
func (s *Source) Ready() bool {
	_, err := s.usable()
	return err == nil
}

// Expiry is when our certificate expires; zero before there is one.
func (s *Source) Expiry() time.Time {
	if c := s.current.Load(); c != nil {
		return c.expiry
	}
	return time.Time{}
}

// Err says why there is no identity that can be used, or why the one in force
// could not be renewed; nil: all is well.
func (s *Source) Err() error {
	s.mu.Lock()
	failure := s.failure
	s.mu.Unlock()
	c := s.current.Load()
	switch {
	case c == nil && failure == nil:
		return errNone
	case c == nil || time.Now().Before(c.expiry):
		return failure
	case failure == nil:
		return c.expired()
	}
	return fmt.Errorf("%w; %w", c.expired(), failure)
}

var errNone = errors.New("none has been provided yet")

// Wait returns when there is an identity, or with ctx's end why there is none.
func (s *Source) Wait(ctx context.Context) error {
	select {
	case <-s.first:
		return nil
	case <-ctx.Done():
		return &Error{Reason: NoIdentity, Err: fmt.Errorf("%w: %w", ctx.Err(), s.Err())}
	}
}

// usable is what is in force, or why it cannot be used.
func (s *Source) usable() (*current, error) {
	c := s.current.Load()
	if c == nil || !time.Now().Before(c.expiry) {
		return nil, &Error{Reason: NoIdentity, Err: s.Err()}
	}
	return c, nil
}

func (c *current) expired() error {
	return fmt.Errorf("the certificate of %s expired at %s", c.id, stamp(c.expiry))
}

// offer puts an identity in force, or says why it cannot be. What was in force
// then stays so.
func (s *Source) offer(i Identity) error {
	c, err := i.prepare()
	if err != nil {
		s.fail(err)
		return err
	}
	s.mu.Lock()
	s.failure = nil
	s.mu.Unlock()
	was := s.current.Swap(c)
	select {
	case s.renewed <- struct{}{}:
	default:
	}
	if _, err := s.verify(c.chain, x509.ExtKeyUsageAny); err != nil {
		s.log.Warn("our certificate does not chain to the roots we trust: peers that trust the same will refuse us", "id", c.id.String(), "error", err)
	}
	if was == nil {
		close(s.first)
		s.log.Info("identity", "id", c.id.String(), "expires", stamp(c.expiry), "trust_domains", c.domains)
		return nil
	}
	s.log.Info("identity renewed", "id", c.id.String(), "expires", stamp(c.expiry), "trust_domains", c.domains)
	if was.id != c.id {
		s.log.Warn("our identity is another one now: peers that expect the old one will refuse us", "was", was.id.String(), "is", c.id.String())
	}
	return nil
}

// fail notes that an attempt to get an identity failed.
func (s *Source) fail(err error) {
	s.mu.Lock()
	s.failure = err
	s.mu.Unlock()
	if c := s.current.Load(); c != nil {
		s.log.Warn("the identity cannot be renewed; the one in force stays so until it expires", "id", c.id.String(), "expires", stamp(c.expiry), "error", err)
	} else {
		s.log.Warn("no identity yet", "error", err)
	}
}

// prepare makes an Identity ready for use, or says what is wrong with it.
func (i Identity) prepare() (*current, error) {
	if len(i.Certificate.Certificate) == 0 {
		return nil, errors.New("an identity without a certificate")
	}
	c := &current{cert: &i.Certificate, roots: make(map[spiffeid.TrustDomain]*x509.CertPool)}
	for _, der := range i.Certificate.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the certificate cannot be read: %w", err)
		}
		c.chain = append(c.chain, cert)
		if c.expiry.IsZero() || cert.NotAfter.Before(c.expiry) {
			c.expiry = cert.NotAfter
		}
	}
	leaf := c.chain[0]
	c.cert.Leaf = leaf
	c.life = c.expiry.Sub(leaf.NotBefore)
	var err error
	if c.id, err = leafID(leaf); err != nil {
		return nil, fmt.Errorf("our own certificate is no X.509-SVID: %w", err)
	}
	signer, ok := i.Certificate.PrivateKey.(crypto.Signer)
	if public, known := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !known || !public.Equal(signer.Public()) {
		return nil, fmt.Errorf("the key is not that of the certificate of %s", c.id)
	}
	if !time.Now().Before(c.expiry) {
		return nil, fmt.Errorf("%w: not taken", c.expired())
	}
	for domain, roots := range i.Roots {
		if len(roots) == 0 {
			continue
		}
		pool := x509.NewCertPool()
		for _, root := range roots {
			pool.AddCert(root)
		}
		c.roots[domain] = pool
	}
	if c.roots[c.id.TrustDomain()] == nil {
		return nil, fmt.Errorf("no root certificate of %s, the trust domain of %s", c.id.TrustDomain(), c.id)
	}
	c.domains = names(c.roots)
	return c, nil
}

// leafID is the SPIFFE ID of a certificate that a workload may show (X509-SVID,
// sections 2, 4 and 5.2): one URI SAN, with a path, and no power to sign others.
func leafID(leaf *x509.Certificate) (spiffeid.ID, error) {
	id, err := x509svid.IDFromCert(leaf)
	switch {
	case err != nil:
		return spiffeid.ID{}, err
	case id.Path() == "":
		return spiffeid.ID{}, fmt.Errorf("%s is the ID of a trust domain, not of a workload", id)
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return spiffeid.ID{}, fmt.Errorf("the certificate of %s is that of a CA, not of a workload", id)
	}
	return id, nil
}

// watchExpiry warns when a certificate should have been renewed long since: with
// a quarter of its life left, and each time that half of what was left is gone.
func (s *Source) watchExpiry(ctx context.Context) {
	var warnAt time.Time
	timer := time.NewTimer(time.Hour)
	timer.Stop() // there may be nothing to watch yet
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.renewed:
			if c := s.current.Load(); c != nil {
				warnAt = c.expiry.Add(-c.life / 4)
				timer.Reset(time.Until(warnAt))
			}
		case <-timer.C:
			c := s.current.Load()
			if time.Now().Before(warnAt) {
				continue
			}
			left := time.Until(c.expiry)
			attrs := []any{"id", c.id.String(), "expires", stamp(c.expiry), "error", s.Err()}
			if left <= 0 {
				s.log.Error("our certificate has expired: no connection of the mesh can be made", attrs...)
				continue
			}
			s.log.Warn("our certificate expires soon and has not been renewed", append(attrs, "left", left.Round(time.Second).String())...)
			warnAt = c.expiry
			if left > time.Minute {
				warnAt = warnAt.Add(-left / 2)
			}
			timer.Reset(time.Until(warnAt))
		}
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
