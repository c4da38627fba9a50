package main_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/fairway-proxy/fairway"

// moduleRoot is the module's directory, seen from this package's.
const moduleRoot = "../.."

// rule is what one package may import in its non-test files. Arrows run one way:
// cmd → discovery, bench → proxy → picker, mtls.
type rule struct {
	may   []string // packages of ours, relative to the module; "all" is every one
	never bans
}

// bans maps an import path, or "path/..." for a tree, to the reason why it may not be imported.
type bans map[string]string

var (
	nowhere = bans{
		"github.com/valyala/fasthttp/...": "fasthttp is the reference of differential tests, and of nothing else",
	}
	noHTTPVersion = bans{
		"net/http/...":               "what an exchange needs of HTTP is in proxy.Stream and proxy/message, whatever the version",
		"golang.org/x/net/http2/...": "what an exchange needs of HTTP is in proxy.Stream and proxy/message, whatever the version",
	}
	noHTTPServer = bans{
		"net/http/...": "the data path speaks HTTP on its own sockets",
	}
	noOutside = bans{
		"net":          "it decides from its arguments alone, so that a simulation can drive it in virtual time",
		"net/http/...": "it decides from its arguments alone, so that a simulation can drive it in virtual time",
		"os/...":       "it decides from its arguments alone, so that a simulation can drive it in virtual time",
	}
)

// rules has a line for every package there is; one without a line fails the test, so that
// a new package gets its rule with its first file.
var rules = map[string]rule{
	"cmd/fairway":      {may: []string{"all"}},
	"cmd/mockvllm":     {may: []string{"bench/engine", "bench/mock", "cmd/internal/cli"}},
	"cmd/internal/cli": {},
	"cmd/loadtest":     {may: []string{"cmd/internal/cli", "bench/load", "bench/report", "bench/sim", "bench/workload", "picker"}},

	"discovery/doctor": {may: []string{"discovery/scrape", "picker", "proxy/message", "proxy/upstream"}},
	"discovery/file":   {may: []string{"mtls", "picker/queue", "proxy", "proxy/authz", "proxy/extauthz", "proxy/message", "proxy/normalize", "proxy/route", "watch"}},
	"discovery/kube":   {may: []string{"proxy", "proxy/authz", "proxy/message", "proxy/route"}},
	"discovery/scrape": {may: []string{"picker"}},

	"proxy": {
		may: []string{"picker", "picker/prefix", "picker/queue", "proxy/account", "proxy/authz", "proxy/extauthz", "proxy/extproc", "proxy/h1", "proxy/h2",
			"proxy/hbone", "proxy/message", "proxy/openai", "proxy/route", "proxy/sock", "proxy/turn", "proxy/upstream"},
		never: noHTTPVersion,
	},
	"proxy/account":   {},
	"proxy/admin":     {may: []string{"proxy/account"}},
	"proxy/authz":     {may: []string{"proxy/message", "proxy/normalize"}},
	"proxy/dashboard": {may: []string{"proxy/account"}},
	"proxy/extauthz":  {may: []string{"proxy/message"}},
	"proxy/extproc":   {may: []string{"proxy/message", "proxy/rpc", "proxy/sock"}},
	"proxy/flood":     {never: noHTTPServer},
	"proxy/h1":        {may: []string{"proxy/message", "proxy/sock", "proxy/turn"}},
	"proxy/h2":        {may: []string{"proxy/flood", "proxy/message", "proxy/sock", "proxy/turn"}},
	"proxy/hbone":     {may: []string{"mtls", "proxy/flood", "proxy/sock"}},
	"proxy/message":   {never: noHTTPVersion},
	"proxy/normalize": {never: noHTTPVersion},
	"proxy/openai":    {may: []string{"picker/prefix"}, never: noHTTPVersion},
	"proxy/rpc":       {may: []string{"proxy/flood"}, never: noHTTPServer},
	"proxy/route":     {may: []string{"proxy/message", "proxy/normalize"}, never: noHTTPVersion},
	"proxy/sock":      {never: noHTTPServer},
	"proxy/turn":      {never: noHTTPServer},
	"proxy/upstream":  {may: []string{"proxy/h1", "proxy/h2", "proxy/message", "proxy/sock"}, never: noHTTPServer},

	"picker":        {may: []string{"picker/prefix"}, never: noOutside},
	"picker/prefix": {never: noOutside},
	"picker/queue":  {may: []string{"picker"}, never: noOutside},

	"mtls":  {may: []string{"watch"}},
	"watch": {},

	"bench/e2e/process": {},
	"bench/e2e/ztunnel": {},
	"bench/engine":      {never: noOutside},
	"bench/load":        {may: []string{"bench/workload"}},
	"bench/mock":        {may: []string{"bench/engine"}},
	"bench/proxies":     {may: []string{"bench/e2e/ztunnel"}},
	"bench/report":      {},
	"bench/sim":         {may: []string{"bench/engine", "bench/workload", "picker", "picker/prefix", "picker/queue"}},
	"bench/workload":    {},
}

