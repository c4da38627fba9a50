package file

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fairway-proxy/fairway/proxy"
)

// Validate says what is wrong with a Config, however it was made: whatever
// Parse returns has passed it. The error joins one error per problem. Each
// begins with what where makes of the problem's path, such as
// "pools[0].endpoints[1]" or "listen.http", so that a command line can name
// its flag there; nil: the path itself.
func (c *Config) Validate(where func(path string) string) error {
	return join(c.check(), func(p problem) string {
		if where == nil {
			return p.path
		}
		return where(p.path)
	})
}

// checker collects what is wrong with a Config.
type checker struct {
	problems []problem
}

func (k *checker) problem(path, format string, args ...any) {
	k.problems = append(k.problems, problem{path: path, text: fmt.Sprintf(format, args...)})
}

// check returns what is wrong with c.
func (c *Config) check() []problem {
	var k checker
	k.listen(c.Listen)
	k.tls(c.TLS)
	if c.World == nil {
		k.problem("", "no world: nothing is served")
		return k.problems
	}
	if c.cluster {
		k.settings(c)
	} else {
		pools := k.pools(c.World)
		k.models(c.World, pools)
		k.objectives(c.World.Objectives, slices.Sorted(maps.Keys(pools)))
		for i, s := range c.World.SLOs {
			if s.Pool != "" {
				k.pool(fmt.Sprintf("slo[%d].pool", i), s.Pool, slices.Sorted(maps.Keys(pools)))
			}
		}
		if c.CostLabel != "" {
			k.problem("cost_label", "labels are a cluster's: say at each endpoint what it costs, or serve with --kubernetes")
		}
		k.routes("routes", c.World.Routes, slices.Sorted(maps.Keys(pools)))
		k.mesh(c, pools)
	}
	k.timeouts(c.World.Timeouts)
	k.limits(c.World.Limits)
	k.queue(c.World)
	k.slos(c.World.SLOs)
	k.scrape(c.World.Scrape)
	if c.World.RemotePrefill < 0 {
		k.problem("remote_prefill", "%d: want 1 or more", c.World.RemotePrefill)
	}
	k.access(&c.World.Access)
	k.authorizers(c.World)
	word(&k, "normalization", c.World.Access.Normalization, normalizations)
	word(&k, "raise_priority", c.World.RaisePriority, raisePriorities)
	word(&k, "log.level", c.Log.Level, levels)
	word(&k, "tracing.protocol", c.Tracing.Protocol, otlps)
	k.tracing(c.Tracing)
	word(&k, "log.access", c.Log.Access, accessFormats)
	word(&k, "cache_salt", c.World.CacheSalt, cacheSalts)
	word(&k, "usage", c.World.Usage, usageModes)
	word(&k, "model_names", c.World.ModelNames, modelNames)
	word(&k, "pickers", c.World.Pickers, pickerChoices)
	word(&k, "explain", c.World.Explain, explainModes)
	word(&k, "shadow", c.World.Shadow, shadowPolicies)
	return k.problems
}

func (k *checker) tracing(t Tracing) {
	if t.Endpoint != "" {
		if u, err := url.Parse(t.Endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			k.problem("tracing.endpoint", "%s: want the URL of a collector, such as http://collector:4317, or https:// for TLS", show(t.Endpoint))
		}
	}
	if !(t.Sampling >= 0 && t.Sampling <= 1) {
		k.problem("tracing.sampling", "%v: want a share from 0 to 1", t.Sampling)
	}
}

func (k *checker) listen(l Listen) {
	if l.HTTP == "" && l.HBONE == "" && l.Sandwich == "" {
		k.problem("listen.http", `empty: no listener would take requests: want an address such as ":8080"`)
	}
	if (l.TLS.Certificate == "") != (l.TLS.Key == "") {
		k.problem("listen.tls", "want both certificate and key")
	}
	seen := make(map[string]string)
	for _, a := range []struct{ path, address string }{
		{"listen.http", l.HTTP}, {"listen.hbone", l.HBONE}, {"listen.sandwich", l.Sandwich}, {"listen.metrics", l.Metrics}, {"listen.admin", l.Admin},
	} {
		if a.address == "" {
			continue
		}
		if err := checkListen(a.address); err != nil {
			k.problem(a.path, "%v", err)
			continue
		}
		if other := seen[a.address]; other != "" && !strings.HasSuffix(a.address, ":0") {
			k.problem(a.path, "%s is the address of %s as well", show(a.address), other)
		}
		seen[a.address] = a.path
	}
}

