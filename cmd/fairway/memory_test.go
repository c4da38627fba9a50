package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// program builds fairway and starts it.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return start(t, build(t), args...)
}

// build builds fairway as it ships, without the race detector.
func build(t *testing.T) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "fairway")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return binary
}

// start runs a binary as a process of its own; it ends with the test.
func start(t *testing.T, binary string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var says lockedBuffer
	cmd.Stderr = &says
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, says.String())
		}
	})
	return cmd
}

// peakMemory is the most resident memory that a process has had, in MiB.
func peakMemory(t *testing.T, pid int) int { return memoryOf(t, pid, "VmHWM") >> 10 }

// memoryOf is a figure of a process's memory by its name in proc_pid_status(5), in KiB.
func memoryOf(t *testing.T, pid int, name string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skip("resident memory is read from /proc, which this system does not have:", err)
	}
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %s", name, text)
	}
	kb, _ := strconv.Atoi(string(m[1]))
	return kb
}

// image is a request that shows a picture of so many bytes of base64.
func image(size int, seed int) []byte {
	pixels := strings.Repeat(fmt.Sprintf("%08x", seed), size/8)
	return fmt.Appendf(nil, `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"What is this?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}]}],"max_tokens":1}`, pixels)
}

// TestLargeImagesStayWithinTheBudget waits for a proxy to be idle, and sends it a
// picture of 60 MB, and then two hundred of 5 MB at once, with a budget of 256 MiB. Who finds it spent is told
// to come back, and does.
func TestLargeImagesStayWithinTheBudget(t *testing.T) {
	const budget = 256
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[]}`)
	}))
	defer engine.Close()
	at := freeAddresses(3)
	config := filepath.Join(t.TempDir(), "fairway.yaml")
	writeFile(t, config, fmt.Sprintf("listen: {http: %q, metrics: %q, admin: %q}\npools: [{name: a, endpoints: [%s]}]\nlimits: {buffers: %dMiB}\nscrape: {interval: 1h}\n",
		at[0], at[1], at[2], engine.URL, budget))
	process := program(t, "serve", "--config", config, "--no-access-log")
	waitFor(t, "readiness", func() bool { status, _ := get("http://" + at[1] + "/healthz/ready"); return status == 200 })
	const idle = 40_000_000 >> 10
	waitFor(t, "no more than 40 MB resident while nothing goes on", func() bool { return memoryOf(t, process.Process.Pid, "VmRSS") <= idle })

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}
	defer client.CloseIdleConnections()
	send := func(body []byte) (status int, receipt string, err error) {
		req, err := http.NewRequestWithContext(context.Background(), "POST", "http://"+at[0]+"/v1/chat/completions", bytes.NewReader(body))
		if err != nil {
			return 0, "", err
		}
		req.Header.Set("X-Fairway-Explain", "1")
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		if resp.StatusCode == 503 && resp.Header.Get("Retry-After") == "" {
			return 503, "", fmt.Errorf("a 503 without Retry-After")
		}
		return resp.StatusCode, resp.Header.Get("X-Fairway-Receipt"), nil
	}

	status, receipt, err := send(image(60<<20, 1))
	var r struct {
		PromptTokens int `json:"prompt_tokens"`
	}
	if err != nil || status != 200 || json.Unmarshal([]byte(receipt), &r) != nil {
		t.Fatalf("60 MB: %d, %q, %v", status, receipt, err)
	}
	if r.PromptTokens == 0 || r.PromptTokens > 5000 {
		t.Errorf("a picture and three words count as %d tokens: by its bytes?", r.PromptTokens)
	}
	t.Logf("after one of 60 MB: %d MiB resident at most", peakMemory(t, process.Process.Pid))

	var wg sync.WaitGroup
	var turned atomic.Int64
	body := image(5<<20, 2)
	for range 200 {
		wg.Go(func() {
			for deadline := time.Now().Add(5 * time.Minute); ; {
				// A server that refuses a body may close before it has read all of it.
				status, _, err := send(body)
				switch {
				case status == 200:
					return
				case time.Now().After(deadline):
					t.Errorf("not served within five minutes: %d, %v", status, err)
					return
				}
				turned.Add(1)
				<-time.After(100 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	peak := peakMemory(t, process.Process.Pid)
	t.Logf("after 200 of 5 MB at once, %d turned away for the moment: %d MiB resident at most", turned.Load(), peak)
	if peak > 2*budget {
		t.Errorf("%d MiB resident with a budget of %d", peak, budget)
	}
}
