package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/route"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// Now is the clock that the picker is given: monotonic time since the process
// started.
func Now() time.Duration { return time.Since(processStart) }

var processStart = time.Now()

// serving is a World made ready to serve from: immutable, swapped as a whole.
// Its pools live on from one to the next.
type serving struct {
	world  *World
	pools  []*pool
	byName map[string]*pool
	routes *route.Table            // nil: the models say which pool a request is for
	ports  map[string]*destination // by authority: what tunnels may lead to
	models map[modelKey]*servedModel
	// known lists the model names, for the error that names them: of each pool
	// that has models, and under "" all.
	known map[string]string
	guard *authz.Guard // of what is for no Service
	// objectives are priorities, the first of a name in a pool.
	objectives map[objectiveKey]*int
	// authorizers by name.
	authorizers map[string]*extauthz.Authorizer

	bodyLimit  int64
	usage      UsageMode
	modelNames ModelNames
	explain    ExplainMode
	timeouts   Timeouts

	remotePrefill int
}

// pool is what outlives Worlds of a Pool: the picker's knowledge of its
// endpoints and the connections to them.
type pool struct {
	name        string
	plain       bool // Pool.Plain
	picker      *picker.Pool
	line        *line // before picker
	chooser     Chooser
	own         atomic.Pointer[ownPicker] // the pool's own picker; nil for none
	consulted   consultedCounts
	shadow      atomic.Pointer[shadow] // nil: there is none
	connections connections
	transports  map[Endpoint]*upstream.Transport // guarded by Server.mu
}

// SetWorld puts w in force for all requests that begin from now on; those under
// way end in the World they were routed by. Endpoints that w still names keep what is
// known of them, and their connections.
func (s *Server) SetWorld(w *World) {
	s.mu.Lock()
	defer s.mu.Unlock()

	next := &serving{
		world:      w,
		byName:     make(map[string]*pool, len(w.Pools)),
		bodyLimit:  or(w.Limits.Body, DefaultBodyLimit),
		usage:      or(w.Usage, UsageInject),
		modelNames: or(w.ModelNames, ModelAsked),
		explain:    or(w.Explain, ExplainOnRequest),
		timeouts:   w.Timeouts,

		remotePrefill: or(w.RemotePrefill, DefaultRemotePrefill),
	}
	s.buffers.limit.Store(or(w.Limits.Buffers, DefaultBufferLimit))

	for i := range w.Pools {
		p := s.updatePool(&w.Pools[i], or(w.Timeouts.Connect, DefaultConnectTimeout), w.Scrape.Interval)
		if w.Pickers == EmbeddedPicker {
			s.setOwnPicker(p, nil, 0)
		} else {
			s.setOwnPicker(p, w.Pools[i].Picker, next.bodyLimit)
		}
		p.line.set(w.Queue)
		p.setShadow(w.Shadow)
		next.byName[p.name] = p
		next.pools = append(next.pools, p)
	}
	next.nameModels(w)
	if len(w.Routes) > 0 {
		next.routes = route.Compile(w.Routes)
	}
	s.budgets.Set(w.Budgets)
	guards := authz.NewCompiler(&w.Access, &s.keySets)
	next.guard = guards.Guard(&w.Gateway)
	next.ports = destinations(w, next.byName, guards)
	guards.Finish()
	next.authorizers = s.authorizers.Set(w.Authorizers)

	s.serving.Store(next)
	for name, p := range s.pools {
		if next.byName[name] != p {
			p.close()
		}
	}
	s.pools = next.byName
	live := make(map[string]bool, len(next.byName))
	for name := range next.byName {
		live[name] = true
	}
	s.account.SetPools(live)
}

// nameModels has models and objectives found by their names, of which the first counts.
func (v *serving) nameModels(w *World) {
	v.models = make(map[modelKey]*servedModel, 2*len(w.Models))
	names := make(map[string][]string) // by pool
	for i := range w.Models {
		m := newServedModel(w.Models[i], v.byName[w.Models[i].Pool])
		for _, in := range []string{"", m.Pool} {
			names[in] = append(names[in], m.Name)
			if key := (modelKey{in, m.Name}); v.models[key] == nil {
				v.models[key] = m
			}
		}
	}
	v.known = make(map[string]string, len(names))
	for in, all := range names {
		v.known[in] = knownModels(all)
	}
	v.objectives = make(map[objectiveKey]*int, len(w.Objectives))
	for _, o := range w.Objectives {
		if key := (objectiveKey{o.Pool, o.Name}); v.objectives[key] == nil {
			v.objectives[key] = &o.Priority
		}
	}
}

