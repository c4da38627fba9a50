//go:build race

package sock

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The race detector takes a write and the read of what was written for the order
// they are, and sees what memory they touch: package syscall tells it.

func rawRead(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Read(int(fd), p)
	return n, errnoOf(err)
}

func rawWrite(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Write(int(fd), p)
	return n, errnoOf(err)
}

func rawWritev(fd uintptr, v []syscall.Iovec) (int, syscall.Errno) {
	pieces := make([][]byte, len(v))
	for i := range v {
		pieces[i] = unsafe.Slice(v[i].Base, int(v[i].Len))
	}
	n, err := unix.Writev(int(fd), pieces)
	return n, errnoOf(err)
}

func errnoOf(err error) syscall.Errno {
	errno, _ := errors.AsType[syscall.Errno](err)
	return errno
}
