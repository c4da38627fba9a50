package proxy

import (
	"cmp"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/h2"
)

// What bounds what strangers may have of the proxy, beside the sizes that h1, h2 and
// hbone hold on their own, and how often each bound was reached.

// Limit is a bound that what clients do can reach.
type Limit int

// The limits, but for those of queues, budgets and tunnels, which have counters of
// their own.
const (
	LimitHeaders              Limit = iota // a head is too large, or has too many fields
	LimitBody                              // a body is too large
	LimitBuffers                           // all bodies together take too much
	LimitConnections                       // a connection has to wait, or another made room
	LimitConnectionsByAddress              // an address has too many
	LimitRequestsByPrincipal               // a principal has too many requests under way
	LimitStreams                           // an HTTP/2 client opens more streams than it may
	LimitResets                            // it resets streams faster than they can end
	LimitFlood                             // it sends frames for their own sake
	LimitHTTP2                             // it breaks a rule of HTTP/2 and was cut off, or its stream
	LimitTime                              // it sent or took nothing for too long
	limits
)

// The words are labels of a metric.
var limitNames = [limits]string{"headers", "body", "buffers", "connections", "connections_per_address",
	"requests_per_principal", "http2_streams", "http2_resets", "http2_flood", "http2_protocol", "client_timeout"}

func (l Limit) String() string { return limitNames[l] }

// reached counts how often limits were reached.
type reached [limits]atomic.Int64

// Reached is how often each limit was reached so far, by Limit.
func (s *Server) Reached() []int64 {
	all := make([]int64, limits)
	for i := range all {
		all[i] = s.reached[i].Load()
	}
	return all
}

// count counts an exchange that ended because of a limit, by its status and reason.
func (r *reached) count(rec *account.Record) {
	switch rec.Reason {
	case typeBodyTooLarge:
		r[LimitBody].Add(1)
	case typeBuffersSpent:
		r[LimitBuffers].Add(1)
	case typeTooManyRequests:
		r[LimitRequestsByPrincipal].Add(1)
	case account.ClientTimeout:
		r[LimitTime].Add(1)
	case typeTimeout:
		if rec.Status == 408 {
			r[LimitTime].Add(1)
		}
	case typeBadRequest:
		if rec.Status == 431 || rec.Status == 414 {
			r[LimitHeaders].Add(1)
		}
	}
}

// countHTTP2 takes h2's word for what went wrong on a connection, or the library's, such as
// "stream_PROTOCOL_ERROR_over_max_streams"; that one has ended is "read_frame_eof".
func (r *reached) countHTTP2(what string) {
	switch {
	case strings.Contains(what, "over_max_streams"):
		r[LimitStreams].Add(1)
	case strings.Contains(what, "too_many_early_resets"):
		r[LimitResets].Add(1)
	case what == h2.Flood:
		r[LimitFlood].Add(1)
	case !strings.HasPrefix(what, "read_frame_") || strings.HasPrefix(what, "read_frame_conn_error_"):
		r[LimitHTTP2].Add(1)
	}
}

// CountHTTP2 counts a connection that a server of others, before this one, has cut for what was sent
// on it: for a flood, or else for breaking HTTP/2.
func (s *Server) CountHTTP2(flood bool) {
	if flood {
		s.reached[LimitFlood].Add(1)
	} else {
		s.reached[LimitHTTP2].Add(1)
	}
}

// shares count what each of many has of something. Nothing is kept of who has nothing.
type shares[K comparable] struct {
	mu  sync.Mutex
	has map[K]int // guarded by mu
}

// take gives one more to who, unless that would be more than most.
func (s *shares[K]) take(who K, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[who] >= most {
		return false
	}
	if s.has == nil {
		s.has = make(map[K]int)
	}
	s.has[who]++
	return true
}

func (s *shares[K]) give(who K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[who]--; s.has[who] <= 0 {
		delete(s.has, who)
	}
}

// owner is whose something is: an identity that was verified, or without one the
// network it comes from.
type owner struct {
	principal string
	network   netip.Addr
}

// owner is whose the request is, as limits go by it: nothing that the client says of
// itself counts.
func (x *Exchange) owner() owner {
	if p := cmp.Or(x.record.Principal, x.record.Peer); p != "" {
		return owner{principal: p}
	}
	return owner{network: network(cmp.Or(x.judged.Remote, x.judged.Source))}
}

// network tells hosts apart: an address of IPv4, in IPv6 the network that a host picks
// its own from (RFC 4291, section 2.5.4).
func network(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		a = netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a
}

// takeShare counts the request as one of its owner's, from here to its end.
func (x *Exchange) takeShare() error {
	most := x.serving.world.Limits.RequestsByPrincipal
	if most == 0 || x.passed {
		return nil
	}
	who := x.owner()
	if !x.server.shares.take(who, most) {
		return errTooManyRequests(most)
	}
	x.share, x.shared = who, true
	return nil
}

func (x *Exchange) giveShare() {
	if x.shared {
		x.server.shares.give(x.share)
		x.shared = false
	}
}

// admitted tells whether the address of a client may have another connection, and how to
// give it back. Proxies that are trusted may have any number.
func (s *Server) admitted(c net.Conn) (leave func(), ok bool) {
	leave = func() {}
	v := s.serving.Load()
	if v == nil || v.world.Limits.ConnectionsByAddress == 0 {
		return leave, true
	}
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil || v.guard.Trusts(from.Addr()) {
		return leave, true
	}
	who := network(from.Addr())
	if !s.addresses.take(who, v.world.Limits.ConnectionsByAddress) {
		s.reached[LimitConnectionsByAddress].Add(1)
		return nil, false
	}
	return func() { s.addresses.give(who) }, true
}

// roomEvery is how often an idle connection is looked for to make room for one that waits.
const roomEvery = 100 * time.Millisecond

// takeSlot waits until there are fewer connections than may be. Connections on which
// no request is under way make room.
func (s *Server) takeSlot(slots chan struct{}) {
	select {
	case slots <- struct{}{}:
		return
	default:
	}
	s.reached[LimitConnections].Add(1)
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	for {
		if !s.http1.CloseIdle() {
			s.http2.CloseIdle()
		}
		select {
		case slots <- struct{}{}:
			return
		case <-tick.C:
		}
	}
}
