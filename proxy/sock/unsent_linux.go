package sock

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsentLimit is how much the kernel takes ahead of what it may send: enough for the wake-ups
// that a fast peer costs to be few.
const unsentLimit = 32 << 10

// LimitUnsent has the kernel take little of what the peer does not take: a write waits, instead of
// filling a buffer that grows to megabytes (net.ipv4.tcp_wmem) for each peer that reads nothing. What
// is under way to the peer does not count, so it costs no throughput. What is no TCP connection, nor TLS
// over one, is left as it is.
func LimitUnsent(c net.Conn) {
	if raw := rawConn(c); raw != nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
		})
	}
}
