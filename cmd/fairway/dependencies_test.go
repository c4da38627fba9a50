package main_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// requirement is a module's line in go.mod, inside of a require block or alone.
	requirement = regexp.MustCompile(`^(?:require )?\s*(\S+\.\S+/\S+) (v\S+)\s*(// indirect)?$`)
	// tableRow is a module's row in docs/dependencies.md: | `path` | version | reason |
	tableRow = regexp.MustCompile("^\\| `([^`]+)` \\| (v\\S+) \\| (\\S.*) \\|$")
)

// A dependency comes with its reason: docs/dependencies.md and go.mod name the same direct ones.
func TestDependencies(t *testing.T) {
	required := map[string]string{}
	for _, line := range readLines(t, "go.mod") {
		if m := requirement.FindStringSubmatch(line); m != nil && m[3] == "" {
			required[m[1]] = m[2]
		}
	}
	explained := map[string]string{}
	for _, line := range readLines(t, "docs/dependencies.md") {
		if m := tableRow.FindStringSubmatch(line); m != nil {
			explained[m[1]] = m[2]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(required)) {
		if explained[name] != required[name] {
			t.Errorf("go.mod requires %s %s, docs/dependencies.md says %q: give it a row with this version and a reason", name, required[name], explained[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(explained)) {
		if required[name] == "" {
			t.Errorf("docs/dependencies.md explains %s, which go.mod does not require directly: remove its row", name)
		}
	}
}

func readLines(t *testing.T, name string) []string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(moduleRoot, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(content), "\n")
}
