package ztunnel

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// calmAfter is how many CONNECTs may be reset before they were answered.
const calmAfter = 60

// A Server is ztunnel at the side of a pod. Its fields are set before Serve.
type Server struct {
	// TLS is its side of mutual TLS, see Authority.Server.
	TLS *tls.Config
	// Pod is the pod's address; another is answered 400. Zero: any.
	Pod netip.Addr
	// Status, if not nil, decides on an authority. 0 goes on.
	Status func(authority string) int
	// Handle serves a tunnel; nil: it is connected with its authority by TCP.
	Handle func(*Tunnel)
	// Answer, if not nil, is called before each answer.
	Answer func()
	// Streams is the limit it announces. 0: 200.
	Streams uint32
	// Ping is the interval of PINGs. 0: ten seconds.
	Ping time.Duration

	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{}
	seen  int // connections so far
}

// Serve takes connections until Close.
func (s *Server) Serve(l net.Listener) {
	s.listener = l
	s.conns = make(map[*conn]struct{})
	s.running.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			s.running.Go(func() { s.serve(raw) })
		}
	})
}

// Seen is how many connections there were.
func (s *Server) Seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// Close cuts everything.
func (s *Server) Close() {
	s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		go c.fail(net.ErrClosed)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Drain is what ztunnel does on SIGTERM, but for cutting off after five seconds.
func (s *Server) Drain() {
	s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.send(func() {
			c.fr.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
			c.fr.WritePing(false, [8]byte{2})
		})
		go func() {
			select {
			case <-c.acked:
			case <-c.closed:
				return
			}
			c.mu.Lock()
			last := c.last
			c.mu.Unlock()
			c.send(func() { c.fr.WriteGoAway(last, http2.ErrCodeNo, nil) })
		}()
	}
}

// ResetTunnels resets all tunnels, as a change of policy does.
func (s *Server) ResetTunnels(code http2.ErrCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.mu.Lock()
		all := make([]*Tunnel, 0, len(c.tunnels))
		for _, t := range c.tunnels {
			all = append(all, t)
		}
		c.mu.Unlock()
		for _, t := range all {
			t.Reset(code)
		}
	}
}

func (s *Server) serve(raw net.Conn) {
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	nc := tls.Server(raw, s.TLS)
	if nc.Handshake() != nil {
		return
	}
	var preface [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(nc, preface[:]); err != nil || string(preface[:]) != http2.ClientPreface {
		return
	}
	raw.SetDeadline(time.Time{})
	c := newConn(nc, false, s.Ping)
	resets := 0
	c.reset = func(t *Tunnel) {
		if c.mu.Lock(); !t.accepted {
			resets++
		}
		last := c.last
		c.mu.Unlock()
		if resets > calmAfter {
			c.send(func() { c.fr.WriteGoAway(last, http2.ErrCodeEnhanceYourCalm, []byte("too_many_resets")) })
			c.fail(net.ErrClosed)
		}
	}
	c.headers = func(f *http2.MetaHeadersFrame) { s.connect(c, f) }
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.seen++
	s.mu.Unlock()
	streams := s.Streams
	if streams == 0 {
		streams = ServerStreams
	}
	c.send(func() {
		c.fr.WriteSettings(
			http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: streams},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: StreamWindow},
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: MaxFrame},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: ServerHeaders})
		c.fr.WriteWindowUpdate(0, ConnWindow-65535)
	})
	c.run()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// connect takes a CONNECT.
func (s *Server) connect(c *conn, f *http2.MetaHeadersFrame) {
	c.mu.Lock()
	if f.StreamID <= c.last { // trailers
		c.mu.Unlock()
		return
	}
	c.last = f.StreamID
	streams := s.Streams
	if streams == 0 {
		streams = ServerStreams
	}
	if len(c.tunnels) >= int(streams) {
		c.mu.Unlock()
		c.send(func() { c.fr.WriteRSTStream(f.StreamID, http2.ErrCodeRefusedStream) })
		return
	}
	t := c.newTunnel(f.StreamID)
	t.Authority = f.PseudoValue("authority")
	t.ended = f.StreamEnded()
	for _, field := range f.Fields {
		t.Fields[field.Name] = field.Value
	}
	c.mu.Unlock()
	s.running.Go(func() { s.answer(t) })
}

func (s *Server) answer(t *Tunnel) {
	c := t.conn
	if s.Answer != nil {
		s.Answer()
	}
	status := 0
	at, err := netip.ParseAddrPort(t.Authority)
	switch {
	case t.Fields[":method"] != "CONNECT", s.Pod.IsValid() && (err != nil || at.Addr() != s.Pod):
		status = 400
	case s.Status != nil:
		status = s.Status(t.Authority)
	}
	var pod net.Conn
	if status == 0 && s.Handle == nil {
		if pod, err = net.DialTimeout("tcp", t.Authority, 5*time.Second); err != nil {
			status = 503
		}
	}
	if status != 0 {
		c.mu.Lock()
		t.said, t.err = true, StatusError(status)
		c.done(t)
		c.mu.Unlock()
		c.send(func() {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: t.id, EndHeaders: true, EndStream: true,
				BlockFragment: c.block(":status", StatusError(status).Error()[len("status "):])})
			c.fr.WriteRSTStream(t.id, http2.ErrCodeNo)
		})
		return
	}
	c.mu.Lock()
	t.accepted = true
	c.mu.Unlock()
	c.send(func() {
		c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: t.id, EndHeaders: true,
			BlockFragment: c.block(":status", "200", "baggage", "k8s.pod.name=pod")})
	})
	if s.Handle != nil {
		s.Handle(t)
		return
	}
	defer pod.Close()
	up := make(chan struct{})
	go func() {
		io.Copy(pod, t)
		pod.(*net.TCPConn).CloseWrite()
		close(up)
	}()
	io.Copy(t, pod)
	t.CloseWrite() // a RST of the pod's looks the same
	if t.Err() != nil {
		pod.Close()
	}
	<-up
}
