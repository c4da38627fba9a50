package route

import (
	"bytes"
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// Table is an index of routes: by host, then by path, then in order of
// precedence.
//
//	exact["api.example.com"] ─┐
//	wildcard[".example.com"]  ├─► tree ─► node "/" ─► node "/v1" ─► node "/v1/models"
//	any ──────────────────────┘    │        prefix     prefix         exact, prefix: entries
//	                               └► expressions: entries
type Table struct {
	exact    map[string]*tree // by host in lower case
	wildcard map[string]*tree // by suffix in lower case, its dot in front
	any      *tree
	// What conditions look at: a value is found once for each request and each of
	// the first maxKept names, however many conditions there are on it.
	names []name
}

// name is a header field or a query parameter.
type name struct {
	query bool
	text  string // a header field's in lower case
}

// tree has the matches for one hostname.
type tree struct {
	root        node    // the prefix "/"
	expressions []entry // on the path
}

// node is a path of whole elements.
type node struct {
	parent   *node
	children map[string]*node // by the next element
	exact    []entry          // for this path
	prefix   []entry          // for this path and all below it
}

// entry is a Match with its rule.
type entry struct {
	route   *Route
	rule    *Rule
	prefix  int            // length of the path it takes; notPrefix
	path    *regexp.Regexp // nil: the path is met by where the entry stands
	length  int            // of the expression
	method  string
	headers int // how many of the conditions are on header fields
	values  []condition
	order   int // among all of the Table
}

const notPrefix = -1

// condition is on the value of names[name].
type condition struct {
	name    int
	exact   string
	pattern *regexp.Regexp // nil: exact
}

// Found is the rule that a request matched; its Rule is nil when none did.
type Found struct {
	Route *Route
	*Rule
	prefix int
}

// Compile makes a Table of routes. Their order decides where the Gateway API goes
// by age and name: the oldest first, those of one age by "namespace/name". The
// routes must not change any more.
func Compile(routes []Route) *Table {
	t := &Table{exact: make(map[string]*tree), wildcard: make(map[string]*tree)}
	order := 0
	for i := range routes {
		trees := t.trees(routes[i].Hostnames)
		for j := range routes[i].Rules {
			r := &routes[i].Rules[j]
			matches := r.Matches
			if len(matches) == 0 {
				matches = make([]Match, 1)
			}
			for _, m := range matches {
				order++
				e := entry{route: &routes[i], rule: r, prefix: notPrefix, method: m.Method, order: order}
				if !t.conditions(&e, &m) {
					continue
				}
				for _, tr := range trees {
					tr.insert(m.Path, e)
				}
			}
		}
	}
	for _, tr := range t.exact {
		tr.sort()
	}
	for _, tr := range t.wildcard {
		tr.sort()
	}
	if t.any != nil {
		t.any.sort()
	}
	return t
}

// trees gives those of some hostnames, each once, making them as needed.
func (t *Table) trees(hostnames []string) []*tree {
	if len(hostnames) == 0 {
		if t.any == nil {
			t.any = new(tree)
		}
		return []*tree{t.any}
	}
	var all []*tree
	for _, h := range hostnames {
		in, key := t.exact, strings.ToLower(h)
		if suffix, ok := strings.CutPrefix(key, "*"); ok {
			in, key = t.wildcard, suffix
		}
		if in[key] == nil {
			in[key] = new(tree)
		}
		if !slices.Contains(all, in[key]) {
			all = append(all, in[key])
		}
	}
	return all
}

// conditions compiles what m says of values; false if it can never be met.
func (t *Table) conditions(e *entry, m *Match) bool {
	ok := true
	add := func(query bool, matches []ValueMatch) (added int) {
		var seen []string
		for _, v := range matches {
			text := v.Name
			if !query {
				text = strings.ToLower(text)
			}
			if slices.Contains(seen, text) {
				continue
			}
			seen = append(seen, text)
			c := condition{name: t.name(name{query, text}), exact: v.Value}
			if v.Type == RegularExpression {
				var err error
				if c.pattern, err = whole(v.Value); err != nil {
					ok = false
				}
			} else if v.Type != "" && v.Type != Exact {
				ok = false
			}
			e.values = append(e.values, c)
			added++
		}
		return added
	}
	e.headers = add(false, m.Headers)
	add(true, m.Query)
	return ok
}

func (t *Table) name(n name) int {
	if i := slices.Index(t.names, n); i >= 0 {
		return i
	}
	t.names = append(t.names, n)
	return len(t.names) - 1
}

// whole compiles an expression that has to match all of a text.
func whole(expression string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expression); err != nil { // not made valid by what is put around it
		return nil, err
	}
	return regexp.Compile(`\A(?:` + expression + `)\z`)
}

