package main

import (
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/discovery/file"
)

// referenceFlags are the flags of the Inference Extension's own picker since its v1.0
// (options.go in its pkg/epp/server), so that `fairway epp` starts with the arguments of
// its manifests.
type referenceFlags struct {
	grpcPort, healthPort, metricsPort uint16
	verbosity                         int
	encoder                           string
	refresh                           time.Duration
	metricsPath                       string
}

// meaningless are those that nothing here goes by. Boolean ones may come without a
// value. Unless is a value by which they ask for what is the case anyway.
var meaningless = []struct {
	name    string
	boolean bool
	unless  string
}{
	{name: "pool-name"}, {name: "pool-namespace"}, {name: "pool-group"}, {name: "endpoint-selector"}, {name: "endpoint-target-ports"},
	{name: "config-file"}, {name: "config-text"}, {name: "kubeconfig"},
	{name: "disable-endpoint-subset-filter", boolean: true, unless: "false"},
	{name: "ha-enable-leader-election", boolean: true, unless: "false"},
	{name: "health-checking", boolean: true, unless: "true"},
	{name: "enable-cert-reload", boolean: true, unless: "true"},
	{name: "enable-pprof", boolean: true, unless: "true"},
	{name: "metrics-endpoint-auth", boolean: true, unless: "false"},
	{name: "tracing", boolean: true},
	{name: "destination-endpoint-hint-key", unless: "x-gateway-destination-endpoint"},
	{name: "destination-endpoint-hint-metadata-namespace", unless: "envoy.lb"},
	{name: "model-server-metrics-port", unless: "0"}, {name: "model-server-metrics-scheme"},
	{name: "model-server-metrics-https-insecure-skip-verify", boolean: true},
	{name: "refresh-prometheus-metrics-interval"}, {name: "metrics-staleness-threshold"},
	{name: "total-queued-requests-metric", unless: "vllm:num_requests_waiting"},
	{name: "total-running-requests-metric", unless: "vllm:num_requests_running"},
	{name: "kv-cache-usage-percentage-metric", unless: "vllm:kv_cache_usage_perc"},
	{name: "lora-info-metric", unless: "vllm:lora_requests_info"},
	{name: "cache-info-metric", unless: "vllm:cache_config_info"},
	{name: "zap-devel", boolean: true}, {name: "zap-log-level"}, {name: "zap-stacktrace-level"}, {name: "zap-time-encoding"},
}

func (r *referenceFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Uint16Var(&r.grpcPort, "grpc-port", 0, "as --listen, on all addresses")
	f.Uint16Var(&r.healthPort, "grpc-health-port", 0, "a `port` for gRPC health checks in plain text, beside those at --listen")
	f.Uint16Var(&r.metricsPort, "metrics-port", 0, "as --metrics, on all addresses")
	f.IntVarP(&r.verbosity, "v", "v", 0, "4 or more: as --log-level debug")
	f.StringVar(&r.encoder, "zap-encoder", "", "json: as --json")
	f.DurationVar(&r.refresh, "refresh-metrics-interval", 0, "as scrape.interval in the file")
	f.StringVar(&r.metricsPath, "model-server-metrics-path", "", "as scrape.path in the file")
	for _, m := range meaningless {
		f.String(m.name, "", "means nothing here")
		if m.boolean {
			f.Lookup(m.name).NoOptDefVal = "true"
		}
		if err := f.MarkHidden(m.name); err != nil {
			panic(err)
		}
	}
}

// apply has the flags that mean something do it.
func (r *referenceFlags) apply(cmd *cobra.Command, o *eppOptions) error {
	f := cmd.Flags()
	for _, same := range []struct {
		theirs, ours string
		port         uint16
		to           *string
	}{{"grpc-port", "listen", r.grpcPort, &o.listen}, {"metrics-port", "metrics", r.metricsPort, &o.serve.metrics}} {
		switch {
		case !f.Changed(same.theirs):
		case f.Changed(same.ours):
			return fmt.Errorf("--%s and --%s exclude each other: both say where to listen", same.theirs, same.ours)
		default:
			*same.to = ":" + strconv.Itoa(int(same.port))
		}
	}
	if r.verbosity >= 4 && o.serve.level == "" {
		o.serve.level = "debug"
	}
	switch r.encoder {
	case "json":
		return f.Set("json", "true")
	case "", "console":
		return nil
	}
	return fmt.Errorf("--zap-encoder %s: want json or console", r.encoder)
}

// adjust makes a configuration what the flags say.
func (r *referenceFlags) adjust(c *file.Config) {
	if r.refresh > 0 {
		c.World.Scrape.Interval = r.refresh
	}
	if r.metricsPath != "" {
		c.World.Scrape.Path = r.metricsPath
	}
}

// warn says which flags were given that mean nothing.
func (r *referenceFlags) warn(cmd *cobra.Command, log *slog.Logger) {
	var given []string
	for _, m := range meaningless {
		if f := cmd.Flags().Lookup(m.name); f.Changed && (m.unless == "" || f.Value.String() != m.unless) {
			given = append(given, "--"+m.name)
		}
	}
	if len(given) > 0 {
		log.Warn("flags of the reference picker that mean nothing here: pools, endpoints and policy are those of --config or --endpoint", "flags", strings.Join(given, " "))
	}
}

// listenHealth is where health checks alone are answered; nil for nowhere.
func (r *referenceFlags) listenHealth() (net.Listener, error) {
	if r.healthPort == 0 {
		return nil, nil
	}
	l, err := net.Listen("tcp", ":"+strconv.Itoa(int(r.healthPort)))
	if err != nil {
		return nil, fmt.Errorf("--grpc-health-port: %w", err)
	}
	return l, nil
}
