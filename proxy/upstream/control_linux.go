package upstream

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unacknowledged is how long what was sent may go unacknowledged. Without a
// bound the kernel tries for a quarter of an hour before it reports that the
// endpoint's machine has gone (tcp(7), TCP_USER_TIMEOUT).
const unacknowledged = 20 * time.Second

func control(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
	}); cerr != nil {
		return cerr
	}
	return err
}
