package file

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/watch"
)

// service reads what this waypoint is for.
func (r *reader) service(n *yaml.Node, path string) (v proxy.Service) {
	r.mapping(n, path, map[string]field{
		"host": textInto(r, &v.Host, "the full name of a Service"),
		"vip":  r.address(&v.VIPs),
		"vips": r.list(r.address(&v.VIPs)),
		"ports": listInto(r, &v.Ports, func(n *yaml.Node, path string) (p proxy.ServicePort) {
			port := 0
			r.mapping(n, path, map[string]field{
				"port":     r.number(&port, 65535),
				"protocol": textInto(r, &p.Protocol, oneOf(portProtocols)),
				"pool":     textInto(r, &p.Pool, "the name of a pool"),
				"routes":   listInto(r, &p.Routes, r.route),
			})
			p.Port = uint16(port)
			return p
		}),
	})
	return v
}

// address is the field of an IP address, which it appends.
func (r *reader) address(into *[]netip.Addr) field {
	return func(n *yaml.Node, path string) {
		s, ok := r.text(n, path, "an IP address")
		if !ok {
			return
		}
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			r.problem(path, "%s: want an IP address", show(s))
			return
		}
		*into = append(*into, a.Unmap())
	}
}

// identity is the field of a SPIFFE ID.
func (r *reader) identity(into *spiffeid.ID) field {
	return func(n *yaml.Node, path string) {
		s, ok := r.text(n, path, identityForm)
		if !ok {
			return
		}
		id, err := spiffeid.FromString(s)
		if err != nil {
			r.problem(path, "%s: want %s: %v", show(s), identityForm, err)
			return
		}
		*into = id
	}
}

const identityForm = "a SPIFFE ID such as spiffe://cluster.local/ns/default/sa/vllm"

// roots is the field of a file of certificates, whose content it takes.
func (r *reader) roots(into *string) field {
	return func(n *yaml.Node, path string) {
		name, ok := r.text(n, path, "the path of a file with certificates, in PEM")
		if !ok {
			return
		}
		data, err := watch.ReadFile(name)
		if err == nil && !strings.Contains(string(data), "-----BEGIN CERTIFICATE-----") {
			err = fmt.Errorf("%s: no certificate in it", name)
		}
		if err != nil {
			r.problem(path, "%v", err)
			return
		}
		*into = string(data)
	}
}

var (
	portProtocols = []proxy.PortProtocol{proxy.PortHTTP, proxy.PortH2C, proxy.PortGRPC, proxy.PortTCP, proxy.PortAuto}
	waypointFor   = []proxy.WaypointFor{proxy.ForServices, proxy.ForWorkloads, proxy.ForAll, proxy.ForNone}
)

// mesh checks what tunnels may lead to, and what it takes to accept and make them.
func (k *checker) mesh(c *Config, pools map[string]int) {
	w := c.World
	word(k, "waypoint_for", w.WaypointFor, waypointFor)
	if c.Listen.HBONE != "" && c.TLS == nil {
		k.problem("listen.hbone", "tunnels need an identity: say where it comes from under tls")
	}
	if c.Listen.HBONE != "" || c.Listen.Sandwich != "" {
		if f := w.WaypointFor; len(w.Services) == 0 && (f == "" || f == proxy.ForServices) {
			k.problem("services", "missing: no tunnel would be accepted: want a Service with its addresses, or waypoint_for: workload")
		}
	}
	known := slices.Sorted(maps.Keys(pools))
	owners := make(map[string]string) // of authorities
	for i := range w.Services {
		k.service(fmt.Sprintf("services[%d]", i), &w.Services[i], known, owners, len(w.Models) > 0 || len(w.Pools) == 1)
	}
	for i, p := range w.Pools {
		for j, e := range p.Endpoints {
			k.meshEndpoint(fmt.Sprintf("pools[%d].endpoints[%d]", i, j), &e, c.TLS != nil)
		}
	}
}

func (k *checker) service(path string, v *proxy.Service, pools []string, owners map[string]string, modelsChoose bool) {
	if v.Host == "" {
		k.problem(path+".host", "missing: want the full name of a Service, such as llama.default.svc.cluster.local")
	} else if err := checkHost(v.Host); err != nil {
		k.problem(path+".host", "%v", err)
	}
	if len(v.Ports) == 0 {
		k.problem(path+".ports", "missing: want at least one")
	}
	for i, p := range v.Ports {
		at := fmt.Sprintf("%s.ports[%d]", path, i)
		if p.Port == 0 {
			k.problem(at+".port", "missing: want a number from 1 to 65535")
			continue
		}
		word(k, at+".protocol", p.Protocol, portProtocols)
		switch opaque := p.Protocol == "" || p.Protocol == proxy.PortAuto || p.Protocol == proxy.PortTCP; {
		case len(p.Routes) > 0 && p.Pool == "":
		case p.Pool != "" || opaque || !modelsChoose:
			k.pool(at+".pool", p.Pool, pools)
		}
		if len(p.Routes) > 0 && p.Protocol == proxy.PortTCP {
			k.problem(at+".routes", "what is passed on unread has no routes: want protocol http")
		}
		k.routes(at+".routes", p.Routes, pools)
		names := []string{strings.ToLower(v.Host)}
		for _, a := range v.VIPs {
			names = append(names, a.String())
		}
		for _, name := range names {
			authority := net.JoinHostPort(name, fmt.Sprint(p.Port))
			if first := owners[authority]; first != "" {
				k.problem(at, "%s is %s as well", authority, first)
				break
			}
			owners[authority] = at
		}
	}
}

// meshEndpoint checks what only some ways to an endpoint want.
func (k *checker) meshEndpoint(path string, e *proxy.Endpoint, haveIdentity bool) {
	if e.Address == "" {
		return // what it is to be is told
	}
	hbone := e.Scheme == proxy.SchemeHBONE
	switch {
	case hbone && e.Identity.IsZero():
		k.problem(path+".identity", "missing: want %s, of the pod's service account", identityForm)
	case hbone && !haveIdentity:
		k.problem(path, "a tunnel to it needs an identity of ours: say where it comes from under tls")
	case !hbone && !e.Identity.IsZero():
		k.problem(path+".identity", "only hbone:// has an identity to expect")
	}
	if hbone {
		if _, err := netip.ParseAddrPort(e.Address); err != nil {
			k.problem(path, "%s: a tunnel leads to an IP address and a port", show(e.Address))
		}
	}
	if e.Roots != "" && e.Scheme != proxy.SchemeHTTPS {
		k.problem(path+".roots", "only https:// has roots to trust")
	}
}
