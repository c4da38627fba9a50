package sock

import (
	"net"
	"syscall"
)

// Watch calls h.Hangup, at most once and from another goroutine, when the peer
// has closed the connection, closed its sending half, or reset it, even while
// bytes it sent before lie unread. Hangup must not block. Watch is called at
// most once, by the owner, before the first Guard.
//
// On Linux the kernel tells (EPOLLRDHUP). A connection that has a method
// OnHangup(func()), as a tunnel has, tells itself. Any other is read ahead
// while it is guarded, see Guard.
func (c *Conn) Watch(h Hangup) {
	c.hup = h
	if t, ok := c.Conn.(interface{ OnHangup(func()) }); ok {
		t.OnHangup(c.hangup)
		return
	}
	if rc := rawConn(c.Conn); rc != nil && c.watch.start(c, rc) {
		return
	}
	c.ahead = newAhead(c)
}

// Guard says that somebody waits for the connection without reading it, until
// Unguard: an answer is owed, or the connection lies idle in a pool. It matters
// only to a connection of which neither the kernel nor the conn itself tells
// that the peer hung up: there a goroutine reads ahead, a bounded number of
// bytes, which the next Reads return. More than that many bytes before the end
// hide it.
func (c *Conn) Guard() {
	if c.ahead != nil {
		c.ahead.guard()
	}
}

// Unguard ends what Guard began.
func (c *Conn) Unguard() {
	if c.ahead != nil {
		c.ahead.unguard()
	}
}

// hangup tells the watcher that the peer has gone, unless it is we who ended
// the connection.
func (c *Conn) hangup() {
	if c.state.Load()&closed == 0 {
		c.told.Do(c.hup.Hangup)
	}
}

// rawConn finds the descriptor under c, also through TLS. It gives nil where
// there is none.
func rawConn(c net.Conn) syscall.RawConn {
	t, ok := As[syscall.Conn](c)
	if !ok {
		return nil
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	return rc
}
