package authz

import "net/netip"

// evaluator is policies made ready to judge by. It does not change.
type evaluator struct {
	http, conn lists
	readsModel bool // some policy is about the model
}

// lists are policies by what they do, in the order they are judged in.
type lists struct {
	custom, audit, deny, allow []policy
	dryDeny, dryAllow          []policy
}

type policy struct {
	name  string // "namespace/name"
	rules []rule
}

// rule matches when each of its groups has an alternative all of whose checks hold.
type rule struct {
	from, to [][]check // none: matches
	when     []check
}

// check holds when one of some matches the attribute and none of none does; nil: not
// asked.
type check struct {
	attribute  attribute
	some, none *values
	header     string   // in lower case
	claim      []string // the path of it
}

// values are alternatives of the kind that the attribute takes.
type values struct {
	patterns   []pattern
	templates  []template
	globs      []glob
	accounts   []account
	prefixes   []netip.Prefix
	ports      []uint16
	principals []requestPrincipal
}

type attribute uint8

const (
	sourceIP attribute = iota
	remoteIP
	sourcePrincipal
	sourceNamespace
	sourceAccount
	sourceTrustDomain
	destinationIP
	destinationPort
	connectionSNI
	requestHost
	requestMethod
	requestPath
	requestHeader
	requestAuthPrincipal
	requestClaim
	requestModel
)

// Decision is what policies make of a request.
type Decision struct {
	// Denied says that the request must not pass; Policy is the one that its DENY
	// or CUSTOM rule belongs to, empty if no ALLOW matched.
	Denied bool
	Policy string
	// Audited says that an AUDIT policy matched.
	Audited bool
	// DryRunDenied says that the dry-run policies, were they enforced, would deny
	// the request; DryRunPolicy as Policy.
	DryRunDenied bool
	DryRunPolicy string
}

// judge goes through lists in Istio's order: CUSTOM, AUDIT, DENY, ALLOW.
func (l *lists) judge(r *Request) (d Decision) {
	if len(l.audit) > 0 && !r.ModelPending {
		_, d.Audited = first(l.audit, r, false)
	}
	d.Policy, d.Denied = first(l.custom, r, false)
	if !d.Denied {
		d.Policy, d.Denied = denies(l.deny, l.allow, r)
	}
	if len(l.dryDeny)+len(l.dryAllow) > 0 && !r.ModelPending {
		d.DryRunPolicy, d.DryRunDenied = denies(l.dryDeny, l.dryAllow, r)
	}
	return d
}

func denies(deny, allow []policy, r *Request) (name string, denied bool) {
	if name, denied = first(deny, r, false); denied {
		return name, true
	}
	if len(allow) == 0 {
		return "", false
	}
	_, allowed := first(allow, r, true)
	return "", !allowed
}

// first finds the first policy that matches. What hangs on a model that is not known
// yet is taken to be as pending says.
func first(policies []policy, r *Request, pending bool) (name string, ok bool) {
	for i := range policies {
		p := &policies[i]
		for j := range p.rules {
			if p.rules[j].matches(r, pending) {
				return p.name, true
			}
		}
	}
	return "", false
}

func (u *rule) matches(r *Request, pending bool) bool {
	return oneHolds(u.to, r, pending) && oneHolds(u.from, r, pending) && allHold(u.when, r, pending)
}

func oneHolds(alternatives [][]check, r *Request, pending bool) bool {
	for _, checks := range alternatives {
		if allHold(checks, r, pending) {
			return true
		}
	}
	return len(alternatives) == 0
}

func allHold(checks []check, r *Request, pending bool) bool {
	for i := range checks {
		c := &checks[i]
		if c.attribute == requestModel && r.ModelPending {
			if !pending {
				return false
			}
			continue
		}
		if c.some != nil && !c.matches(c.some, r) || c.none != nil && c.matches(c.none, r) {
			return false
		}
	}
	return true
}

// matches tells whether one of v matches the attribute.
func (c *check) matches(v *values, r *Request) bool {
	switch c.attribute {
	case sourceIP:
		return inPrefixes(v.prefixes, r.Source)
	case remoteIP:
		return inPrefixes(v.prefixes, r.Remote)
	case destinationIP:
		return inPrefixes(v.prefixes, r.Destination)
	case destinationPort:
		for _, p := range v.ports {
			if p == r.Port {
				return true
			}
		}
		return false
	case sourcePrincipal:
		return anyMatches(v.patterns, r.Peer.id)
	case sourceTrustDomain:
		return anyMatches(v.patterns, r.Peer.trustDomain)
	case sourceNamespace:
		for i := range v.globs {
			if r.Peer.namespace != "" && v.globs[i].matches(r.Peer.namespace) {
				return true
			}
		}
		return false
	case sourceAccount:
		for _, a := range v.accounts {
			if a.namespace == r.Peer.namespace && a.name == r.Peer.serviceAccount {
				return true
			}
		}
		return false
	case connectionSNI:
		return anyMatches(v.patterns, r.SNI)
	case requestModel:
		return anyMatches(v.patterns, view(r.Model))
	}
	return c.matchesHTTP(v, r)
}

func (c *check) matchesHTTP(v *values, r *Request) bool {
	switch c.attribute {
	case requestMethod:
		return anyMatches(v.patterns, view(r.Head.Method))
	case requestHost:
		return anyMatches(v.patterns, view(r.Head.Authority))
	case requestPath:
		path := view(r.Head.Path())
		for i := range v.templates {
			if v.templates[i].matches(path) {
				return true
			}
		}
		return anyMatches(v.patterns, path)
	case requestHeader:
		value, there := r.field(c.header)
		if !there {
			return false
		}
		for i := range v.patterns {
			// Of a field, "*" asks whether it is there, even if empty (Envoy's present_match).
			if p := &v.patterns[i]; p.kind == present || p.matches(value) {
				return true
			}
		}
		return false
	case requestAuthPrincipal:
		i := r.Identity
		if i == nil || i.issuer == "" || i.subject == "" {
			return false
		}
		for k := range v.principals {
			if p := &v.principals[k]; p.issuer.matches(i.issuer) && p.subject.matches(i.subject) {
				return true
			}
		}
		return false
	case requestClaim:
		switch claim := r.Identity.claim(c.claim).(type) {
		case string:
			return anyMatches(v.patterns, claim)
		case []any:
			for _, each := range claim {
				if s, ok := each.(string); ok && anyMatches(v.patterns, s) {
					return true
				}
			}
		}
		return false
	}
	return false
}
