package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/watch"
)

// secrets are what the proxy reads besides its configuration: the plain listener's
// certificate, and the API keys of its clients. Both are taken up as their files
// change; a file that cannot be used changes nothing.
type secrets struct {
	certificate      atomic.Pointer[tls.Certificate]
	certificateFiles *watch.Files // certificate and key; nil: no TLS
	keyFile          *watch.Files // nil: no keys

	applying sync.Mutex
	keys     []authz.Key // guarded by applying
}

func (a *app) readSecrets(c *file.Config) error {
	if t := c.Listen.TLS; t != (file.TLS{}) {
		a.certificateFiles = &watch.Files{Paths: []string{t.Certificate, t.Key}}
		if err := a.takeCertificate(a.certificateFiles.Read()); err != nil {
			return fmt.Errorf("listen.tls: %w", err)
		}
	}
	if c.Keys != "" {
		a.keyFile = &watch.Files{Paths: []string{c.Keys}}
		if err := a.takeKeys(a.keyFile.Read()); err != nil {
			return fmt.Errorf("auth.keys: %w", err)
		}
	}
	return nil
}

// watchSecrets takes up changes until ctx is done.
func (a *app) watchSecrets(ctx context.Context) {
	if a.certificateFiles != nil {
		go a.certificateFiles.Run(ctx, func(contents [][]byte, err error) {
			if err := a.takeCertificate(contents, err); err != nil {
				a.log.Error("the certificate cannot be used; the last good one stays in force", "error", err)
				return
			}
			a.log.Info("certificate in force", "not_after", a.certificate.Load().Leaf.NotAfter)
		})
	}
	if a.keyFile != nil {
		go a.keyFile.Run(ctx, func(contents [][]byte, err error) {
			if err := a.takeKeys(contents, err); err != nil {
				a.log.Error("the API keys cannot be used; the last good ones stay in force", "error", err)
				return
			}
			a.log.Info("API keys in force")
		})
	}
}

func (a *app) takeCertificate(contents [][]byte, err error) error {
	if err != nil {
		return err
	}
	c, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return fmt.Errorf("%s: %w", a.certificateFiles.Paths[0], err)
	}
	a.certificate.Store(&c)
	return nil
}

func (a *app) takeKeys(contents [][]byte, err error) error {
	if err != nil {
		return err
	}
	keys, err := file.ParseKeys(a.keyFile.Paths[0], contents[0])
	if err != nil {
		return err
	}
	a.applying.Lock()
	defer a.applying.Unlock()
	a.keys = keys
	if c := a.config.Load(); c != nil {
		a.setWorld(c)
	}
	return nil
}

// tlsConfig is for the plain listener.
func (a *app) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.certificate.Load(), nil },
	}
}