// insert puts an entry where its path leads. Configured paths are normalised like
// those of requests.
func (tr *tree) insert(p PathMatch, e entry) {
	value := p.Value
	if value == "" {
		value = "/"
	}
	switch p.Type {
	case RegularExpression:
		var err error
		if e.path, err = whole(p.Value); err != nil {
			return
		}
		e.length = len(p.Value)
		tr.expressions = append(tr.expressions, e)
	case Exact:
		n := tr.root.descend(spell(value))
		n.exact = append(n.exact, e)
	case PathPrefix, "":
		path := strings.TrimRight(spell(value), "/")
		e.prefix = len(path)
		n := tr.root.descend(path)
		n.prefix = append(n.prefix, e)
	}
}

// descend gives the node of a path below n, making what is missing.
func (n *node) descend(path string) *node {
	for path != "" {
		end := 1 + strings.IndexByte(path[1:], '/')
		if end == 0 {
			end = len(path)
		}
		child := n.children[path[1:end]]
		if child == nil {
			if n.children == nil {
				n.children = make(map[string]*node)
			}
			child = &node{parent: n}
			n.children[path[1:end]] = child
		}
		n, path = child, path[end:]
	}
	return n
}

func (tr *tree) sort() {
	slices.SortFunc(tr.expressions, compare)
	tr.root.sort()
}

func (n *node) sort() {
	slices.SortFunc(n.exact, compare)
	slices.SortFunc(n.prefix, compare)
	for _, c := range n.children {
		c.sort()
	}
}

// compare has the entry first that goes before the other (HTTPRouteRule.matches).
func compare(a, b entry) int {
	return cmp.Or(
		cmp.Compare(b.length, a.length),
		cmp.Compare(min(1, len(b.method)), min(1, len(a.method))),
		cmp.Compare(b.headers, a.headers),
		cmp.Compare(len(b.values), len(a.values)),
		cmp.Compare(a.order, b.order))
}

// Find gives the rule that r is served by. Its target must be normalised.
func (t *Table) Find(r *message.Request) Found {
	if len(r.Target) == 0 || r.Target[0] != '/' {
		return Found{}
	}
	p := request{table: t, head: r}
	p.path, p.query, _ = bytes.Cut(r.Target, []byte("?"))
	var lower [maxHost]byte
	host := appendHost(lower[:0], r.Authority)
	if tr := t.exact[string(host)]; tr != nil {
		if f := tr.find(&p); f.Rule != nil {
			return f
		}
	}
	if len(t.wildcard) > 0 {
		for i := range host {
			if host[i] != '.' || i == 0 {
				continue
			}
			if tr := t.wildcard[string(host[i:])]; tr != nil {
				if f := tr.find(&p); f.Rule != nil {
					return f
				}
			}
		}
	}
	if t.any != nil {
		return t.any.find(&p)
	}
	return Found{}
}

// maxHost is the longest name there can be in DNS, its last dot included. A longer
// host has no name.
const maxHost = 254

