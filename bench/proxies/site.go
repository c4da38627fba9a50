package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
)

// site is what the proxies stand in front of: some engines, each of which can be
// reached by TCP, by TLS and by a tunnel of the mesh.
type site struct {
	dir      string // for files
	backends []string

	tls  []string        // the backends' addresses that speak TLS
	cert tls.Certificate // theirs, and that of Fairway's own listener

	pods      []string // the backends' addresses behind ztunnels
	authority *ztunnel.Authority
}

const (
	podPort = 8000
	vip     = "10.96.0.7:80"
)

func newSite(dir string, metrics []byte, engines int) (*site, error) {
	s := &site{dir: dir}
	var err error
	if s.cert, err = selfSigned(); err != nil {
		return nil, err
	}
	if s.authority, err = ztunnel.NewAuthority("cluster.local"); err != nil {
		return nil, err
	}
	pod, err := s.authority.Issue(s.authority.ID("default", "vllm"), time.Now().Add(-time.Minute), 12*time.Hour)
	if err != nil {
		return nil, err
	}
	for i := range engines {
		b, err := newBackend(metrics)
		if err != nil {
			return nil, err
		}
		s.backends = append(s.backends, b.address())

		secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{s.cert}})
		if err != nil {
			return nil, err
		}
		go b.accept(secure)
		s.tls = append(s.tls, secure.Addr().String())

		ip := fmt.Sprintf("127.0.77.%d", i+1)
		tunnels, err := net.Listen("tcp", net.JoinHostPort(ip, "15008"))
		if err != nil {
			return nil, err
		}
		z := &ztunnel.Server{TLS: s.authority.Server(pod), Handle: func(t *ztunnel.Tunnel) { b.serve(t) }}
		go z.Serve(tunnels)
		s.pods = append(s.pods, fmt.Sprintf("%s:%d", ip, podPort))
	}
	return s, nil
}

// selfSigned is a certificate for 127.0.0.1.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// files writes a certificate and its key, and what they are to be trusted by.
func (s *site) files(cert tls.Certificate, roots []byte) error {
	certPEM, key, err := ztunnel.PEM(cert)
	if err != nil {
		return err
	}
	if roots == nil {
		roots = certPEM
	}
	for name, text := range map[string][]byte{"tls.crt": certPEM, "tls.key": key, "root.pem": roots} {
		if err := os.WriteFile(filepath.Join(s.dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// fairwayTLS speaks TLS to clients and backends.
func fairwayTLS(s *site, address string) (*exec.Cmd, dialer, error) {
	if err := s.files(s.cert, nil); err != nil {
		return nil, nil, err
	}
	path, err := write(s.dir, "fairway-tls.yaml", fmt.Sprintf("listen: {http: %q, tls: {certificate: tls.crt, key: tls.key}, metrics: %q, admin: %q}\npools:\n  - name: pool\n    endpoints: [%s]\n",
		address, freeAddress(), freeAddress(), each(s.tls, func(_ int, h, p string) string {
			return fmt.Sprintf("{url: %q, roots: root.pem}, ", "https://"+net.JoinHostPort(h, p))
		})))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Certificate[0]}))
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	cmd := exec.Command(*binary, "serve", "--config", path)
	cmd.Dir = s.dir
	return cmd, func() (net.Conn, error) { return tls.Dial("tcp", address, config) }, err
}

// fairwayHBONE is a waypoint: tunnels in, tunnels out.
func fairwayHBONE(s *site, address string) (*exec.Cmd, dialer, error) {
	waypoint, client := s.authority.ID("default", "waypoint"), s.authority.ID("default", "client")
	cert, err := s.authority.Issue(waypoint, time.Now().Add(-time.Minute), 12*time.Hour)
	if err != nil {
		return nil, nil, err
	}
	if err := s.files(cert, s.authority.PEM()); err != nil {
		return nil, nil, err
	}
	ip, port, _ := strings.Cut(vip, ":")
	path, err := write(s.dir, "fairway-hbone.yaml", fmt.Sprintf(`listen: {http: "", hbone: %q, metrics: %q, admin: %q}
tls: {files: {certificate: tls.crt, key: tls.key, roots: root.pem}}
services:
  - {host: llm.default.svc.cluster.local, vip: %s, ports: [{port: %s, protocol: http, pool: pool}]}
pools:
  - name: pool
    endpoints: [%s]
`, address, freeAddress(), freeAddress(), ip, port, each(s.pods, func(_ int, h, p string) string {
		return fmt.Sprintf("{url: %q, identity: %q}, ", "hbone://"+net.JoinHostPort(h, p), s.authority.ID("default", "vllm"))
	})))
	if err != nil {
		return nil, nil, err
	}
	cert, err = s.authority.Issue(client, time.Now().Add(-time.Minute), 12*time.Hour)
	z := &ztunnel.Client{Address: address, TLS: s.authority.Client(cert, waypoint)}
	cmd := exec.Command(*binary, "serve", "--config", path)
	cmd.Dir = s.dir
	return cmd, func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return z.Connect(ctx, ztunnel.Request{Authority: vip})
	}, err
}
