package upstream

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-proxy/fairway/proxy/sock"
)

// unacknowledged is how long what was sent of a request may go unacknowledged, or unsent because the
// endpoint does not read. Without a bound the kernel tries for a quarter of an hour before it reports that
// the endpoint's machine has gone (tcp(7), TCP_USER_TIMEOUT).
const unacknowledged = 20 * time.Second

// boundUnacknowledged has a TCP connection, or TLS on one, fail when something is unacknowledged for d; zero: for as
// long as the kernel tries, and for ever while the endpoint is there and does not read.
func boundUnacknowledged(c net.Conn, d time.Duration) error {
	t, ok := sock.As[syscall.Conn](c)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}
