package authz

import (
	"net/netip"
	"strings"
)

// pattern matches strings as a policy's values do: "abc" itself, "abc*" what begins
// so, "*abc" what ends so, "*" anything that is there.
type pattern struct {
	kind patternKind
	fold bool   // whatever the case; text is in lower case
	text string // without the asterisk
}

type patternKind uint8

const (
	exact patternKind = iota
	prefix
	suffix
	present
)

func newPattern(value string) pattern {
	switch {
	case value == "*":
		return pattern{kind: present}
	case strings.HasPrefix(value, "*"):
		return pattern{kind: suffix, text: value[1:]}
	case strings.HasSuffix(value, "*"):
		return pattern{kind: prefix, text: value[:len(value)-1]}
	}
	return pattern{kind: exact, text: value}
}

// matches judges a value that may be empty for want of one: that is not present.
func (p *pattern) matches(v string) bool {
	switch p.kind {
	case present:
		return v != ""
	case prefix:
		if len(v) < len(p.text) {
			return false
		}
		v = v[:len(p.text)]
	case suffix:
		if len(v) < len(p.text) {
			return false
		}
		v = v[len(v)-len(p.text):]
	}
	if p.fold {
		return equalFold(v, p.text)
	}
	return v == p.text
}

// equalFold compares v with a text in lower case, by ASCII folding.
func equalFold(v, lower string) bool {
	if len(v) != len(lower) {
		return false
	}
	for i := range len(v) {
		c := v[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func anyMatches(patterns []pattern, v string) bool {
	for i := range patterns {
		if patterns[i].matches(v) {
			return true
		}
	}
	return false
}

// glob matches a namespace: asterisks may stand anywhere in it (istio/istio
// generator.go, srcNamespaceGenerator).
type glob struct {
	parts []string // between the asterisks
}

func newGlob(value string) glob { return glob{strings.Split(value, "*")} }

func (g *glob) matches(v string) bool {
	first, last := g.parts[0], g.parts[len(g.parts)-1]
	if len(g.parts) == 1 {
		return v == first
	}
	if len(v) < len(first)+len(last) || !strings.HasPrefix(v, first) || !strings.HasSuffix(v, last) {
		return false
	}
	v = v[len(first) : len(v)-len(last)]
	for _, part := range g.parts[1 : len(g.parts)-1] {
		_, after, ok := strings.Cut(v, part)
		if !ok {
			return false
		}
		v = after
	}
	return true
}

// account is a service account of a namespace.
type account struct{ namespace, name string }

// template matches a path by segments: Envoy's uri_template, as Istio uses it.
// Everything before {**} is pieces; what is behind it is literal.
type template struct {
	pieces []string // literals, between each two of which stands one segment
	open   bool     // {**} follows the pieces
	tail   string   // behind {**}
}

const (
	oneSegment  = "{*}"
	anySegments = "{**}"
)

func newTemplate(path string) template {
	var t template
	path, t.tail, t.open = strings.Cut(path, anySegments)
	t.pieces = strings.Split(path, oneSegment)
	return t
}

func (t *template) matches(path string) bool {
	for i, piece := range t.pieces {
		if i > 0 {
			n := strings.IndexByte(path, '/')
			if n < 0 {
				n = len(path)
			}
			if n == 0 {
				return false
			}
			path = path[n:]
		}
		if !strings.HasPrefix(path, piece) {
			return false
		}
		path = path[len(piece):]
	}
	if t.open {
		return strings.HasSuffix(path, t.tail)
	}
	return path == ""
}

// requestPrincipal matches "<iss>/<sub>" as istio/istio generator.go does: the last
// slash parts them, because an issuer may be a URL, and an asterisk belongs to the
// side it stands on.
type requestPrincipal struct{ issuer, subject pattern }

func newRequestPrincipal(value string) requestPrincipal {
	is := func(s string) pattern { return pattern{kind: exact, text: s} }
	there := pattern{kind: present}
	iss, sub, parted := value, "", false
	if i := strings.LastIndexByte(value, '/'); i >= 0 {
		iss, sub, parted = value[:i], value[i+1:], true
	}
	switch {
	case value == "*":
		return requestPrincipal{there, there}
	case strings.HasPrefix(value, "*") && !parted:
		return requestPrincipal{there, pattern{kind: suffix, text: value[1:]}}
	case strings.HasPrefix(value, "*"):
		return requestPrincipal{newPattern(iss), is(sub)}
	case strings.HasSuffix(value, "*") && !parted:
		return requestPrincipal{pattern{kind: prefix, text: value[:len(value)-1]}, there}
	case strings.HasSuffix(value, "*"):
		return requestPrincipal{is(iss), newPattern(sub)}
	}
	return requestPrincipal{is(iss), is(sub)}
}

func inPrefixes(prefixes []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// ParsePrefix reads an address or a CIDR.
func ParsePrefix(value string) (netip.Prefix, error) {
	if !strings.Contains(value, "/") {
		a, err := netip.ParseAddr(value)
		if err != nil {
			return netip.Prefix{}, err
		}
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(value)
	if err != nil {
		return p, err
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}
