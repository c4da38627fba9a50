package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/discovery/kube"
	"github.com/fairway-proxy/fairway/proxy"
)

func newServe() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve [--config fairway.yaml | --endpoint URL… | --kubernetes]",
		Short: "Serve requests",
		Long: `Serve takes OpenAI-compatible requests and sends each to the endpoint that will
answer it first.

With --config it serves what the file says, and takes changes to the file as
they come (SIGHUP makes it look at once). With --endpoint it serves one pool of
these endpoints, whatever the model. With --kubernetes it serves what the objects
of a cluster say, and follows them.`,
		Example: `  fairway serve --endpoint http://10.0.0.1:8000 --endpoint http://10.0.0.2:8000
  fairway serve --config fairway.yaml`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&o.listen, "listen", "", "where to take plain HTTP (default :8080, or listen.http of the file; with --kubernetes it must be given)")
	cmd.Flags().BoolVar(&o.kubernetes, "kubernetes", false, "serve what InferencePools, InferenceModels and HTTPRoutes of a cluster say")
	cmd.Flags().StringVar(&o.gateway, "gateway", "", "the one Gateway to serve, `namespace/name` (default: all of Fairway's classes)")
	cmd.Flags().BoolVar(&o.noStatus, "no-status", false, "write nothing into the status of a cluster's objects")
	cmd.Flags().StringVar(&o.trustDomain, "trust-domain", "cluster.local", "the mesh's trust `domain`, with --kubernetes")
	cmd.Flags().StringArrayVar(&o.trustDomainAliases, "trust-domain-alias", nil, "another `domain` that policies mean by ours, with --kubernetes; once for each")
	cmd.Flags().StringVar(&o.rootNamespace, "root-namespace", kube.DefaultRootNamespace, "the `namespace` of policies for a GatewayClass, with --kubernetes")
	cmd.Flags().StringVar(&o.clusterDomain, "cluster-domain", kube.DefaultClusterDomain, "the `domain` of the cluster's names, with --kubernetes")
	cmd.Flags().StringVar(&o.kubeconfig, "kubeconfig", "", "the `file` that names the API server (default: that of the cluster this runs in, or the one kubectl would ask)")
	return cmd
}

// flags adds what every command that serves has.
func (o *serveOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "the configuration `file`")
	f.StringArrayVar(&o.endpoints, "endpoint", nil, "the `URL` of an engine, http://host:port; once for each")
	f.StringVar(&o.metrics, "metrics", "", "where to serve metrics and health (default :15020, or listen.metrics of the file)")
	f.StringVar(&o.admin, "admin", "", "where to serve the operator (default 127.0.0.1:15000, or listen.admin of the file)")
	f.StringVar(&o.level, "log-level", "", "least `level` logged: debug, info, warn or error (default info, or log.level of the file)")
	f.BoolVar(&o.noAccessLog, "no-access-log", false, "write no line for each request")
}

// notice is how long a replica that is told to stop takes connections as before, while /healthz/ready says that it is going: so long a
// balancer in front may take to find out.
const notice = time.Second

type serveOptions struct {
	config                 string
	endpoints              []string
	listen, metrics, admin string
	kubernetes             bool
	kubeconfig             string
	gateway                string
	noStatus               bool
	trustDomain            string
	trustDomainAliases     []string
	rootNamespace          string
	clusterDomain          string
	level                  string
	noAccessLog            bool

	// adjust makes a configuration fit the command, or says why it cannot; nil: it does.
	adjust func(*file.Config) error
}

func (o *serveOptions) run(cmd *cobra.Command) error {
	watcher, config, err := o.load()
	if err != nil {
		return err
	}
	logs, err := o.logs(cmd, config)
	if err != nil {
		return err
	}
	log := logs.Logger
	var objects *cluster
	if o.kubernetes {
		if objects, err = o.cluster(config, log); err != nil {
			return err
		}
	}
	a, err := newApp(config, logs, proxy.Config{Notice: notice})
	if err != nil {
		return err
	}
	log.Info("serving", "version", cli.Version(version), "http", boundTo(a.plain), "hbone", a.meshAddress(), "metrics", serverAddress(a.metrics),
		"admin", serverAddress(a.admin), "pools", len(config.World.Pools), "endpoints", len(a.server.Endpoints()))

	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	defer o.watch(ctx, watcher, a)()
	if objects != nil {
		defer a.followCluster(ctx, objects)()
		defer stop()
	}
	return a.run(ctx)
}

