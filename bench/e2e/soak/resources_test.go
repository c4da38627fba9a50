//go:build e2e

package soak_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// usage is what a process holds.
type usage struct {
	at                      time.Time
	memory                  float64 // MiB resident
	goroutines, descriptors float64
}

// used looks at a fairway; ok is false while it does not answer.
func used(f *fairway) (u usage, ok bool) {
	pid := f.Cmd.Process.Pid
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, false
	}
	goroutines, err := process.SumAt("http://"+f.metrics+"/metrics", "go_goroutines")
	if err != nil {
		return u, false
	}
	u = usage{time.Now(), resident(pid, "VmRSS"), goroutines, float64(len(files))}
	return u, u.memory > 0
}

// resident is a figure of a process' memory, in MiB; 0 if it cannot be had.
func resident(pid int, which string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(which + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		return 0
	}
	kb, _ := strconv.Atoi(string(m[1]))
	return float64(kb) / 1024
}

// watch looks at f every second until ctx is done.
func watch(ctx context.Context, f *fairway) (all []usage) {
	for {
		select {
		case <-ctx.Done():
			return all
		case <-time.After(time.Second):
		}
		if u, ok := used(f); ok {
			all = append(all, u)
		}
	}
}

// slope is by how much y grows in an hour, by least squares.
func slope(all []usage, y func(usage) float64) float64 {
	if len(all) < 2 {
		return 0
	}
	var n, sx, sy, sxx, sxy float64
	for _, u := range all {
		x, v := u.at.Sub(all[0].at).Hours(), y(u)
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+v, sxx+x*x, sxy+x*v
	}
	return (n*sxy - sx*sy) / (n*sxx - sx*sx)
}

// What a fairway may hold more, once all is quiet again, than when it was quiet before.
const (
	moreMemory      = 48 // MiB: pools of buffers, and an index that has seen more prompts
	moreGoroutines  = 16
	moreDescriptors = 16
)

// flat is the table of what f holds, and fails the test if it is more in the end than before.
func flat(t *testing.T, before, after usage, during []usage) string {
	var b strings.Builder
	b.WriteString("| held by Fairway | quiet before | most | mean of the last tenth | quiet after | slope an hour | bound on the growth |\n|---|---|---|---|---|---|---|\n")
	for _, what := range []struct {
		name  string
		of    func(usage) float64
		bound float64
	}{
		{"memory, MiB resident", func(u usage) float64 { return u.memory }, moreMemory},
		{"goroutines", func(u usage) float64 { return u.goroutines }, moreGoroutines},
		{"descriptors", func(u usage) float64 { return u.descriptors }, moreDescriptors},
	} {
		most, late := 0.0, 0.0
		last := during[len(during)*9/10:]
		for _, u := range during {
			most = max(most, what.of(u))
		}
		for _, u := range last {
			late += what.of(u) / float64(len(last))
		}
		steady := during[len(during)/5:] // without the start, when pools and caches fill
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %.0f | %+.1f | %.0f |\n", what.name, what.of(before), most, late, what.of(after), slope(steady, what.of), what.bound)
		if grown := what.of(after) - what.of(before); grown > what.bound {
			t.Errorf("%s: %.0f more than before, once all was quiet again; at most %.0f are allowed", what.name, grown, what.bound)
		}
	}
	return b.String()
}
