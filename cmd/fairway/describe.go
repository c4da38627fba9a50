package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// configView is a configuration as /config and `fairway check` show it: the
// keys of fairway.yaml, every default filled in, but for those that say who may do
// what: they are an operator's own affair, and have secrets beside them.
type configView struct {
	Listen     map[string]string `json:"listen"`
	Log        map[string]string `json:"log"`
	Tracing    file.Tracing      `json:"tracing"`
	TLS        map[string]any    `json:"tls,omitempty"`
	Pools      []poolView        `json:"pools"`
	Models     []modelView       `json:"models"`
	Objectives []objectiveView   `json:"objectives"`
	SLO        []sloView         `json:"slo"`
	Raise      string            `json:"raise_priority"`
	Queue      map[string]any    `json:"queue"`
	Budgets    []budgetView      `json:"budgets"`
	Routes     []routeView       `json:"routes"`
	Timeouts   map[string]string `json:"timeouts"`
	Services   []meshServiceView `json:"services"`
	For        string            `json:"waypoint_for"`
	Limits     map[string]int64  `json:"limits"`
	Scrape     map[string]string `json:"scrape"`
	CacheSalt  string            `json:"cache_salt"`
	Usage      string            `json:"usage"`
	ModelNames string            `json:"model_names"`
	Explain    string            `json:"explain"`
	Shadow     string            `json:"shadow"`
	Pickers    string            `json:"pickers"`
	CostLabel  string            `json:"cost_label"`
	// RemotePrefill is in tokens.
	RemotePrefill int `json:"remote_prefill"`
}

type meshServiceView struct {
	Host  string     `json:"host"`
	VIPs  []string   `json:"vips"`
	Ports []portView `json:"ports"`
}

type portView struct {
	Port     int    `json:"port"`
	Protocol string `json:"protocol"`
	Pool     string `json:"pool"` // empty: the models say
	// Routes share out its requests in place of Pool.
	Routes []routeView `json:"routes,omitempty"`
}

type budgetView struct {
	Model           string  `json:"model"`     // empty: each
	Principal       string  `json:"principal"` // empty: everybody's own
	TokensPerMinute float64 `json:"tokens_per_minute"`
}

type poolView struct {
	Name      string      `json:"name"`
	Endpoints []string    `json:"endpoints"`
	Costs     []float64   `json:"costs,omitempty"`  // of the endpoints, in their order; none: each costs as much
	Plain     bool        `json:"plain,omitempty"`  // no engines
	Picker    *pickerView `json:"picker,omitempty"` // nil: the embedded one
}

type pickerView struct {
	Address     string `json:"address"`
	FailureMode string `json:"failure_mode"`
	Timeout     string `json:"timeout"`
	BodyMode    string `json:"body_mode"`
	Answers     string `json:"answers"`
	TLS         string `json:"tls"` // none, unverified or verified
}

// routeView is one rule of a route.
type routeView struct {
	Name      string        `json:"name"`
	Hostnames []string      `json:"hostnames"` // none: all
	Matches   []string      `json:"matches"`
	Does      []string      `json:"does"`
	Backends  []backendView `json:"backends"`
}

type backendView struct {
	Pool   string `json:"pool"` // empty: one that does not exist
	Weight int    `json:"weight"`
}

type modelView struct {
	Name        string       `json:"name"`
	Pool        string       `json:"pool"`
	Criticality string       `json:"criticality"`
	Targets     []targetView `json:"targets,omitempty"`
}

type objectiveView struct {
	Name     string `json:"name"`
	Pool     string `json:"pool"`
	Priority int    `json:"priority"`
}

type sloView struct {
	Pool string `json:"pool"` // empty: each
	TTFT string `json:"ttft"` // 0s: any
	TPOT string `json:"tpot"`
}

type targetView struct {
	Name   string `json:"name"`
	Weight int    `json:"weight"`
}

