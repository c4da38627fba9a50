package route

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// Bounds of the Gateway API on single values.
const (
	MaxWeight = 1_000_000 // BackendRef.weight
	maxPath   = 1024      // HTTPPathMatch.value
	maxName   = 256       // HTTPHeaderName
	maxValue  = 4096      // HTTPHeader.value
)

// Check tells report everything in r that makes no sense: where, as a path of the
// API's field names such as "matches[0].path.value", and what is wrong there.
func (r *Rule) Check(report func(path, problem string)) {
	k := checker{report}
	for i := range r.Matches {
		k.match(fmt.Sprintf("matches[%d]", i), &r.Matches[i])
	}
	k.filters(r)
	for i, b := range r.Backends {
		at := fmt.Sprintf("backendRefs[%d]", i)
		if b.Weight < 0 || b.Weight > MaxWeight {
			k.problem(at+".weight", "%d: want a whole number from 0 to %d", b.Weight, MaxWeight)
		}
		k.modifier(at+".filters", b.RequestHeaders)
		k.modifier(at+".filters", b.ResponseHeaders)
	}
	k.timeouts(r.Timeouts)
	if r.Retry != nil {
		k.retry(r.Retry)
	}
}

// CheckHostname says what is wrong with one of a Route's hostnames; "" for nothing.
func CheckHostname(hostname string) string {
	name := strings.ToLower(strings.TrimPrefix(hostname, "*."))
	if !dnsName.MatchString(name) || len(hostname) > 253 || address.MatchString(name) {
		return fmt.Sprintf("%q is no hostname: want a DNS name such as llm.example.com, or *.example.com for all below it, without a port", hostname)
	}
	return ""
}

