package authz

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-proxy/fairway/proxy/normalize"
)

// defaultTrustDomain in a policy stands for ours and its aliases (istio/istio
// trustdomain/bundle.go).
const defaultTrustDomain = "cluster.local"

// Scope is what is declared for one destination, beside what a Config says for all.
// Scopes share what several of them have: it is compiled once.
type Scope struct {
	Policies []*Policy
	Tokens   []*TokenRule
	// Withheld says why nothing is let in for the moment; empty: what may come in is
	// known.
	Withheld string
}

// Compiler makes the Guards of one Config, one for each Scope. It is used by one
// goroutine.
type Compiler struct {
	sets  *KeySets
	rules compiler

	policies map[*Policy]*compiled
	tokens   map[*TokenRule]*tokenRule
	whole    *Guard          // of what is for all
	fetched  map[string]bool // URLs of key sets
}

// NewCompiler makes a Compiler. Key sets that are fetched come from sets, which must
// not be nil if there are any.
func NewCompiler(c *Config, sets *KeySets) *Compiler {
	m := &Compiler{
		sets: sets, rules: newCompiler(c), whole: newGuard(c),
		policies: make(map[*Policy]*compiled), tokens: make(map[*TokenRule]*tokenRule), fetched: make(map[string]bool),
	}
	for i := range c.Policies {
		m.whole.policies.add(m.policy(&c.Policies[i]))
	}
	for i := range c.Tokens {
		m.whole.addTokens(m.token(&c.Tokens[i]))
	}
	return m
}

// Guard makes the Guard of what is for all and of s, of which nil has nothing. What
// cannot be understood it denies.
func (m *Compiler) Guard(s *Scope) *Guard {
	if s == nil || len(s.Policies)+len(s.Tokens) == 0 && s.Withheld == "" {
		return m.whole
	}
	g := m.whole.clone()
	g.Withheld = s.Withheld
	for _, p := range s.Policies {
		g.policies.add(m.policy(p))
	}
	for _, t := range s.Tokens {
		g.addTokens(m.token(t))
	}
	return g
}

// Finish forgets the key sets that none of the Guards made so far has.
func (m *Compiler) Finish() { m.sets.keep(m.fetched) }

func (m *Compiler) policy(p *Policy) *compiled {
	known := m.policies[p]
	if known == nil {
		known = m.rules.compile(0, p)
		m.policies[p] = known
	}
	return known
}

func (m *Compiler) token(r *TokenRule) *tokenRule {
	known := m.tokens[r]
	if known == nil {
		known = newTokenRule(r, m.sets)
		m.tokens[r] = known
		m.fetched[r.JWKSURI] = true
	}
	return known
}

// compiler makes rules of policies and collects what is wrong with them.
type compiler struct {
	trustDomains  []string // ours, then its aliases
	normalization normalize.Mode
	findings      []Finding

	policy int
	at     string // the path of what is read, without the field
	space  string // the policy's namespace
	action Action
	bad    bool // something in the rule cannot be understood
	http   bool // something in the rule is about HTTP
	model  bool // something in any rule of the policy is about the model
	sni    bool // and about connection.sni
}

func newCompiler(c *Config) compiler {
	return compiler{trustDomains: c.TrustDomains, normalization: c.Normalization}
}

func (c *compiler) find(path, format string, args ...any) {
	c.findings = append(c.findings, Finding{c.policy, path, fmt.Sprintf(format, args...)})
}

// compiled is a policy made ready to judge by.
type compiled struct {
	kind       kind
	http, conn policy
	model      bool // it is about the model
	sni        bool // it is about connection.sni
}

// compile makes the policy that is the i-th for findings ready.
func (c *compiler) compile(i int, p *Policy) *compiled {
	c.policy, c.space, c.action, c.model, c.sni = i, p.Namespace, p.Action, false, false
	var to kind
	switch p.Action {
	case Allow, "":
		c.action, to = Allow, kindAllow
	case Deny:
		to = kindDeny
	case Audit:
		to = kindAudit
	case Custom:
		to = kindCustom
		if p.Provider == "" {
			c.find("provider", "missing: want the name of an external authorizer; what the policy matches is denied")
		}
	default:
		c.find("action", "%q is no action: want ALLOW, DENY, AUDIT or CUSTOM; what the policy matches is denied", p.Action)
		to = kindDeny
	}
	if p.DryRun {
		switch to {
		case kindAllow:
			to = kindDryAllow
		case kindDeny:
			to = kindDryDeny
		default:
			c.find("metadata.annotations", "a dry run of %s is nothing", p.Action)
			to = noKind
		}
	}
	out := &compiled{kind: to, http: policy{name: p.name(), provider: p.Provider}, conn: policy{name: p.name(), provider: p.Provider}}
	for i := range p.Rules {
		c.at, c.bad, c.http = fmt.Sprintf("rules[%d]", i), false, false
		r := c.rule(&p.Rules[i])
		if c.action == Allow && c.bad {
			continue // it allows nothing
		}
		out.http.rules = append(out.http.rules, r)
		// On a connection that is not HTTP, a rule that allows by HTTP allows nothing,
		// and any other goes by the rest (istio/api, authorization_policy.proto: "For a
		// DENY rule, missing attributes are treated as matches").
		if !c.http || c.action != Allow {
			out.conn.rules = append(out.conn.rules, r.withoutHTTP())
		}
	}
	if len(p.Rules) == 0 && c.action != Allow {
		c.find("rules", "missing: the policy never matches; an empty rule, {}, matches always")
	}
	out.model, out.sni = c.model, c.sni
	return out
}

