//go:build e2e && linux

package observe_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const root = "../../../"

// elsewhere are the documented commands that are not run here, by page and how their lines begin, and what runs them instead: a
// test that reads the page, or nothing, and then why. All others are. Targets that .ci/run has need no row.
var elsewhere = []struct{ page, line, test, why string }{
	{"docs/getting-started.md", "docker compose ", "deploy/compose/e2e_test.go", ""},
	{"docs/getting-started.md", "kubectl ", "", "a port is forwarded by a kubelet, which e2e-kube has none of"},
	{"docs/install.md", "", "bench/e2e/kube/install_test.go", ""},
	{"docs/kubernetes.md", "fairway serve --kubernetes", "bench/e2e/kube/docs_test.go", ""},
	{"docs/doctor.md", "fairway doctor --kubernetes", "bench/e2e/kube/docs_test.go", ""},
	{"docs/performance.md", "make bench", "", "a measurement of minutes, for a machine that does nothing else"},
	{"docs/routing.md", "make bench-", "", "a measurement of half an hour, for a machine that does nothing else"},
}

// shorter is what is added to commands that would take minutes: the last of two flags counts.
var shorter = map[string]string{
	"bin/loadtest run ":     " --duration 2s --warmup 0s",
	"bin/loadtest compare ": " --seeds 1 --warmup 2s --measure 5s",
	"go test ":              " -benchtime 1x",
}

// before are the circumstances of a page that its words tell of, beside those that begin has.
var before = map[string]string{
	"docs/ambient.md":       `block docs/ambient.md 0 | sed 's#\[{url: "hbone:.*}\]#[http://127.0.0.1:8000]#' >fairway.yaml`,
	"docs/configuration.md": "ask 5f0c3a9d2b7e4c61a8f0d3b25e6c7a94",
	"docs/kubernetes.md":    "cp -r deploy/kubernetes manifests",
	"docs/operations.md":    "ask my-first",
	"docs/overload.md":      "block docs/overload.md 0 >>fairway.yaml; daemon fairway serve --config fairway.yaml",
}

// says is what has to be among what a page's commands print.
var says = map[string][]string{
	"docs/ambient.md":         {`"id":"mock"`},
	"docs/configuration.md":   {"POST /v1/chat/completions  5f0c3a9d2b7e4c61a8f0d3b25e6c7a94@fairway-7d9f6"},
	"docs/doctor.md":          {"no problem found"},
	"docs/getting-started.md": {"data: [DONE]", "It went to 127.0.0.1:800", "no problem found", "the scores are as good as equal; the prompt's hash decides"},
	"docs/operations.md":      {"my-first@fairway-7d9f6"},
	"docs/routing.md":         {"oracle"},
}

// begin makes what pages speak of, in namespaces of their own: two engines at 10.0.0.1 and 10.0.0.2, a fairway.yaml that names
// them, and a Fairway that serves it. A daemon is up when it says that it is ready, and takes the place of the one before it.
const begin = `
set -eo pipefail -m
ip link set lo up
ip addr add 10.0.0.1/32 dev lo
ip addr add 10.0.0.2/32 dev lo
hostname fairway-7d9f6
PATH=$PWD/bin:$PATH proxy=
curl() { command curl --retry 30 --retry-delay 1 --retry-connrefused "$@"; }
engine() { "$@" & curl -sS "http://${3/#:/127.0.0.1:}/health"; }
daemon() {
	[ -z "$proxy" ] || { kill -- -$proxy; wait $proxy || true; }
	"$@" &
	proxy=$!
	until command curl -sf -o /dev/null http://127.0.0.1:15020/healthz/ready; do kill -0 $proxy; sleep 0.1; done
}
ask() {
	curl -sS -o /dev/null http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -H "X-Request-Id: $1" \
		-d '{"model":"llama","max_tokens":1,"messages":[{"role":"user","content":"Where did this go?"}]}'
}
accounted() { until fairway explain "${1%@*}" >/dev/null 2>&1; do sleep 0.1; done; }
block() { awk -v n="$2" '/^` + "```" + `$/ { on = 0 } on { print } /^` + "```" + `yaml$/ { on = i++ == n }' "$1"; }
engine mockvllm --listen 10.0.0.1:8000 --model llama
engine mockvllm --listen 10.0.0.2:8000 --model llama
echo 'pools: [{name: llama, endpoints: [http://10.0.0.1:8000, http://10.0.0.2:8000]}]' >fairway.yaml
daemon fairway serve --config fairway.yaml
`

