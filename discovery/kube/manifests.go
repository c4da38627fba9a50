package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	strict "sigs.k8s.io/json"
)

// maxManifest is the largest file read, in bytes.
const maxManifest = 16 << 20

// Manifests are objects read from files. What is wrong with a file, and what is
// said in Findings of its objects, is told with file and line.
type Manifests struct {
	Objects Objects
	// Others are the objects of kinds that are not read, counted.
	Others int
	// Problems are what could not be read, each beginning with file and line.
	Problems []string

	sources map[string]source // of objects, by kind and key
}

// source is where an object was read.
type source struct {
	file string
	root *yaml.Node
}

// IsManifest tells whether a file holds a Kubernetes object, rather than a
// configuration of Fairway's own: some document of it says its apiVersion.
func IsManifest(data []byte) bool {
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var n yaml.Node
		if dec.Decode(&n) != nil {
			return false
		}
		if lookUp(&n, "apiVersion") != nil {
			return true
		}
	}
}

// ReadManifests reads a file, or the .yaml, .yml and .json files below a directory.
func ReadManifests(path string) (*Manifests, error) {
	m := &Manifests{sources: make(map[string]source)}
	err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name != path && !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			return err
		}
		return m.read(name)
	})
	return m, err
}

func (m *Manifests) read(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return err
	}
	if len(data) > maxManifest {
		return fmt.Errorf("%s: larger than %d bytes: not read", name, maxManifest)
	}
	m.Add(name, data)
	return nil
}

// Empty tells whether there was nothing to read.
func (m *Manifests) Empty() bool { return len(m.sources)+m.Others+len(m.Problems) == 0 }

// Add reads the objects of one file.
func (m *Manifests) Add(name string, data []byte) {
	if m.sources == nil {
		m.sources = make(map[string]source)
	}
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			m.Problems = append(m.Problems, name+":"+strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "line "))
			return
		}
		m.document(name, doc.Content[0])
	}
}

func (m *Manifests) document(file string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	if items := lookUp(n, "items"); items != nil && strings.HasSuffix(scalar(n, "kind"), "List") && items.Kind == yaml.SequenceNode {
		for _, item := range items.Content {
			m.document(file, item)
		}
		return
	}
	group, _, ok := strings.Cut(scalar(n, "apiVersion"), "/")
	if !ok {
		group = ""
	}
	kind := scalar(n, "kind")
	o := &m.Objects
	read, known := map[string]func(*Manifests, string, *yaml.Node){
		"inference.networking.k8s.io InferencePool": into(&o.Pools),
		alphaGroup + " InferencePool":               into(&o.AlphaPools),
		alphaGroup + " InferenceModel":              into(&o.Models),
		alphaGroup + " InferenceObjective":          into(&o.Objectives),
		alphaGroup + " InferenceModelRewrite":       into(&o.Rewrites),
		"llm-d.ai InferenceObjective":               into(&o.Objectives),
		"llm-d.ai InferenceModelRewrite":            into(&o.Rewrites),
		gatewayv1.GroupName + " HTTPRoute":          into(&o.Routes),
		gatewayv1.GroupName + " ReferenceGrant":     into(&o.Grants),
		gatewayv1.GroupName + " Gateway":            into(&o.Gateways),
		gatewayv1.GroupName + " GatewayClass":       into(&o.Classes),
		" Service":                                  into(&o.Services),
		"discovery.k8s.io EndpointSlice":            into(&o.Slices),
		" Pod":                                      into(&o.Pods),
		" Namespace":                                into(&o.Namespaces),
		"security.istio.io AuthorizationPolicy":     into(&o.Policies),
		"security.istio.io RequestAuthentication":   into(&o.Policies),
	}[group+" "+kind]
	switch {
	case kind == "" || scalar(n, "apiVersion") == "":
		m.problem(file, n.Line, "no Kubernetes object: want apiVersion and kind")
	case !known:
		m.Others++
	default:
		read(m, file, n)
	}
}

func (m *Manifests) problem(file string, line int, format string, args ...any) {
	m.Problems = append(m.Problems, fmt.Sprintf("%s:%d: %s", file, line, fmt.Sprintf(format, args...)))
}

