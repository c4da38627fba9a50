package upstream

import (
	"context"
	"errors"
	"slices"

	"github.com/fairway-proxy/fairway/proxy/h2"
)

// GetHTTP2 gives a stream of HTTP/2 with prior knowledge, on a connection that
// others share, or on a new one. Its errors are those of Get.
func (t *Transport) GetHTTP2(ctx context.Context) (*Conn, error) {
	if s := t.stream(); s != nil {
		return &Conn{wire: s, transport: t}, nil
	}
	return t.DialHTTP2(ctx)
}

// stream opens a stream on the first connection that has room, nil if none has. It
// lets go of those that have ended, and of those that nobody needs.
func (t *Transport) stream() (s *h2.ClientStream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shared = slices.DeleteFunc(t.shared, func(c *h2.ClientConn) bool {
		switch {
		case c.Ended():
		case s == nil:
			s = c.Open()
			return false
		case c.Streams() > 0:
			return false
		}
		c.Drain()
		return true
	})
	return s
}

// DialHTTP2 gives a stream on a new connection.
func (t *Transport) DialHTTP2(ctx context.Context) (*Conn, error) {
	nc, err := t.dialBounded(ctx)
	if err != nil {
		return nil, err
	}
	c, err := h2.NewClientConn(nc)
	if err != nil {
		return nil, &DialError{t.Address, err}
	}
	s := c.Open()
	if s == nil {
		c.Close()
		return nil, &DialError{t.Address, errors.New("the connection has ended")}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		s.Close()
		c.Drain()
		return nil, ErrClosed
	}
	t.shared = append(t.shared, c)
	return &Conn{wire: s, transport: t}, nil
}

// dropShared has every shared connection close with its last stream. t.mu is held.
func (t *Transport) dropShared() {
	for _, c := range t.shared {
		c.Drain()
	}
	t.shared = nil
}