func (r rule) withoutHTTP() rule {
	keep := func(checks []check) (kept []check) {
		for _, c := range checks {
			if c.attribute < firstOfRequests {
				kept = append(kept, c)
			}
		}
		return kept
	}
	u := rule{when: keep(r.when)}
	for _, checks := range r.from {
		u.from = append(u.from, keep(checks))
	}
	for _, checks := range r.to {
		u.to = append(u.to, keep(checks))
	}
	return u
}

func (c *compiler) rule(r *Rule) (out rule) {
	rule := c.at
	for i := range r.From {
		s := &r.From[i]
		c.at = fmt.Sprintf("%s.from[%d].source", rule, i)
		out.from = append(out.from, c.checks(
			c.check(sourcePrincipal, "principals", c.aliased(s.Principals), c.aliased(s.NotPrincipals)),
			c.check(requestAuthPrincipal, "requestPrincipals", s.RequestPrincipals, s.NotRequestPrincipals),
			c.check(sourceNamespace, "namespaces", s.Namespaces, s.NotNamespaces),
			c.check(sourceAccount, "serviceAccounts", s.ServiceAccounts, s.NotServiceAccounts),
			c.check(sourceTrustDomain, "trustDomains", c.expanded(s.TrustDomains), c.expanded(s.NotTrustDomains)),
			c.check(sourceIP, "ipBlocks", s.IPBlocks, s.NotIPBlocks),
			c.check(remoteIP, "remoteIpBlocks", s.RemoteIPBlocks, s.NotRemoteIPBlocks),
		))
		if s.isEmpty() {
			c.fail("", "empty: want one of its fields")
		}
		if c.action == Custom && len(s.RequestPrincipals)+len(s.NotRequestPrincipals) > 0 {
			c.fail("requestPrincipals", "CUSTOM policies come before tokens are looked at, and cannot go by them")
			out.from[i] = nil // any source
		}
		if len(s.ServiceAccounts)+len(s.NotServiceAccounts) > 0 && len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) > 0 {
			c.fail("serviceAccounts", "cannot stand beside principals or namespaces")
			out.from[i] = nil // any source
		}
	}
	for i := range r.To {
		o := &r.To[i]
		c.at = fmt.Sprintf("%s.to[%d].operation", rule, i)
		out.to = append(out.to, c.checks(
			c.check(destinationPort, "ports", o.Ports, o.NotPorts),
			c.check(requestMethod, "methods", o.Methods, o.NotMethods),
			c.check(requestPath, "paths", o.Paths, o.NotPaths),
			c.check(requestHost, "hosts", o.Hosts, o.NotHosts),
		))
		if o.isEmpty() {
			c.fail("", "empty: want one of its fields")
		}
	}
	for i := range r.When {
		w := &r.When[i]
		c.at = fmt.Sprintf("%s.when[%d]", rule, i)
		out.when = append(out.when, c.checks(c.condition(w))...)
	}
	return out
}

// checks drops what is not asked, and what cannot be understood: of a rule that
// allows, nothing is left then anyway.
func (c *compiler) checks(all ...*check) (kept []check) {
	for _, k := range all {
		if k != nil {
			kept = append(kept, *k)
		}
	}
	return kept
}

// fail tells what of the rule cannot be understood.
func (c *compiler) fail(field, format string, args ...any) {
	path := c.at
	if field != "" {
		path += "." + field
	}
	c.find(path, format, args...)
	c.bad = true
}

