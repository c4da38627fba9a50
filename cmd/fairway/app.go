package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/discovery/kube"
	"github.com/fairway-proxy/fairway/discovery/scrape"
	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/admin"
	"github.com/fairway-proxy/fairway/proxy/dashboard"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// app is a running proxy with all that belongs to it: the server, the scraper
// that feeds its picker, and the listeners.
type app struct {
	log      *slog.Logger
	level    *slog.LevelVar // of log; nil: it cannot be changed
	access   *account.Log   // of requests; nil: there is none
	server   *proxy.Server
	scraper  *scrape.Scraper
	registry *prometheus.Registry
	account  *account.Recorder
	tracing  *tracing                    // nil: off
	identity *mtls.Source                // nil: the configuration gives none
	config   atomic.Pointer[file.Config] // in force
	stopping atomic.Bool
	// reference has metrics shown by the reference picker's names too.
	reference atomic.Bool
	world     atomic.Pointer[worldState]     // in force; stored with applying held
	findings  atomic.Pointer[[]kube.Finding] // of the cluster's objects in force; nil: none were read
	memory    int64                          // bytes that this process is to keep within; 0: no limit
	rejected  atomic.Int64                   // configurations that could not be used
	unread    atomic.Bool                    // the cluster that says what is served has not been read yet
	away      atomic.Pointer[atomic.Bool]    // its API server cannot be asked; nil: there is no cluster

	secrets

	settings *file.Config      // guarded by applying
	objects  *kube.Translation // what a cluster says is served; nil: none does, or not yet; guarded by applying

	plain     net.Listener         // nil: off
	tunnels   *hbone.Listener      // nil: off
	sandwich  *hbone.Sandwich      // nil: off
	dialer    *hbone.Dialer        // nil without an identity
	metrics   *http.Server         // nil: off
	admin     *http.Server         // nil: off
	dashboard *dashboard.Dashboard // nil without admin
	failed    chan error           // what ended a listener
	// finish waits for the requests that came by no listener of ours, until the
	// context is done; nil: there are none.
	finish func(context.Context)
}

// newApp binds the listeners of c and puts its World in force; run serves. What
// of s comes from c is filled in.
func newApp(c *file.Config, l logs, s proxy.Config) (*app, error) {
	log := l.Logger
	a := &app{log: log, level: l.level, access: l.access, registry: prometheus.NewRegistry(), failed: make(chan error, 6)}
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.memory = limitMemory(log)
	told := account.Config{Access: l.access, Replica: replica()}
	var err error
	if a.tracing, err = startTracing(c.Tracing, told.Replica, log); err != nil {
		return nil, err
	}
	if a.tracing != nil {
		told.Tracing = &account.Tracing{Ratio: c.Tracing.Sampling, Span: a.tracing.span}
	}
	a.account = account.New(a.registry, told)
	s.Account = a.account
	s.Log = log
	s.HeaderLimit = c.World.Limits.Headers
	s.Connections = cmp.Or(c.World.Limits.Connections, maxConnections())
	if c.TLS != nil {
		a.identity = mtls.Open(c.TLS, log)
		a.registry.MustRegister(identityMetrics{a.identity})
		a.dialer = &hbone.Dialer{TLS: func(expected spiffeid.ID) *tls.Config { return a.identity.ClientConfig(expected) }, Explain: a.identity.Explain}
		s.Tunnel = a.dialer.DialContext
	}
	a.server = proxy.New(s)
	a.registry.MustRegister(endpointMetrics{a.server}, poolMetrics{a.server}, pickerMetrics{a.server}, appMetrics{a})
	a.scraper = scrape.New(scrape.Config{Now: proxy.Now, Log: log})
	a.unread.Store(len(c.World.Pools) == 0)
	if err := a.readSecrets(c); err != nil {
		a.close()
		return nil, err
	}
	if err := a.listen(c.Listen); err != nil {
		a.close()
		return nil, err
	}
	a.registry.MustRegister(tunnelMetrics{a})
	a.apply(c)
	return a, nil
}

