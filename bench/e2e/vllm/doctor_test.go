//go:build e2e && linux

package vllm_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// diagnosis is what `fairway doctor --json` says.
type diagnosis struct {
	OK   bool
	Pods []struct {
		Address, Version string
		Models           []string
		Findings         []struct{ Check, Severity, What, Cure string }
	}
	Pools []struct{ Check, Severity, What string }
}

// doctor examines engines as a configuration names them, and gives the exit code too.
func doctor(t *testing.T, config string) (d diagnosis, code int) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fairway.yaml")
	if err := os.WriteFile(name, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Getenv("E2E_FAIRWAY"), "doctor", "--json", "--timeout", "2m", "--config", name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
	return d, code
}

// testDoctor has nothing to find: the engines are started as they should be.
func testDoctor(t *testing.T, f *fleet) {
	d, code := doctor(t, "pools: [{name: p, endpoints: ["+f.engines[0].url()+", "+f.engines[1].url()+"]}]\n"+
		"models: [{name: tiny, pool: p}, {name: adapter-1, pool: p}, {name: adapter-2, pool: p}]\n")
	for _, p := range d.Pods {
		for _, f := range p.Findings {
			t.Errorf("%s: %+v", p.Address, f)
		}
		if !strings.HasPrefix(p.Version, "0.") || !slices.Contains(p.Models, "adapter-1") {
			t.Errorf("%+v", p)
		}
	}
	if !d.OK || code != 0 || len(d.Pods) != 2 {
		t.Errorf("exit code %d: %+v", code, d)
	}
}

// TestDoctor starts two engines in seven wrong ways, and has them found.
func TestDoctor(t *testing.T) {
	blind := startEngine(t, "blind", process.FreeAddress(),
		"--disable-log-stats", "--no-enable-prompt-tokens-details", "--max-model-len", "4096", "--api-key", "secret")
	t.Setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "1")
	forgetful := startEngine(t, "forgetful", process.FreeAddress(),
		"--no-enable-prefix-caching", "--block-size", "128", "--served-model-name", "another")
	blind.awaitUp(t)
	forgetful.awaitUp(t)
	config := "pools: [{name: p, endpoints: [" + blind.url() + ", " + forgetful.url() + "]}]\n" +
		"models: [{name: tiny, pool: p}, {name: adapter-1, pool: p}]\n"

	d, code := doctor(t, config) // without the key
	if !found(d, 0, "api-key", "problem") || code != 1 {
		t.Errorf("the API key was not asked for: %+v", d.Pods[0].Findings)
	}
	t.Setenv("OPENAI_API_KEY", "secret")
	d, code = doctor(t, config)
	if code != 1 || d.OK {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []struct {
		pod             int
		check, severity string
	}{
		{0, "metrics", "problem"},        // --disable-log-stats
		{0, "cached-tokens", "problem"},  // without --enable-prompt-tokens-details
		{1, "prefix-caching", "problem"}, // --no-enable-prefix-caching
		{1, "models", "problem"},         // --served-model-name
		{1, "keep-alive", "problem"},     // VLLM_HTTP_TIMEOUT_KEEP_ALIVE
		{1, "block-size", "note"},        // --block-size
	} {
		if !found(d, want.pod, want.check, want.severity) {
			t.Errorf("%s of pod %d was not found: %+v", want.check, want.pod, d.Pods[want.pod].Findings)
		}
	}
	for _, check := range []string{"pool-models", "pool-length"} { // --max-model-len
		if !slices.ContainsFunc(d.Pools, func(f struct{ Check, Severity, What string }) bool { return f.Check == check }) {
			t.Errorf("%s was not found: %+v", check, d.Pools)
		}
	}
	// Nothing else is wrong with them.
	if n, m := len(d.Pods[0].Findings), len(d.Pods[1].Findings); n != 2 || m != 4 {
		t.Errorf("%d and %d findings: %+v", n, m, d.Pods)
	}
}

func found(d diagnosis, pod int, check, severity string) bool {
	for _, f := range d.Pods[pod].Findings {
		if f.Check == check && f.Severity == severity && f.Cure != "" {
			return true
		}
	}
	return false
}