// condition finds the attribute of a condition.
func (c *compiler) condition(w *Condition) *check {
	key := w.Key
	if len(w.Values)+len(w.NotValues) == 0 {
		c.fail("", "no values: want values or notValues")
		return nil
	}
	if c.action == Custom && strings.HasPrefix(key, "request.auth.") {
		c.http = true
		c.fail("key", "CUSTOM policies come before tokens are looked at, and cannot go by them")
		return nil
	}
	simple := map[string]attribute{
		"source.ip": sourceIP, "remote.ip": remoteIP, "source.namespace": sourceNamespace, "source.serviceAccount": sourceAccount,
		"source.principal": sourcePrincipal, "source.trustDomain": sourceTrustDomain,
		"destination.ip": destinationIP, "destination.port": destinationPort, "connection.sni": connectionSNI,
		"request.auth.principal": requestAuthPrincipal,
		"request.model":          requestModel, "experimental.envoy.filters.fairway[model]": requestModel,
	}
	some, none := w.Values, w.NotValues
	if a, ok := simple[key]; ok {
		switch a {
		case sourcePrincipal:
			some, none = c.aliased(some), c.aliased(none)
		case sourceTrustDomain:
			some, none = c.expanded(some), c.expanded(none)
		case requestModel:
			c.model = true
		case connectionSNI:
			c.sni = true
		}
		return c.check(a, "values", some, none)
	}
	var claim []string
	switch {
	case key == "request.auth.audiences":
		claim = []string{"aud"}
	case key == "request.auth.presenter":
		claim = []string{"azp"}
	case strings.HasPrefix(key, "request.auth.claims["):
		if claim = claimPath(key[len("request.auth.claims"):]); claim == nil {
			c.http = true
			c.fail("key", "%q names no claim: want request.auth.claims[name], or [outer][inner]", key)
			return nil
		}
	case strings.HasPrefix(key, "request.headers["):
		name := strings.ToLower(strings.TrimSuffix(key[len("request.headers["):], "]"))
		if err := seen(name, key); err != nil {
			c.http = true
			c.fail("key", "%v", err)
			return nil
		}
		k := c.check(requestHeader, "values", some, none)
		if k != nil {
			k.header = name
		}
		return k
	default:
		c.fail("key", "unknown attribute %q", key)
		return nil
	}
	k := c.check(requestClaim, "values", some, none)
	if k != nil {
		k.claim = claim
	}
	return k
}

// seen says why a header field can never be seen here.
func seen(name, key string) error {
	switch name {
	case ":method", ":path", ":authority":
		return nil
	case "connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade":
		return fmt.Errorf("%s belongs to one connection and is never passed on", name)
	}
	if !strings.HasSuffix(key, "]") || !isToken(name) {
		return fmt.Errorf("%q names no header field: want request.headers[name]", key)
	}
	if strings.Contains(name, "_") {
		return fmt.Errorf("%s: fields with an underscore in their names are never passed on", name)
	}
	return nil
}

func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// claimPath reads "[a]" and "[a][b]"; brackets that do not pair belong to the name
// (istio/istio util.go, extractNameInNestedBrackets).
func claimPath(s string) (path []string) {
	if len(s) < 3 || s[0] != '[' || s[len(s)-1] != ']' {
		return nil
	}
	for rest := s; rest != ""; {
		end := strings.IndexByte(rest, ']')
		if rest[0] != '[' || end < 0 || strings.IndexByte(rest[1:end], '[') >= 0 {
			return []string{s[1 : len(s)-1]}
		}
		path = append(path, rest[1:end])
		rest = rest[end+1:]
	}
	return path
}

// check makes a check of a field's values, nil if it has none or they cannot be
// understood.
func (c *compiler) check(a attribute, field string, some, none []string) *check {
	if len(some)+len(none) == 0 {
		return nil
	}
	c.http = c.http || a >= firstOfRequests
	not := "not" + strings.ToUpper(field[:1]) + field[1:]
	someValues, good := c.values(a, field, some)
	noneValues, alsoGood := c.values(a, not, none)
	if !good || !alsoGood {
		return nil
	}
	return &check{attribute: a, some: someValues, none: noneValues}
}

// values reads values, nil if there are none; false when one cannot be understood.
func (c *compiler) values(a attribute, field string, all []string) (v *values, good bool) {
	if len(all) == 0 {
		return nil, true
	}
	v, good = new(values), true
	for i, s := range all {
		if err := c.value(a, s, v); err != nil {
			c.fail(fmt.Sprintf("%s[%d]", field, i), "%v", err)
			good = false
		}
	}
	return v, good
}

