package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// endpointMetrics are the gauges of each endpoint, as the picker uses them.
type endpointMetrics struct{ server *proxy.Server }

// endpointGauge is one of them. A value below 0 is not known, and not shown.
type endpointGauge struct {
	desc  *prometheus.Desc
	value func(*endpointView) float64
}

func newEndpointGauge(name, help string, value func(*endpointView) float64) endpointGauge {
	return endpointGauge{prometheus.NewDesc("fairway_endpoint_"+name, help, []string{"pool", "endpoint"}, nil), value}
}

var endpointGauges = []endpointGauge{
	newEndpointGauge("requests_in_flight", "Requests of this proxy on the endpoint: its leases.", func(e *endpointView) float64 { return float64(e.InFlight) }),
	newEndpointGauge("foreign_requests", "Requests of others on the endpoint, as of the last scrape.", func(e *endpointView) float64 { return float64(e.Foreign) }),
	newEndpointGauge("requests_running", "Requests that the engine computes, as it said when last scraped.", func(e *endpointView) float64 { return e.Running }),
	newEndpointGauge("requests_waiting", "Requests that wait in the engine, as it said when last scraped.", func(e *endpointView) float64 { return e.Waiting }),
	newEndpointGauge("queued_tokens", "Uncached prompt tokens sent to the endpoint whose first token has not come.", func(e *endpointView) float64 { return float64(e.QueuedTokens) }),
	newEndpointGauge("kv_cache_usage_ratio", "Share of the endpoint's KV cache in use, as the picker counts it.", func(e *endpointView) float64 { return e.KVUsage }),
	newEndpointGauge("kv_cache_tokens", "Tokens that fit the endpoint's KV cache, as it says, or assumed.", func(e *endpointView) float64 { return float64(e.CapacityTokens) }),
	newEndpointGauge("cache_credit_ratio", "What a token that the index believes to be cached is worth, learned from what proved to be.", func(e *endpointView) float64 { return e.Credit }),
	newEndpointGauge("ejected", "1 while the endpoint is out because it takes no connections or fails requests.", func(e *endpointView) float64 { return oneIf(e.Ejected) }),
	newEndpointGauge("silent", "1 while the endpoint is passed over because it has answered nothing for a second, neither a scrape, nor a probe, nor a request, or because its engine has computed nothing for ten.", func(e *endpointView) float64 { return oneIf(e.Silent) }),
	newEndpointGauge("scrape_age_seconds", "Age of the endpoint's last good scrape; absent before the first.", func(e *endpointView) float64 { return e.ScrapeAge }),
	newEndpointGauge("scrape_failures", "Scrapes that failed since the last good one.", func(e *endpointView) float64 { return float64(e.ScrapeFailures) }),
	newEndpointGauge("index_entries", "Prompt chunks believed to be in the endpoint's cache.", func(e *endpointView) float64 { return float64(e.IndexEntries) }),
	newEndpointGauge("index_bytes", "Memory of the index of what is in the endpoint's cache.", func(e *endpointView) float64 { return float64(e.IndexBytes) }),
	newEndpointGauge("seconds_per_prompt_token", "Learned time to compute one prompt token.", func(e *endpointView) float64 { return e.SecondsPerToken }),
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (m endpointMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range endpointGauges {
		ch <- g.desc
	}
}

func (m endpointMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, e := range describeEndpoints(m.server) {
		for _, g := range endpointGauges {
			if v := g.value(&e); v >= 0 {
				ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, v, e.Pool, e.Address)
			}
		}
	}
}

// pickerMetrics are what came of asking pools' own endpoint pickers.
type pickerMetrics struct{ server *proxy.Server }

var (
	descAsked     = prometheus.NewDesc("fairway_own_picker_requests_total", "Requests that the pool's own endpoint picker was asked about, by what came of it: named, answered, timeout, unavailable, protocol, outside (no endpoint of the pool), spared (not asked, having timed out).", []string{"pool", "outcome"}, nil)
	descFallbacks = prometheus.NewDesc("fairway_own_picker_fallbacks_total", "Choices that the embedded picker made in place of the pool's own (FailOpen).", []string{"pool"}, nil)
)

func (m pickerMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- descAsked; ch <- descFallbacks }

func (m pickerMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, p := range m.server.Pickers() {
		for o, n := range p.Outcomes {
			ch <- prometheus.MustNewConstMetric(descAsked, prometheus.CounterValue, float64(n), p.Pool, proxy.PickerOutcome(o).String())
		}
		ch <- prometheus.MustNewConstMetric(descFallbacks, prometheus.CounterValue, float64(p.Fallbacks), p.Pool)
	}
}

// appMetrics are the metrics of the proxy as a whole.
type appMetrics struct{ app *app }