// into reads an object into the list of its kind.
func into[T any](list *[]*T) func(*Manifests, string, *yaml.Node) {
	return func(m *Manifests, file string, n *yaml.Node) {
		kind, name := scalar(n, "kind"), scalar(n, "metadata.name")
		if name == "" {
			m.problem(file, n.Line, "%s: metadata.name: missing", kind)
			return
		}
		in := scalar(n, "metadata.namespace")
		if in == "" {
			in = corev1.NamespaceDefault
		}
		id := kind + " " + in + "/" + name
		if group, _, ok := strings.Cut(scalar(n, "apiVersion"), "/"); ok && group == alphaGroup && kind == "InferencePool" {
			id = alphaGroup + " " + id // may stand beside the one of v1
		}
		if first, twice := m.sources[id]; twice {
			m.problem(file, n.Line, "%s: the same object as at %s:%d", id, first.file, first.root.Line)
			return
		}
		var v any
		if err := n.Decode(&v); err != nil {
			m.problem(file, n.Line, "%s: %v", id, err)
			return
		}
		raw, err := json.Marshal(v)
		if err != nil {
			m.problem(file, n.Line, "%s: %v", id, err)
			return
		}
		object := new(T)
		unknown, err := strict.UnmarshalStrict(raw, object)
		if err != nil {
			m.problem(file, lineOf(n, pathIn(err.Error())), "%s: %v", id, err)
			return
		}
		for _, u := range unknown {
			m.problem(file, lineOf(n, pathIn(u.Error())), "%s: %v", id, u)
		}
		m.sources[id] = source{file, n}
		*list = append(*list, object)
	}
}

// pathIn is the path that an error of the JSON reader names in quotes, or as the
// field of a Go struct.
func pathIn(text string) string {
	if _, rest, ok := strings.Cut(text, `unknown field "`); ok {
		path, _, _ := strings.Cut(rest, `"`)
		return path
	}
	if _, rest, ok := strings.Cut(text, "into Go struct field "); ok {
		path, _, _ := strings.Cut(rest, " ")
		_, path, _ = strings.Cut(path, ".")
		return path
	}
	return ""
}

// Where tells the file and line that a finding is about; "" if its object was not
// read from a file.
func (m *Manifests) Where(f Finding) string {
	id := f.Kind + " " + f.Namespace + "/" + f.Name
	s, ok := m.sources[id]
	if !ok {
		s, ok = m.sources[alphaGroup+" "+id]
	}
	if !ok {
		return ""
	}
	return s.file + ":" + strconv.Itoa(lineOf(s.root, f.Path))
}

// lineOf is where a path such as "spec.rules[0].matches" stands, or else what
// holds it.
func lineOf(n *yaml.Node, path string) int {
	for path != "" {
		if at, line := lookUpLine(n, path); at != nil {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return n.Line
}

// lookUp finds the value at a path, nil if there is none.
func lookUp(n *yaml.Node, path string) *yaml.Node {
	at, _ := lookUpLine(n, path)
	return at
}

// lookUpLine gives the line of the key, too.
func lookUpLine(n *yaml.Node, path string) (*yaml.Node, int) {
	if n.Kind == yaml.DocumentNode {
		n = n.Content[0]
	}
	line := n.Line
	for path != "" {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if inner, ok := strings.CutPrefix(path, "["); ok {
			number, rest, _ := strings.Cut(inner, "]")
			i, err := strconv.Atoi(number)
			if err != nil || n.Kind != yaml.SequenceNode || i < 0 || i >= len(n.Content) {
				return nil, 0
			}
			n, path = n.Content[i], strings.TrimPrefix(rest, ".")
			line = n.Line
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		name := path[:end]
		path = strings.TrimPrefix(path[end:], ".")
		if n.Kind != yaml.MappingNode {
			return nil, 0
		}
		found := false
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			return nil, 0
		}
	}
	return n, line
}

// scalar is the text at a path, empty if there is none.
func scalar(n *yaml.Node, path string) string {
	if v := lookUp(n, path); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}
