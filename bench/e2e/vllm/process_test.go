//go:build e2e && linux

package vllm_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a program that runs in a process group of its own, so that whatever it starts ends with it.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string // the file that holds what it prints
	ended chan struct{}
}

// start starts a program. It is stopped when the test ends, and the end of its log is told if the test failed.
func start(t *testing.T, name string, env []string, argv ...string) *process {
	t.Helper()
	logs := os.Getenv("E2E_LOGS")
	if logs == "" {
		logs = t.TempDir()
	}
	p := &process{name: name, log: filepath.Join(logs, name+".log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // the exit code is read from ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("the end of %s:\n%s", p.log, p.tail(40))
		}
	})
	return p
}

// stop asks the program to end and, if it does not, ends it and all it started.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
	}
	p.kill()
}

// kill ends the program and all it started at once, as losing the machine does.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // nothing of it may be left
	<-p.ended
}

// tail is the last lines of the log.
func (p *process) tail(n int) string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// await asks a URL until it answers with 200. It fails the test early if the program ends.
func (p *process) await(t *testing.T, atMost time.Duration, url string) {
	t.Helper()
	give := time.After(atMost)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := client.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-give:
			t.Fatalf("%s is not up after %v: %v", p.name, atMost, err)
		case <-p.ended:
			t.Fatalf("%s ended (%v) before it was up", p.name, p.cmd.ProcessState)
		case <-tick.C:
		}
	}
}

// freeAddress is a loopback address whose port was free just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// engine is a vLLM server with the tiny model and its adapters.
type engine struct {
	*process
	address string
}

// adapters are the LoRA adapters an engine starts with; adapter-3 is left to be loaded.
var adapters = []string{"adapter-1", "adapter-2"}

// startEngine starts vLLM, with flags besides those that all engines have; it takes a minute until it is up. It has one thread: a tiny
// model gets slower with more.
func startEngine(t *testing.T, name, address string, flags ...string) *engine {
	t.Helper()
	return startEngineOf(t, name, address, 1, flags...)
}

// startEngineOf starts vLLM with so many threads.
func startEngineOf(t *testing.T, name, address string, threads int, flags ...string) *engine {
	t.Helper()
	models := os.Getenv("E2E_MODELS")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{
		os.Getenv("E2E_VLLM"), "serve", filepath.Join(models, "tiny"), "--host", host, "--port", port,
		"--served-model-name", "tiny", "--dtype", "bfloat16", "--max-model-len", "8192", "--enforce-eager",
		"--block-size", "32", // CPU attention takes multiples of 32
		"--enable-prefix-caching", "--enable-prompt-tokens-details",
		"--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--lora-modules",
	}
	for _, a := range adapters {
		argv = append(argv, a+"="+filepath.Join(models, a))
	}
	argv = append(argv, flags...)
	env := []string{
		"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1",
		"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
		"TORCHDYNAMO_DISABLE=1",    // or the first request for logprobs compiles C++, and ends an engine without g++
		"VLLM_CPU_KVCACHE_SPACE=1", // GiB
		"VLLM_CPU_OMP_THREADS_BIND=nobind", fmt.Sprintf("OMP_NUM_THREADS=%d", threads),
		"VLLM_HOST_IP=127.0.0.1", "VLLM_LOOPBACK_IP=127.0.0.1", "GLOO_SOCKET_IFNAME=lo",
	}
	return &engine{start(t, name, env, argv...), address}
}

func (e *engine) url() string { return "http://" + e.address }

func (e *engine) awaitUp(t *testing.T) {
	t.Helper()
	e.await(t, 15*time.Minute, e.url()+"/health")
}

// running is how many requests the engine works on.
func (e *engine) running(t *testing.T) float64 {
	t.Helper()
	return sum(t, e.url()+"/metrics", "vllm:num_requests_running{")
}

// finished is how many answers the engine has brought to the length that was asked for.
func (e *engine) finished(t *testing.T) float64 {
	t.Helper()
	return sum(t, e.url()+"/metrics", "vllm:request_success_total{", `finished_reason="length"`)
}

// core is the id of the process that computes; the one that was started serves HTTP.
func (e *engine) core(t *testing.T) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// See proc_pid_stat(5): pid, name in parentheses, state, parent, group.
		var pid, parent, group int
		var state string
		before, after, _ := strings.Cut(string(stat), " (VLLM::EngineCor) ")
		if _, err := fmt.Sscan(before+" "+after, &pid, &state, &parent, &group); err == nil && group == e.cmd.Process.Pid {
			return pid
		}
	}
	t.Fatalf("%s has no process VLLM::EngineCore", e.name)
	return 0
}

// fairway is the proxy in front of some engines.
type fairway struct {
	*process
	origin, ops, admin string
}

func startFairway(t *testing.T, name string, engines ...*engine) *fairway {
	t.Helper()
	listen, metrics, admin := freeAddress(t), freeAddress(t), freeAddress(t)
	argv := []string{os.Getenv("E2E_FAIRWAY"), "serve", "--listen", listen, "--metrics", metrics, "--admin", admin}
	for _, e := range engines {
		argv = append(argv, "--endpoint", e.url())
	}
	f := &fairway{start(t, name, nil, argv...), "http://" + listen, "http://" + metrics, "http://" + admin}
	f.await(t, time.Minute, f.ops+"/healthz/ready")
	return f
}

// count counts the requests that ended for a reason; "" is an answer in full.
func (f *fairway) count(t *testing.T, reason string) float64 {
	t.Helper()
	return sum(t, f.ops+"/metrics", "fairway_requests_total{", fmt.Sprintf("reason=%q", reason))
}

// awaitCount waits until n requests have ended for a reason: they are counted after their client has the last byte.
func (f *fairway) awaitCount(t *testing.T, reason string, n float64) {
	t.Helper()
	eventually(t, func() error {
		if got := f.count(t, reason); got != n {
			return fmt.Errorf("fairway_requests_total counts %v of reason %q, want %v", got, reason, n)
		}
		return nil
	})
}

// scraped says whether an engine's metrics were read lately.
func (f *fairway) scraped(t *testing.T, e *engine) error {
	t.Helper()
	if age := sum(t, f.ops+"/metrics", "fairway_endpoint_scrape_age_seconds{", e.address); age < 0 || age > 1 {
		return fmt.Errorf("the metrics of %s were last read %v s ago", e.name, age)
	}
	return nil
}

// eventually tries something until it succeeds, and tells how long that took. An engine that shares two processors with
// others may be deaf for many seconds.
func eventually(t *testing.T, try func() error) time.Duration {
	t.Helper()
	const atMost = 5 * time.Minute
	begin := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if took := time.Since(begin); err == nil {
			return took
		} else if took > atMost {
			t.Fatalf("after %v: %v", took.Round(time.Millisecond), err)
		}
		<-tick.C
	}
}

// sum adds up the samples of a metrics page whose line begins with a prefix and holds every one of the words.
func sum(t *testing.T, url, prefix string, words ...string) float64 {
	t.Helper()
	total := 0.0
lines:
	for line := range strings.Lines(string(get(t, url).body)) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		var value float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &value); err != nil {
			t.Fatalf("%s: %q: %v", url, line, err)
		}
		total += value
	}
	return total
}