// settings checks what there is beside a cluster.
func (k *checker) settings(c *Config) {
	w := c.World
	for _, s := range []struct {
		path string
		n    int
	}{{"pools", len(w.Pools)}, {"models", len(w.Models)}, {"objectives", len(w.Objectives)}, {"routes", len(w.Routes)}, {"services", len(w.Services)}} {
		if s.n > 0 {
			k.problem(s.path, "the cluster says this: leave it out beside --kubernetes")
		}
	}
	if w.WaypointFor != "" {
		k.problem("waypoint_for", "the labels of Gateways say this: leave it out beside --kubernetes")
	}
	if c.Listen.HBONE != "" && c.TLS == nil {
		k.problem("listen.hbone", `tunnels need an identity: say where it comes from under tls, or want no tunnels (hbone: "")`)
	}
}

// pools returns the names of the pools and where they are.
func (k *checker) pools(w *proxy.World) map[string]int {
	if len(w.Pools) == 0 {
		k.problem("pools", "missing: want at least one pool with the endpoints to serve from")
	}
	names := make(map[string]int)
	for i, p := range w.Pools {
		path := fmt.Sprintf("pools[%d]", i)
		k.name(path+".name", p.Name, "pools", i, names)
		if len(p.Endpoints) == 0 {
			k.problem(path+".endpoints", "missing: want at least one, %s", endpointForm)
		}
		type pod struct{ address, uid string }
		seen := make(map[pod]int)
		for j, e := range p.Endpoints {
			at := fmt.Sprintf("%s.endpoints[%d]", path, j)
			if err := checkAddress(e.Address); err != nil {
				k.problem(at, "%v", err)
				continue
			}
			k.ranks(at+".ranks", e.Ranks, p.Plain)
			if first, twice := seen[pod{e.Address, e.UID}]; twice {
				k.problem(at, "%s is endpoints[%d] as well", show(e.Address), first)
				continue
			}
			seen[pod{e.Address, e.UID}] = j
			if !(e.Cost >= 0 && e.Cost <= proxy.MaxCost) {
				k.problem(at+".cost", "%v: want a number above 0, up to %v", e.Cost, proxy.MaxCost)
			}
		}
		k.roles(path, &p)
		k.picker(path+".picker", &p)
	}
	return names
}

// ranks checks how many engines share an address.
func (k *checker) ranks(path string, ranks int, plain bool) {
	switch {
	case ranks < 0 || ranks > proxy.MaxRanks:
		k.problem(path, "%d: want from 1 to %d", ranks, proxy.MaxRanks)
	case ranks > 1 && plain:
		k.problem(path, "endpoints of a plain pool are no engines: leave it out")
	}
}

// roles checks what the endpoints of a pool do of a request.
func (k *checker) roles(path string, p *proxy.Pool) {
	serving := 0
	for i, e := range p.Endpoints {
		at := fmt.Sprintf("%s.endpoints[%d].role", path, i)
		word(k, at, e.Role, roles)
		if e.Role != "" && p.Plain {
			k.problem(at, "endpoints of a plain pool are no engines: leave it out")
		}
		if e.Role != proxy.RolePrefill {
			serving++
		}
	}
	if serving == 0 && len(p.Endpoints) > 0 {
		k.problem(path+".endpoints", "all have the role prefill: no request would be served")
	}
}

