package hbone

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// proxySignature opens a header of the PROXY protocol, version 2 (its
	// specification is haproxy's doc/proxy-protocol.txt, section 2.2).
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	// proxyIdentity is the TLV with the source's SPIFFE ID (ztunnel's
	// src/proxy/inbound.rs).
	proxyIdentity = 0xD0
	// proxyLimit bounds a header's addresses and TLVs.
	proxyLimit = 4 << 10
	// proxyGreeting bounds the connections that have not said who they are yet, or
	// that nobody has accepted.
	proxyGreeting = 4096
)

// A SandwichConfig says how a Sandwich accepts. Its zero value works.
type SandwichConfig struct {
	// Admit is as in Config; what it refuses is closed.
	Admit func(*Peer) error
	// Log is as in Config.
	Log *slog.Logger
}

// A Sandwich accepts connections that a ztunnel on this machine has unwrapped and
// announces by the PROXY protocol, version 2: with the destination that was asked for
// and the identity of who asked. It is a net.Listener; make one with NewSandwich.
// Nobody but a process of this machine is believed.
type Sandwich struct {
	Counters Counters

	inner  net.Listener
	config SandwichConfig
	limits limits
	accept chan net.Conn
	report report

	mu       sync.Mutex
	greeting map[net.Conn]struct{} // guarded by mu
	closed   bool                  // guarded by mu
	done     chan struct{}
	running  sync.WaitGroup
}

// NewSandwich accepts from the connections of inner, which it closes.
func NewSandwich(inner net.Listener, config SandwichConfig) *Sandwich {
	s := &Sandwich{
		inner: inner, config: config, limits: standardLimits,
		accept:   make(chan net.Conn),
		greeting: make(map[net.Conn]struct{}),
		done:     make(chan struct{}),
	}
	s.report.log = config.Log
	s.report.counters = &s.Counters
	s.running.Go(s.acceptConns)
	return s
}

// Accept gives a connection. Its Peer's ID is zero when the source has none. Its error
// is net.ErrClosed.
func (s *Sandwich) Accept() (net.Conn, error) {
	select {
	case c := <-s.accept:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Addr is the address connections come to.
func (s *Sandwich) Addr() net.Addr { return s.inner.Addr() }

// Close closes the inner listener. Connections that were accepted go on.
func (s *Sandwich) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	close(s.done)
	for c := range s.greeting {
		c.Close()
	}
	s.mu.Unlock()
	err := s.inner.Close()
	s.running.Wait()
	return err
}

func (s *Sandwich) acceptConns() {
	var pause time.Duration
	for {
		c, err := s.inner.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.report.say("hbone: cannot accept", "error", err)
			select {
			case <-time.After(pause):
				continue
			case <-s.done:
				return
			}
		}
		pause = 0
		s.mu.Lock()
		switch {
		case s.closed:
			c.Close()
		case len(s.greeting) >= proxyGreeting:
			c.Close()
			s.report.refuse(ReasonConnections, "remote", c.RemoteAddr(), "limit", proxyGreeting)
		default:
			s.greeting[c] = struct{}{}
			s.running.Go(func() { s.greet(c) })
		}
		s.mu.Unlock()
	}
}

// greet reads a connection's header and offers it.
func (s *Sandwich) greet(c net.Conn) {
	c.SetReadDeadline(time.Now().Add(s.limits.handshake))
	peer, err := s.announced(c)
	reason := ReasonProxy
	if err == nil && s.config.Admit != nil {
		reason = ReasonAdmit
		err = s.config.Admit(peer)
	}
	if err == nil {
		c.SetReadDeadline(time.Time{})
		s.Counters.Opened.Add(1) // before anybody can see it
		select {
		case s.accept <- &sandwiched{c, peer}:
		case <-s.done:
			s.Counters.Opened.Add(-1)
			c.Close()
		}
	} else {
		c.Close()
		s.report.refuse(reason, "remote", c.RemoteAddr(), "error", err)
	}
	s.mu.Lock()
	delete(s.greeting, c)
	s.mu.Unlock()
}

// announced is what the header says of the connection.
func (s *Sandwich) announced(c net.Conn) (*Peer, error) {
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return nil, errors.New("only a ztunnel on this machine may announce who others are")
	}
	return readProxyHeader(c)
}

// readProxyHeader reads a header of the PROXY protocol, and no byte more.
func readProxyHeader(r io.Reader) (*Peer, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("no PROXY header: %w", err)
	}
	if string(head[:12]) != proxySignature || head[12]>>4 != 2 {
		return nil, errors.New("not the PROXY protocol, version 2")
	}
	n := int(binary.BigEndian.Uint16(head[14:]))
	if n > proxyLimit {
		return nil, fmt.Errorf("a PROXY header of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("half a PROXY header: %w", err)
	}
	if head[12]&0xF != 1 {
		return nil, errors.New("a PROXY header that announces nobody")
	}
	size := 0
	switch head[13] {
	case 0x11: // TCP over IPv4
		size = 4
	case 0x21: // TCP over IPv6
		size = 16
	default:
		return nil, fmt.Errorf("a PROXY header for something else than TCP: %#x", head[13])
	}
	if len(body) < 2*size+4 {
		return nil, errors.New("a PROXY header without addresses")
	}
	address := func(at, port int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(body[at : at+size])
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(body[port:]))
	}
	peer := &Peer{Forwarded: address(0, 2*size), Destination: address(size, 2*size+2)}
	if peer.Destination.Port() == 0 {
		return nil, errors.New("a PROXY header without a destination")
	}
	peer.Authority = peer.Destination.String()
	for rest := body[2*size+4:]; len(rest) > 0; {
		if len(rest) < 3 {
			return nil, errors.New("a PROXY header that breaks off")
		}
		kind, n := rest[0], int(binary.BigEndian.Uint16(rest[1:]))
		if rest = rest[3:]; len(rest) < n {
			return nil, errors.New("a PROXY header that breaks off")
		}
		if kind == proxyIdentity {
			id, err := spiffeid.FromString(string(rest[:n]))
			if err != nil {
				return nil, fmt.Errorf("the identity in a PROXY header: %w", err)
			}
			if !peer.ID.IsZero() {
				return nil, errors.New("a PROXY header with two identities")
			}
			peer.ID = id
		}
		rest = rest[n:]
	}
	return peer, nil
}

// sandwiched is a connection with the peer that was announced.
type sandwiched struct {
	net.Conn
	peer *Peer
}

// Peer is who is at the other end.
func (c *sandwiched) Peer() *Peer { return c.peer }

// NetConn is the connection itself.
func (c *sandwiched) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our half.
func (c *sandwiched) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// SetLinger is net.TCPConn's.
func (c *sandwiched) SetLinger(seconds int) error {
	if t, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return t.SetLinger(seconds)
	}
	return nil
}