func describeConfig(c *file.Config) configView {
	w := c.World
	v := configView{
		Listen:  map[string]string{"http": c.Listen.HTTP, "hbone": c.Listen.HBONE, "sandwich": c.Listen.Sandwich, "metrics": c.Listen.Metrics, "admin": c.Listen.Admin},
		Tracing: c.Tracing,
		Log:     map[string]string{"level": cmp.Or(c.Log.Level, "info"), "access": string(c.Log.Access)},
		Pools:   describePools(w), Models: describeModels(w.Models), Routes: describeRoutes(w.Routes), Services: describeServices(w.Services),
		Timeouts: map[string]string{
			"connect": w.Timeouts.Connect.String(), "first_byte": w.Timeouts.FirstByte.String(),
			"stream_idle": w.Timeouts.StreamIdle.String(), "request": w.Timeouts.Request.String(), "drain": w.Timeouts.Drain.String(),
		},
		Limits: map[string]int64{
			"body": w.Limits.Body, "buffers": w.Limits.Buffers, "headers": int64(w.Limits.Headers), "connections": int64(w.Limits.Connections),
			"connections_per_address": int64(w.Limits.ConnectionsByAddress), "requests_per_principal": int64(w.Limits.RequestsByPrincipal),
		},
		Objectives: describeObjectives(w.Objectives),
		SLO:        describeSLOs(w.SLOs),
		Raise:      cmp.Or(string(w.RaisePriority), string(proxy.RaiseInMesh)),
		Queue:      describeQueue(w.Queue),
		Budgets:    describeBudgets(w.Budgets),
		Pickers:    string(cmp.Or(w.Pickers, proxy.HonourPickers)),
		Scrape:     map[string]string{"interval": w.Scrape.Interval.String(), "timeout": w.Scrape.Timeout.String(), "path": w.Scrape.Path},
		For:        cmp.Or(string(w.WaypointFor), string(proxy.ForServices)),
		CacheSalt:  cmp.Or(string(w.CacheSalt), string(proxy.CacheSaltNone)),
		Usage:      string(w.Usage),
		ModelNames: string(w.ModelNames),
		Explain:    string(w.Explain),
		Shadow:     cmp.Or(string(w.Shadow), string(proxy.ShadowNone)),
		TLS:        describeTLS(c.TLS),
		CostLabel:  c.CostLabel,

		RemotePrefill: cmp.Or(w.RemotePrefill, proxy.DefaultRemotePrefill),
	}
	return v
}

// describeEndpoint is its URL, and what else is said of it.
func describeEndpoint(e *proxy.Endpoint) string {
	text := cmp.Or(string(e.Scheme), "http") + "://" + e.Address
	if e.Ranks > 1 {
		text += fmt.Sprintf(" (%d ranks)", e.Ranks)
	}
	if e.Role != "" && e.Role != proxy.RoleDecode {
		text += " (" + string(e.Role) + ")"
	}
	return text
}

func describePools(w *proxy.World) []poolView {
	views := []poolView{}
	for _, p := range w.Pools {
		view := poolView{Name: p.Name, Endpoints: []string{}, Plain: p.Plain}
		if w.Pickers != proxy.EmbeddedPicker {
			view.Picker = describePicker(p.Picker)
		}
		for _, e := range p.Endpoints {
			view.Endpoints = append(view.Endpoints, describeEndpoint(&e))
			view.Costs = append(view.Costs, cmp.Or(e.Cost, 1))
		}
		if !slices.ContainsFunc(view.Costs, func(c float64) bool { return c != view.Costs[0] }) {
			view.Costs = nil
		}
		views = append(views, view)
	}
	return views
}

// describePicker says how a pool's own picker is asked; nil: it has none.
func describePicker(p *proxy.Picker) *pickerView {
	if p == nil {
		return nil
	}
	v := &pickerView{
		Address:     p.Address,
		FailureMode: string(cmp.Or(p.FailureMode, proxy.FailClose)),
		Timeout:     cmp.Or(p.Timeout, proxy.DefaultPickerTimeout).String(),
		BodyMode:    string(cmp.Or(p.Body, proxy.BodyFullDuplex)),
		Answers:     string(cmp.Or(p.Answers, proxy.AnswersHead)),
		TLS:         "unverified",
	}
	switch {
	case p.Plain:
		v.TLS = "none"
	case p.Roots != "":
		v.TLS = "verified"
	}
	return v
}

func describeModels(models []proxy.Model) []modelView {
	views := []modelView{}
	for _, m := range models {
		view := modelView{Name: m.Name, Pool: m.Pool, Criticality: string(m.Criticality)}
		for _, t := range m.Targets {
			view.Targets = append(view.Targets, targetView(t))
		}
		views = append(views, view)
	}
	return views
}

func describeSLOs(all []proxy.SLO) []sloView {
	views := []sloView{}
	for _, s := range all {
		views = append(views, sloView{s.Pool, s.TTFT.String(), s.TPOT.String()})
	}
	return views
}

func describeObjectives(objectives []proxy.Objective) []objectiveView {
	views := []objectiveView{}
	for _, o := range objectives {
		views = append(views, objectiveView(o))
	}
	return views
}

