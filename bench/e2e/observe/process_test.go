//go:build e2e && linux

package observe_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start starts a program in a process group of its own, which ends with the test. What it prints is told if the test fails.
func start(t *testing.T, name string, argv ...string) *exec.Cmd {
	t.Helper()
	logName := filepath.Join(t.TempDir(), name+".log")
	log, err := os.Create(logName)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		stop(cmd)
		if text, err := os.ReadFile(logName); t.Failed() && err == nil {
			t.Logf("%s said:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return cmd
}

// stop ends a program. It may be called again.
func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	ended := time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	_ = cmd.Wait() // how it ended does not matter
	ended.Stop()
}

// run runs a program to its end, and gives what it printed.
func run(t *testing.T, stdin []byte, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
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

// eventually tries something until it succeeds.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for give := time.Now().Add(3 * time.Minute); ; <-tick.C {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(give) {
			t.Fatal(err)
		}
	}
}

func get(url string) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return body, err
}

// await waits for a page to answer.
func await(t *testing.T, url string) {
	t.Helper()
	eventually(t, func() error { _, err := get(url); return err })
}

func mustGet(t *testing.T, url string) []byte {
	t.Helper()
	body, err := get(url)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// sum adds up the samples of a metrics page whose line begins with a prefix and holds all words.
func sum(t *testing.T, page []byte, prefix string, words ...string) float64 {
	t.Helper()
	total := 0.0
lines:
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		total += v
	}
	return total
}

// prometheus is a Prometheus that scrapes some addresses each second, by the alert rules of deploy/grafana.
type prometheus struct{ url string }

func startPrometheus(t *testing.T, targets ...string) prometheus {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs("../../../deploy/grafana/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%s]\nscrape_configs:\n  - job_name: fairway\n    static_configs: [{targets: [%s]}]\n",
		rules, strings.Join(targets, ", "))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, nil, os.Getenv("E2E_PROMTOOL"), "check", "config", config)
	address := freeAddress(t)
	start(t, "prometheus", os.Getenv("E2E_PROMETHEUS"), "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	p := prometheus{"http://" + address}
	await(t, p.url+"/-/ready")
	return p
}

// query evaluates an expression now, and gives the values of its series by their labels.
func (p prometheus) query(expression string) (map[string]float64, error) {
	body, err := get(p.url + "/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Status, Error string
		Data          struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, errors.New(answer.Error)
	}
	var series []struct {
		Metric map[string]string
		Value  [2]any
	}
	if err := json.Unmarshal(answer.Data.Result, &series); err != nil {
		return nil, fmt.Errorf("%s: %w", answer.Data.ResultType, err)
	}
	found := make(map[string]float64)
	for _, s := range series {
		var v float64
		fmt.Sscan(fmt.Sprint(s.Value[1]), &v) // NaN stays 0
		found[fmt.Sprint(s.Metric)] = v
	}
	return found, nil
}