// appendHost appends the host of an authority in lower case, without its port and
// the dot at its end.
func appendHost(dst, authority []byte) []byte {
	host, _ := splitPort(authority)
	if n := len(host); n > 0 && host[n-1] == '.' {
		host = host[:n-1]
	}
	if len(host) >= maxHost {
		return dst
	}
	for _, c := range host {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}

// splitPort cuts the port off an authority.
func splitPort(authority []byte) (host, port []byte) {
	i := bytes.LastIndexByte(authority, ':')
	if i < 0 || bytes.IndexByte(authority[i:], ']') >= 0 {
		return authority, nil
	}
	return authority[:i], authority[i+1:]
}

func (tr *tree) find(p *request) Found {
	n, rest := &tr.root, p.path
	for {
		end := 1 + bytes.IndexByte(rest[1:], '/')
		if end == 0 {
			end = len(rest)
		}
		child := n.children[string(rest[1:end])]
		if child == nil {
			break
		}
		n, rest = child, rest[end:]
		if len(rest) == 0 {
			if f := p.first(n.exact); f.Rule != nil {
				return f
			}
			break
		}
	}
	if f := p.first(tr.expressions); f.Rule != nil {
		return f
	}
	for ; n != nil; n = n.parent {
		if f := p.first(n.prefix); f.Rule != nil {
			return f
		}
	}
	return Found{}
}

// request is a request while its rule is looked for.
type request struct {
	table       *Table
	head        *message.Request
	path, query []byte
	kept        [maxKept]value
}

// maxKept is how many values are kept while a rule is looked for.
const maxKept = 8

// value is that of a header field or query parameter.
type value struct {
	known, there bool
	text         []byte
}

// first gives the first entry whose conditions are met.
func (p *request) first(entries []entry) Found {
next:
	for i := range entries {
		e := &entries[i]
		if e.method != "" && e.method != string(p.head.Method) || e.path != nil && !e.path.Match(p.path) {
			continue
		}
		for j := range e.values {
			if !p.meets(&e.values[j]) {
				continue next
			}
		}
		return Found{e.route, e.rule, e.prefix}
	}
	return Found{}
}

func (p *request) meets(c *condition) bool {
	var v value
	if c.name < maxKept {
		kept := &p.kept[c.name]
		if !kept.known {
			*kept = p.value(c.name)
		}
		v = *kept
	} else {
		v = p.value(c.name)
	}
	if c.pattern != nil {
		return v.there && c.pattern.Match(v.text)
	}
	return v.there && string(v.text) == c.exact
}

// value finds the value of names[i].
func (p *request) value(i int) value {
	n := &p.table.names[i]
	if n.query {
		return parameter(p.query, n.text)
	}
	v := value{known: true}
	for _, f := range p.head.Fields {
		if !message.EqualFold(f.Name, n.text) {
			continue
		}
		if !v.there {
			v.there, v.text = true, f.Value
			continue
		}
		v.text = append(append(slices.Clip(v.text), ','), f.Value...)
	}
	return v
}

// parameter finds the first parameter of that name in a query.
func parameter(query []byte, name string) value {
	for len(query) > 0 {
		var one []byte
		one, query, _ = bytes.Cut(query, []byte("&"))
		key, text, _ := bytes.Cut(one, []byte("="))
		if string(unescape(key)) == name {
			return value{known: true, there: true, text: unescape(text)}
		}
	}
	return value{known: true}
}

// unescape decodes a part of a query, as application/x-www-form-urlencoded is
// parsed (URL Standard section 5.1): a percent sign that is not followed by two
// hex digits stands for itself.
func unescape(p []byte) []byte {
	if bytes.IndexByte(p, '%') < 0 && bytes.IndexByte(p, '+') < 0 {
		return p
	}
	out := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '+' {
			c = ' '
		} else if d, ok := percent(p[i:]); ok {
			c = d
			i += 2
		}
		out = append(out, c)
	}
	return out
}

// percent decodes the encoded byte at the beginning of p, if there is one.
func percent(p []byte) (byte, bool) {
	if len(p) < 3 || p[0] != '%' {
		return 0, false
	}
	high, ok1 := fromHex(p[1])
	low, ok2 := fromHex(p[2])
	return high<<4 | low, ok1 && ok2
}

func fromHex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