// A package with one of these names is a drawer for what nobody found a place for.
var banned = []string{"common", "helper", "helpers", "misc", "type", "types", "util", "utils"}

func TestImports(t *testing.T) {
	imports := importsByPackage(t)
	if len(imports) < 5 {
		t.Fatalf("found only %d packages under %s: the rules are not being checked", len(imports), moduleRoot)
	}
	for _, pkg := range slices.Sorted(maps.Keys(imports)) {
		if slices.Contains(banned, path.Base(pkg)) {
			t.Errorf("package %s: name it after its job; %q says nothing", pkg, path.Base(pkg))
		}
		r, known := rules[pkg]
		if !known {
			t.Errorf("package %s has no import rule: give it one in rules", pkg)
			continue
		}
		for _, may := range r.may {
			if may != "all" && !slices.Contains(imports[pkg], module+"/"+may) {
				t.Errorf("package %s may import %s and does not: take that out of its rule", pkg, may)
			}
		}
		for _, imported := range imports[pkg] {
			if why := r.breach(imported); why != "" {
				t.Errorf("package %s imports %s: %s", pkg, imported, why)
			}
		}
	}
}

// breach says why a package under the rule may not import a path, or nothing if it may.
func (r rule) breach(imported string) string {
	for _, never := range []bans{nowhere, r.never} {
		if why := never.reason(imported); why != "" {
			return why
		}
	}
	ours, ok := strings.CutPrefix(imported, module+"/")
	if !ok || slices.Contains(r.may, "all") || slices.Contains(r.may, ours) {
		return ""
	}
	if len(r.may) == 0 {
		return "it stands alone, on nothing of ours"
	}
	return "of ours it may import only " + strings.Join(r.may, ", ")
}

func (b bans) reason(imported string) string {
	for banned, why := range b {
		if tree, ok := strings.CutSuffix(banned, "/..."); imported == tree || ok && strings.HasPrefix(imported, tree+"/") {
			return why
		}
	}
	return ""
}

func TestImportsRuleBreach(t *testing.T) {
	r := rule{may: []string{"picker"}, never: bans{"net/...": "no network", "os": "no files"}}
	for _, c := range []struct {
		imported string
		breach   bool
	}{
		{"strings", false},
		{"net", true},
		{"net/http", true},
		{"network", false},
		{"os", true},
		{"os/signal", false},
		{"github.com/valyala/fasthttp", true},
		{module + "/picker", false},
		{module + "/picker/prefix", true},
		{module + "/proxy", true},
	} {
		if got := r.breach(c.imported); (got != "") != c.breach {
			t.Errorf("breach(%q) = %q, want a breach: %t", c.imported, got, c.breach)
		}
	}
}

// importsByPackage reads the import clauses of every non-test file of the module, whatever
// its build constraints. Keys are relative to the module.
func importsByPackage(t *testing.T) map[string][]string {
	imports := map[string][]string{}
	err := filepath.WalkDir(moduleRoot, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			base := entry.Name()
			if name != moduleRoot && (base == "testdata" || base == "bin" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(moduleRoot, filepath.Dir(name))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		found := imports[pkg] // stored below even if empty: a package without imports needs a rule too
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			found = append(found, imported)
		}
		imports[pkg] = found
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range imports {
		slices.Sort(imports[pkg])
		imports[pkg] = slices.Compact(imports[pkg])
	}
	return imports
}
