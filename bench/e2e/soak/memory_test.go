//go:build e2e

package soak_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// cgroup is a fresh cgroup that may use so much memory, or says why there can be none. enter is the file that takes in a process.
func cgroup(t *testing.T, bytes int) (enter string, err error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	parent, limit := "", "memory.max"
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(fields) < 3:
		case fields[1] == "memory":
			parent, limit = filepath.Join("/sys/fs/cgroup/memory", fields[2]), "memory.limit_in_bytes"
		case fields[1] == "" && parent == "":
			parent = filepath.Join("/sys/fs/cgroup", fields[2])
		}
	}
	if _, err := os.Stat(parent); err != nil {
		parent = filepath.Dir(parent) // a container sees the end of the path alone
	}
	dir := filepath.Join(parent, fmt.Sprintf("fairway-soak-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		for range 50 { // it goes once its processes have
			if os.Remove(dir) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	return filepath.Join(dir, "cgroup.procs"), os.WriteFile(filepath.Join(dir, limit), []byte(strconv.Itoa(bytes)), 0o644)
}

// TestMemoryLimit gives Fairway 256 MiB, by a cgroup where this machine permits, and 300 clients who each want to be rid of 4 MB, for
// engines that take their time. Who does not fit is told to come again, and Fairway lives.
func TestMemoryLimit(t *testing.T) {
	const allowed = 256 << 20
	engine := slowEngine(t)
	f := &fairway{http: process.FreeAddress(), metrics: process.FreeAddress(), admin: process.FreeAddress(), config: filepath.Join(t.TempDir(), "fairway.yaml")}
	f.write(t, fmt.Sprintf("pools: [{name: main, endpoints: [http://%s]}]\nqueue: {off: true}\ntimeouts: {connect: 1m}\n", engine))
	log := logFile(t, filepath.Join(t.TempDir(), "fairway.log"))
	args := []string{"serve", "--config", f.config, "--listen", f.http, "--metrics", f.metrics, "--admin", f.admin}
	ready := "http://" + f.metrics + "/healthz/ready"
	by := "a cgroup"
	enter, err := cgroup(t, allowed)
	if err == nil {
		f.Process = start(t, log, ready, "sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, enter, program("fairway")}, args...)...)
	} else {
		by = fmt.Sprintf("GOMEMLIMIT, as no cgroup can be made here: %v", err)
		f.Process = start(t, log, ready, "env", append([]string{fmt.Sprintf("GOMEMLIMIT=%d", allowed/10*9), program("fairway")}, args...)...)
	}

	body := []byte(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` +
		strings.Repeat("QUJD", 1<<20) + `"}}]}]}`)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 300}}
	defer client.CloseIdleConnections()
	var served, shed atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(10 * time.Second)
	for range 300 {
		wg.Go(func() {
			for time.Now().Before(end) {
				r, err := client.Post("http://"+f.http+"/v1/chat/completions", "application/json", bytes.NewReader(body))
				if err != nil { // who is refused in the middle of a body may meet a reset
					time.Sleep(50 * time.Millisecond)
					continue
				}
				text, _ := io.ReadAll(r.Body)
				r.Body.Close()
				switch {
				case r.StatusCode == 200:
					served.Add(1)
				case r.StatusCode == 503 && bytes.Contains(text, []byte(`"fairway_buffers_spent"`)) && r.Header.Get("Retry-After") != "":
					shed.Add(1)
					time.Sleep(50 * time.Millisecond)
				default:
					t.Errorf("status %d: %s", r.StatusCode, clip(text))
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case <-f.Ended:
		t.Fatalf("Fairway has died of it: %v", f.Cmd.ProcessState)
	default:
	}
	peak := resident(f.Cmd.Process.Pid, "VmHWM")
	if err := process.Answers(ready)(); err != nil {
		t.Error("not ready any more:", err)
	}
	report(t, fmt.Sprintf("%d MiB by %s, 300 clients with 4 MB each: %d served, %d told to come again (503 `fairway_buffers_spent`), %.0f MiB resident at most.\n", allowed>>20, by, served.Load(), shed.Load(), peak))
	if served.Load() == 0 || shed.Load() == 0 {
		t.Errorf("%d served and %d turned away: the limit was not tried", served.Load(), shed.Load())
	}
	if peak > allowed>>20 {
		t.Errorf("%.0f MiB resident", peak)
	}
	f.End(syscall.SIGTERM)
}

// slowEngine answers every request after half a second.
func slowEngine(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			time.Sleep(500 * time.Millisecond)
			io.Copy(io.Discard, r.Body)
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[]}`)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}
