package authz

import (
	"net/netip"
	"slices"
)

// evaluator is policies made ready to judge by. It does not change.
type evaluator struct {
	http, conn lists
	readsModel bool // some policy is about the model
	readsSNI   bool // some policy is about connection.sni
}

// lists are policies by what they do.
type lists [noKind][]policy

// kind says which of lists a policy is in.
type kind uint8

const (
	kindCustom kind = iota
	kindAudit
	kindDeny
	kindAllow
	kindDryDeny
	kindDryAllow
	noKind // it never counts
)

type policy struct {
	name     string // "namespace/name"
	provider string // of CUSTOM
	rules    []rule
}

// add adds a policy to the list that it belongs to.
func (e *evaluator) add(c *compiled) {
	if c.kind == noKind {
		return
	}
	e.http[c.kind] = append(e.http[c.kind], c.http)
	e.conn[c.kind] = append(e.conn[c.kind], c.conn)
	e.readsModel = e.readsModel || c.model
	e.readsSNI = e.readsSNI || c.sni
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

// firstOfRequests is the first attribute that a connection which is not HTTP lacks. The name that a TLS client asked for
// is one: such a connection is passed on unread.
const firstOfRequests = connectionSNI

// Decision is what policies make of a request.
type Decision struct {
	// Denied says that the request must not pass; Policy is the one whose DENY rule
	// matched, empty if no ALLOW did.
	Denied bool
	Policy string
	// AuditPolicy is an AUDIT policy that matched, empty for none.
	AuditPolicy string
	// DryRun says that there are dry-run policies, and DryRunDenied that these, were
	// they enforced, would deny the request; DryRunPolicy as Policy.
	DryRun, DryRunDenied bool
	DryRunPolicy         string
}

// judge goes through lists in Istio's order, after CUSTOM: AUDIT, DENY, ALLOW.
func (l *lists) judge(r *Request) (d Decision) {
	d.Policy, d.Denied = denies(l[kindDeny], l[kindAllow], r)
	if r.ModelPending {
		return d // what follows is only told of, and once
	}
	d.AuditPolicy, _ = first(l[kindAudit], r, false)
	if d.DryRun = len(l[kindDryDeny])+len(l[kindDryAllow]) > 0; d.DryRun {
		d.DryRunPolicy, d.DryRunDenied = denies(l[kindDryDeny], l[kindDryAllow], r)
	}
	return d
}

// Asked is an external authorizer that has to be asked about a request, and the CUSTOM
// policy that wants it.
type Asked struct{ Provider, Policy string }

// asks appends to all who has to be asked, each provider once.
func (l *lists) asks(all []Asked, r *Request) []Asked {
	for i := range l[kindCustom] {
		p := &l[kindCustom][i]
		if !wasAsked(all, p.provider) && p.matches(r, false) {
			all = append(all, Asked{p.provider, p.name})
		}
	}
	return all
}

func wasAsked(all []Asked, provider string) bool {
	for i := range all {
		if all[i].Provider == provider {
			return true
		}
	}
	return false
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
		if p := &policies[i]; p.matches(r, pending) {
			return p.name, true
		}
	}
	return "", false
}

func (p *policy) matches(r *Request, pending bool) bool {
	for i := range p.rules {
		if p.rules[i].matches(r, pending) {
			return true
		}
	}
	return false
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
		return slices.Contains(v.ports, r.Port)
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
