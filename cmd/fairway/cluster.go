package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/discovery/kube"
	"github.com/fairway-proxy/fairway/mtls"
)

// clusterConfig is the configuration of a proxy whose World comes from a cluster.
// The watcher is nil without a file.
func (o *serveOptions) clusterConfig() (*file.Watcher, *file.Config, error) {
	if _, _, two := strings.Cut(o.gateway, "/"); o.gateway != "" && !two {
		return nil, nil, cli.Misuse(fmt.Errorf("--gateway %s: want namespace/name", o.gateway))
	}
	if domain, err := spiffeid.TrustDomainFromString(o.trustDomain); err != nil || domain.Name() != o.trustDomain {
		return nil, nil, cli.Misuse(fmt.Errorf("--trust-domain %q: want the name of a trust domain, such as cluster.local", o.trustDomain))
	}
	switch {
	case len(o.endpoints) > 0:
		return nil, nil, cli.Misuse(errors.New("--kubernetes excludes --endpoint: the cluster says what is served"))
	case o.config != "":
		w := &file.Watcher{Path: o.config, Settings: true, Listen: o.listen}
		c, err := w.Load()
		if err != nil {
			return nil, nil, err
		}
		o.override(c)
		return w, c, nil
	case o.listen == "":
		return nil, nil, cli.Misuse(errors.New("--kubernetes takes plain HTTP only where --listen says so, and tunnels only with the identity that --config gives: give one of them"))
	}
	c := file.Default()
	o.override(c)
	return nil, c, nil
}

// options are what the flags and the configuration say of a cluster.
func (o *serveOptions) options(c *file.Config) kube.Options {
	out := kube.Options{Gateway: o.gateway, ClusterDomain: o.clusterDomain, RootNamespace: o.rootNamespace, CostLabel: c.CostLabel, Providers: []string{}}
	for _, p := range c.World.Authorizers {
		out.Providers = append(out.Providers, p.Name)
	}
	if c.TLS != nil {
		out.TrustDomain = o.trustDomain
	}
	if ca, ok := c.TLS.(mtls.IstioCA); ok {
		out.Cluster = ca.ClusterID
	}
	if c.Listen.HTTP == "" {
		out.Closed = append(out.Closed, "HTTP")
	}
	if c.Listen.HBONE == "" && c.Listen.Sandwich == "" {
		out.Closed = append(out.Closed, "HBONE")
	}
	return out
}

// cluster is where objects are read, and reported of.
type cluster struct {
	client   dynamic.Interface
	options  kube.Options
	reporter *kube.Reporter // nil: nothing is reported
}

// cluster is that of the API server that --kubeconfig names, or else the one that
// the process runs in, or that kubectl would ask.
func (o *serveOptions) cluster(c *file.Config, log *slog.Logger) (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	access := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil)
	config, err := access.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubernetes: which API server? %w (--kubeconfig names a file that says it)", err)
	}
	config.UserAgent = "fairway/" + cli.Version(version)
	config.QPS, config.Burst = 50, 100 // each of the kinds that are watched is listed at once
	out := &cluster{options: o.options(c)}
	if out.client, err = dynamic.NewForConfig(config); err != nil || o.noStatus {
		return out, err
	}
	leases, err := coordination.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	in, name, one := strings.Cut(o.gateway, "/")
	if !one {
		if in, _, err = access.Namespace(); err != nil {
			return nil, fmt.Errorf("--kubernetes: in which namespace? %w", err)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	out.reporter = &kube.Reporter{Client: out.client, Log: log, Options: out.options, Lock: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: in, Name: strings.TrimSuffix("fairway-"+name, "-")},
		Client:     leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + rand.Text()},
	}}
	return out, nil
}

// followCluster puts in force what the objects of a cluster mean, until ctx is
// done.
func (a *app) followCluster(ctx context.Context, c *cluster) (wait func()) {
	klog.SetSlogLogger(a.log)     // what client-go has to say
	told := make(map[string]bool) // findings in force, logged once
	w := kube.Watcher{Client: c.client, Log: a.log, Options: c.options, Workloads: a.server.SetWorkloads, Away: new(atomic.Bool)}
	a.away.Store(w.Away)
	var running sync.WaitGroup
	if c.reporter != nil {
		w.Report = c.reporter.Report
		running.Go(func() {
			if err := c.reporter.Run(ctx); err != nil {
				a.failed <- fmt.Errorf("--kubernetes: %w (--no-status reports nothing)", err)
			}
		})
	}
	running.Go(func() {
		if err := w.Run(ctx, func(t *kube.Translation) { told = a.applyCluster(t, told) }); err != nil {
			a.failed <- fmt.Errorf("--kubernetes: %w", err)
		}
	})
	return running.Wait
}

// applyCluster puts a translation in force. It logs the findings that were not told
// before.
func (a *app) applyCluster(t *kube.Translation, told map[string]bool) (now map[string]bool) {
	a.applyObjects(t)
	a.findings.Store(&t.Findings)
	if !t.Withheld() { // one that lets nothing in is not to take the place of one that does
		a.unread.Store(false)
	}
	now = make(map[string]bool, len(t.Findings))
	for _, f := range t.Findings {
		text := f.String()
		now[text] = true
		if !told[text] {
			a.log.Warn("not served as it was meant", "kind", f.Kind, "namespace", f.Namespace, "name", f.Name, "path", f.Path, "reason", f.Reason, "message", f.Message)
		}
	}
	a.log.Info("objects in force", "pools", len(t.World.Pools), "endpoints", len(a.server.Endpoints()), "models", len(t.World.Models), "findings", len(t.Findings))
	return now
}
