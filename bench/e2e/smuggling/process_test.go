//go:build e2e

package smuggling_test

import (
	"bytes"
	"encoding/json"
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

// record is one request as a server behind Fairway saw it: Path is what it takes the target's path for, Forbidden what it
// has of a field that is forbidden.
type record struct {
	ID, Method, Target, Path, Forbidden, Host, Length, Coding, Body string
}

// server is a web server that keeps records.
type server struct {
	address string
	records string         // the file of them
	end     syscall.Signal // has it finish what it serves, and end
	*process.Process
}

// program finds what e2e.sh names in an environment variable, or else what stands in the PATH.
func program(t *testing.T, variable, name string) string {
	t.Helper()
	if path := os.Getenv(variable); path != "" {
		return path
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here: %v", name, err)
	}
	return path
}

// startUvicorn starts uvicorn with one of its HTTP parsers.
func startUvicorn(t *testing.T, parser string) *server {
	t.Helper()
	s := &server{address: process.FreeAddress(), records: filepath.Join(t.TempDir(), "record"), end: syscall.SIGTERM}
	host, port, _ := net.SplitHostPort(s.address)
	cmd := exec.Command(program(t, "E2E_UVICORN", "uvicorn"), "--http", parser, "--host", host, "--port", port, "--no-access-log", "app:app")
	cmd.Env = append(os.Environ(), "RECORD="+s.records)
	s.start(t, cmd)
	return s
}

func startNginx(t *testing.T) *server {
	t.Helper()
	path := program(t, "E2E_NGINX", "nginx")
	dir, err := os.MkdirTemp("", "fairway-nginx") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // its worker is another user
		t.Fatal(err)
	}
	s := &server{address: process.FreeAddress(), records: filepath.Join(dir, "record"), end: syscall.SIGQUIT}
	config, err := os.ReadFile("nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer("DIR", dir, "ADDRESS", s.address).Replace(string(config))
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(filled), 0o644); err != nil {
		t.Fatal(err)
	}
	s.start(t, exec.Command(path, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr"))
	return s
}

// start returns when the server takes connections.
func (s *server) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	s.Process = process.Start(t, cmd)
	s.Await(t, 5*time.Minute, process.Listens(s.address))
}

// stop ends the server and gives what it has seen.
func (s *server) stop(t *testing.T) []record {
	t.Helper()
	s.End(s.end)
	text, err := os.ReadFile(s.records)
	if err != nil {
		t.Fatal(err)
	}
	var all []record
	for line := range bytes.Lines(text) {
		var r record
		if err := json.Unmarshal([]byte(widen(line)), &r); err != nil {
			t.Fatalf("record %s: %v", line, err)
		}
		r.Target, r.Body = narrow(r.Target), narrow(r.Body)
		all = append(all, r)
	}
	return all
}

// widen makes a rune of each byte: nginx writes bytes as they are, which JSON does not. app.py widens them itself.
func widen(p []byte) string {
	runes := make([]rune, len(p))
	for i, c := range p {
		runes[i] = rune(c)
	}
	return string(runes)
}

// narrow undoes widen.
func narrow(s string) string {
	var p []byte
	for _, r := range s {
		p = append(p, byte(r))
	}
	return string(p)
}
