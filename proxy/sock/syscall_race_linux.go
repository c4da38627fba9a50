//go:build race

package sock

import (
	"errors"
	"syscall"
	"unsafe"
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

// rawWritev writes the first piece: package syscall has no writev to tell by.
func rawWritev(fd uintptr, v []syscall.Iovec) (int, syscall.Errno) {
	return rawWrite(fd, unsafe.Slice(v[0].Base, int(v[0].Len)))
}

func errnoOf(err error) syscall.Errno {
	errno, _ := errors.AsType[syscall.Errno](err)
	return errno
}