func (c *compiler) value(a attribute, s string, v *values) error {
	if s == "" {
		return errors.New("empty: want a value")
	}
	switch a {
	case sourceIP, remoteIP, destinationIP:
		p, err := ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("%q is neither an IP address nor a CIDR", s)
		}
		v.prefixes = append(v.prefixes, p)
	case destinationPort:
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no port: want a number from 0 to 65535", s)
		}
		v.ports = append(v.ports, uint16(n))
	case sourcePrincipal:
		v.patterns = append(v.patterns, principalPattern(s))
	case sourceNamespace:
		v.globs = append(v.globs, newGlob(s))
	case sourceAccount:
		space, name, found := strings.Cut(s, "/")
		if !found {
			space, name = c.space, s
		}
		if space == "" || name == "" || strings.Contains(name, "/") || strings.Contains(s, "*") {
			return fmt.Errorf("%q: want a service account, or namespace/account, without wildcards", s)
		}
		v.accounts = append(v.accounts, account{space, name})
	case sourceTrustDomain:
		if n := strings.Count(s, "*"); n > 1 || n == 1 && s[0] != '*' && s[len(s)-1] != '*' || strings.Contains(s, "/") {
			return fmt.Errorf("%q: want a trust domain, with one * at an end of it at most", s)
		}
		v.patterns = append(v.patterns, newPattern(s))
	case requestAuthPrincipal:
		v.principals = append(v.principals, newRequestPrincipal(s))
	case requestHost:
		p := newPattern(strings.ToLower(s))
		p.fold = true
		v.patterns = append(v.patterns, p)
	case requestPath:
		return c.path(s, v)
	default:
		v.patterns = append(v.patterns, newPattern(s))
	}
	return nil
}

// path spells a path as those of requests are.
func (c *compiler) path(s string, v *values) error {
	if !strings.ContainsAny(s, "{}") {
		p := newPattern(s)
		p.text = c.normalization.Spell(p.text)
		v.patterns = append(v.patterns, p)
		return nil
	}
	any := false
	segments := strings.Split(strings.Trim(s, "/"), "/")
	for _, segment := range segments {
		switch {
		case segment == oneSegment && !any, segment == anySegments && !any:
			any = segment == anySegments
		case segment == oneSegment || segment == anySegments:
			return fmt.Errorf("%q: nothing but literals can follow {**}", s)
		case strings.ContainsAny(segment, "{}*") || segment == "":
			return fmt.Errorf("%q: in a template each segment is {*}, {**} or literal", s)
		}
	}
	if s[0] != '/' {
		return fmt.Errorf("%q: a template begins with a slash", s)
	}
	t := newTemplate(s)
	for i := range t.pieces {
		t.pieces[i] = c.normalization.Spell(t.pieces[i])
	}
	t.tail = c.normalization.Spell(t.tail)
	v.templates = append(v.templates, t)
	return nil
}

// principalPattern puts the scheme before a principal; "*" is anybody who has one.
func principalPattern(s string) pattern {
	p := newPattern(s)
	if p.kind == exact || p.kind == prefix {
		p.text = spiffeScheme + p.text
	}
	return p
}

// aliased writes a principal of one of our trust domains, or of cluster.local, in all
// of them (istio/istio trustdomain/bundle.go, ReplaceTrustDomainAliases).
func (c *compiler) aliased(principals []string) (all []string) {
	if len(c.trustDomains) == 0 {
		return principals
	}
	for _, p := range principals {
		domain, rest, _ := strings.Cut(p, "/")
		if domain == "*" || strings.Count(p, "/") != 4 || domain != defaultTrustDomain && !slices.ContainsFunc(c.trustDomains, func(ours string) bool { return alike(domain, ours) }) {
			all = append(all, p)
			continue
		}
		for _, ours := range c.trustDomains {
			replaced := ours + "/" + rest
			if strings.HasPrefix(domain, "*") && strings.HasSuffix(ours, domain[1:]) {
				replaced = p
			}
			if !slices.Contains(all, replaced) {
				all = append(all, replaced)
			}
		}
	}
	return all
}

// alike matches two trust domains, either of which may be a pattern.
func alike(a, b string) bool {
	p, q := newPattern(a), newPattern(b)
	return p.matches(b) || q.matches(a)
}

// expanded writes one of our trust domains as all of them (ExpandTrustDomainAliases).
func (c *compiler) expanded(domains []string) (all []string) {
	for _, d := range domains {
		if slices.Contains(c.trustDomains, d) {
			all = append(all, c.trustDomains...)
		} else {
			all = append(all, d)
		}
	}
	return all
}

func (s *Source) isEmpty() bool {
	return len(s.Principals)+len(s.NotPrincipals)+len(s.RequestPrincipals)+len(s.NotRequestPrincipals)+
		len(s.Namespaces)+len(s.NotNamespaces)+len(s.ServiceAccounts)+len(s.NotServiceAccounts)+
		len(s.TrustDomains)+len(s.NotTrustDomains)+len(s.IPBlocks)+len(s.NotIPBlocks)+
		len(s.RemoteIPBlocks)+len(s.NotRemoteIPBlocks) == 0
}

func (o *Operation) isEmpty() bool {
	return len(o.Hosts)+len(o.NotHosts)+len(o.Ports)+len(o.NotPorts)+
		len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) == 0
}
