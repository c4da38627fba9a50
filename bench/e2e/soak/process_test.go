//go:build e2e

package soak_test

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a program that this suite started, and ends.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
}

// program is where e2e.sh has built a command.
func program(name string) string { return filepath.Join(cmp.Or(os.Getenv("E2E_BIN"), "."), name) }

// launch starts a program; what it says goes to log. It ends with the test process,
// whatever becomes of that.
func launch(log io.Writer, name string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

func (p *process) signal(s syscall.Signal) { p.cmd.Process.Signal(s) }

// end sends a signal and waits for the process.
func (p *process) end(s syscall.Signal) {
	p.signal(s)
	<-p.ended
}

// start launches a program that ends with the test, and returns when url answers 200.
func start(t *testing.T, log io.Writer, url, name string, args ...string) *process {
	t.Helper()
	p, err := launch(log, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.signal(syscall.SIGCONT)
		p.end(syscall.SIGKILL)
	})
	await(t, filepath.Base(name)+" is up", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("%s %s ended at once", name, strings.Join(args, " "))
		default:
		}
		return answers(url)
	})
	return p
}

// logFile is a file for what a program says; its end is shown if the test fails.
func logFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		if t.Failed() {
			text, _ := os.ReadFile(path)
			lines := strings.Split(string(text), "\n")
			shown := 0
			for i := len(lines) - 1; i >= 0 && shown < 40; i-- {
				if !strings.Contains(lines[i], "msg=access") {
					t.Log(lines[i])
					shown++
				}
			}
		}
	})
	return f
}

// asking gives up, so that whoever polls does not hang on a program that is frozen.
var asking = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func answers(url string) bool {
	r, err := asking.Get(url)
	if err != nil {
		return false
	}
	io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// await polls until cond holds: a minute is for a machine that does other things too.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came about: %s", what)
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

// metric is the sum over a metric's samples on a page, of those whose labels contain with.
func metric(url, name, with string) (float64, error) {
	page, err := page(url)
	if err != nil {
		return 0, err
	}
	return sum(page, name, with)
}

func page(url string) (string, error) {
	r, err := asking.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return string(text), err
}

// sum is metric of a page that is there.
func sum(page, name, with string) (float64, error) {
	sum := 0.0
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' || !strings.Contains(rest, with) {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", line, err)
		}
		sum += v
	}
	return sum, nil
}

// fairway is a running `fairway serve`.
type fairway struct {
	*process
	http, metrics, admin string
	config               string
}

// startFairway runs a proxy with a configuration that says all but where it listens.
func startFairway(t *testing.T, log io.Writer, config string) *fairway {
	t.Helper()
	f := &fairway{http: freeAddress(t), metrics: freeAddress(t), admin: freeAddress(t), config: filepath.Join(t.TempDir(), "fairway.yaml")}
	f.write(t, config)
	f.start(t, log)
	return f
}

func (f *fairway) start(t *testing.T, log io.Writer) {
	t.Helper()
	f.process = start(t, log, "http://"+f.metrics+"/healthz/ready", program("fairway"), "serve", "--config", f.config,
		"--listen", f.http, "--metrics", f.metrics, "--admin", f.admin)
}

func (f *fairway) write(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile(f.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
}

// reload puts another configuration in force, and returns when it is.
func (f *fairway) reload(t *testing.T, config string) {
	t.Helper()
	page := "http://" + f.metrics + "/metrics"
	before, _ := metric(page, "fairway_world_version", "")
	f.write(t, config)
	f.signal(syscall.SIGHUP)
	await(t, "the configuration is in force", func() bool {
		now, err := metric(page, "fairway_world_version", "")
		return err == nil && now > before
	})
}
