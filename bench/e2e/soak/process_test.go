//go:build e2e

package soak_test

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// patience is for a machine that does other things too.
const patience = time.Minute

// program is where e2e.sh has built a command.
func program(name string) string { return filepath.Join(cmp.Or(os.Getenv("E2E_BIN"), "."), name) }

// launch starts a program; what it says goes to log.
func launch(log *os.File, name string, args ...string) (*process.Process, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdout = log
	return process.Run(cmd)
}

// start launches a program that ends with the test, and returns when url answers 200.
func start(t *testing.T, log *os.File, url, name string, args ...string) *process.Process {
	t.Helper()
	p, err := launch(log, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	p.Await(t, patience, process.Answers(url))
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

// fairway is a running `fairway serve`.
type fairway struct {
	*process.Process
	http, metrics, admin string
	config               string
}

// startFairway runs a proxy with a configuration that says all but where it listens.
func startFairway(t *testing.T, log *os.File, config string) *fairway {
	t.Helper()
	f := &fairway{http: process.FreeAddress(), metrics: process.FreeAddress(), admin: process.FreeAddress(), config: filepath.Join(t.TempDir(), "fairway.yaml")}
	f.write(t, config)
	f.start(t, log)
	return f
}

func (f *fairway) start(t *testing.T, log *os.File) {
	t.Helper()
	f.Process = start(t, log, "http://"+f.metrics+"/healthz/ready", program("fairway"), "serve", "--config", f.config,
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
	before, _ := process.SumAt(page, "fairway_world_version")
	f.write(t, config)
	f.Signal(syscall.SIGHUP)
	process.Await(t, patience, "the configuration is in force", func() bool {
		now, err := process.SumAt(page, "fairway_world_version")
		return err == nil && now > before
	})
}
