package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extproc"
	"github.com/fairway-proxy/fairway/proxy/rpc"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

func newEPP() *cobra.Command {
	var o eppOptions
	cmd := &cobra.Command{
		Use:   "epp [--config fairway.yaml | --endpoint URL…] [--listen :9002]",
		Short: "Serve as the endpoint picker of Envoy",
		Long: `Epp answers the Endpoint Picker Protocol: Envoy, or a gateway built on it, holds
the requests and forwards them, and asks where to (external processing). It is
the same picker, with the same configuration, as in serve; the models, limits and
pools of the file hold, its listen.http does not.

Endpoints have to be IP addresses with ports, since that is what the protocol
names. Every model of the file may have a pool of its own: one process picks for
all of them.

It takes the flags of the Inference Extension's endpoint picker too: those that
mean something here do it, and of the others it says that they do not.`,
		Example: `  fairway epp --config fairway.yaml
  fairway epp --endpoint http://10.0.0.1:8000 --endpoint http://10.0.0.2:8000 --secure-serving=false`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.flags(cmd)
	return cmd
}

type eppOptions struct {
	serve     serveOptions
	listen    string
	secure    bool
	certPath  string
	replicas  int
	reference bool
	fallbacks int
	lameDuck  time.Duration
	theirs    referenceFlags
}

func (o *eppOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	o.serve.flags(cmd)
	f.StringVar(&o.listen, "listen", ":9002", "where to take the protocol (gRPC), and gRPC health checks")
	f.BoolVar(&o.secure, "secure-serving", true, "speak TLS, with --cert-path or else a certificate made up at the start")
	f.StringVar(&o.certPath, "cert-path", "", "the `directory` of tls.crt and tls.key, which are read anew for each connection")
	f.IntVar(&o.fallbacks, "fallbacks", 0, "how many endpoints to name beside the best, for gateways that take a list (Envoy's override_host)")
	f.DurationVar(&o.lameDuck, "lame-duck", 3*time.Second, "how long to go on serving when told to stop, having told health checks so")
	f.BoolVar(&o.reference, "reference-metrics", false, "serve metrics by the names of the reference picker too (inference_objective_…, inference_pool_…)")
	o.theirs.flags(cmd)
	f.IntVar(&o.replicas, "replicas", 0, "how many pickers share the pools; they agree without talking (0: learned from the engines' metrics)")
}

func (o *eppOptions) run(cmd *cobra.Command) error {
	if o.replicas < 0 {
		return cli.Misuse(fmt.Errorf("--replicas %d: want 0 or more", o.replicas))
	}
	if o.fallbacks < 0 {
		return cli.Misuse(fmt.Errorf("--fallbacks %d: want 0 or more", o.fallbacks))
	}
	if err := o.theirs.apply(cmd, o); err != nil {
		return cli.Misuse(err)
	}
	o.serve.adjust = func(c *file.Config) error {
		o.theirs.adjust(c)
		return forPicker(c)
	}
	watcher, config, err := o.serve.load()
	if err != nil {
		return err
	}
	logs, err := o.serve.logs(cmd, config)
	if err != nil {
		return err
	}
	log := logs.Logger
	o.theirs.warn(cmd, log)
	secure, err := o.tls()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer listener.Close()
	if secure != nil {
		listener = tls.NewListener(sock.Listener{Listener: listener}, secure)
	}
	checks, err := o.theirs.listenHealth()
	if err != nil {
		return err
	}
	if checks != nil {
		defer checks.Close()
	}
	a, err := newApp(config, logs, proxy.Config{Picker: picker.Config{Replicas: o.replicas}, Fallbacks: o.fallbacks})
	if err != nil {
		return err
	}
	a.reference.Store(o.reference)
	service := &extproc.Server{
		Handler:      func(s *extproc.Stream) { a.server.Handle(s) },
		MessageLimit: messageLimit(config),
		BufferLimit:  a.boundedBuffers(config.World.Limits.Buffers),
		Connections:  cmp.Or(config.World.Limits.Connections, maxConnections()),
		Misbehaved:   a.server.CountHTTP2,
		Log:          log,
	}
	serve := func(flag string, to func(net.Listener) error, l net.Listener) {
		if err := to(l); err != rpc.ErrServerClosed {
			a.failed <- fmt.Errorf("%s: %w", flag, err)
		}
	}
	go serve("--listen", service.Serve, listener)
	if checks != nil {
		go serve("--grpc-health-port", service.ServeHealth, checks)
	}
	service.SetReady(true)
	log.Info("serving as endpoint picker", "version", cli.Version(version), "listen", listener.Addr().String(), "tls", o.secure,
		"metrics", serverAddress(a.metrics), "pools", len(config.World.Pools), "endpoints", len(a.server.Endpoints()))

	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	defer o.serve.watch(ctx, watcher, a)()
	a.finish = func(ctx context.Context) {
		service.SetReady(false)
		select { // proxies look after our health now and then, and come until they know
		case <-time.After(o.lameDuck):
		case <-ctx.Done():
		}
		service.Shutdown(ctx)
	}
	defer service.Close()
	return a.run(ctx)
}

// tls is the server's end of TLS; nil for plain text.
func (o *eppOptions) tls() (*tls.Config, error) {
	switch {
	case !o.secure && o.certPath != "":
		return nil, cli.Misuse(errors.New("--cert-path has no use with --secure-serving=false"))
	case !o.secure:
		return nil, nil
	}
	certificate := func() (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(filepath.Join(o.certPath, "tls.crt"), filepath.Join(o.certPath, "tls.key"))
		return &c, err
	}
	if o.certPath == "" {
		made, err := selfSigned()
		if err != nil {
			return nil, err
		}
		certificate = func() (*tls.Certificate, error) { return made, nil }
	} else if _, err := certificate(); err != nil {
		return nil, fmt.Errorf("--cert-path: %w", err)
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
	}, nil
}

// selfSigned makes a certificate that says nothing but that the wire is encrypted:
// what the reference picker has by default, and gateways do not verify.
func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "fairway epp"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// messageLimit leaves room for the largest body that Envoy may send in one message.
func messageLimit(c *file.Config) int {
	limit := c.World.Limits.Body
	if limit == 0 {
		limit = proxy.DefaultBodyLimit
	}
	return int(min(limit, 1<<30)) + 1<<20
}

// forPicker makes of a configuration that of a picker: it takes no requests itself,
// and can only name addresses.
func forPicker(c *file.Config) error {
	c.Listen.HTTP, c.Listen.TLS = "", file.TLS{}
	var problems []error
	if a := &c.World.Access; a.HasKeys || len(a.Tokens)+len(a.Policies) > 0 {
		problems = append(problems, errors.New("auth and policies: who may do what is judged by the proxy that asks a picker"))
	}
	if len(c.World.Authorizers) > 0 {
		problems = append(problems, errors.New("extension_providers: external authorizers are asked by the proxy that asks a picker"))
	}
	c.World.Access, c.World.Authorizers = authz.Config{Elsewhere: true}, nil
	for _, p := range c.World.Pools {
		if p.Plain {
			problems = append(problems, fmt.Errorf("pool %s: plain: there is nothing to pick by", p.Name))
		}
		if p.Picker != nil {
			problems = append(problems, fmt.Errorf("pool %s: picker: a picker asks no other", p.Name))
		}
		for _, e := range p.Endpoints {
			if _, err := netip.ParseAddrPort(e.Address); err != nil {
				problems = append(problems, fmt.Errorf("pool %s: endpoint %s: a picker names endpoints by IP address and port, not by host name", p.Name, e.Address))
			}
		}
	}
	return errors.Join(problems...)
}
