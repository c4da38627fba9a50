//go:build e2e && linux

// Package process runs the programs of end-to-end suites: it starts them, waits until they are up, keeps what they print, reads
// what they count and ends them.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that a suite started, and ends.
type Process struct {
	// Name is what messages call it: the base of its path, unless a suite gives it another.
	Name string
	// Cmd has its ID and, once it has ended, its state.
	Cmd *exec.Cmd
	// Ended is closed when it has.
	Ended <-chan struct{}

	output output
}

// Run starts a program in a process group of its own. What it prints is kept; a writer in cmd.Stdout has it too, and a file
// there has it alone. If this process dies it gets SIGKILL, or the Pdeathsig that cmd.SysProcAttr has.
func Run(cmd *exec.Cmd) (*Process, error) {
	ended := make(chan struct{})
	p := &Process{Name: filepath.Base(cmd.Path), Cmd: cmd, Ended: ended}
	switch w := cmd.Stdout.(type) {
	case nil:
		cmd.Stdout = &p.output
	case *os.File:
	default:
		cmd.Stdout = io.MultiWriter(&p.output, w)
	}
	cmd.Stderr = cmd.Stdout
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.Name, err)
	}
	go func() {
		_ = cmd.Wait() // how it ended is in its state
		close(ended)
	}()
	return p, nil
}

// Start is Run until the end of the test. If that fails, the end of what the program printed is told.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p, err := Run(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if text := p.Output(); t.Failed() && text != "" {
			t.Logf("%s printed, at the end:\n%s", p.Name, text[max(0, len(text)-10_000):])
		}
	})
	return p
}

// Output is what the program has printed so far.
func (p *Process) Output() string { return p.output.String() }

// Signal sends a signal, to the program alone. It may have ended.
func (p *Process) Signal(s syscall.Signal) { _ = p.Cmd.Process.Signal(s) }

// End sends a signal and waits for the program's end.
func (p *Process) End(s syscall.Signal) {
	p.Signal(s)
	<-p.Ended
}

// Stop asks the program to end and, if it has not within 20 seconds, ends it and all it started.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.Ended:
	case <-time.After(20 * time.Second):
	}
	p.Kill()
}

// Kill ends the program and all it started at once, as losing the machine does.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL) // nothing of it may be left
	<-p.Ended
}

// Await waits until up succeeds. The test ends if that takes longer than limit, or the program ends.
func (p *Process) Await(t testing.TB, limit time.Duration, up func() error) {
	t.Helper()
	Eventually(t, limit, func() error {
		t.Helper()
		select {
		case <-p.Ended:
			t.Fatalf("%s ended (%v) before it was up", p.Name, p.Cmd.ProcessState)
		default:
		}
		if err := up(); err != nil {
			return fmt.Errorf("%s is not up: %w", p.Name, err)
		}
		return nil
	})
}

// asking gives up, so that who polls does not hang on a program that is frozen.
var asking = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Answers succeeds when the URL answers with 200.
func Answers(url string) func() error {
	return func() error {
		r, err := asking.Get(url)
		if err != nil {
			return err
		}
		r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
		return nil
	}
}

// Listens succeeds when the address takes a TCP connection.
func Listens(address string) func() error {
	return func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err
	}
}

// Await polls until cond holds. The test ends if that takes longer than limit.
func Await(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	Eventually(t, limit, func() error {
		if !cond() {
			return fmt.Errorf("never came about: %s", what)
		}
		return nil
	})
}

// Eventually tries something until it succeeds, and tells how long that took, a tenth too much at most. The test ends if that is
// longer than limit.
func Eventually(t testing.TB, limit time.Duration, try func() error) time.Duration {
	t.Helper()
	for begin := time.Now(); ; {
		err := try()
		took := time.Since(begin)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("after %v: %v", took.Round(time.Millisecond), err)
		}
		time.Sleep(min(max(took/10, 5*time.Millisecond), 100*time.Millisecond))
	}
}

// output keeps what a program prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
