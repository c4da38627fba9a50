package main

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
		found[filepath.Base(page)] = nil
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

// Every key of fairway.yaml, however deep, is documented: what the reader takes is found out by asking it.
func TestDocumentedKeys(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var look func(path, around string)
	look = func(path, around string) {
		for _, at := range []string{"{?: 1}", "[{?: 1}]"} {
			inner := strings.Replace(around, "?: 1", at, 1)
			if path == "" {
				inner = "{?: 1}"
			}
			_, err := file.Parse("f", []byte(strings.Replace(inner, "?", "no-such-key", 1)))
			if err == nil {
				t.Fatalf("%s is taken", inner)
			}
			m := regexp.MustCompile(`unknown key[^\n]*\(keys: (.*)\)`).FindStringSubmatch(err.Error())
			if m == nil {
				continue // nothing that has keys
			}
			for _, key := range strings.Split(m[1], ", ") {
				n++
				if !regexp.MustCompile("[`{\\s.,\\[]" + key + "[`:\\[]").Match(page) {
					t.Errorf("%s.%s is not documented", path, key)
				}
				look(path+"."+key, strings.Replace(inner, "?: 1", key+": ?: 1", 1))
			}
			return
		}
	}
	look("", "")
	if n < 150 {
		t.Errorf("%d keys found: this test shows little", n)
	}
}

// Every command in the documentation, in a block or within a sentence, is one that the commands and the Makefile know, with
// its flags. That those of the blocks do what the pages say is shown by bench/e2e/observe.
func TestDocumentedCommandsExist(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for page, texts := range blocks(t, "sh") {
		for _, line := range append(strings.Split(strings.Join(texts, "\n"), "\n"), inline(t, page)...) {
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
				code, help, says := call(t, words[1], "--help")
				if code != 0 {
					t.Errorf("%s: %s: %s", page, line, says)
				}
				for _, word := range words[2:] {
					if name, _, _ := strings.Cut(word, "="); strings.HasPrefix(name, "-") && !regexp.MustCompile(`(^|\s)`+name+`[\s,]`).MatchString(help) {
						t.Errorf("%s: %s: there is no %s", page, line, name)
					}
				}
			}
		}
	}
	if n < 50 {
		t.Errorf("%d commands found: this test shows little", n)
	}
}

// inline are the pieces of code within a page's sentences.
func inline(t *testing.T, page string) (all []string) {
	name := "../../docs/" + page
	if page == "README.md" || page == "CONTRIBUTING.md" {
		name = "../../" + page
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllSubmatch(fence.ReplaceAll(text, nil), -1) {
		all = append(all, string(m[1]))
	}
	return all
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

// Every reason the proxy logs is documented, those that are no error's type too.
func TestDocumentedReasons(t *testing.T) {
	page, err := os.ReadFile("../../docs/errors.md")
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

// Every error that a client can be answered with is in docs/errors.md, with its status and fields, and nothing else is.
// That each comes as the page has it is held in package proxy.
func TestDocumentedErrors(t *testing.T) {
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool) // "type status" and "type status Retry-After"
	for _, m := range regexp.MustCompile("(?m)^\\| `(fairway_\\w+)` \\| ([0-9, ]+) \\| (.*?) \\|").FindAllStringSubmatch(string(page), -1) {
		for _, status := range strings.Split(m[2], ", ") {
			documented[strings.TrimSpace(m[1]+" "+status+" "+map[bool]string{true: "Retry-After"}[strings.Contains(m[3], "Retry-After")])] = true
		}
	}
	errors := make(map[string]bool)
	byProtocol := protocolStatuses(t)
	for _, e := range literals(t, "../../proxy", "Error") {
		typ, ok := e["Type"]
		if !ok {
			continue
		}
		statuses := []string{e["Status"]}
		if e["Status"] == "status" { // what package h1 or h2 says
			statuses = byProtocol
		}
		if e["Status"] == "…" { // what an authorizer's statusOnError says; by default that
			statuses = []string{"403"}
		}
		for _, status := range statuses {
			line := strings.Trim(typ, `"`) + " " + status
			if e["RetryAfter"] != "" {
				line += " Retry-After"
			}
			errors[line] = true
		}
	}
	if len(errors) < 20 {
		t.Fatalf("found only %v", errors)
	}
	for line := range errors {
		if !documented[line] {
			t.Errorf("docs/errors.md does not have %s", line)
		}
	}
	for line := range documented {
		if !errors[line] {
			t.Errorf("docs/errors.md has %s, which no request is answered with", line)
		}
	}
}

// protocolStatuses are the statuses for what breaks the rules of HTTP.
func protocolStatuses(t *testing.T) (all []string) {
	for _, dir := range []string{"../../proxy/h1", "../../proxy/h2"} {
		for _, e := range literals(t, dir, "ProtocolError") {
			if status := e["0"]; len(status) == 3 {
				all = append(all, status)
			}
		}
	}
	return all
}

// literals are the composite literals of a type in the Go files of a directory: each its members as they are written, constants
// of the package resolved; members without a name are by their place.
func literals(t *testing.T, dir, name string) (all []map[string]string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	constants := make(map[string]string)
	fset := token.NewFileSet()
	var parsed []*ast.File
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, file)
		ast.Inspect(file, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == len(v.Values) {
				for i, id := range v.Names {
					if lit, ok := v.Values[i].(*ast.BasicLit); ok {
						constants[id.Name] = lit.Value
					}
				}
			}
			return true
		})
	}
	written := func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BasicLit:
			return e.Value
		case *ast.Ident:
			return cmp.Or(constants[e.Name], e.Name)
		}
		return "…"
	}
	for _, file := range parsed {
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if id, ok := lit.Type.(*ast.Ident); !ok || id.Name != name {
				return true
			}
			members := make(map[string]string)
			for i, e := range lit.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					members[written(kv.Key)] = written(kv.Value)
				} else {
					members[strconv.Itoa(i)] = written(e)
				}
			}
			all = append(all, members)
			return true
		})
	}
	return all
}