var (
	descBuild    = prometheus.NewDesc("fairway_build_info", "1; its label says which version this is.", []string{"version"}, nil)
	descLive     = prometheus.NewDesc("fairway_requests_live", "Requests under way.", nil, nil)
	descQueue    = prometheus.NewDesc("fairway_queue_length", "Requests that wait for an endpoint of the pool to have room, by what they are worth: critical, standard, sheddable.", []string{"pool", "criticality"}, nil)
	descBuffered = prometheus.NewDesc("fairway_request_bodies_bytes", "Memory that request bodies hold.", nil, nil)
	descUptime   = prometheus.NewDesc("fairway_uptime_seconds", "Time since the process started.", nil, nil)
	descWorld    = prometheus.NewDesc("fairway_world_version", "Which World is in force: it counts the changes of what is served since the process started.", nil, nil)
	descChanged  = prometheus.NewDesc("fairway_world_changed_timestamp_seconds", "When it came into force, in seconds since 1970.", nil, nil)
	descRejected = prometheus.NewDesc("fairway_config_rejected_total", "Changes of the configuration file that could not be used; the last good one stayed in force.", nil, nil)
	descUnlogged = prometheus.NewDesc("fairway_access_log_lines_lost_total", "Lines of the access log that could not be written, as on a disk that is full; absent without an access log.", nil, nil)
	descClients  = prometheus.NewDesc("fairway_client_connections", "Connections of clients that are open, and tunnels that HTTP is spoken in.", nil, nil)
	descReached  = prometheus.NewDesc("fairway_limits_reached_total", "How often what clients did reached a limit, and was refused or cut off: docs/configuration.md has them all. Those of queues and budgets are fairway_shed_total, those of tunnels fairway_hbone_refused_total.", []string{"limit"}, nil)
	descAPI      = prometheus.NewDesc("fairway_api_server_up", "1 while the cluster's API server answers, 0 while it cannot be asked: what was last known stays in force. Absent without a cluster.", nil, nil)
	descFindings = prometheus.NewDesc("fairway_findings", "Objects of the cluster that are not served as they were meant, by kind; severity is error or warning (nothing is taken away).", []string{"kind", "severity"}, nil)
)

func (m appMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBuild, descLive, descQueue, descBuffered, descUptime, descWorld, descChanged, descRejected, descUnlogged, descClients, descReached, descAPI, descFindings} {
		ch <- d
	}
}

func (m appMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descBuild, 1, cli.Version(version))
	gauge(descLive, float64(m.app.server.Live()))
	for _, q := range m.app.server.Queues() {
		gauge(descQueue, float64(q.Critical), q.Pool, account.Critical)
		gauge(descQueue, float64(q.Standard), q.Pool, account.Standard)
		gauge(descQueue, float64(q.Sheddable), q.Pool, account.Sheddable)
	}
	gauge(descBuffered, float64(m.app.server.Buffered()))
	gauge(descUptime, proxy.Now().Round(time.Millisecond).Seconds())
	if w := m.app.world.Load(); w != nil {
		gauge(descWorld, float64(w.version))
		gauge(descChanged, float64(w.since.UnixMilli())/1000)
	}
	ch <- prometheus.MustNewConstMetric(descRejected, prometheus.CounterValue, float64(m.app.rejected.Load()))
	if m.app.access != nil {
		ch <- prometheus.MustNewConstMetric(descUnlogged, prometheus.CounterValue, float64(m.app.access.Lost()))
	}
	gauge(descClients, float64(m.app.server.Clients()))
	for l, n := range m.app.server.Reached() {
		ch <- prometheus.MustNewConstMetric(descReached, prometheus.CounterValue, float64(n), proxy.Limit(l).String())
	}
	if away := m.app.away.Load(); away != nil {
		up := 1.0
		if away.Load() {
			up = 0
		}
		gauge(descAPI, up)
	}
	if all := m.app.findings.Load(); all != nil {
		type kind struct{ kind, severity string }
		n := make(map[kind]int)
		for _, f := range *all {
			severity := "error"
			if f.Warning {
				severity = "warning"
			}
			n[kind{f.Kind, severity}]++
		}
		for k, n := range n {
			gauge(descFindings, float64(n), k.kind, k.severity)
		}
	}
}

// worldState says which World is in force.
type worldState struct {
	version int
	since   time.Time
}

// identityMetrics tell until when our certificate is good.
type identityMetrics struct{ source *mtls.Source }

var descExpiry = prometheus.NewDesc("fairway_certificate_expiry_timestamp_seconds",
	"When our certificate in the mesh expires, in seconds since 1970; absent while there is none.", []string{"spiffe_id"}, nil)

func (m identityMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- descExpiry }

func (m identityMetrics) Collect(ch chan<- prometheus.Metric) {
	if expiry := m.source.Expiry(); !expiry.IsZero() {
		ch <- prometheus.MustNewConstMetric(descExpiry, prometheus.GaugeValue, float64(expiry.Unix()), m.source.ID().String())
	}
}
