package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy/hbone"
)

// tunnelMetrics count the mesh's tunnels, those we accept (inbound) and those we make
// (outbound).
type tunnelMetrics struct{ app *app }

var (
	descMeshConns = prometheus.NewDesc("fairway_hbone_connections", "Connections that tunnels are in, open now.", []string{"direction"}, nil)
	descTunnels   = prometheus.NewDesc("fairway_hbone_tunnels", "Tunnels open now.", []string{"direction"}, nil)
	descOpened    = prometheus.NewDesc("fairway_hbone_tunnels_total", "Tunnels so far.", []string{"direction"}, nil)
	descResets    = prometheus.NewDesc("fairway_hbone_resets_total", "Tunnels that were broken off, by either side.", []string{"direction"}, nil)
	descDials     = prometheus.NewDesc("fairway_hbone_dials_total", "Connections to pods' ztunnels so far, failed ones included.", nil, nil)
	descRefusing  = prometheus.NewDesc("fairway_hbone_refused_by_pods_total", "Tunnels that pods' ztunnels have refused.", nil, nil)
	descRefused   = prometheus.NewDesc("fairway_hbone_refused_total", "Connections and tunnels that we have refused or broken off, by reason.", []string{"reason"}, nil)
	descHandshake = prometheus.NewDesc("fairway_hbone_failed_handshakes_total", "Handshakes of peers that failed, by why: the reason handshake of fairway_hbone_refused_total.", []string{"reason"}, nil)
)

func (m tunnelMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descMeshConns, descTunnels, descOpened, descResets, descDials, descRefusing, descRefused, descHandshake} {
		ch <- d
	}
}

func (m tunnelMetrics) Collect(ch chan<- prometheus.Metric) {
	metric := func(d *prometheus.Desc, kind prometheus.ValueType, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, float64(v), labels...)
	}
	var inbound []*hbone.Counters
	if m.app.tunnels != nil {
		inbound = append(inbound, &m.app.tunnels.Counters)
	}
	if m.app.sandwich != nil {
		inbound = append(inbound, &m.app.sandwich.Counters)
	}
	if len(inbound) > 0 {
		sum := func(of func(*hbone.Counters) int64) (n int64) {
			for _, c := range inbound {
				n += of(c)
			}
			return n
		}
		metric(descMeshConns, prometheus.GaugeValue, sum(func(c *hbone.Counters) int64 { return c.Conns.Load() }), "inbound")
		metric(descTunnels, prometheus.GaugeValue, sum(func(c *hbone.Counters) int64 { return c.Tunnels.Load() }), "inbound")
		metric(descOpened, prometheus.CounterValue, sum(func(c *hbone.Counters) int64 { return c.Opened.Load() }), "inbound")
		metric(descResets, prometheus.CounterValue, sum(func(c *hbone.Counters) int64 { return c.Resets.Load() }), "inbound")
		for _, r := range hbone.Reasons() {
			metric(descRefused, prometheus.CounterValue, sum(func(c *hbone.Counters) int64 { return c.Refused(r) }), r.String())
		}
		failed := make(map[mtls.Reason]int64)
		for _, c := range inbound {
			for r, n := range c.Handshakes() {
				failed[r] += n
			}
		}
		for r, n := range failed {
			metric(descHandshake, prometheus.CounterValue, n, string(r))
		}
	}
	if d := m.app.dialer; d != nil {
		metric(descMeshConns, prometheus.GaugeValue, d.Counters.Conns.Load(), "outbound")
		metric(descTunnels, prometheus.GaugeValue, d.Counters.Tunnels.Load(), "outbound")
		metric(descOpened, prometheus.CounterValue, d.Counters.Opened.Load(), "outbound")
		metric(descResets, prometheus.CounterValue, d.Counters.Resets.Load(), "outbound")
		metric(descDials, prometheus.CounterValue, d.Counters.Dials.Load())
		metric(descRefusing, prometheus.CounterValue, d.Counters.Refused.Load())
	}
}