// updatePool gives the pool of that name its endpoints, making it if it is new, or not
// what it was.
// s.mu is held.
func (s *Server) updatePool(w *Pool, connect, interval time.Duration) *pool {
	p := s.pools[w.Name]
	if p == nil || p.plain != w.Plain {
		config := s.config.Picker
		if w.Plain {
			config.Policy = picker.LeastRequest{}
		}
		config.StaleAfter = or(config.StaleAfter, max(2*time.Second, 3*interval))
		p = &pool{
			name:       w.Name,
			plain:      w.Plain,
			transports: make(map[Endpoint]*upstream.Transport),
		}
		p.line, p.picker = newLine(config)
		p.chooser = embedded{p.line}
	}
	specs := make([]picker.Spec, 0, len(w.Endpoints))
	named := make(map[Endpoint]bool, len(w.Endpoints))
	for _, e := range w.Endpoints {
		way := e.way()
		named[way] = true
		t := p.transports[way]
		if t == nil {
			t = s.transport(way)
			p.transports[way] = t
		}
		t.SetConnectTimeout(connect)
		spec := picker.Spec{Address: e.Address, UID: e.UID, Role: roles[e.Role], Owner: t, Cost: e.Cost}
		ranks := min(e.Ranks, MaxRanks)
		for rank := range max(ranks, 1) {
			if ranks > 1 {
				spec.Engine = strconv.Itoa(rank)
			}
			specs = append(specs, spec)
		}
	}
	p.picker.SetEndpoints(specs)
	for e, t := range p.transports {
		if !named[e] {
			t.Close()
			delete(p.transports, e)
		}
	}
	return p
}

// roles are those of the picker.
var roles = map[Role]picker.Role{RoleBoth: picker.Both, RolePrefill: picker.Prefill}

// transport makes the way to an endpoint.
func (s *Server) transport(e Endpoint) *upstream.Transport {
	t := &upstream.Transport{Address: e.Address}
	switch e.Scheme {
	case SchemeH2C:
		t.HTTP2 = true
	case SchemeHTTPS:
		host, _, _ := net.SplitHostPort(e.Address)
		t.TLS = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
		if e.Roots != "" {
			t.TLS.RootCAs = x509.NewCertPool()
			t.TLS.RootCAs.AppendCertsFromPEM([]byte(e.Roots))
		}
	case SchemeHBONE:
		t.Tunnel = func(ctx context.Context, address string) (net.Conn, error) {
			if s.config.Tunnel == nil {
				return nil, errors.New("hbone: this process has no identity to make tunnels with")
			}
			return s.config.Tunnel(ctx, address, e.Identity)
		}
	}
	return t
}

// servers are the ways to endpoints, to those of one server once.
func servers(endpoints []*picker.Endpoint) []*upstream.Transport {
	var all []*upstream.Transport
	for _, e := range endpoints {
		if t := e.Owner().(*upstream.Transport); !slices.Contains(all, t) {
			all = append(all, t)
		}
	}
	return all
}

// close lets go of a pool that no World names any more. Requests under way
// keep their connections until they end.
func (p *pool) close() {
	if own := p.own.Swap(nil); own != nil {
		own.retire()
	}
	p.picker.SetEndpoints(nil)
	for _, t := range p.transports {
		t.Close()
	}
}

// route finds the pool for a request that names this model ("" for none). In is the
// pool that a route has chosen, "" without one.
func (v *serving) route(in string, model []byte, path []byte) (*pool, *servedModel, error) {
	if known, listed := v.known[in]; listed && len(model) > 0 {
		m := v.models[modelKey{in, string(model)}]
		if m == nil {
			m = v.models[modelKey{in, ""}]
		}
		if m == nil {
			return nil, nil, errUnknownModel(string(model), known)
		}
		return m.pool, m, nil
	}
	if in != "" {
		if p := v.byName[in]; p != nil {
			return p, nil, nil
		}
		return nil, nil, errNoEndpoint(in) // it left the World while the body came in
	}
	if len(v.pools) != 1 {
		return nil, nil, errNoPool(string(path))
	}
	return v.pools[0], nil, nil
}

// slo is what a pool's requests should get that do not say it themselves; nil: nothing
// is said.
func (v *serving) slo(pool string) *SLO {
	for i := range v.world.SLOs {
		if s := &v.world.SLOs[i]; s.Pool == "" || s.Pool == pool {
			return s
		}
	}
	return nil
}

// plain tells whether what a route or a tunnel has sent to a pool ("": neither has) goes
// to endpoints that are no engines.
func (v *serving) plain(in string) bool {
	if in != "" {
		p := v.byName[in]
		return p != nil && p.plain
	}
	return len(v.pools) == 1 && v.pools[0].plain
}

// or gives the default for a zero value.
func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// EndpointState is what is known of one endpoint, for those who watch it.
type EndpointState struct {
	Pool string
	// Engine: it has metrics and a health page. Endpoints of plain pools, and those that
	// get nothing but connections that are passed on unread, need not.
	Engine    bool
	Endpoint  *picker.Endpoint
	Transport *upstream.Transport
}

// Endpoints lists the endpoints of the World in force, in its order.
func (s *Server) Endpoints() []EndpointState {
	v := s.serving.Load()
	if v == nil {
		return nil
	}
	var all []EndpointState
	for _, p := range v.pools {
		for _, e := range p.picker.All() {
			all = append(all, EndpointState{p.name, !p.plain && !v.opaque(p), e, e.Owner().(*upstream.Transport)})
		}
	}
	return all
}

// World is the World in force; nil before the first SetWorld.
func (s *Server) World() *World {
	if v := s.serving.Load(); v != nil {
		return v.world
	}
	return nil
}
