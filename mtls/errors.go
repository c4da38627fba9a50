package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Reason is why a handshake failed, in a word made for logs and for the label of
// a metric: there are these and no others.
type Reason string

const (
	NoCertificate      Reason = "no_certificate"       // the peer showed none
	NotSPIFFE          Reason = "not_spiffe"           // it has not exactly one SPIFFE ID, or is that of a CA
	UnknownTrustDomain Reason = "unknown_trust_domain" // we have no roots for the peer's
	UnknownAuthority   Reason = "unknown_authority"    // no root of the peer's trust domain signed it
	Expired            Reason = "expired"              // the peer's certificate, or an intermediate of it
	NotYetValid        Reason = "not_yet_valid"        // likewise
	InvalidCertificate Reason = "invalid_certificate"  // it breaks another rule of X.509
	WrongIdentity      Reason = "wrong_identity"       // the peer is somebody else
	NoIdentity         Reason = "no_identity"          // we have none, or ours has expired
	TLSVersion         Reason = "tls_version"          // the peer does not speak TLS 1.3
	NotTLS             Reason = "not_tls"              // what the peer sent is no TLS
	Rejected           Reason = "rejected_by_peer"     // the peer ended it with an alert: it may not like who we are
	Timeout            Reason = "timeout"
	Disconnected       Reason = "disconnected" // the peer left in the middle
	HandshakeFailed    Reason = "handshake_failed"
)

// Error is why a connection was refused.
type Error struct {
	Reason Reason
	// Peer is who the other side claims to be, which is proven only for
	// WrongIdentity; zero if it did not say.
	Peer spiffeid.ID
	// Err says what happened; nil: Reason says it all.
	Err error
}

func (e *Error) Error() string {
	what := string(e.Reason)
	if e.Err != nil {
		what = e.Err.Error()
	}
	if remedy := remedies[e.Reason]; remedy != "" {
		what += " (" + remedy + ")"
	}
	switch {
	case e.Reason == NoIdentity:
		return "no identity of our own: " + what
	case !e.Peer.IsZero():
		return "peer " + e.Peer.String() + ": " + what
	}
	return what
}

func (e *Error) Unwrap() error { return e.Err }

// remedies say what to look at.
var remedies = map[Reason]string{
	NoCertificate:      "it has to be in the mesh, or to come through ztunnel",
	NotSPIFFE:          "want a certificate with exactly one URI SAN, a workload's SPIFFE ID",
	UnknownTrustDomain: "federate it, or name its roots in the configuration",
	UnknownAuthority:   "does the peer get its certificate from the same CA as we do?",
	Expired:            "its CA has not renewed it, or a clock is wrong",
	NotYetValid:        "a clock is wrong",
	NoIdentity:         "see the log for what the provider of certificates answers",
	TLSVersion:         "the mesh speaks TLS 1.3 only",
	NotTLS:             "it has to be in the mesh, or to come through ztunnel",
	Rejected:           "the peer's log says why; it may not trust our CA, or expect another identity",
}

// Explain makes an *Error of what a handshake failed with, or of what the first
// Read returned after one: under TLS 1.3 a client learns only there that its
// certificate was rejected. It returns nil for nil.
func (s *Source) Explain(err error) *Error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	e := &Error{Reason: HandshakeFailed, Err: err}
	var operation *net.OpError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record):
		e.Reason = NotTLS
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		e.Reason = Timeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		e.Reason = Disconnected
	case errors.As(err, &operation) && operation.Op == "remote error":
		e.Reason = Rejected
		if strings.HasSuffix(err.Error(), "tls: protocol version not supported") {
			e.Reason = TLSVersion
		} else if id := s.ID(); !id.IsZero() {
			e.Err = fmt.Errorf("refused us, %s: %w", id, err)
		}
	case errors.As(err, &operation):
		e.Reason = Disconnected
	// crypto/tls has no types for the rest. That it refuses these, rather than a
	// callback of ours, gives the peer the right alert.
	case strings.HasPrefix(err.Error(), "tls: client offered only unsupported versions"),
		strings.HasPrefix(err.Error(), "tls: server selected unsupported protocol version"):
		e.Reason = TLSVersion
	case strings.HasPrefix(err.Error(), "tls: client didn't provide a certificate"):
		e.Reason = NoCertificate
	}
	return e
}

// invalid says why x509 does not take a peer's chain.
func invalid(id spiffeid.ID, err error) *Error {
	e := &Error{Reason: InvalidCertificate, Peer: id, Err: err}
	var broken x509.CertificateInvalidError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &broken) && broken.Reason == x509.Expired:
		e.Reason = Expired
		if time.Now().Before(broken.Cert.NotBefore) {
			e.Reason = NotYetValid
		}
	case errors.As(err, &authority):
		e.Reason = UnknownAuthority
	}
	return e
}

// names lists trust domains.
func names(roots map[spiffeid.TrustDomain]*x509.CertPool) string {
	var all []string
	for domain := range maps.Keys(roots) {
		all = append(all, domain.Name())
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
