//go:build !linux

package sock

import "syscall"

// watch is nothing where the kernel has no EPOLLRDHUP.
type watch struct{}

func (*watch) start(*Conn, syscall.RawConn) bool { return false }
func (*watch) stop()                             {}
