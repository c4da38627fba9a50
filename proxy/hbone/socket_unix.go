//go:build unix

package hbone

import (
	"io"
	"net"
	"syscall"
)

// socket writes to a connection without waiting. The flusher owns it.
type socket struct {
	raw syscall.RawConn // nil where the connection is no socket
	try func(fd uintptr) bool

	p   []byte // to be written by try
	n   int    // of it that were
	err error
}

func newSocket(c net.Conn) *socket {
	s := new(socket)
	if sc, ok := c.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn()
	}
	s.try = s.write // made once: a call allocates nothing
	return s
}

// writeNow writes as much of p as the socket takes, nothing where there is none.
func (s *socket) writeNow(p []byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.p, s.n, s.err = p, 0, nil
	if err := s.raw.Write(s.try); err != nil && s.err == nil {
		s.err = err
	}
	s.p = nil
	return s.n, s.err
}

func (s *socket) write(fd uintptr) bool {
	for s.n < len(s.p) {
		m, err := syscall.Write(int(fd), s.p[s.n:])
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return true
		case err != nil:
			s.err = err
			return true
		case m == 0:
			s.err = io.ErrUnexpectedEOF
			return true
		default:
			s.n += m
		}
	}
	return true
}
