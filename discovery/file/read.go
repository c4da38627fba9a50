package file

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/proxy"
)

// problem is one thing wrong with a Config. Its path is written as in
// "pools[0].endpoints[1]"; empty for the whole. Its line is where the path was
// read unless set.
type problem struct {
	path, text string
	line       int
}

// maxProblems bounds how much is told about one file.
const maxProblems = 100

// maxNodes bounds the work done for one file. A file of MaxSize full of
// endpoints has fewer values, unless aliases repeat them.
const maxNodes = 100_000

// reader walks a tree of YAML nodes along the schema. It collects problems
// rather than stopping at the first, and remembers where each path was read.
type reader struct {
	lines    map[string]int
	problems []problem
	nodes    int
}

// A field reads the node that stands at path.
type field func(n *yaml.Node, path string)

func (r *reader) problem(path, format string, args ...any) {
	r.problems = append(r.problems, problem{path: path, text: fmt.Sprintf(format, args...)})
}

// judged reports whether a problem was found at path, above or below it, so
// that what follows from it is not told as well.
func (r *reader) judged(path string) bool {
	return slices.ContainsFunc(r.problems, func(p problem) bool {
		return within(p.path, path) || within(path, p.path)
	})
}

// within reports whether path is outer or lies inside it.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (rest == "" || outer == "" || rest[0] == '.' || rest[0] == '[')
}

