package file

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/proxy/authz"
)

// Who may do what. Rules have the shape, and the names, that they have in Istio's
// AuthorizationPolicy and RequestAuthentication.

func (r *reader) auth(c *Config) field {
	return func(n *yaml.Node, path string) {
		a := &c.World.Access
		anonymous := false
		r.mapping(n, path, map[string]field{
			"keys":      textInto(r, &c.Keys, "the path of a file"),
			"anonymous": r.yesNo(&anonymous),
			"jwtRules":  listInto(r, &a.Tokens, r.token),
		})
		a.HasKeys = c.Keys != ""
		a.Required = !anonymous && (a.HasKeys || len(a.Tokens) > 0)
	}
}

func (r *reader) token(n *yaml.Node, path string) (t authz.TokenRule) {
	r.mapping(n, path, map[string]field{
		"issuer":    textInto(r, &t.Issuer, "an issuer"),
		"audiences": r.texts(&t.Audiences, "an audience"),
		"jwks":      textInto(r, &t.JWKS, "a JSON Web Key Set"),
		"jwksUri":   textInto(r, &t.JWKSURI, "a URL"),
		"fromHeaders": listInto(r, &t.FromHeaders, func(n *yaml.Node, path string) (h authz.TokenHeader) {
			r.mapping(n, path, map[string]field{"name": textInto(r, &h.Name, "a field name"), "prefix": textInto(r, &h.Prefix, "a prefix")})
			return h
		}),
		"fromParams":            r.texts(&t.FromParams, "the name of a parameter"),
		"fromCookies":           r.texts(&t.FromCookies, "the name of a cookie"),
		"forwardOriginalToken":  r.yesNo(&t.ForwardOriginalToken),
		"outputPayloadToHeader": textInto(r, &t.OutputPayloadToHeader, "a field name"),
		"outputClaimToHeaders": listInto(r, &t.OutputClaimToHeaders, func(n *yaml.Node, path string) (c authz.ClaimHeader) {
			r.mapping(n, path, map[string]field{"header": textInto(r, &c.Header, "a field name"), "claim": textInto(r, &c.Claim, "a claim")})
			return c
		}),
		"spaceDelimitedClaims": r.texts(&t.SpaceDelimitedClaims, "a claim"),
		"timeout":              r.duration(&t.Timeout, minInterval),
	})
	return t
}

func (r *reader) policy(n *yaml.Node, path string) (p authz.Policy) {
	r.mapping(n, path, map[string]field{
		"name":     textInto(r, &p.Name, "a name"),
		"action":   textInto(r, &p.Action, oneOf(actions)),
		"dryRun":   r.yesNo(&p.DryRun),
		"provider": r.section(map[string]field{"name": textInto(r, &p.Provider, "the name of one of extension_providers")}),
		"rules":    listInto(r, &p.Rules, r.rule),
	})
	return p
}

