package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/route"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// Tunnels of the mesh: where one leads is what its CONNECT asked for, never what the
// request inside says of its host.

// destination is what a tunnel may lead to: a port of a Service, or a pod.
type destination struct {
	host     string     // the Service's name, or the pod's address
	vip      netip.Addr // the first of the Service's addresses; zero without one
	protocol PortProtocol
	pool     *pool        // nil: the models say which
	routes   *route.Table // nil: all to the pool
	pod      string       // the one endpoint of the pool that is meant; empty: any
	guard    *authz.Guard
}

// destinations are what the tunnels of a World may lead to, by authority.
func destinations(w *World, pools map[string]*pool, guards *authz.Compiler) map[string]*destination {
	all := make(map[string]*destination)
	if f := w.WaypointFor; f == ForWorkloads || f == ForAll {
		guard := guards.Guard(&w.Gateway)
		meant := make(map[netip.Addr]bool, len(w.Workloads))
		for _, a := range w.Workloads {
			meant[a] = true
		}
		for i := range w.Pools {
			for _, e := range w.Pools[i].Endpoints {
				a, err := netip.ParseAddrPort(e.Address)
				if err != nil || w.Workloads != nil && !meant[a.Addr()] {
					continue
				}
				protocol := PortAuto
				if e.Role == RolePrefill {
					protocol = PortTCP // what other engines ask of it is not for us to route
				}
				if all[a.String()] == nil || !w.Pools[i].Plain { // an engine may be behind a Service too
					all[a.String()] = &destination{host: e.Address, protocol: protocol, pool: pools[w.Pools[i].Name], pod: e.Address, guard: guard}
				}
			}
		}
	}
	if f := w.WaypointFor; f == ForWorkloads || f == ForNone {
		return all
	}
	for i := range w.Services {
		v := &w.Services[i]
		guard := guards.Guard(&v.Access)
		for _, p := range v.Ports {
			d := &destination{host: v.Host, protocol: or(p.Protocol, PortAuto), pool: pools[p.Pool], guard: guard}
			if len(v.VIPs) > 0 {
				d.vip = v.VIPs[0].Unmap()
			}
			if len(p.Routes) > 0 {
				d.routes = route.Compile(p.Routes)
			}
			all[authority(v.Host, p.Port)] = d
			for _, vip := range v.VIPs {
				all[netip.AddrPortFrom(vip.Unmap(), p.Port).String()] = d
			}
		}
	}
	return all
}

// authority writes a host's name and a port as they are looked up.
func authority(host string, port uint16) string {
	return strings.ToLower(host) + ":" + strconv.FormatUint(uint64(port), 10)
}

// opaque tells whether p is there for connections that are passed on unread, and for
// nothing else.
func (v *serving) opaque(p *pool) bool {
	found := false
	for _, d := range v.ports {
		switch {
		case d.pool == p && d.protocol == PortTCP:
			found = true
		case d.pool == p || d.pool == nil:
			return false
		}
	}
	if anyTo(v.world.Routes, p.name) {
		return false
	}
	for i := range v.world.Services {
		for _, port := range v.world.Services[i].Ports {
			if anyTo(port.Routes, p.name) {
				return false
			}
		}
	}
	return found && v.known[p.name] == ""
}

// anyTo tells whether a rule of these routes has a pool for a backend.
func anyTo(routes []route.Route, pool string) bool {
	for i := range routes {
		for _, rule := range routes[i].Rules {
			for _, b := range rule.Backends {
				if b.Pool == pool {
					return true
				}
			}
		}
	}
	return false
}

// destination finds where a tunnel leads, nil for nowhere of ours.
func (v *serving) destination(p *hbone.Peer) *destination {
	if p.Destination.IsValid() {
		return v.ports[p.Destination.String()]
	}
	return v.ports[strings.ToLower(p.Authority)]
}

// Admit tells whether a tunnel may be accepted: an hbone.Config has it as its Admit.
// An authority that is not ours is refused with 404.
func (s *Server) Admit(p *hbone.Peer) error {
	v := s.serving.Load()
	if v == nil {
		return &hbone.Refusal{Status: 503, Reason: "no configuration is in force yet"}
	}
	if v.destination(p) == nil {
		return &hbone.Refusal{Status: 404, Reason: fmt.Sprintf("%s is no address of a Service or pod that this waypoint is for", p.Authority)}
	}
	return nil
}

// serveTunnel serves what is inside a tunnel, or a connection that a ztunnel has
// unwrapped.
func (s *Server) serveTunnel(c net.Conn, p *hbone.Peer) {
	d := s.destination(p)
	if d == nil {
		c.Close()
		return
	}
	protocol := d.protocol
	conn := sock.New(c)
	if protocol == PortAuto {
		var err error
		if protocol, err = sniff(conn); err != nil {
			conn.Close()
			return
		}
		if d = s.destination(p); d == nil { // that took a while
			conn.Close()
			return
		}
	}
	if protocol == PortTCP {
		s.serveTCP(conn, p, d)
		return
	}
	s.http1.ServeConn(context.Background(), conn)
}

// destination finds where a tunnel leads, and tells the log if that is nowhere: of a
// sandwich, which asks nobody, or because it has gone in this moment.
func (s *Server) destination(p *hbone.Peer) *destination {
	if v := s.serving.Load(); v != nil {
		if d := v.destination(p); d != nil {
			return d
		}
	}
	s.log.Warn("a connection to what is not ours", "authority", p.Authority, "peer", p.ID.String())
	return nil
}

// http2 tells whether endpoints behind it are asked in HTTP/2.
func (d *destination) http2() bool { return d.protocol == PortH2C || d.protocol == PortGRPC }

// enter finds the tunnel that the request came through, if it did.
func (x *Exchange) enter() error {
	x.peer = notePeer(&x.record, x.stream.Conn())
	return x.arrive()
}

// notePeer keeps who a request came from if that was through a tunnel, and gives the
// tunnel's other end; nil: it did not.
func notePeer(rec *account.Record, c net.Conn) *hbone.Peer {
	peer, ok := hbone.PeerOf(c)
	if !ok {
		return nil
	}
	rec.Peer, rec.Remote = peerID(peer), remoteOf(c, peer)
	return peer
}

// arrive finds where the request is for in the World that it belongs to, and who may
// do what there.
func (x *Exchange) arrive() error {
	x.guard = x.serving.guard
	if x.peer != nil {
		if x.dest = x.serving.destination(x.peer); x.dest == nil {
			return errNotOurs(x.peer.Authority)
		}
		x.record.Service, x.guard = x.dest.host, x.dest.guard
	}
	if x.guard.Withheld != "" && !x.mirrored {
		return errWithheld(x.guard.Withheld)
	}
	return nil
}

// pinned tells whether the request is for one pod and no other.
func (x *Exchange) pinned() bool { return x.dest != nil && x.dest.pod != "" }

// pin leaves no endpoint to choose but the one that is meant.
func (x *Exchange) pin() {
	if !x.pinned() {
		return
	}
	x.passOver(func(e *picker.Endpoint) bool { return e.Address() != x.dest.pod })
}
