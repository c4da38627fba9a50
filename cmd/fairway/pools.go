package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/proxy"
)

// poolMetrics are gauges of each pool to scale its engines by. Each proxy sees all
// of a pool's engines; its own requests are those that it has sent.
type poolMetrics struct{ server *proxy.Server }

// typicalPrompt is what fairway_pool_predicted_ttft_seconds is told for: so many
// uncached tokens.
const typicalPrompt = 1000

var (
	poolLabels = []string{"pool"}

	descPoolEndpoints = prometheus.NewDesc("fairway_pool_endpoints", "Endpoints of the pool that take connections.", poolLabels, nil)
	descPoolRunning   = prometheus.NewDesc("fairway_pool_requests_running", "Requests that the pool's engines compute, as they say.", poolLabels, nil)
	descPoolWaiting   = prometheus.NewDesc("fairway_pool_requests_waiting", "Requests in the queues of the pool's engines, as they say.", poolLabels, nil)
	descPoolKV        = prometheus.NewDesc("fairway_pool_kv_cache_usage_ratio", "Share of the KV cache in use, as the picker counts it: the mean over the pool's endpoints.", poolLabels, nil)
	descPoolTokens    = prometheus.NewDesc("fairway_pool_tokens_in_flight", "Uncached prompt tokens that this proxy has sent to the pool and whose first token has not come.", poolLabels, nil)
	descPoolTTFT      = prometheus.NewDesc("fairway_pool_predicted_ttft_seconds",
		"Time until the first token of a prompt of 1,000 uncached tokens, at the endpoint where it is shortest; absent while the pool has none.", poolLabels, nil)
)

func (m poolMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPoolEndpoints, descPoolRunning, descPoolWaiting, descPoolKV, descPoolTokens, descPoolTTFT} {
		ch <- d
	}
}

func (m poolMetrics) Collect(ch chan<- prometheus.Metric) {
	world := m.server.World()
	if world == nil {
		return
	}
	pools := make(map[string]*poolLoad, len(world.Pools))
	for i := range world.Pools {
		pools[world.Pools[i].Name] = new(poolLoad)
	}
	for _, e := range describeEndpoints(m.server) {
		if p := pools[e.Pool]; p != nil {
			p.add(&e)
		}
	}
	for name, p := range pools {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, name)
		}
		gauge(descPoolEndpoints, float64(p.endpoints))
		gauge(descPoolRunning, p.running)
		gauge(descPoolWaiting, p.waiting)
		gauge(descPoolTokens, float64(p.tokens))
		if p.endpoints > 0 {
			gauge(descPoolKV, p.kv/float64(p.endpoints))
			gauge(descPoolTTFT, p.ttft)
		}
	}
}

// poolLoad is the load of the endpoints of a pool that take connections.
type poolLoad struct {
	endpoints, tokens          int
	running, waiting, kv, ttft float64
}

func (p *poolLoad) add(e *endpointView) {
	if e.Ejected {
		return
	}
	ttft := float64(e.QueuedTokens+typicalPrompt) * e.SecondsPerToken
	if p.endpoints == 0 || ttft < p.ttft {
		p.ttft = ttft
	}
	p.endpoints++
	p.running += e.Running
	p.waiting += e.Waiting
	p.kv += e.KVUsage
	p.tokens += e.QueuedTokens
}
