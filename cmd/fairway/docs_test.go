package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/discovery/file"
)

var fence = regexp.MustCompile("(?s)```(\\w*)\n(.*?)```")

// blocks are the fenced blocks of that language in README and docs, by page.
func blocks(t *testing.T, language string) map[string][]string {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%v, %v", pages, err)
	}
	found := make(map[string][]string)
	for _, page := range append(pages, "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
			if m[1] == language {
				found[filepath.Base(page)] = append(found[filepath.Base(page)], m[2])
			}
		}
	}
	return found
}

// Every fairway.yaml in the documentation is one that can be served.
func TestDocumentedFilesAreGood(t *testing.T) {
	n := 0
	for page, texts := range blocks(t, "yaml") {
		for _, text := range texts {
			if !strings.HasPrefix(text, "# fairway.yaml") {
				continue
			}
			n++
			if _, err := file.Parse(page, []byte(text)); err != nil {
				t.Error(err)
			}
		}
	}
	if n < 2 {
		t.Errorf("%d files found: this test shows little", n)
	}
}

// Every key of fairway.yaml that has a place of its own is documented.
func TestDocumentedKeys(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, text := range []string{"?: 1", "listen: {?: 1}", "log: {?: 1}", "auth: {?: 1}", "auth: {jwtRules: [{?: 1}]}", "policies: [{?: 1}]", "timeouts: {?: 1}", "limits: {?: 1}", "scrape: {?: 1}", "models: [{?: 1}]", "pools: [{?: 1}]", "pools: [{picker: {?: 1}}]"} {
		_, err := file.Parse("f", []byte(strings.Replace(text, "?", "unknown", 1)))
		m := regexp.MustCompile(`unknown key.*\(keys: (.*)\)`).FindStringSubmatch(err.Error())
		if m == nil {
			t.Fatalf("%s: %v", text, err)
		}
		for _, key := range strings.Split(m[1], ", ") {
			n++
			if key == "services" || key == "tls" && text[0] == '?' || key == "routes" {
				continue // not served yet
			}
			if !regexp.MustCompile("[`{\\s.,]" + key + "[`:\\[]").Match(page) {
				t.Errorf("%s: %s is not documented", text, key)
			}
		}
	}
	if n < 50 {
		t.Errorf("%d keys found: this test shows little", n)
	}
}

// Every command line in the documentation is one that the commands and the
// Makefile know.
func TestDocumentedCommandsExist(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for page, texts := range blocks(t, "sh") {
		for _, line := range strings.Split(strings.Join(texts, "\n"), "\n") {
			line, _, _ = strings.Cut(line, "#")
			words := strings.Fields(line)
			if len(words) < 2 {
				continue
			}
			switch words[0] {
			case "make":
				n++
				for _, target := range words[1:] {
					if !strings.Contains(target, "=") && !regexp.MustCompile("(?m)^"+target+":").Match(makefile) {
						t.Errorf("%s: the Makefile has no target %s", page, target)
					}
				}
			case "fairway", "bin/fairway":
				n++
				if code, _, says := call(t, append(words[1:], "--help")...); code != 0 {
					t.Errorf("%s: %s: %s", page, line, says)
				}
			}
		}
	}
	if n < 3 {
		t.Errorf("%d commands found: this test shows little", n)
	}
}

// Every flag of the commands that serve is documented, and every documented one
// exists.
func TestDocumentedFlags(t *testing.T) {
	for command, page := range map[string]string{"serve": "configuration.md", "epp": "endpoint-picker.md", "doctor": "doctor.md"} {
		t.Run(command, func(t *testing.T) { checkFlags(t, command, page) })
	}
}

func checkFlags(t *testing.T, command, name string) {
	page, err := os.ReadFile("../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	_, help, _ := call(t, command, "--help")
	flag := regexp.MustCompile(`--[a-z][a-z-]+`)
	documented := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `--[^|]*").FindAllString(string(page), -1) {
		for _, f := range flag.FindAllString(row, -1) {
			documented[f] = true
		}
	}
	flags := flag.FindAllString(help[strings.Index(help, "Flags:"):], -1)
	slices.Sort(flags)
	for _, f := range slices.Compact(flags) {
		if f != "--help" && !documented[f] {
			t.Errorf("%s is not documented", f)
		}
		delete(documented, f)
	}
	for f := range documented {
		t.Errorf("%s is documented and does not exist", f)
	}
}

// Every error the proxy answers with, and every reason it logs, is documented.
func TestDocumentedErrors(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("../../proxy/*.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, source := range append(sources, "../../proxy/account/account.go") {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`"(fairway_[a-z_]+|(?:client|upstream|tunnel)_[a-z]+)"`).FindAllStringSubmatch(string(text), -1) {
			if strings.HasSuffix(source, "account.go") && strings.HasPrefix(m[1], "fairway_") || m[1] == "upstream_host" || m[1] == "upstream_cluster" {
				continue // names of metrics and log fields
			}
			n++
			if !strings.Contains(string(page), "`"+m[1]+"`") {
				t.Errorf("%s: %s is not documented", filepath.Base(source), m[1])
			}
		}
	}
	if n < 10 {
		t.Errorf("%d found: this test shows little", n)
	}
}

// Every check of the doctor is documented, with its severity, and no other.
func TestDocumentedChecks(t *testing.T) {
	page, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| (?:problem|note) \\|").FindAllStringSubmatch(string(page), -1) {
		documented[m[1]] = true
	}
	found := make(map[string]bool)
	for _, source := range []string{"../../discovery/doctor/doctor.go", "../../discovery/doctor/examine.go", "doctor.go"} {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:find|differ)\((?:w\.severity|Problem|Note), "([a-z-]+)"|Check: "([a-z-]+)"`).FindAllStringSubmatch(string(text), -1) {
			found[m[1]+m[2]] = true
		}
	}
	if !maps.Equal(documented, found) || len(found) < 15 {
		t.Errorf("documented %v\nfound %v", slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(found)))
	}
}