func (r *reader) rule(n *yaml.Node, path string) (u authz.Rule) {
	const value = "a value"
	r.mapping(n, path, map[string]field{
		"from": listInto(r, &u.From, func(n *yaml.Node, path string) (s authz.Source) {
			r.mapping(n, path, map[string]field{"source": r.section(map[string]field{
				"principals": r.texts(&s.Principals, value), "notPrincipals": r.texts(&s.NotPrincipals, value),
				"requestPrincipals": r.texts(&s.RequestPrincipals, value), "notRequestPrincipals": r.texts(&s.NotRequestPrincipals, value),
				"namespaces": r.texts(&s.Namespaces, value), "notNamespaces": r.texts(&s.NotNamespaces, value),
				"serviceAccounts": r.texts(&s.ServiceAccounts, value), "notServiceAccounts": r.texts(&s.NotServiceAccounts, value),
				"trustDomains": r.texts(&s.TrustDomains, value), "notTrustDomains": r.texts(&s.NotTrustDomains, value),
				"ipBlocks": r.texts(&s.IPBlocks, value), "notIpBlocks": r.texts(&s.NotIPBlocks, value),
				"remoteIpBlocks": r.texts(&s.RemoteIPBlocks, value), "notRemoteIpBlocks": r.texts(&s.NotRemoteIPBlocks, value),
			})})
			return s
		}),
		"to": listInto(r, &u.To, func(n *yaml.Node, path string) (o authz.Operation) {
			r.mapping(n, path, map[string]field{"operation": r.section(map[string]field{
				"hosts": r.texts(&o.Hosts, value), "notHosts": r.texts(&o.NotHosts, value),
				"ports": r.texts(&o.Ports, value), "notPorts": r.texts(&o.NotPorts, value),
				"methods": r.texts(&o.Methods, value), "notMethods": r.texts(&o.NotMethods, value),
				"paths": r.texts(&o.Paths, value), "notPaths": r.texts(&o.NotPaths, value),
			})})
			return o
		}),
		"when": listInto(r, &u.When, func(n *yaml.Node, path string) (c authz.Condition) {
			r.mapping(n, path, map[string]field{
				"key": textInto(r, &c.Key, "an attribute"), "values": r.texts(&c.Values, value), "notValues": r.texts(&c.NotValues, value),
			})
			return c
		}),
	})
	return u
}

// prefixes is the field of a list of addresses and CIDRs.
func (r *reader) prefixes(into *[]netip.Prefix) field {
	return r.list(func(n *yaml.Node, path string) {
		s, ok := r.text(n, path, "an address or a CIDR such as 10.0.0.0/8")
		if !ok {
			return
		}
		p, err := authz.ParsePrefix(s)
		if err != nil {
			r.problem(path, "%s: want an address or a CIDR such as 10.0.0.0/8", show(s))
			return
		}
		*into = append(*into, p)
	})
}

var actions = []authz.Action{authz.Allow, authz.Deny, authz.Audit, authz.Custom}

// access tells what of the policies cannot be understood, and who could never call.
func (k *checker) access(a *authz.Config) {
	names := make(map[string]int)
	for i, p := range a.Policies {
		k.name(fmt.Sprintf("policies[%d].name", i), p.Name, "policies", i, names)
	}
	for _, f := range a.Check() {
		path := "auth." + f.Path
		if f.Policy >= 0 {
			path = fmt.Sprintf("policies[%d].%s", f.Policy, f.Path)
		}
		k.problem(path, "%s", f.Text)
	}
}

// ParseKeys reads a file of API keys: on each line a name, and the SHA-256 sum of the
// key as "sha256:" and 64 hex digits. Lines that are empty or begin with # do not
// count. A name may have several keys, a key has one name. No error holds any of a
// line: it could be a key.
func ParseKeys(name string, data []byte) (keys []authz.Key, err error) {
	var problems []error
	seen := make(map[[32]byte]int)
	number := 0
	for line := range bytes.Lines(data) {
		number++
		words := strings.Fields(string(line))
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		key, ok := parseKey(words)
		switch {
		case !ok:
			problems = append(problems, fmt.Errorf("%s:%d: want a name and sha256: with 64 hex digits, the sum of the key", name, number))
		case seen[key.Sum] > 0:
			problems = append(problems, fmt.Errorf("%s:%d: the same key as on line %d", name, number, seen[key.Sum]))
		default:
			seen[key.Sum] = number
			keys = append(keys, key)
		}
		if len(problems) == maxProblems {
			break
		}
	}
	return keys, errors.Join(problems...)
}

func parseKey(words []string) (k authz.Key, ok bool) {
	if len(words) != 2 || !utf8.ValidString(words[0]) || strings.Contains(words[0], "/") {
		return k, false
	}
	digits, ok := strings.CutPrefix(words[1], "sha256:")
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != len(k.Sum) {
		return k, false
	}
	k.Name = words[0]
	copy(k.Sum[:], sum)
	return k, true
}
