package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

// unmapProgram gives back the pages of the program that were mapped when they were read: by the time it serves that is most of it, since
// every package makes itself ready, those that this command has no use for included. What is read again is mapped again, from the kernel's
// cache of the file. Only what cannot have been written to is let go: of a program that can be loaded anywhere (-buildmode=pie), that is
// its code, for its constants are moved before they are made read-only. Where /proc does not tell where that is, nothing happens.
func unmapProgram() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	info, _ := debug.ReadBuildInfo()
	fixed := info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-buildmode", Value: "exe"})
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		// from-to, permissions, offset, device, inode, path: proc_pid_maps(5).
		var from, to uintptr
		var allowed string
		n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &allowed)
		if n == 3 && !strings.Contains(allowed, "w") && (fixed || strings.Contains(allowed, "x")) && strings.HasSuffix(lines.Text(), " "+program) {
			syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
		}
	}
}
