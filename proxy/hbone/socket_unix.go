//go:build unix

package hbone

import (
	"io"
	"syscall"
)

// writeNow writes as much of p as the socket takes without waiting, nothing where
// the connection is no socket. Called by the flusher.
func (c *conn) writeNow(p []byte) (n int, err error) {
	if c.socket == nil {
		return 0, nil
	}
	waitErr := c.socket.Write(func(fd uintptr) bool {
		for n < len(p) && err == nil {
			var m int
			m, err = syscall.Write(int(fd), p[n:])
			if m > 0 {
				n += m
			} else if err == nil {
				err = io.ErrUnexpectedEOF
			}
			if err == syscall.EINTR {
				err = nil
			}
		}
		return true
	})
	if err == syscall.EAGAIN {
		err = nil
	}
	if err == nil {
		err = waitErr
	}
	return n, err
}
