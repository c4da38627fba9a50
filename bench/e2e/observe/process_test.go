//go:build e2e && linux

package observe_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
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
const patience = 3 * time.Minute

// start starts a program, which is asked to end with the test.
func start(t *testing.T, name string, argv ...string) *process.Process {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	p := process.Start(t, cmd)
	p.Name = name
	t.Cleanup(p.Stop)
	return p
}

// run runs a program to its end, and gives what it printed.
func run(t *testing.T, stdin string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// page is what a URL answers.
func page(t *testing.T, url string) string {
	t.Helper()
	text, err := process.Page(url)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// sum is process.Sum of a page that can be read.
func sum(t *testing.T, page, name string, words ...string) float64 {
	t.Helper()
	total, err := process.Sum(page, name, words...)
	if err != nil {
		t.Fatal(err)
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
	run(t, "", os.Getenv("E2E_PROMTOOL"), "check", "config", config)
	address := process.FreeAddress()
	server := start(t, "prometheus", os.Getenv("E2E_PROMETHEUS"), "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	p := prometheus{"http://" + address}
	server.Await(t, patience, process.Answers(p.url+"/-/ready"))
	return p
}

// query evaluates an expression now, and gives the values of its series by their labels.
func (p prometheus) query(expression string) (map[string]float64, error) {
	body, err := process.Page(p.url + "/api/v1/query?query=" + url.QueryEscape(expression))
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
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
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
