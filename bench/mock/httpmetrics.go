package mock

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// httpMetrics are the families of prometheus-fastapi-instrumentator: the end of the metrics page. Their series appear with the first
// request of their kind and stay in that order.
type httpMetrics struct {
	requests  []counted // by handler, method and class of status
	sizes     []sized   // by handler
	durations []timed   // by handler and method
	all       *histogram
}

type counted struct {
	handler, method, status string
	n                       float64
	since                   float64
}

type sized struct {
	handler               string
	n, received, answered float64
	since                 float64
}

type timed struct {
	handler, method string
	h               *histogram
	since           float64
}

var (
	fineBounds   = []float64{.01, .025, .05, .075, .1, .25, .5, .75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60}
	coarseBounds = []float64{.1, .5, 1}
)

func newHTTPMetrics() httpMetrics { return httpMetrics{all: newHistogram(fineBounds)} }

// observe counts a request. Methods nobody knows are counted as one, so that strangers cannot make the page grow.
func (m *httpMetrics) observe(handler, method string, status, received, answered int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch:
	default:
		method = "OTHER"
	}
	class := strconv.Itoa(status/100) + "xx"
	now := float64(time.Now().UnixNano()) / 1e9
	i := slices.IndexFunc(m.requests, func(c counted) bool { return c.handler == handler && c.method == method && c.status == class })
	if i < 0 {
		i = len(m.requests)
		m.requests = append(m.requests, counted{handler: handler, method: method, status: class, since: now})
	}
	m.requests[i].n++

	i = slices.IndexFunc(m.sizes, func(s sized) bool { return s.handler == handler })
	if i < 0 {
		i = len(m.sizes)
		m.sizes = append(m.sizes, sized{handler: handler, since: now})
	}
	m.sizes[i].n++
	m.sizes[i].received += float64(received)
	m.sizes[i].answered += float64(answered)

	i = slices.IndexFunc(m.durations, func(t timed) bool { return t.handler == handler && t.method == method })
	if i < 0 {
		i = len(m.durations)
		m.durations = append(m.durations, timed{handler, method, newHistogram(coarseBounds), now})
	}
	m.durations[i].h.seconds(took)
	m.all.seconds(took)
}

func (m *httpMetrics) write(p *page) {
	const name = "http_requests"
	p.family(name+"_total", "Total number of requests by method, status and handler.", "counter")
	for _, c := range m.requests {
		p.sample(name+"_total", c.labels(), c.n)
	}
	p.family(name+"_created", "Total number of requests by method, status and handler.", "gauge")
	for _, c := range m.requests {
		p.sample(name+"_created", c.labels(), c.since)
	}
	const only = " by handler. Only value of header is respected. Otherwise ignored. No percentile calculated. "
	m.writeSizes(p, "http_request_size_bytes", "Content length of incoming requests"+only, func(s *sized) float64 { return s.received })
	m.writeSizes(p, "http_response_size_bytes", "Content length of outgoing responses"+only, func(s *sized) float64 { return s.answered })

	const fine, fineHelp = "http_request_duration_highr_seconds",
		"Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. "
	p.family(fine, fineHelp, "histogram")
	p.buckets(fine, m.all, func(le string) string { return `le="` + le + `"` }, "")
	p.family(fine+"_created", fineHelp, "gauge")
	p.sample(fine+"_created", "", p.created)

	const coarse, coarseHelp = "http_request_duration_seconds",
		"Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. "
	p.family(coarse, coarseHelp, "histogram")
	for _, t := range m.durations {
		handler, method := `handler="`+t.handler+`"`, `method="`+t.method+`"`
		p.buckets(coarse, t.h, func(le string) string { return handler + `,le="` + le + `",` + method }, handler+","+method)
	}
	p.family(coarse+"_created", coarseHelp, "gauge")
	for _, t := range m.durations {
		p.sample(coarse+"_created", `handler="`+t.handler+`",method="`+t.method+`"`, t.since)
	}
}

func (c *counted) labels() string {
	return `handler="` + c.handler + `",method="` + c.method + `",status="` + c.status + `"`
}

func (m *httpMetrics) writeSizes(p *page, name, help string, sum func(*sized) float64) {
	p.family(name, help, "summary")
	for i := range m.sizes {
		labels := `handler="` + m.sizes[i].handler + `"`
		p.sample(name+"_count", labels, m.sizes[i].n)
		p.sample(name+"_sum", labels, sum(&m.sizes[i]))
	}
	p.family(name+"_created", help, "gauge")
	for i := range m.sizes {
		p.sample(name+"_created", `handler="`+m.sizes[i].handler+`"`, m.sizes[i].since)
	}
}
