package sock

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// raw reads and writes a TCP socket by system calls that the runtime is not told
// of (syscall.RawSyscall). The socket never blocks, so there is nothing to hand
// the processor over for, and telling costs more than a short read: the runtime
// wakes its monitor thread for it whenever the process was idle.
//
// A read and a write may go on at the same time, but not two of a kind.
type raw struct {
	conn syscall.RawConn
	tcp  *net.TCPConn

	reading, writing operation
	read, write, try func(fd uintptr) bool // readOnce, writeOnce and tryOnce, bound once: RawConn's argument escapes
	peek             func(fd uintptr)      // peekOnce, too
	peeked           bool                  // what peekOnce found
}

// operation is one read or write under way.
type operation struct {
	p      []byte          // what is read into or written
	from   Lender          // what p is taken from, while there is something to read; nil: from nobody
	vector []syscall.Iovec // what is written instead of p
	n      int
	errno  syscall.Errno
}

// maxIovecs is IOV_MAX.
const maxIovecs = 1024

// newRaw gives nil for what is not a TCP socket.
func newRaw(c net.Conn) *raw {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	conn, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	r := &raw{conn: conn, tcp: tcp}
	r.read, r.write, r.try, r.peek = r.readOnce, r.writeOnce, r.tryOnce, r.peekOnce
	return r
}

// Read reads what is there, as net.Conn says.
func (r *raw) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	o := &r.reading
	o.p = p
	err := r.conn.Read(r.read)
	o.p = nil
	if err == nil {
		err = r.ended(o)
	}
	if err != nil {
		return 0, err
	}
	return o.n, nil
}

// ReadLent reads what is there into a buffer of a lender's, which it has only once there is something.
func (r *raw) ReadLent(from Lender) ([]byte, int, error) {
	o := &r.reading
	o.from = from
	err := r.conn.Read(r.read)
	p := o.p
	o.p, o.from = nil, nil
	if err == nil {
		err = r.ended(o)
	}
	if err != nil {
		return nil, 0, err
	}
	return p, o.n, nil
}

// Readable tells whether a Read would find something at once, be it the end or an error.
func (r *raw) Readable() bool {
	return r.conn.Control(r.peek) != nil || r.peeked
}

func (r *raw) peekOnce(fd uintptr) {
	var b byte
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	r.peeked = errno != syscall.EAGAIN
}

// ended is the error of a read that came to an end.
func (r *raw) ended(o *operation) error {
	switch {
	case o.errno != 0:
		return r.failed("read", o.errno)
	case o.n == 0:
		return io.EOF
	}
	return nil
}

// readOnce reads if there is something to read. Whether there is nobody knows who does not try: what the poller has told before is
// forgotten at the beginning of each read.
func (r *raw) readOnce(fd uintptr) bool {
	o := &r.reading
	if o.from != nil {
		o.p = o.from.Get()
	}
	for {
		if o.n, o.errno = rawRead(fd, o.p); o.errno != syscall.EINTR {
			break
		}
	}
	if o.from != nil && o.n <= 0 {
		o.from.Put(o.p)
		o.p = nil
	}
	return o.errno != syscall.EAGAIN
}

// Write writes all of p, as net.Conn says.
func (r *raw) Write(p []byte) (written int, err error) {
	o := &r.writing
	defer func() { o.p = nil }()
	for written < len(p) {
		o.p = p[written:]
		if err := r.conn.Write(r.write); err != nil {
			return written, err
		}
		if o.errno != 0 {
			return written, r.failed("write", o.errno)
		}
		written += o.n
	}
	return written, nil
}

// TryWrite writes of p what the socket takes at once.
func (r *raw) TryWrite(p []byte) (written int, err error) {
	o := &r.writing
	defer func() { o.p = nil }()
	for written < len(p) {
		o.p = p[written:]
		if err := r.conn.Write(r.try); err != nil {
			return written, err
		}
		if o.errno == syscall.EAGAIN {
			return written, nil
		}
		if o.errno != 0 {
			return written, r.failed("write", o.errno)
		}
		written += o.n
	}
	return written, nil
}

// WriteBuffers writes all of v and consumes it.
func (r *raw) WriteBuffers(v *net.Buffers) (written int64, err error) {
	o := &r.writing
	defer func() {
		clear(o.vector)
		o.vector = o.vector[:0]
	}()
	for {
		o.vector = o.vector[:0]
		for _, b := range *v {
			if len(b) > 0 && len(o.vector) < maxIovecs {
				i := syscall.Iovec{Base: unsafe.SliceData(b)}
				i.SetLen(len(b))
				o.vector = append(o.vector, i)
			}
		}
		if len(o.vector) == 0 {
			*v = (*v)[len(*v):]
			return written, nil
		}
		if err := r.conn.Write(r.write); err != nil {
			return written, err
		}
		if o.errno != 0 {
			return written, r.failed("writev", o.errno)
		}
		written += int64(o.n)
		consume(v, o.n)
	}
}

// consume takes the first n bytes off v.
func consume(v *net.Buffers, n int) {
	for len(*v) > 0 {
		if first := (*v)[0]; n < len(first) {
			(*v)[0] = first[n:]
			return
		} else {
			n -= len(first)
		}
		(*v)[0] = nil
		*v = (*v)[1:]
	}
}

func (r *raw) writeOnce(fd uintptr) bool {
	o := &r.writing
	for {
		if len(o.vector) > 0 {
			o.n, o.errno = rawWritev(fd, o.vector)
		} else {
			o.n, o.errno = rawWrite(fd, o.p)
		}
		if o.errno != syscall.EINTR {
			return o.errno != syscall.EAGAIN
		}
	}
}

// tryOnce is writeOnce that does not have RawConn wait.
func (r *raw) tryOnce(fd uintptr) bool {
	r.writeOnce(fd)
	return true
}

// failed wraps an error as package net does.
func (r *raw) failed(call string, errno syscall.Errno) error {
	op := "read"
	if call != "read" {
		op = "write"
	}
	return &net.OpError{Op: op, Net: "tcp", Source: r.tcp.LocalAddr(), Addr: r.tcp.RemoteAddr(), Err: os.NewSyscallError(call, errno)}
}
