package sock

import (
	"net"

	"golang.org/x/sys/unix"
)

// nothing is a program for the kernel's packet filter that lets nothing through.
var nothing = unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}}

// Ignore has the kernel throw away what comes on c, unacknowledged, until hear is called. Who goes on sending then costs next to nothing,
// and soon sends again only what was lost, later each time; what is only not read is kept, and once it is many small segments the kernel
// puts them together whenever one more comes (tcp_prune_queue of net/ipv4/tcp_input.c). What is no TCP connection, nor TLS over one, is
// left as it is.
func Ignore(c net.Conn) (hear func()) {
	raw := rawConn(c)
	if raw == nil {
		return func() {}
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &nothing)
	})
	return func() {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		})
	}
}