func describeQueue(q proxy.Queue) map[string]any {
	return map[string]any{
		"off": q.Off, "requests": cmp.Or(q.Requests, queue.DefaultRequests), "bytes": cmp.Or(q.Bytes, queue.DefaultBytes),
		"wait": cmp.Or(q.Wait, queue.DefaultWait).String(), "sheddable_wait": cmp.Or(q.SheddableWait, queue.DefaultSheddableWait).String(),
		"lower_share": q.LowerShare,
	}
}

func describeBudgets(limits []queue.Limit) []budgetView {
	views := []budgetView{}
	for _, l := range limits {
		views = append(views, budgetView(l))
	}
	return views
}

func describeServices(services []proxy.Service) []meshServiceView {
	views := []meshServiceView{}
	for _, s := range services {
		v := meshServiceView{Host: s.Host, VIPs: []string{}, Ports: []portView{}}
		for _, a := range s.VIPs {
			v.VIPs = append(v.VIPs, a.String())
		}
		for _, p := range s.Ports {
			v.Ports = append(v.Ports, portView{int(p.Port), cmp.Or(string(p.Protocol), string(proxy.PortAuto)), p.Pool, describeRoutes(p.Routes)})
		}
		views = append(views, v)
	}
	return views
}

func describeRoutes(routes []route.Route) []routeView {
	views := []routeView{}
	for i := range routes {
		for j := range routes[i].Rules {
			rule := &routes[i].Rules[j]
			v := routeView{Name: routes[i].Name, Hostnames: append([]string{}, routes[i].Hostnames...), Matches: []string{}, Does: append([]string{}, rule.Texts()...), Backends: []backendView{}}
			for _, m := range rule.Matches {
				v.Matches = append(v.Matches, m.String())
			}
			if len(v.Matches) == 0 {
				v.Matches = append(v.Matches, route.Match{}.String())
			}
			for _, b := range rule.Backends {
				v.Backends = append(v.Backends, backendView{b.Pool, b.Weight})
			}
			views = append(views, v)
		}
	}
	return views
}

// writeRules prints rules in a table that begins with its title.
func writeRules(w io.Writer, title string, routes []routeView) {
	fmt.Fprintln(w, title+"\tHOST\tMATCH\tTO\tAND")
	for _, r := range routes {
		hosts := "*"
		if len(r.Hostnames) > 0 {
			hosts = strings.Join(r.Hostnames, ", ")
		}
		total := 0
		for _, b := range r.Backends {
			total += b.Weight
		}
		var to []string
		for _, b := range r.Backends {
			pool := cmp.Or(b.Pool, "(none: 500)")
			if len(r.Backends) > 1 && total > 0 {
				pool += fmt.Sprintf(" %.0f%%", 100*float64(b.Weight)/float64(total))
			}
			to = append(to, pool)
		}
		for i, m := range r.Matches {
			if i == 0 {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Name, hosts, m, strings.Join(to, ", "), strings.Join(r.Does, "; "))
			} else {
				fmt.Fprintf(w, "\t\t%s\t\t\n", m)
			}
		}
	}
	fmt.Fprintln(w)
}

// describeTLS says where an identity comes from; nil: from nowhere.
func describeTLS(p mtls.Provider) map[string]any {
	var provider string
	var keys map[string]string
	var federated map[spiffeid.TrustDomain]string
	switch p := p.(type) {
	case mtls.Files:
		provider, federated = "files", p.Federated
		keys = map[string]string{"certificate": p.Certificate, "key": p.Key, "roots": p.Roots}
	case mtls.WorkloadAPI:
		provider = "spiffe"
		keys = map[string]string{"socket": cmp.Or(p.Socket, mtls.DefaultSocket)}
	case mtls.IstioCA:
		p = p.WithDefaults()
		provider, federated = "istio_ca", p.Federated
		keys = map[string]string{"address": p.Address, "token": p.Token, "roots": p.Roots, "cluster": p.ClusterID, "trust_domain": p.TrustDomain.Name()}
	default:
		return nil
	}
	view := map[string]any{provider: keys}
	if len(federated) > 0 {
		view["federated"] = federated
	}
	return view
}

// writeRoutes prints what a configuration serves: who asks for what is sent
// where.
func writeRoutes(out io.Writer, v configView) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(v.Routes) > 0 {
		writeRules(w, "ROUTE", v.Routes)
	}
	for _, s := range v.Services {
		for _, p := range s.Ports {
			at := fmt.Sprintf("SERVICE %s:%d", s.Host, p.Port)
			if len(p.Routes) > 0 {
				writeRules(w, at, p.Routes)
			} else {
				fmt.Fprintf(w, "%s\t%s\tto %s\n\n", at, p.Protocol, cmp.Or(p.Pool, "the pool of the model"))
			}
		}
	}
	writeModels(w, v.Models, v.Pools)
	fmt.Fprintln(w, "POOL\tENDPOINT")
	for _, p := range v.Pools {
		for _, e := range p.Endpoints {
			fmt.Fprintf(w, "%s\t%s\n", p.Name, e)
		}
	}
	return w.Flush()
}

