package ztunnel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"sync/atomic"
	"time"
)

// Authority is a certificate authority of a trust domain, for the length of a test.
type Authority struct {
	Domain string
	Cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial atomic.Int64
}

// NewAuthority makes one.
func NewAuthority(domain string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root of " + domain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &Authority{Domain: domain, Cert: cert, key: key}
	a.serial.Store(1)
	return a, nil
}

// ID is the SPIFFE ID of a service account of the domain.
func (a *Authority) ID(namespace, account string) string {
	return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", a.Domain, namespace, account)
}

// Issue makes a certificate for a SPIFFE ID, valid from and for so long.
func (a *Authority) Issue(id string, from time.Time, valid time.Duration) (tls.Certificate, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial.Add(1)), NotBefore: from, NotAfter: from.Add(valid),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{uri},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// PEM is the authority's certificate and, of an issued one, certificate and key, for
// programs that read files.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw})
}

// PEM is an issued certificate and its key.
func PEM(c tls.Certificate) (cert, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// verify checks a chain and, unless they are none, that it is for one of the IDs.
func (a *Authority) verify(raw [][]byte, ids []string) error {
	if len(raw) == 0 {
		return errors.New("no certificate")
	}
	leaf, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Cert)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	for _, id := range ids {
		if len(leaf.URIs) == 1 && leaf.URIs[0].String() == id {
			return nil
		}
	}
	if len(ids) > 0 {
		return fmt.Errorf("identity mismatch: %v", leaf.URIs)
	}
	return nil
}

// Client is a ztunnel's TLS towards a waypoint that is one of the IDs: 1.3, key share
// for X25519, no SNI, no resumption.
func (a *Authority) Client(cert tls.Certificate, ids ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // by name; VerifyPeerCertificate does it by identity
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			return a.verify(raw, ids)
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
		CurvePreferences:     []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
	}
}

// Server is a ztunnel's TLS, which takes whoever the authority knows.
func (a *Authority) Server(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			return a.verify(raw, nil)
		},
	}
}
