//go:build e2e && linux

package observe_test

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commands are the fenced sh blocks of a page's section.
func commands(t *testing.T, page, section string) []string {
	t.Helper()
	text, err := os.ReadFile("../../../" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+section+"\n")
	if !found {
		t.Fatalf("%s has no section %q", page, section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var all []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(rest, -1) {
		all = append(all, m[1])
	}
	return all
}

// What getting-started.md has a newcomer type does what it says, as it stands there, in a network of its own. Commands that
// go on for ever are those of terminals of their own.
func TestGettingStarted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a network of its own takes root")
	}
	if out, err := exec.Command("unshare", "-n", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("no network of its own: %v: %s", err, out)
	}
	script := "ip link set lo up\n"
	for _, block := range commands(t, "docs/getting-started.md", "On a laptop") {
		switch {
		case strings.HasPrefix(block, "bin/mockvllm"), strings.HasPrefix(block, "bin/fairway serve"):
			script += strings.TrimSpace(block) + " &\n"
			if strings.HasPrefix(block, "bin/fairway serve") {
				script += "for i in $(seq 600); do curl -sf http://127.0.0.1:15020/healthz/ready && break; sleep 0.1; done\n"
			}
		default:
			script += block
		}
	}
	// A receipt is there once its request has been accounted for, a moment after its last byte.
	script = strings.Replace(script, "bin/fairway explain", "sleep 1\nbin/fairway explain", 1)
	script += "curl -sSf http://127.0.0.1:15000/ | grep -c '<title>Fairway</title>'\n"

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "-n", "bash", "-c", "set -e; trap 'kill $(jobs -p)' EXIT\n"+script)
	cmd.Dir = "../../.."
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	defer func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }() // whatever is left of it
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	for _, want := range []string{"data: [DONE]", "It went to 127.0.0.1:800", "no problem found", "the scores are as good as equal; the prompt's hash decides"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s\nsaid:\n%s", script, out)
	}
}