// writeModels prints models in a table, and the pools that take any since they
// have none.
func writeModels(w io.Writer, models []modelView, pools []poolView) {
	fmt.Fprintln(w, "MODEL\tPOOL\tCRITICALITY\tSERVED AS")
	for _, p := range pools {
		if !p.Plain && !slices.ContainsFunc(models, func(m modelView) bool { return m.Pool == p.Name }) {
			fmt.Fprintf(w, "(any)\t%s\t%s\tas asked\n", p.Name, proxy.Standard)
		}
	}
	for _, m := range models {
		served, total := "", 0
		for _, t := range m.Targets {
			total += t.Weight
		}
		for i, t := range m.Targets {
			if i > 0 {
				served += ", "
			}
			served += fmt.Sprintf("%s %.0f%%", t.Name, 100*float64(t.Weight)/float64(total))
		}
		if served == "" {
			served = "as asked"
		}
		criticality := m.Criticality
		if criticality == "" {
			criticality = string(proxy.Standard)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", cmp.Or(m.Name, "(any other)"), m.Pool, criticality, served)
	}
	fmt.Fprintln(w)
}

// endpointView is one endpoint as /endpoints shows it.
type endpointView struct {
	Pool            string  `json:"pool"`
	Address         string  `json:"address"` // with the rank, where it has one
	Role            string  `json:"role"`    // decode, both or prefill
	Ejected         bool    `json:"ejected"`
	Silent          bool    `json:"silent"` // it has answered nothing for a while, and is passed over
	InFlight        int     `json:"in_flight"`
	QueuedTokens    int     `json:"queued_tokens"`
	Running         float64 `json:"running"`
	Waiting         float64 `json:"waiting"`
	KVUsage         float64 `json:"kv_usage"`
	CapacityTokens  int     `json:"capacity_tokens"`
	SecondsPerToken float64 `json:"seconds_per_token"`
	Cost            float64 `json:"cost"`
	IndexEntries    int     `json:"index_entries"`
	IndexBytes      int     `json:"index_bytes"`
	PromptTokens    uint64  `json:"prompt_tokens"`    // of all requests so far, estimated
	PredictedHits   uint64  `json:"predicted_hits"`   // of these, believed to be cached when picked
	ReportedCached  uint64  `json:"reported_cached"`  // tokens that the engine reported as cached
	Foreign         int     `json:"foreign_requests"` // not ours, as of the last scrape
	Stretch         float64 `json:"capacity_stretch"` // by how much its cache seems to be larger than it says
	Credit          float64 `json:"cache_credit"`     // what a token believed to be cached is worth
	ScrapeAge       float64 `json:"scrape_age_s"`     // −1: never scraped
	ScrapeFailures  int     `json:"scrape_failures"`  // since the last good one
	IdleConnections int     `json:"idle_connections"`
}

func describeEndpoints(s *proxy.Server) []endpointView {
	now := proxy.Now()
	views := []endpointView{}
	for _, e := range s.Endpoints() {
		l := e.Endpoint.Load(now)
		scraped := func(m picker.Metric) float64 {
			v, _ := l.Scrape.Get(m)
			return v
		}
		v := endpointView{
			Pool: e.Pool, Address: e.Endpoint.Name(), Role: e.Endpoint.Role().String(), Ejected: e.Endpoint.Ejected(now), Silent: l.Silent,
			InFlight: l.InFlight, QueuedTokens: l.Queued, Running: scraped(picker.Running), Waiting: scraped(picker.Waiting),
			KVUsage: l.KV, CapacityTokens: l.Capacity, SecondsPerToken: l.Speed, Cost: e.Endpoint.Cost(), IndexEntries: l.IndexEntries, IndexBytes: l.IndexBytes,
			PromptTokens: l.PromptTokens, PredictedHits: l.HitTokens, ReportedCached: l.CachedTokens,
			Foreign: l.Foreign, Stretch: l.Stretch, Credit: l.Credit,
			ScrapeAge: -1, ScrapeFailures: l.ScrapeFailures, IdleConnections: e.Transport.Idle(),
		}
		if l.ScrapeAge >= 0 {
			v.ScrapeAge = l.ScrapeAge.Seconds()
		}
		views = append(views, v)
	}
	return views
}
