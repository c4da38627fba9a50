//go:build e2e

package kube_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program that this suite started, and ends.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has

	mu      sync.Mutex
	printed bytes.Buffer // guarded by mu
	partial []byte       // the line that has not ended, guarded by mu
	// line, if set before the start, is called with each line as it is printed.
	line func(text string, at time.Time)
}

func (p *process) Write(text []byte) (int, error) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.printed.Write(text)
	if p.line != nil {
		p.partial = append(p.partial, text...)
		for {
			end := bytes.IndexByte(p.partial, '\n')
			if end < 0 {
				break
			}
			p.line(string(p.partial[:end]), now)
			p.partial = p.partial[end+1:]
		}
	}
	return len(text), nil
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.printed.String()
}

// run starts a program. It gives what ends it: to be called once.
func (p *process) run(name string, args ...string) error {
	p.cmd, p.ended = exec.Command(name, args...), make(chan struct{})
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	return nil
}

// end sends a signal and waits for the process.
func (p *process) end(s syscall.Signal) {
	p.cmd.Process.Signal(s)
	<-p.ended
}

// start runs a program until the end of the test; it returns when url answers 200.
func start(t *testing.T, p *process, url, name string, args ...string) {
	t.Helper()
	if err := p.run(name, args...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if t.Failed() {
			text := p.output()
			t.Logf("%s printed, at the end:\n%s", filepath.Base(name), text[max(0, len(text)-6000):])
		}
	})
	await(t, filepath.Base(name)+" is up", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("%s ended at once", name)
		default:
		}
		status, _ := get(url)
		return status == http.StatusOK
	})
}

// get gives status and body, 0 if there is no answer.
func get(url string) (int, string) {
	r, err := http.Get(url)
	if err != nil {
		return 0, ""
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(body)
}

// await polls until cond holds: two minutes are for a machine that does other things too.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came about: %s", what)
		}
	}
}

// freeAddress is a loopback address whose port was free just now.
func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// metric is the sum over the samples of a metrics page whose lines begin so.
func metric(t *testing.T, url, begin string) float64 {
	t.Helper()
	status, page := get(url)
	if status != http.StatusOK {
		t.Fatalf("%s: %d", url, status)
	}
	sum := 0.0
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, begin)
		if !ok || !strings.ContainsAny(rest[:1], "{, }") {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sum += v
	}
	return sum
}