// line is where path was read, or else what holds it.
func (r *reader) line(path string) int {
	for {
		if line, ok := r.lines[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// report joins problems in the order of lines.
func (r *reader) report(name string, problems []problem) error {
	for i, p := range problems {
		if p.line == 0 {
			problems[i].line = r.line(p.path)
		}
	}
	slices.SortStableFunc(problems, func(a, b problem) int { return a.line - b.line })
	return join(problems, func(p problem) string {
		where := name + ":" + strconv.Itoa(p.line)
		if p.path != "" {
			where += ": " + p.path
		}
		return where
	})
}

// join makes one error of problems, each begun by what where says of it.
func join(problems []problem, where func(problem) string) error {
	var errs []error
	for i, p := range problems {
		if i == maxProblems {
			errs = append(errs, fmt.Errorf("and %d more", len(problems)-i))
			break
		}
		text := p.text
		if w := where(p); w != "" {
			text = w + ": " + text
		}
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

// visit follows an alias to what it stands for. It returns nil when the file
// unfolds to more than it may.
func (r *reader) visit(n *yaml.Node, path string) *yaml.Node {
	if r.nodes++; r.nodes >= maxNodes {
		if r.nodes == maxNodes {
			r.problem(path, "too many values: aliases unfold to more than %d", maxNodes)
		}
		return nil
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// mapping reads the keys of a mapping by their fields, and says whether there is
// one. A mapping without a value counts as left out.
func (r *reader) mapping(n *yaml.Node, path string, fields map[string]field) bool {
	return r.entries(n, path, "a mapping of keys ("+keys(fields)+")", func(key string, value *yaml.Node, at string) {
		read, known := fields[key]
		if !known {
			hint := ""
			if len(r.problems) < maxProblems { // while anyone reads it
				hint = didYouMean(key, slices.Sorted(maps.Keys(fields)))
			}
			r.problem(at, "unknown key%s (keys: %s)", hint, keys(fields))
			return
		}
		read(value, at)
	})
}

// entries reads the keys of a mapping, whatever they are, and says whether there
// is one.
func (r *reader) entries(n *yaml.Node, path, want string, entry func(key string, value *yaml.Node, path string)) bool {
	n = r.visit(n, path)
	if n == nil || isNull(n) {
		return false
	}
	if n.Kind != yaml.MappingNode {
		r.problem(path, "%s: want %s", describe(n), want)
		return false
	}
	first := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			r.problems = append(r.problems, problem{path, "a key that is not plain text", key.Line})
			continue
		}
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		if line, twice := first[key.Value]; twice {
			r.problems = append(r.problems, problem{at, fmt.Sprintf("the same key as on line %d", line), key.Line})
			continue
		}
		first[key.Value] = key.Line
		r.lines[at] = key.Line
		entry(key.Value, value, at)
	}
	return true
}

// list reads the items of a list. A list without a value counts as left out.
func (r *reader) list(item field) field {
	return func(n *yaml.Node, path string) {
		n = r.visit(n, path)
		if n == nil || isNull(n) {
			return
		}
		if n.Kind != yaml.SequenceNode {
			r.problem(path, "%s: want a list", describe(n))
			return
		}
		for i, it := range n.Content {
			at := path + "[" + strconv.Itoa(i) + "]"
			r.lines[at] = it.Line
			item(it, at)
		}
	}
}

// listInto is the field of a list of what item reads.
func listInto[T any](r *reader, into *[]T, item func(n *yaml.Node, path string) T) field {
	return r.list(func(n *yaml.Node, path string) { *into = append(*into, item(n, path)) })
}

// scalar returns the node of a single value, nil after telling why there is
// none.
func (r *reader) scalar(n *yaml.Node, path, want string) *yaml.Node {
	n = r.visit(n, path)
	switch {
	case n == nil:
		return nil
	case isNull(n):
		r.problem(path, "no value: want %s", want)
		return nil
	case n.Kind != yaml.ScalarNode:
		r.problem(path, "%s: want %s", describe(n), want)
		return nil
	}
	return n
}

// text reads a string. Numbers and booleans are not taken for text.
func (r *reader) text(n *yaml.Node, path, want string) (string, bool) {
	n = r.scalar(n, path, want)
	if n == nil {
		return "", false
	}
	if n.ShortTag() != "!!str" {
		r.problem(path, "%s: want %s (text, in quotes)", describe(n), want)
		return "", false
	}
	return n.Value, true
}

// textInto is the field of a string.
func textInto[T ~string](r *reader, into *T, want string) field {
	return func(n *yaml.Node, path string) {
		if s, ok := r.text(n, path, want); ok {
			*into = T(s)
		}
	}
}

// texts is the field of a list of strings.
func (r *reader) texts(into *[]string, want string) field {
	return r.list(func(n *yaml.Node, path string) {
		if s, ok := r.text(n, path, want); ok {
			*into = append(*into, s)
		}
	})
}

// yesNo is the field of a boolean.
func (r *reader) yesNo(into *bool) field {
	return func(n *yaml.Node, path string) {
		n = r.scalar(n, path, "true or false")
		switch {
		case n == nil:
		case n.ShortTag() != "!!bool":
			r.problem(path, "%s: want true or false", show(n.Value))
		default:
			*into = strings.EqualFold(n.Value, "true")
		}
	}
}

// duration is the field of a time.Duration of at least least.
func (r *reader) duration(into *time.Duration, least time.Duration) field {
	return func(n *yaml.Node, path string) {
		const want = "a duration such as 100ms, 2s or 5m"
		n = r.scalar(n, path, want)
		if n == nil {
			return
		}
		d, err := parseDuration(n.Value)
		switch {
		case err != nil:
			r.problem(path, "%v", err)
		case d < least && least > 0:
			r.problem(path, "%s: want %s or more", show(n.Value), least)
		case d < 0:
			r.problem(path, "%s: want 0 or more", show(n.Value))
		default:
			*into = d
		}
	}
}

// size is the field of a number of bytes from 1 to most.
func size[T int | int64](r *reader, into *T, most T) field {
	return func(n *yaml.Node, path string) {
		n = r.scalar(n, path, "a size such as 65536, 64KiB or 1GiB")
		if n == nil {
			return
		}
		b, err := parseSize(n.Value)
		switch {
		case err != nil:
			r.problem(path, "%v", err)
		case b < 1 || b > int64(most):
			r.problem(path, "%s: want from 1 to %s", show(n.Value), formatSize(int64(most)))
		default:
			*into = T(b)
		}
	}
}

// number is the field of a whole number from 0 to most.
func (r *reader) number(into *int, most int) field { return r.numberFrom(0, into, most) }

// numberFrom is the field of a whole number from least to most.
func (r *reader) numberFrom(least int, into *int, most int) field {
	return func(n *yaml.Node, path string) {
		n = r.scalar(n, path, "a whole number")
		if n == nil {
			return
		}
		i, err := strconv.Atoi(n.Value)
		if n.ShortTag() != "!!int" || err != nil || strconv.Itoa(i) != n.Value || i < least || i > most {
			r.problem(path, "%s: want a whole number from %d to %d", show(n.Value), least, most)
			return
		}
		*into = i
	}
}

// share is the field of a number from 0 to 1.
func (r *reader) share(into *float64) field {
	return func(n *yaml.Node, path string) {
		n = r.scalar(n, path, "a share such as 0.1")
		if n == nil {
			return
		}
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || !(f >= 0 && f <= 1) {
			r.problem(path, "%s: want a share from 0 to 1", show(n.Value))
			return
		}
		*into = f
	}
}

// cost is the field of what an endpoint costs.
func (r *reader) cost(into *float64) field {
	return func(n *yaml.Node, path string) {
		n = r.scalar(n, path, "a number such as 2.5")
		if n == nil {
			return
		}
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || !(f > 0 && f <= proxy.MaxCost) {
			r.problem(path, "%s: want a number above 0, up to %v", show(n.Value), proxy.MaxCost)
			return
		}
		*into = f
	}
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// describe says what n is, for the beginning of an error.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return show(n.Value) + " is a number"
	case "!!bool":
		return show(n.Value) + " is a boolean"
	case "!!timestamp":
		return show(n.Value) + " is a date"
	}
	return show(n.Value)
}

// show quotes what a user wrote, shortened where it is long.
func show(s string) string {
	const most = 80
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

func keys(fields map[string]field) string {
	return strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
}

// didYouMean returns `: did you mean "x"?` for the name nearest to s among
// known, empty if none is near.
func didYouMean(s string, known []string) string {
	best, least := "", 1+max(1, min(3, len(s)/3))
	for _, k := range known {
		if d := distance(s, k, least); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", show(best))
}

// distance is the number of bytes to insert, delete, replace or swap with
// their neighbour to make b of a (optimal string alignment); limit or more
// once it is sure to be no less than limit.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		if slices.Min(row) >= limit {
			return limit
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