// What README and docs have people type does what they say, as it stands there, in a copy of this repository and namespaces of
// its own. A command that is not run here has to be named above.
func TestDocumentedCommands(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a network of its own takes root")
	}
	if out, err := exec.Command("unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("no namespaces: %v: %s", err, out)
	}
	clone := copyOfThis(t)
	if out, err := exec.Command("make", "-C", clone, "build").CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	targets := targetsOfCI(t)
	pages, err := filepath.Glob(root + "docs/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%v, %v", pages, err)
	}
	used := make(map[int]bool)
	n := 0
	for _, path := range append(pages, root+"README.md", root+"CONTRIBUTING.md") {
		page := strings.TrimPrefix(path, root)
		script := scriptOf(t, page, targets, used)
		if script == "" {
			continue
		}
		n++
		t.Run(strings.ReplaceAll(page, "/", " "), func(t *testing.T) {
			out, err := inNamespaces(t, clone, begin+before[page]+"\n"+script)
			if err != nil {
				t.Error(err)
			}
			for _, want := range says[page] {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if t.Failed() {
				t.Logf("%s\nsaid:\n%s", script, out)
			}
		})
	}
	if n < 9 {
		t.Errorf("commands of %d pages were run: this test shows little", n)
	}
	for i, e := range elsewhere {
		if !used[i] {
			t.Errorf("%s has no command %q", e.page, e.line)
		}
		if e.test == "" {
			continue
		}
		if text, err := os.ReadFile(root + e.test); err != nil || !strings.Contains(string(text), e.page) {
			t.Errorf("%s does not read %s (%v)", e.test, e.page, err)
		}
	}
}

// scriptOf makes a page's fenced sh blocks a script that ends: what serves until it is stopped goes to the background, and what
// would take minutes is made shorter.
func scriptOf(t *testing.T, page string, targets []string, used map[int]bool) string {
	text, err := os.ReadFile(root + page)
	if err != nil {
		t.Fatal(err)
	}
	comment, serves := regexp.MustCompile(`(^|\s+)# .*`), regexp.MustCompile(`^(make demo|(bin/)?fairway (serve|epp)\b)`)
	var script strings.Builder
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
	lines:
		for _, line := range strings.Split(strings.ReplaceAll(m[1], "\\\n", ""), "\n") {
			line = strings.TrimRight(comment.ReplaceAllString(line, ""), " ")
			if target, ok := strings.CutPrefix(line, "make "); ok && slices.Contains(targets, target) {
				continue
			}
			for i, e := range elsewhere {
				if line != "" && e.page == page && strings.HasPrefix(line, e.line) {
					used[i] = true
					continue lines
				}
			}
			for begins, more := range shorter {
				if strings.HasPrefix(line, begins) {
					line += more
				}
			}
			switch words := strings.Fields(line); {
			case serves.MatchString(line):
				line = "daemon " + strings.TrimSuffix(line, " &")
			case strings.HasPrefix(line, "bin/mockvllm "):
				line = "engine " + strings.TrimSuffix(line, " &")
			case len(words) > 2 && words[1] == "explain":
				line = "accounted " + words[2] + "\n" + line
			}
			fmt.Fprintln(&script, line)
		}
	}
	return strings.TrimSpace(script.String())
}

// targetsOfCI are the targets of the Makefile that .ci/run has made, and those that they need.
func targetsOfCI(t *testing.T) (all []string) {
	run, err := os.ReadFile(root + ".ci/run")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(root + "Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^suite .* ([a-z0-9-]+)$`).FindAllStringSubmatch(string(run), -1) {
		needs := regexp.MustCompile(`(?m)^` + m[1] + `:([a-z0-9 -]*)`).FindStringSubmatch(string(makefile))
		if needs == nil {
			t.Fatalf(".ci/run makes %s, which the Makefile does not know", m[1])
		}
		all = append(append(all, m[1]), strings.Fields(needs[1])...)
	}
	if !slices.Contains(all, "e2e-observe") {
		t.Fatalf(".ci/run makes only %v", all)
	}
	return all
}

// copyOfThis is this repository as somebody who clones it has it, with what is not committed yet.
func copyOfThis(t *testing.T) string {
	dir := t.TempDir()
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names), "\x00"), "\x00") {
		info, err := os.Lstat(root + name)
		if os.IsNotExist(err) {
			continue // removed, and that is not committed yet
		}
		if err != nil || info.Mode().Type()&^fs.ModeSymlink != 0 {
			t.Fatalf("%s: %v", name, err)
		}
		content, err := os.ReadFile(root + name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), content, info.Mode().Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inNamespaces has bash run a script, and gives what it printed. Whatever it has started ends with it.
func inNamespaces(t *testing.T, dir, script string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script)
	cmd.Dir = dir
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}