var (
	dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9_]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9_]*[a-z0-9])?)*$`)
	address = regexp.MustCompile(`(^|\.)[0-9]+$`) // an IPv4 address, or a mistyped one
	token   = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$")
	// literal is a path as the Gateway API has it (HTTPPathMatch's pattern).
	literal = regexp.MustCompile(`^/(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$`)
	methods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)

type checker struct {
	report func(path, problem string)
}

func (k checker) problem(path, format string, args ...any) {
	k.report(path, fmt.Sprintf(format, args...))
}

func (k checker) match(at string, m *Match) {
	switch p := m.Path; p.Type {
	case Exact, PathPrefix, "":
		if p.Value != "" || p.Type != "" {
			k.path(at+".path.value", p.Value)
		}
	case RegularExpression:
		k.expression(at+".path.value", p.Value)
	default:
		k.problem(at+".path.type", "%q: want Exact, PathPrefix or RegularExpression", string(p.Type))
	}
	if m.Method != "" && !slices.Contains(methods, m.Method) {
		k.problem(at+".method", "%q: want one of %s", m.Method, strings.Join(methods, ", "))
	}
	k.values(at+".headers", m.Headers)
	k.values(at+".queryParams", m.Query)
}

func (k checker) values(at string, matches []ValueMatch) {
	for i, v := range matches {
		at := fmt.Sprintf("%s[%d]", at, i)
		k.name(at+".name", v.Name)
		switch v.Type {
		case Exact, "":
		case RegularExpression:
			k.expression(at+".value", v.Value)
		default:
			k.problem(at+".type", "%q: want Exact or RegularExpression", string(v.Type))
		}
		if v.Value == "" || len(v.Value) > maxValue {
			k.problem(at+".value", "%d bytes: want from 1 to %d", len(v.Value), maxValue)
		}
	}
}

func (k checker) name(at, name string) {
	if len(name) > maxName || !token.MatchString(name) {
		k.problem(at, "%q: want a name of letters, digits and hyphens, of at most %d bytes", name, maxName)
	}
}

func (k checker) expression(at, e string) {
	if len(e) > maxPath {
		k.problem(at, "%d bytes: want at most %d", len(e), maxPath)
	} else if _, err := whole(e); err != nil {
		k.problem(at, "%q is no regular expression (RE2): %s", e, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
}

// path checks a path that is given literally.
func (k checker) path(at, p string) {
	switch {
	case len(p) > maxPath:
		k.problem(at, "%d bytes: want at most %d", len(p), maxPath)
	case !strings.HasPrefix(p, "/"):
		k.problem(at, "%q: want a path that begins with /", p)
	case !literal.MatchString(p):
		k.problem(at, "%q: want a path of letters, digits and /-._~!$&'()*+,;=:@, anything else percent-encoded", p)
	case strings.Contains(p, "//") || strings.Contains(strings.ToLower(p), "%2f") || slices.ContainsFunc(strings.Split(p, "/"), isDots):
		k.problem(at, "%q: want no //, no %%2F and no segment . or .. in it: no request would match", p)
	}
}

func isDots(segment string) bool { return segment == "." || segment == ".." }

func (k checker) filters(r *Rule) {
	const at = "filters"
	k.modifier(at, r.RequestHeaders)
	k.modifier(at, r.ResponseHeaders)
	if d := r.Redirect; d != nil {
		if r.Rewrite != nil {
			k.problem(at, "RequestRedirect and URLRewrite exclude one another")
		}
		if len(r.Backends) > 0 {
			k.problem(at, "RequestRedirect answers every request: want no backendRefs beside it")
		}
		if d.Scheme != "" && d.Scheme != "http" && d.Scheme != "https" {
			k.problem(at, "requestRedirect.scheme %q: want http or https", d.Scheme)
		}
		if d.Port < 0 || d.Port > 65535 {
			k.problem(at, "requestRedirect.port %d: want a number from 1 to 65535", d.Port)
		}
		if !slices.Contains([]int{0, 301, 302, 303, 307, 308}, d.Status) {
			k.problem(at, "requestRedirect.statusCode %d: want 301, 302, 303, 307 or 308", d.Status)
		}
		k.hostname("requestRedirect", d.Hostname)
		k.modifiedPath(r, "requestRedirect", d.Path)
	}
	if w := r.Rewrite; w != nil {
		k.hostname("urlRewrite", w.Hostname)
		k.modifiedPath(r, "urlRewrite", w.Path)
	}
	for _, m := range r.Mirrors {
		if m.Denominator < 0 || m.Numerator < 0 || m.Denominator > 0 && m.Numerator > m.Denominator {
			k.problem(at, "requestMirror.fraction %d/%d: want one from 0 to 1", m.Numerator, m.Denominator)
		}
	}
}

func (k checker) hostname(filter, h string) {
	if strings.HasPrefix(h, "*") {
		k.problem("filters", "%s.hostname %q: want one host, not a wildcard", filter, h)
	} else if h != "" {
		if wrong := CheckHostname(h); wrong != "" {
			k.problem("filters", "%s.hostname: %s", filter, wrong)
		}
	}
}

func (k checker) modifiedPath(r *Rule, filter string, m *PathModifier) {
	if m == nil {
		return
	}
	if m.Replacement != "" || !m.Prefix {
		to := func(_, problem string) { k.problem("filters", "%s.path: %s", filter, problem) }
		checker{to}.path("", m.Replacement)
	}
	if !m.Prefix {
		return
	}
	for i := range r.Matches {
		if t := r.Matches[i].Path.Type; t != "" && t != PathPrefix {
			k.problem("filters", "%s.path.replacePrefixMatch goes with PathPrefix matches only: matches[%d] is %s", filter, i, t)
		}
	}
}

func (k checker) modifier(at string, m *HeaderModifier) {
	if m == nil {
		return
	}
	check := func(list, name string) {
		k.name(at, name)
		if message.Framing([]byte(name)) { // what changed it would make two messages of one
			k.problem(at, "%s %s: this field is the proxy's own affair", list, name)
		}
	}
	values := func(list string, fields []message.Field) {
		for _, f := range fields {
			check(list, string(f.Name))
			if v := string(f.Value); len(v) > maxValue || strings.ContainsFunc(v, control) || strings.TrimSpace(v) != v {
				k.problem(at, "%s %s: value %q: want at most %d bytes, no control characters, no space at its ends", list, f.Name, v, maxValue)
			}
		}
	}
	values("set", m.Set)
	values("add", m.Add)
	for _, name := range m.Remove {
		check("remove", name)
	}
}

func control(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }

func (k checker) timeouts(t Timeouts) {
	for _, d := range []struct {
		at string
		d  *time.Duration
	}{{"timeouts.request", t.Request}, {"timeouts.backendRequest", t.BackendRequest}} {
		if d.d != nil && *d.d < 0 {
			k.problem(d.at, "%s: want 0 or more", *d.d)
		}
	}
	if t.Request != nil && t.BackendRequest != nil && *t.Request > 0 && *t.BackendRequest > *t.Request {
		k.problem("timeouts.backendRequest", "%s is more than timeouts.request, %s", *t.BackendRequest, *t.Request)
	}
}

func (k checker) retry(r *Retry) {
	for i, c := range r.Codes {
		if c < 400 || c > 599 {
			k.problem(fmt.Sprintf("retry.codes[%d]", i), "%d: want a status from 400 to 599", c)
		}
	}
	if r.Attempts < 0 {
		k.problem("retry.attempts", "%d: want 0 or more", r.Attempts)
	}
	if r.Backoff < 0 {
		k.problem("retry.backoff", "%s: want 0 or more", r.Backoff)
	}
}
