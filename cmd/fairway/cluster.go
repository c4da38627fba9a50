package main

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/discovery/kube"
)

// clusterConfig is the configuration of a proxy whose World comes from a cluster.
func (o *serveOptions) clusterConfig() (*file.Config, error) {
	switch {
	case len(o.endpoints) > 0:
		return nil, cli.Misuse(errors.New("--kubernetes excludes --endpoint: the cluster says what is served"))
	case o.config != "":
		c, err := file.LoadSettings(o.config)
		if err != nil {
			return nil, err
		}
		o.override(c)
		return c, nil
	case o.listen == "":
		return nil, cli.Misuse(errors.New("--kubernetes takes plain HTTP only where --listen says so, and tunnels only with the identity that --config gives: give one of them"))
	}
	c := file.Default()
	o.override(c)
	return c, nil
}

// clusterClient is a client of the API server that --kubeconfig names, or else of
// the cluster that the process runs in, or that kubectl would ask.
func (o *serveOptions) clusterClient() (dynamic.Interface, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubernetes: which API server? %w (--kubeconfig names a file that says it)", err)
	}
	c.UserAgent = "fairway/" + cli.Version(version)
	c.QPS, c.Burst = 50, 100 // each of the kinds that are watched is listed at once
	return dynamic.NewForConfig(c)
}

// followCluster puts in force what the objects of a cluster mean, until ctx is
// done.
func (a *app) followCluster(ctx context.Context, client dynamic.Interface, base *file.Config, trustDomain string) (wait func()) {
	done := make(chan struct{})
	told := make(map[string]bool) // findings in force, logged once
	go func() {
		defer close(done)
		w := kube.Watcher{Client: client, Log: a.log}
		if base.TLS != nil {
			w.TrustDomain = trustDomain
		}
		if err := w.Run(ctx, func(t *kube.Translation) { told = a.applyCluster(base, t, told) }); err != nil {
			a.failed <- fmt.Errorf("--kubernetes: %w", err)
		}
	}()
	return func() { <-done }
}

// applyCluster puts a translation in force, with the settings of base. It logs the
// findings that were not told before.
func (a *app) applyCluster(base *file.Config, t *kube.Translation, told map[string]bool) (now map[string]bool) {
	c, w := *base, *base.World
	w.Pools, w.Models, w.Routes, w.Services = t.World.Pools, t.World.Models, t.World.Routes, t.World.Services
	c.World = &w
	a.apply(&c)
	a.unread.Store(false)
	now = make(map[string]bool, len(t.Findings))
	for _, f := range t.Findings {
		text := f.String()
		now[text] = true
		if !told[text] {
			a.log.Warn("not served as it was meant", "kind", f.Kind, "namespace", f.Namespace, "name", f.Name, "path", f.Path, "reason", f.Reason, "message", f.Message)
		}
	}
	a.log.Info("objects in force", "pools", len(w.Pools), "endpoints", len(a.server.Endpoints()), "models", len(w.Models), "findings", len(t.Findings))
	return now
}
