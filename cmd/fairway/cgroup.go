package main

import (
	"cmp"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-proxy/fairway/proxy"
)

// limitMemory has the runtime keep within nine tenths of the memory that this process may have by its cgroup, unless GOMEMLIMIT
// says otherwise, and gives the limit in force, in bytes; 0: there is none.
func limitMemory(log *slog.Logger) int64 {
	if os.Getenv("GOMEMLIMIT") == "" {
		if n := cgroupMemory(os.DirFS("/")); n > 0 {
			debug.SetMemoryLimit(n / 10 * 9)
		}
	}
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return 0
	}
	log.Info("memory is limited", "bytes", limit, "request_bodies", limit/bodyShare)
	return limit
}

// bodyShare is the part of the memory limit that request bodies may hold, one in so many: buffers that were given back take memory
// too until they are collected, and so does what the kernel has of each connection.
const bodyShare = 3

// boundedBuffers is how much all request bodies may hold, as configured and as memory allows.
func (a *app) boundedBuffers(configured int64) int64 {
	configured = cmp.Or(configured, proxy.DefaultBufferLimit)
	if a.memory == 0 {
		return configured
	}
	return min(configured, a.memory/bodyShare)
}

// cgroupMemory is how much memory the cgroup of this process allows, version 1 or 2, or one that it is in; 0: any.
func cgroupMemory(root fs.FS) (limit int64) {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		// hierarchy:controllers:path, see cgroups(7).
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, within, _ := strings.Cut(rest, ":")
		mount, file := "sys/fs/cgroup", "memory.max"
		if controllers != "" {
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
			if !slices.Contains(strings.Split(controllers, ","), "memory") {
				continue
			}
		}
		// In a container the path may be the host's, of which it sees the end alone, as the root.
		dir := path.Join(mount, within)
		if !strings.HasPrefix(dir, mount) {
			dir = mount
		}
		for ; strings.HasPrefix(dir, mount); dir = path.Dir(dir) {
			if n := readLimit(root, path.Join(dir, file)); n > 0 && (limit == 0 || n < limit) {
				limit = n
			}
		}
	}
	return limit
}

// readLimit reads a cgroup's limit; 0: there is none.
func readLimit(root fs.FS, name string) int64 {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" in version 2
	if err != nil || n >= 1<<60 {
		return 0 // version 1 says so much for none
	}
	return n
}