// apply puts a configuration's World in force; if what is served comes from a
// cluster, all the rest of it. Listeners stay as they are, and so do the files that
// secrets are read from.
func (a *app) apply(c *file.Config) {
	a.applying.Lock()
	defer a.applying.Unlock()
	a.settings = c
	a.putInForce()
}

// applyObjects puts in force what the objects of a cluster mean.
func (a *app) applyObjects(t *kube.Translation) {
	a.applying.Lock()
	defer a.applying.Unlock()
	a.objects = t
	a.putInForce()
}

// putInForce has settings and objects served; a.applying is held.
func (a *app) putInForce() {
	c := a.settings
	if t := a.objects; t != nil {
		both, w := *c, *c.World
		w.Pools, w.Models, w.Routes, w.Services = t.World.Pools, t.World.Models, t.World.Routes, t.World.Services
		w.Objectives, w.WaypointFor, w.Workloads = t.World.Objectives, t.World.WaypointFor, t.World.Workloads
		w.Gateway = t.World.Gateway
		both.World = &w
		c = &both
	}
	a.config.Store(c)
	a.setWorld(c)
	var targets []scrape.Target
	for _, s := range a.server.Endpoints() {
		last := len(targets) - 1
		switch {
		case !s.Engine:
		case last >= 0 && targets[last].Engines[0].Owner() == s.Endpoint.Owner(): // another rank of the same server
			targets[last].Engines = append(targets[last].Engines, s.Endpoint)
		default:
			targets = append(targets, scrape.Target{Engines: []*picker.Endpoint{s.Endpoint}, Get: s.Transport.Fetch})
		}
	}
	a.scraper.Set(scrape.Settings(c.World.Scrape))
	a.scraper.Sync(targets)
}

// setWorld puts the World of c in force with the keys that are known; a.applying is
// held.
func (a *app) setWorld(c *file.Config) {
	world := *c.World
	world.Access.Keys = a.keys
	world.Limits.Buffers = a.boundedBuffers(world.Limits.Buffers)
	a.server.SetWorld(&world)
	now := worldState{version: 1, since: time.Now()}
	if was := a.world.Load(); was != nil {
		now.version += was.version
	}
	a.world.Store(&now)
}

func (a *app) listen(l file.Listen) error {
	source := admin.Source{
		Ready:     a.ready,
		Gatherer:  prometheus.GathererFunc(a.gather),
		Endpoints: func() any { return describeEndpoints(a.server) },
		Config:    func() any { return describeConfig(a.config.Load()) },
		Receipts:  a.account.Receipts,
		Replica:   a.account.Replica(),
		Level:     a.level,
	}
	var err error
	if l.HTTP != "" {
		if a.plain, err = net.Listen("tcp", l.HTTP); err != nil {
			return fmt.Errorf("listen.http: %w (--listen, --metrics and --admin choose other addresses)", err)
		}
		if l.TLS != (file.TLS{}) {
			a.plain = tls.NewListener(sock.Listener{Listener: a.plain}, a.tlsConfig())
		}
	}
	if l.HBONE != "" {
		inner, err := net.Listen("tcp", l.HBONE)
		if err != nil {
			return fmt.Errorf("listen.hbone: %w", err)
		}
		a.tunnels = hbone.NewListener(inner, hbone.Config{TLS: a.identity.ServerConfig(), Admit: a.server.Admit, Log: a.log, Explain: a.identity.Explain})
	}
	if l.Sandwich != "" {
		inner, err := net.Listen("tcp", l.Sandwich)
		if err != nil {
			return fmt.Errorf("listen.sandwich: %w", err)
		}
		a.sandwich = hbone.NewSandwich(inner, hbone.SandwichConfig{Admit: a.server.Admit, Log: a.log})
	}
	if a.metrics, err = a.serveHTTP("listen.metrics", l.Metrics, admin.Metrics(source)); err != nil {
		return err
	}
	if l.Admin != "" {
		a.dashboard = dashboard.New(dashboard.Source{
			Version: cli.Version(version), Replica: source.Replica, Ready: source.Ready, Gatherer: source.Gatherer, Endpoints: source.Endpoints, Receipts: source.Receipts,
		})
		source.Dashboard = a.dashboard
	}
	a.admin, err = a.serveHTTP("listen.admin", l.Admin, admin.Admin(source))
	return err
}

