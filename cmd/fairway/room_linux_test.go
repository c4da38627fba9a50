package main

import (
	"os"
	"regexp"
	"strconv"
	"syscall"
	"testing"
)

// Opening files never has to wait for a larger table of them.
func TestRoomForFiles(t *testing.T) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	makeRoomForFiles()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("the size of the table is read from /proc, which this system does not have:", err)
	}
	m := regexp.MustCompile(`FDSize:\s+(\d+)`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no FDSize in %s", text)
	}
	room, _ := strconv.Atoi(string(m[1]))
	if want := min(files.Cur, mostFiles); uint64(room) < want {
		t.Errorf("room for %d open files, want %d", room, want)
	}
}
