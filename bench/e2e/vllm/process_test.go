//go:build e2e && linux

package vllm_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// patience is for engines that share two processors: they may be deaf for many seconds.
const patience = 5 * time.Minute

// server is a program with a log.
type server struct {
	*process.Process
	log string // the file that holds what it prints
}

// start starts a program. It is asked to end when the test does, and the end of its log is told if the test failed.
func start(t *testing.T, name string, env []string, argv ...string) *server {
	t.Helper()
	logs := os.Getenv("E2E_LOGS")
	if logs == "" {
		logs = t.TempDir()
	}
	s := &server{log: filepath.Join(logs, name+".log")}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	s.Process = process.Start(t, cmd)
	s.Name = name
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			t.Logf("the end of %s:\n%s", s.log, s.tail(40))
		}
	})
	return s
}

// tail is the last lines of the log.
func (s *server) tail(n int) string {
	content, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// engine is a vLLM server with the tiny model and its adapters.
type engine struct {
	*server
	address string
}

// adapters are the LoRA adapters an engine starts with; adapter-3 is left to be loaded.
var adapters = []string{"adapter-1", "adapter-2"}

// startEngine starts vLLM with the adapters, and with flags besides; it takes a minute until it is up. It has one thread: a tiny model
// gets slower with more.
func startEngine(t *testing.T, name, address string, flags ...string) *engine {
	t.Helper()
	lora := []string{"--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--lora-modules"}
	for _, a := range adapters {
		lora = append(lora, a+"="+filepath.Join(os.Getenv("E2E_MODELS"), a))
	}
	return startEngineIn(t, place{threads: 1}, name, address, append(lora, flags...)...)
}

// A place is where an engine computes.
type place struct {
	cpus    string // as taskset has them; "": on all
	threads int
	passive bool // threads that wait for each other sleep, and do not spin
}

// startEngineIn starts vLLM in a place, without adapters.
func startEngineIn(t *testing.T, in place, name, address string, flags ...string) *engine {
	t.Helper()
	models := os.Getenv("E2E_MODELS")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	var argv []string
	if in.cpus != "" {
		argv = []string{"taskset", "-c", in.cpus}
	}
	argv = append(argv,
		os.Getenv("E2E_VLLM"), "serve", filepath.Join(models, "tiny"), "--host", host, "--port", port,
		"--served-model-name", "tiny", "--dtype", "bfloat16", "--max-model-len", "8192", "--enforce-eager",
		"--block-size", "32", // CPU attention takes multiples of 32
		"--enable-prefix-caching", "--enable-prompt-tokens-details",
	)
	argv = append(argv, flags...)
	env := []string{
		"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1",
		"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
		"TORCHDYNAMO_DISABLE=1",    // or the first request for logprobs compiles C++, and ends an engine without g++
		"VLLM_CPU_KVCACHE_SPACE=1", // GiB
		"VLLM_CPU_OMP_THREADS_BIND=nobind", fmt.Sprintf("OMP_NUM_THREADS=%d", in.threads),
		"VLLM_HOST_IP=127.0.0.1", "VLLM_LOOPBACK_IP=127.0.0.1", "GLOO_SOCKET_IFNAME=lo",
	}
	if in.passive {
		env = append(env, "OMP_WAIT_POLICY=passive")
	}
	return &engine{start(t, name, env, argv...), address}
}

func (e *engine) url() string { return "http://" + e.address }

func (e *engine) awaitUp(t *testing.T) {
	t.Helper()
	e.Await(t, 15*time.Minute, process.Answers(e.url()+"/health"))
}

// running is how many requests the engine works on.
func (e *engine) running(t *testing.T) float64 {
	t.Helper()
	return process.Metric(t, e.url()+"/metrics", "vllm:num_requests_running")
}

// finished is how many answers the engine has brought to the length that was asked for.
func (e *engine) finished(t *testing.T) float64 {
	t.Helper()
	return process.Metric(t, e.url()+"/metrics", "vllm:request_success_total", `finished_reason="length"`)
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
		if _, err := fmt.Sscan(before+" "+after, &pid, &state, &parent, &group); err == nil && group == e.Cmd.Process.Pid {
			return pid
		}
	}
	t.Fatalf("%s has no process VLLM::EngineCore", e.Name)
	return 0
}

// fairway is the proxy in front of some engines.
type fairway struct {
	*server
	origin, ops, admin string
}

func startFairway(t *testing.T, name string, engines ...*engine) *fairway {
	t.Helper()
	listen, metrics, admin := process.FreeAddress(), process.FreeAddress(), process.FreeAddress()
	argv := []string{os.Getenv("E2E_FAIRWAY"), "serve", "--listen", listen, "--metrics", metrics, "--admin", admin}
	for _, e := range engines {
		argv = append(argv, "--endpoint", e.url())
	}
	f := &fairway{start(t, name, nil, argv...), "http://" + listen, "http://" + metrics, "http://" + admin}
	f.Await(t, time.Minute, process.Answers(f.ops+"/healthz/ready"))
	return f
}

// count counts the requests that ended for a reason; "" is an answer in full.
func (f *fairway) count(t *testing.T, reason string) float64 {
	t.Helper()
	return process.Metric(t, f.ops+"/metrics", "fairway_requests_total", fmt.Sprintf("reason=%q", reason))
}

// awaitCount waits until n requests have ended for a reason: they are counted after their client has the last byte.
func (f *fairway) awaitCount(t *testing.T, reason string, n float64) {
	t.Helper()
	process.Eventually(t, patience, func() error {
		if got := f.count(t, reason); got != n {
			return fmt.Errorf("fairway_requests_total counts %v of reason %q, want %v", got, reason, n)
		}
		return nil
	})
}

// scraped says whether an engine's metrics were read lately.
func (f *fairway) scraped(t *testing.T, e *engine) error {
	t.Helper()
	if age := process.Metric(t, f.ops+"/metrics", "fairway_endpoint_scrape_age_seconds", e.address); age < 0 || age > 1 {
		return fmt.Errorf("the metrics of %s were last read %v s ago", e.Name, age)
	}
	return nil
}
