//go:build unix

package main

import (
	"math"
	"syscall"
)

// maxConnections is how many client connections are held unless told otherwise: so
// many that each can have a connection to an engine, of the files that the process may
// have open. 0: any number.
func maxConnections() int {
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil {
		return 0
	}
	return int(min(uint64(files.Cur)/2, math.MaxInt32))
}
