package authz

import "strings"

// Action is what a policy does with the requests that its rules match.
type Action string

// The actions of an AuthorizationPolicy. Empty counts as Allow.
const (
	Allow  Action = "ALLOW"
	Deny   Action = "DENY"
	Audit  Action = "AUDIT"
	Custom Action = "CUSTOM"
)

// Policy is an AuthorizationPolicy that is known to apply: what it selects is the
// business of whoever gives it to a Compiler.
type Policy struct {
	// Namespace is where service accounts without a namespace are.
	Namespace, Name string
	Action          Action
	// DryRun has the policy judged and told of, but not enforced (the annotation
	// istio.io/dry-run).
	DryRun bool
	// Provider is the external authorizer of a Custom policy.
	Provider string
	// Rules match when one of them does; none never match.
	Rules []Rule
}

// name is the policy's, behind its namespace if it has one.
func (p *Policy) name() string { return strings.TrimPrefix(p.Namespace+"/"+p.Name, "/") }

// Rule matches what one of From does to one of To while all of When hold. What is
// left out matches always.
type Rule struct {
	From []Source
	To   []Operation
	When []Condition
}

// Source, Operation and Condition have the names of Istio's API in JSON.

// Source is who sends a request. Its fields must all match; one of a field's
// values is enough, and none of a Not field's may.
type Source struct {
	Principals           []string `json:"principals"` // "<trust domain>/ns/<namespace>/sa/<service account>"
	NotPrincipals        []string `json:"notPrincipals"`
	RequestPrincipals    []string `json:"requestPrincipals"` // "<iss>/<sub>"
	NotRequestPrincipals []string `json:"notRequestPrincipals"`
	Namespaces           []string `json:"namespaces"`
	NotNamespaces        []string `json:"notNamespaces"`
	ServiceAccounts      []string `json:"serviceAccounts"` // "<service account>" or "<namespace>/<service account>", literally
	NotServiceAccounts   []string `json:"notServiceAccounts"`
	TrustDomains         []string `json:"trustDomains"`
	NotTrustDomains      []string `json:"notTrustDomains"`
	IPBlocks             []string `json:"ipBlocks"` // addresses or CIDRs
	NotIPBlocks          []string `json:"notIpBlocks"`
	RemoteIPBlocks       []string `json:"remoteIpBlocks"` // addresses or CIDRs
	NotRemoteIPBlocks    []string `json:"notRemoteIpBlocks"`
}

// Operation is what a request does; its fields are as those of a Source.
type Operation struct {
	Hosts      []string `json:"hosts"` // whatever their case, with the port if the request names one
	NotHosts   []string `json:"notHosts"`
	Ports      []string `json:"ports"`
	NotPorts   []string `json:"notPorts"`
	Methods    []string `json:"methods"`
	NotMethods []string `json:"notMethods"`
	Paths      []string `json:"paths"` // without the query; {*} stands for one segment, {**} for any number
	NotPaths   []string `json:"notPaths"`
}

// Condition is about an attribute named by Key. Those of Istio are listed in its
// reference of Authorization Policy Conditions. Fairway adds request.model, the model
// that the request names; experimental.envoy.filters.fairway[model] is another name of
// it, which Istio's own validation lets pass.
type Condition struct {
	Key       string   `json:"key"`
	Values    []string `json:"values"`
	NotValues []string `json:"notValues"`
}

// Finding is something in a Config that cannot be understood, or never matches.
type Finding struct {
	Policy int    // the index of the policy; -1: it is about Tokens
	Path   string // within the policy, such as "rules[0].when[1].key", or such as "jwtRules[0].issuer"
	Text   string
}
