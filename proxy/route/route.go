// Package route finds the rule that a request is served by, and does to it what
// the rule says: the HTTPRoute of the Gateway API (gateway.networking.k8s.io/v1).
//
// A Route is plain data with the field's names, defaults and meanings of the
// Gateway API. Compile makes a Table of many: an immutable index, safe for
// concurrent use, that finds the rule of a request without allocating and
// without looking at the rules of other hosts and paths. A Table knows nothing
// of where it hangs: on a listener, or on a port of a Service. Backends are
// named, and what the names stand for is the caller's business.
//
// Where the API leaves a choice, this is what is done here:
//
//   - A path is matched as it is sent on, in the spelling of package normalize. A
//     regular expression (RE2) has to match the whole path or value. Of the types of path match,
//     Exact goes before RegularExpression, the longest expression first, and that
//     before PathPrefix.
//   - Where no rule of the most specific hostname matches, those of less specific
//     ones are tried.
//   - A field that is repeated is matched as one value joined by commas (RFC 9110
//     section 5.3); of a repeated query parameter the first counts. Names and
//     values of query parameters are matched decoded.
//   - Header modifiers remove first, then set, then add.
//
// Whether a Route makes sense is Check's to say. Compile takes whatever it gets:
// what cannot be understood matches nothing.
package route

import (
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// Route is a set of rules for requests to some hosts.
type Route struct {
	// Name is for those who read about it: "namespace/name" of an HTTPRoute.
	Name string
	// Hostnames are the hosts it is for: exact, or "*." and a suffix. None: all.
	Hostnames []string
	Rules     []Rule
}

// Rule says what becomes of the requests that it matches.
type Rule struct {
	// Name is the rule's own, may be empty.
	Name string
	// Matches are alternatives. None: every request.
	Matches []Match
	// Filters change requests and answers on their way.
	Filters
	// Backends share the requests by their weights.
	Backends []Backend
	Timeouts Timeouts
	// Retry says when a request is sent again; nil: as without a route.
	Retry *Retry
}

// Match is a set of conditions that have all to be met.
type Match struct {
	// Path is empty for PathPrefix "/".
	Path PathMatch
	// Method is empty for any.
	Method string
	// Headers has each name once, whatever its case; further ones are ignored.
	Headers []ValueMatch
	// Query has each name once; further ones are ignored.
	Query []ValueMatch
}

// MatchType says how a text is compared with that of a request.
type MatchType string

// The types of matches. Empty is PathPrefix for a path, Exact for anything else.
const (
	Exact             MatchType = "Exact"
	PathPrefix        MatchType = "PathPrefix" // by whole elements; of a path only
	RegularExpression MatchType = "RegularExpression"
)

// PathMatch is a condition on the path.
type PathMatch struct {
	Type  MatchType
	Value string
}

// ValueMatch is a condition on a header field or a query parameter.
type ValueMatch struct {
	Type  MatchType
	Name  string
	Value string
}

// Filters change requests and answers on their way. Redirect and Rewrite exclude
// one another.
type Filters struct {
	RequestHeaders  *HeaderModifier
	ResponseHeaders *HeaderModifier
	// Redirect answers the request itself.
	Redirect *Redirect
	Rewrite  *Rewrite
	// Mirrors get copies of the request; their answers are thrown away.
	Mirrors []Mirror
}

// HeaderModifier changes the fields of a head.
type HeaderModifier struct {
	// Set replaces all fields of its names.
	Set []message.Field
	// Add adds fields beside those of the same name.
	Add []message.Field
	// Remove has names in lower case.
	Remove []string
}

// Redirect sends the client elsewhere (filter RequestRedirect).
type Redirect struct {
	// Scheme, Hostname and Port are those of the request where they are empty or
	// 0, except that a Scheme brings its own port.
	Scheme, Hostname string
	Port             int
	// Path is nil for that of the request.
	Path *PathModifier
	// Status is 0 for 302.
	Status int
}

// Rewrite changes what is asked of the backend (filter URLRewrite).
type Rewrite struct {
	Hostname string        // empty: as it came
	Path     *PathModifier // nil: as it came
}

// PathModifier replaces a path, or the part of it that a PathPrefix matched. The
// query stays.
type PathModifier struct {
	Prefix      bool // only the part that was matched
	Replacement string
}

// Mirror is a backend that gets a share of the requests as well.
type Mirror struct {
	Pool string
	// Numerator of Denominator requests are mirrored. A Denominator of 0: all.
	Numerator, Denominator int
}

// Backend is where some of the requests go.
type Backend struct {
	// Pool is its name; empty for a backend that is not valid, whose share of
	// the requests is answered with 500.
	Pool string
	// Weight over the sum of the weights is its share.
	Weight int
	// RequestHeaders and ResponseHeaders are changed after those of the rule, for
	// the requests that go here.
	RequestHeaders, ResponseHeaders *HeaderModifier
}

// Timeouts bound an exchange. Nil: as without a route; zero: no bound.
type Timeouts struct {
	// Request bounds the whole exchange.
	Request *time.Duration
	// BackendRequest bounds each attempt, from its first byte to the answer's end.
	BackendRequest *time.Duration
}

// Retry says when a request is sent again, as long as no byte of an answer has
// reached the client.
type Retry struct {
	// Codes are the statuses of answers after which it is.
	Codes []int
	// Attempts bounds how often.
	Attempts int
	// Backoff is the least wait before the first time, and doubles with each.
	Backoff time.Duration
}

// Backend chooses one of the backends by their weights: roll is any evenly spread
// number. Nil if none is to get anything.
func (r *Rule) Backend(roll uint64) *Backend {
	sum := uint64(0)
	for i := range r.Backends {
		sum += uint64(r.Backends[i].Weight)
	}
	if sum == 0 {
		return nil
	}
	at := roll % sum
	for i := range r.Backends {
		weight := uint64(r.Backends[i].Weight)
		if at < weight {
			return &r.Backends[i]
		}
		at -= weight
	}
	panic("unreachable: the weights sum to more than at")
}

// Hit tells whether this request is among those that are mirrored: roll as in
// Rule.Backend.
func (m *Mirror) Hit(roll uint64) bool {
	return m.Denominator == 0 || roll%uint64(m.Denominator) < uint64(m.Numerator)
}
