package sock

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// BoundUnacknowledged has a connection fail when something is unacknowledged for d, or unsent because the peer does not read; zero: for as
// long as the kernel tries, and for ever while the peer is there and does not read (tcp(7), TCP_USER_TIMEOUT). What is no TCP connection,
// nor TLS over one, is left as it is.
func BoundUnacknowledged(c net.Conn, d time.Duration) error {
	raw := rawConn(c)
	if raw == nil {
		return nil
	}
	var err error
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}
