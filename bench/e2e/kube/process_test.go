//go:build e2e

package kube_test

import (
	"bytes"
	"io"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// patience is for a machine that does other things too.
const patience = 2 * time.Minute

// start runs a program until the end of the test; it returns when url answers 200.
func start(t *testing.T, url string, cmd *exec.Cmd) *process.Process {
	t.Helper()
	p := process.Start(t, cmd)
	p.Await(t, patience, process.Answers(url))
	return p
}

// lines is a writer that calls line with each one, when its end is written.
type lines struct {
	partial []byte // the line that has not ended
	line    func(text string, at time.Time)
}

func (l *lines) Write(text []byte) (int, error) {
	now := time.Now()
	l.partial = append(l.partial, text...)
	for {
		end := bytes.IndexByte(l.partial, '\n')
		if end < 0 {
			return len(text), nil
		}
		l.line(string(l.partial[:end]), now)
		l.partial = l.partial[end+1:]
	}
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