// watch takes changes of the file as they come, until ctx is done; none without a
// file.
func (o *serveOptions) watch(ctx context.Context, w *file.Watcher, a *app) (stop func()) {
	if w == nil {
		return func() {}
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	w.Trigger = hangups
	go w.Run(ctx, func(c *file.Config, err error) { a.reload(c, err, o) })
	return func() { signal.Stop(hangups) }
}

// reload takes a changed file. A bad one leaves what is in force.
func (a *app) reload(c *file.Config, err error, o *serveOptions) {
	if err == nil {
		o.override(c)
		err = o.fit(c)
	}
	if err != nil {
		a.rejected.Add(1)
		a.log.Error("the configuration cannot be used; the last good one stays in force", "error", err)
		return
	}
	was, is := a.config.Load(), c
	if !sameAtStart(was, is) {
		a.log.Warn("changes to listen, tls, log.access, tracing, auth.keys, cost_label, limits.headers and limits.connections take a restart; the rest is in force")
	}
	if was.Log.Level != is.Log.Level && a.level != nil {
		if level, err := parseLevel(is.Log.Level); err == nil {
			a.level.Set(level)
		}
	}
	a.apply(c)
	a.log.Info("configuration in force", "pools", len(a.config.Load().World.Pools), "endpoints", len(a.server.Endpoints()))
}

// sameAtStart tells whether two configurations differ in nothing that only a start takes up.
func sameAtStart(a, b *file.Config) bool {
	return a.Listen == b.Listen && reflect.DeepEqual(a.TLS, b.TLS) && a.Keys == b.Keys &&
		a.Log.Access == b.Log.Access && a.Tracing == b.Tracing && a.CostLabel == b.CostLabel &&
		a.World.Limits.Headers == b.World.Limits.Headers && a.World.Limits.Connections == b.World.Limits.Connections
}

// load reads the configuration that the flags ask for. The watcher is nil
// without a file.
func (o *serveOptions) load() (*file.Watcher, *file.Config, error) {
	switch {
	case o.kubernetes:
		return o.clusterConfig()
	case o.config != "" && len(o.endpoints) > 0:
		return nil, nil, cli.Misuse(errors.New("--config and --endpoint exclude each other: name the endpoints in the file"))
	case o.config != "":
		w := &file.Watcher{Path: o.config, Listen: o.listen}
		c, err := w.Load()
		if err != nil {
			return nil, nil, err
		}
		o.override(c)
		return w, c, o.fit(c)
	case len(o.endpoints) > 0:
		c := file.Default()
		pool := proxy.Pool{Name: "default"}
		for _, url := range o.endpoints {
			endpoint, err := file.ParseEndpoint(url)
			if err != nil {
				return nil, nil, cli.Misuse(fmt.Errorf("--endpoint: %w", err))
			}
			pool.Endpoints = append(pool.Endpoints, endpoint)
		}
		c.World.Pools = []proxy.Pool{pool}
		o.override(c)
		if err := c.Validate(flagFor); err != nil {
			return nil, nil, cli.Misuse(err)
		}
		return nil, c, o.fit(c)
	}
	return nil, nil, cli.Misuse(errors.New("nothing to serve: give --config FILE, --endpoint URL once for each engine, or --kubernetes"))
}

// override lets flags win over the file.
func (o *serveOptions) override(c *file.Config) {
	for _, f := range []struct {
		flag string
		to   *string
	}{{o.listen, &c.Listen.HTTP}, {o.metrics, &c.Listen.Metrics}, {o.admin, &c.Listen.Admin}, {o.level, &c.Log.Level}} {
		if f.flag != "" {
			*f.to = f.flag
		}
	}
	if o.kubernetes {
		c.World.Access.TrustDomains = append([]string{o.trustDomain}, o.trustDomainAliases...)
	}
	if o.noAccessLog {
		c.Log.Access = file.AccessOff
	}
}

// fit makes the configuration that of the command.
func (o *serveOptions) fit(c *file.Config) error {
	if o.adjust == nil {
		return nil
	}
	return o.adjust(c)
}

// flagFor names the flag behind a path of keys.
func flagFor(path string) string {
	switch {
	case path == "listen.http":
		return "--listen"
	case path == "listen.metrics":
		return "--metrics"
	case path == "listen.admin":
		return "--admin"
	case path == "log.level":
		return "--log-level"
	}
	return "--endpoint"
}

// replica is the name of this process among those that serve the same: the pod's, in a cluster.
func replica() string {
	name, err := os.Hostname()
	if err != nil {
		return "fairway"
	}
	return name
}