// picker checks how a pool's own endpoint picker is asked, if it has one.
func (k *checker) picker(path string, pool *proxy.Pool) {
	p := pool.Picker
	if p == nil {
		return
	}
	if pool.Plain {
		k.problem(path, "a plain pool has no picker: leave out one of the two")
	}
	for _, e := range pool.Endpoints {
		if _, err := netip.ParseAddrPort(e.Address); err != nil && checkAddress(e.Address) == nil {
			k.problem(path, "a picker names endpoints by IP address and port: %s is a host name", e.Address)
		}
	}
	if p.Address == "" {
		k.problem(path+".address", "missing: want where the picker listens, host:port")
	} else if err := checkAddress(p.Address); err != nil {
		k.problem(path+".address", "%v", err)
	}
	word(k, path+".failure_mode", p.FailureMode, failureModes)
	k.notNegative(path+".timeout", p.Timeout)
	word(k, path+".body_mode", p.Body, pickerBodies)
	word(k, path+".answers", p.Answers, pickerAnswers)
	if p.Plain && p.Roots != "" {
		k.problem(path+".roots", "there is no certificate to verify with secure_serving: false")
	}
	if p.ServerName != "" && p.Roots == "" {
		k.problem(path+".server_name", "the certificate is not verified without roots")
	}
}

// name checks the name of the i-th of many, which no other may have.
func (k *checker) name(path, name, many string, i int, seen map[string]int) {
	const most = 253
	switch {
	case name == "":
		k.problem(path, "missing: want a name")
		return
	case len(name) > most:
		k.problem(path, "%s: want at most %d bytes", show(name), most)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		k.problem(path, "%s: want text without control characters", show(name))
	}
	if first, twice := seen[name]; twice {
		k.problem(path, "%s is the name of %s[%d] as well", show(name), many, first)
		return
	}
	seen[name] = i
}

func (k *checker) models(w *proxy.World, pools map[string]int) {
	if len(w.Models) == 0 {
		if len(w.Pools) > 1 && len(w.Routes) == 0 && len(w.Services) == 0 {
			k.problem("models", "missing: with %d pools, models must say which pool serves which model name (or routes which request, or leave one pool)", len(w.Pools))
		}
		return
	}
	known := slices.Sorted(maps.Keys(pools))
	names := make(map[string]map[string]int) // by pool where routes choose it
	for i, m := range w.Models {
		path := fmt.Sprintf("models[%d]", i)
		in := ""
		if len(w.Routes) > 0 {
			in = m.Pool
		}
		if names[in] == nil {
			names[in] = make(map[string]int)
		}
		k.name(path+".name", m.Name, "models", i, names[in])
		k.pool(path+".pool", m.Pool, known)
		if at, is := pools[m.Pool]; is && w.Pools[at].Plain {
			k.problem(path+".pool", "pool %s is plain: its endpoints are no engines and serve no models", show(m.Pool))
		}
		word(k, path+".criticality", m.Criticality, criticalities)
		k.targets(path+".targets", m.Targets)
	}
}

func (k *checker) objectives(all []proxy.Objective, pools []string) {
	names := make(map[string]map[string]int) // by pool
	for i, o := range all {
		path := fmt.Sprintf("objectives[%d]", i)
		if names[o.Pool] == nil {
			names[o.Pool] = make(map[string]int)
		}
		k.name(path+".name", o.Name, "objectives", i, names[o.Pool])
		k.pool(path+".pool", o.Pool, pools)
		if o.Priority < -maxPriority || o.Priority > maxPriority {
			k.problem(path+".priority", "%d: want a whole number from %d to %d", o.Priority, -maxPriority, maxPriority)
		}
	}
}

// slos checks what requests should get.
func (k *checker) slos(all []proxy.SLO) {
	for i, s := range all {
		path := fmt.Sprintf("slo[%d]", i)
		k.notNegative(path+".ttft", s.TTFT)
		k.notNegative(path+".tpot", s.TPOT)
		if s.TTFT == 0 && s.TPOT == 0 {
			k.problem(path, "it asks for nothing: want ttft, tpot or both")
		}
	}
}

func (k *checker) targets(path string, targets []proxy.Target) {
	sum := 0
	names := make(map[string]int)
	for i, t := range targets {
		at := fmt.Sprintf("%s[%d]", path, i)
		k.name(at+".name", t.Name, "targets", i, names)
		if t.Weight < 0 || t.Weight > maxWeight {
			k.problem(at+".weight", "%d: want a whole number from 0 to %d", t.Weight, maxWeight)
		}
		sum += max(0, min(t.Weight, maxWeight))
	}
	if len(targets) > 0 && sum == 0 {
		k.problem(path, "the weights sum to 0: no target would get a request")
	}
}

