package main

import "syscall"

// mostFiles is for how many open files there is room from the start, at most: 8 bytes each.
const mostFiles = 1 << 16

// makeRoomForFiles has the kernel make its table of open files as large as this process may need. It would double it when it is full, and
// whoever opens a file then waits until no processor looks at the old table any more (expand_fdtable of fs/file.c), 10 to 20 ms: the next
// connection, all that come behind it, and what else would run on their processors, for Go has them wait in socket(2) and accept(2).
func makeRoomForFiles() {
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil || files.Cur == 0 {
		return
	}
	last := min(files.Cur, mostFiles) - 1
	if fd, _, err := syscall.Syscall(syscall.SYS_FCNTL, 0, syscall.F_DUPFD_CLOEXEC, uintptr(last)); err == 0 {
		syscall.Close(int(fd))
	}
}