// serveHTTP begins to serve h; an empty address means not at all.
func (a *app) serveHTTP(what, address string, h http.Handler) (*http.Server, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (--listen, --metrics and --admin choose other addresses)", what, err)
	}
	s := &http.Server{Addr: l.Addr().String(), Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn)}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.failed <- fmt.Errorf("%s: %w", what, err)
		}
	}()
	return s, nil
}

// gather is what the metrics pages show.
func (a *app) gather() ([]*dto.MetricFamily, error) {
	families, err := a.registry.Gather()
	if a.reference.Load() {
		families = withAliases(families)
	}
	return families, err
}

// ready says why requests are not wanted; "" when they are.
func (a *app) ready() string {
	switch {
	case a.stopping.Load():
		return "stopping"
	case a.unread.Load():
		return "the objects of the cluster have not been read yet, or not the policies among them"
	case a.server.World() == nil:
		return "no configuration is in force yet"
	}
	if a.identity != nil && !a.identity.Ready() {
		return fmt.Sprintf("no identity in the mesh: %v", a.identity.Err())
	}
	return ""
}

// run serves until ctx is done, then drains: readiness goes first, then the
// listener, and streams are given the time that timeouts.drain allows.
func (a *app) run(ctx context.Context) error {
	defer a.close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	a.watchSecrets(ctx)
	makeRoomForFiles()
	serve := func(what string, l net.Listener) {
		go func() {
			if err := a.server.Serve(l); !errors.Is(err, proxy.ErrStopped) {
				a.failed <- fmt.Errorf("%s: %w", what, err)
			}
		}()
	}
	if a.plain != nil {
		serve("listen.http", a.plain)
	}
	if a.tunnels != nil {
		serve("listen.hbone", a.tunnels)
	}
	if a.sandwich != nil {
		serve("listen.sandwich", a.sandwich)
	}
	unmapProgram()
	select {
	case err := <-a.failed:
		return err
	case <-ctx.Done():
	}
	return a.drain()
}

func (a *app) drain() error {
	a.stopping.Store(true)
	limit := a.config.Load().World.Timeouts.Drain
	a.log.Info("stopping: waiting for requests to end; a second signal ends them now", "live_requests", a.server.Live(), "drain", limit.String())
	ctx := context.Background()
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if a.finish != nil {
		a.finish(ctx)
	}
	if err := a.server.Shutdown(ctx); err != nil {
		return fmt.Errorf("stopped before all requests had ended: %w", err)
	}
	return nil
}

// close stops what run does not wait for.
func (a *app) close() {
	if a.plain != nil {
		a.plain.Close()
	}
	if a.tunnels != nil {
		a.tunnels.Close()
	}
	if a.sandwich != nil {
		a.sandwich.Close()
	}
	for _, s := range []*http.Server{a.metrics, a.admin} {
		if s != nil {
			s.Close()
		}
	}
	if a.dashboard != nil {
		a.dashboard.Close()
	}
	a.scraper.Close()
	if a.dialer != nil {
		a.dialer.Close()
	}
	if a.identity != nil {
		a.identity.Close()
	}
	if a.tracing != nil {
		if err := a.tracing.close(); err != nil {
			a.log.Warn("spans are lost: the collector did not take them", "error", err)
		}
	}
	if a.access != nil {
		if err := a.access.Close(); err != nil {
			a.log.Error("lines of the access log are lost", "error", err)
		}
	}
}

// meshAddress is where tunnels come to, "" when they do not.
func (a *app) meshAddress() string {
	switch {
	case a.tunnels != nil:
		return a.tunnels.Addr().String()
	case a.sandwich != nil:
		return a.sandwich.Addr().String()
	}
	return ""
}

// boundTo is where a listener is bound to, "" for one that is off.
func boundTo(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// serverAddress is where a server is bound to, "" for one that is off.
func serverAddress(s *http.Server) string {
	if s == nil {
		return ""
	}
	return s.Addr
}
