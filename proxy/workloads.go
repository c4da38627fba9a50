package proxy

import (
	"net/netip"
	"strings"

	"github.com/fairway-proxy/fairway/proxy/account"
)

// Workload is what metrics tell of a pod.
type Workload = account.Workload

// SetWorkloads says which workload each pod's address belongs to, for the metrics of
// requests that end from now on. It is no part of a World: nothing is served or
// routed by it, and it changes with every pod of the mesh. Neither the map nor what it
// holds may be changed any more.
func (s *Server) SetWorkloads(pods map[netip.Addr]*Workload) { s.pods.Store(&pods) }

// noteWorkloads keeps what is known of both ends of a request that came through a
// tunnel.
func (x *Exchange) noteWorkloads() {
	if x.peer == nil || x.dest == nil {
		return
	}
	x.record.GRPC = x.call != nil
	x.record.Source = x.server.workload(x.peer.Forwarded.Addr())
	address, _, _ := strings.Cut(x.record.Endpoint, "@") // behind it: which of its engines
	if a, err := netip.ParseAddrPort(address); err == nil {
		x.record.Destination = x.server.workload(a.Addr().Unmap())
	}
}

// workload is what the pod of an address belongs to, nil if that is not known.
func (s *Server) workload(a netip.Addr) *Workload {
	if pods := s.pods.Load(); pods != nil {
		return (*pods)[a]
	}
	return nil
}