func (k *checker) timeouts(t proxy.Timeouts) {
	k.notNegative("timeouts.connect", t.Connect)
	k.notNegative("timeouts.first_byte", t.FirstByte)
	k.notNegative("timeouts.stream_idle", t.StreamIdle)
	k.notNegative("timeouts.request", t.Request)
	k.notNegative("timeouts.drain", t.Drain)
}

func (k *checker) notNegative(path string, d time.Duration) {
	if d < 0 {
		k.problem(path, "%s: want 0 or more", d)
	}
}

func (k *checker) limits(l proxy.Limits) {
	for _, s := range []struct {
		path        string
		bytes, most int64
	}{
		{"limits.body", l.Body, maxBytes},
		{"limits.buffers", l.Buffers, maxBytes},
		{"limits.headers", int64(l.Headers), maxHeaderBytes},
		{"limits.connections", int64(l.Connections), maxConnections},
		{"limits.connections_per_address", int64(l.ConnectionsByAddress), maxConnections},
		{"limits.requests_per_principal", int64(l.RequestsByPrincipal), maxConnections},
	} {
		if s.bytes < 0 || s.bytes > s.most {
			k.problem(s.path, "%d: want from 0 to %d", s.bytes, s.most)
		}
	}
	body, buffers := l.Body, l.Buffers
	if body == 0 {
		body = proxy.DefaultBodyLimit
	}
	if buffers == 0 {
		buffers = proxy.DefaultBufferLimit
	}
	if body > buffers {
		k.problem("limits.body", "%s is more than limits.buffers, %s: want no more than all bodies together may have", formatSize(body), formatSize(buffers))
	}
}

func (k *checker) queue(w *proxy.World) {
	q := w.Queue
	k.notNegative("queue.wait", q.Wait)
	k.notNegative("queue.sheddable_wait", q.SheddableWait)
	for _, s := range []struct {
		path string
		n    int64
	}{{"queue.requests", int64(q.Requests)}, {"queue.bytes", q.Bytes}} {
		if s.n < 0 {
			k.problem(s.path, "%d: want 0, for the default, or more", s.n)
		}
	}
	if !(q.LowerShare >= 0 && q.LowerShare <= 1) {
		k.problem("queue.lower_share", "%v: want a share from 0 to 1", q.LowerShare)
	}
	for i, b := range w.Budgets {
		if !(b.TokensPerMinute >= 1 && b.TokensPerMinute <= maxTokens) {
			k.problem(fmt.Sprintf("budgets[%d].tokens_per_minute", i), "missing: want how many tokens a minute it allows")
		}
	}
}

func (k *checker) scrape(s proxy.Scrape) {
	for _, d := range []struct {
		path string
		d    time.Duration
	}{{"scrape.interval", s.Interval}, {"scrape.timeout", s.Timeout}} {
		if d.d != 0 && d.d < minInterval {
			k.problem(d.path, "%s: want %s or more", d.d, minInterval)
		}
	}
	notGraphic := func(c rune) bool { return c <= ' ' || c > '~' || c == '#' }
	if s.Path != "" && (s.Path[0] != '/' || strings.ContainsFunc(s.Path, notGraphic)) {
		k.problem("scrape.path", "%s is not a path: want one such as /metrics", show(s.Path))
	}
}

// word checks a setting that has one of some words, or none for its default.
func word[T ~string](k *checker, path string, got T, words []T) {
	if got != "" && !slices.Contains(words, got) {
		known := make([]string, len(words))
		for i, w := range words {
			known[i] = string(w)
		}
		k.problem(path, "%s%s: want %s", show(string(got)), didYouMean(string(got), known), oneOf(words))
	}
}

// hint is didYouMean as long as anyone reads it.
func (k *checker) hint(s string, known []string) string {
	if len(k.problems) > maxProblems {
		return ""
	}
	return didYouMean(s, known)
}

// list names what there is, for an error.
func list(names []string) string {
	const most = 10
	if len(names) == 0 {
		return "there is none"
	}
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
