package file

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/normalize"
)

const jwks = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

// Every key of who may do what arrives where it belongs: each of these values stands
// in one place.
func TestEveryAccessSettingIsRead(t *testing.T) {
	c, err := Parse("fairway.yaml", []byte(minimal+`
listen: {tls: {certificate: tls.crt, key: /etc/tls.key}}
normalization: MERGE_SLASHES
trusted_proxies: [10.0.0.0/8, "2001:db8::1"]
auth:
  keys: keys.txt
  anonymous: true
  jwtRules:
  - issuer: i
    audiences: [a1, a2]
    jwks: '`+jwks+`'
    jwksUri: https://j.example
    fromHeaders: [{name: h, prefix: "p "}]
    fromParams: [fp]
    fromCookies: [fc]
    forwardOriginalToken: true
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-claim, claim: c.d}]
    spaceDelimitedClaims: [s]
    timeout: 3s
policies:
- name: first
  action: DENY
  dryRun: true
  rules:
  - from:
    - source:
        principals: [s1]
        notPrincipals: [s2]
        requestPrincipals: [s3]
        notRequestPrincipals: [s4]
        namespaces: [s5]
        notNamespaces: [s6]
        trustDomains: [s9]
        notTrustDomains: [s10]
        ipBlocks: [10.0.0.11]
        notIpBlocks: [10.0.0.12]
        remoteIpBlocks: [10.0.0.13]
        notRemoteIpBlocks: [10.0.0.14]
    - source: {serviceAccounts: [n/s7], notServiceAccounts: [n/s8]}
    to:
    - operation: {hosts: [o1], notHosts: [o2], ports: ["3"], notPorts: ["4"], methods: [o5], notMethods: [o6], paths: [/o7], notPaths: [/o8]}
    when:
    - {key: source.ip, values: [10.0.0.21], notValues: [10.0.0.22]}
- name: second
`))
	if err != nil {
		t.Fatal(err)
	}
	want := authz.Config{
		HasKeys: true, Normalization: normalize.MergeSlashes,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::1/128")},
		Tokens: []authz.TokenRule{{
			Issuer: "i", Audiences: []string{"a1", "a2"}, JWKS: jwks, JWKSURI: "https://j.example",
			FromHeaders: []authz.TokenHeader{{Name: "h", Prefix: "p "}}, FromParams: []string{"fp"}, FromCookies: []string{"fc"},
			ForwardOriginalToken: true, OutputPayloadToHeader: "x-payload", OutputClaimToHeaders: []authz.ClaimHeader{{Header: "x-claim", Claim: "c.d"}},
			SpaceDelimitedClaims: []string{"s"}, Timeout: 3 * time.Second,
		}},
		Policies: []authz.Policy{
			{Name: "first", Action: authz.Deny, DryRun: true, Rules: []authz.Rule{{
				From: []authz.Source{
					{
						Principals: []string{"s1"}, NotPrincipals: []string{"s2"}, RequestPrincipals: []string{"s3"}, NotRequestPrincipals: []string{"s4"},
						Namespaces: []string{"s5"}, NotNamespaces: []string{"s6"}, TrustDomains: []string{"s9"}, NotTrustDomains: []string{"s10"},
						IPBlocks: []string{"10.0.0.11"}, NotIPBlocks: []string{"10.0.0.12"}, RemoteIPBlocks: []string{"10.0.0.13"}, NotRemoteIPBlocks: []string{"10.0.0.14"},
					},
					{ServiceAccounts: []string{"n/s7"}, NotServiceAccounts: []string{"n/s8"}},
				},
				To: []authz.Operation{{
					Hosts: []string{"o1"}, NotHosts: []string{"o2"}, Ports: []string{"3"}, NotPorts: []string{"4"},
					Methods: []string{"o5"}, NotMethods: []string{"o6"}, Paths: []string{"/o7"}, NotPaths: []string{"/o8"},
				}},
				When: []authz.Condition{{Key: "source.ip", Values: []string{"10.0.0.21"}, NotValues: []string{"10.0.0.22"}}},
			}}},
			{Name: "second"},
		},
	}
	if !reflect.DeepEqual(c.World.Access, want) {
		t.Errorf("got  %+v\nwant %+v", c.World.Access, want)
	}
	if c.Keys != "keys.txt" || c.Listen.TLS != (TLS{"tls.crt", "/etc/tls.key"}) {
		t.Errorf("%q, %+v", c.Keys, c.Listen.TLS)
	}
}

// Credentials are asked for as soon as there is something to judge them by.
func TestCredentialsAreRequired(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                  false,
		"auth: {}":                          false,
		"auth: {keys: a}":                   true,
		"auth: {keys: a, anonymous: false}": true,
		"auth: {keys: a, anonymous: true}":  false,
		"auth: {jwtRules: [{jwks: '" + jwks + "'}]}": true,
		"policies: [{name: a}]":                      false,
	} {
		if a := parse(t, minimal+text).World.Access; a.Required != want {
			t.Errorf("%s: %+v", text, a)
		}
	}
}

func TestAccessErrors(t *testing.T) {
	for text, want := range map[string]string{
		"listen: {tls: {certificate: a}}":                                                                  `f:2: listen.tls: want both certificate and key`,
		"normalization: none":                                                                              `f:2: normalization: "none": want DECODE_AND_MERGE_SLASHES, MERGE_SLASHES, BASE or NONE`,
		"trusted_proxies: [10.0.0.0/33]":                                                                   `f:2: trusted_proxies[0]: "10.0.0.0/33": want an address or a CIDR such as 10.0.0.0/8`,
		"auth: {anonymous: 1}":                                                                             `f:2: auth.anonymous: "1": want true or false`,
		"auth: {key: a}":                                                                                   `f:2: auth.key: unknown key: did you mean "keys"? (keys: anonymous, jwtRules, keys)`,
		"auth: {jwtRules: [{issuer: a}]}":                                                                  `f:2: auth.jwtRules[0]: no keys: want jwks or jwksUri (they are not looked for at the issuer)`,
		"auth: {jwtRules: [{issuer: a, jwks: '{}'}]}":                                                      `f:2: auth.jwtRules[0].jwks: the JSON Web Key Set has no public signing key`,
		"auth: {jwtRules: [{issuer: a, jwksUri: 'file:///a'}]}":                                            `f:2: auth.jwtRules[0].jwksUri: "file:///a" is no URL: want http or https`,
		"auth: {jwtRules: [{issuer: key, jwksUri: 'http://a'}]}":                                           `f:2: auth.jwtRules[0].issuer: "key" stands for API keys`,
		"policies: [{action: DENY, rules: [{}]}]":                                                          `f:2: policies[0].name: missing: want a name`,
		"policies: [{name: a}, {name: a}]":                                                                 `f:2: policies[1].name: "a" is the name of policies[0] as well`,
		"policies: [{name: a, action: deny, rules: [{}]}]":                                                 `f:2: policies[0].action: "deny" is no action: want ALLOW, DENY, AUDIT or CUSTOM; what the policy matches is denied`,
		"policies: [{name: a, action: CUSTOM, rules: [{}]}]":                                               `f:2: policies[0].provider: missing: want the name of an external authorizer; what the policy matches is denied`,
		"policies: [{name: a, rules: [{when: [{key: x, values: [y]}]}]}]":                                  `f:2: policies[0].rules[0].when[0].key: unknown attribute "x"`,
		"policies: [{name: a, rules: [{to: [{operation: {ports: [80]}}]}]}]":                               `f:2: policies[0].rules[0].to[0].operation.ports[0]: "80" is a number: want a value (text, in quotes)`,
		"policies: [{name: a, rules: [{from: [{source: {}}]}]}]":                                           `f:2: policies[0].rules[0].from[0].source: empty: want one of its fields`,
		"policies: [{name: a, action: CUSTOM, provider: {name: opa}, rules: [{}]}]":                        `f:2: policies[0].provider.name: "opa" is not one of extension_providers (there is none)`,
		"extension_providers: [{name: a}]":                                                                 `f:2: extension_providers[0]: want one of envoyExtAuthzGrpc and envoyExtAuthzHttp`,
		"extension_providers: [{name: a, envoyExtAuthzGrpc: {service: a, port: 1, pathPrefix: /x}}]":       `f:2: extension_providers[0].envoyExtAuthzGrpc.pathPrefix: unknown key (keys: failOpen, includeRequestBodyInCheck, port, service, statusOnError, timeout)`,
		"extension_providers: [{name: a, envoyExtAuthzGrpc: {service: a, port: 1, statusOnError: '200'}}]": `f:2: extension_providers[0].envoyExtAuthzGrpc.statusOnError: "200": want a status from 400 to 599`,
		"extension_providers: [{name: a, envoyExtAuthzHttp: {service: a, port: 1, pathPrefix: x}}]":        `f:2: extension_providers[0].pathPrefix: "x": want a path`,
		"policies: [{name: a, rules: [{when: [{keys: a}]}]}]":                                              "f:2: policies[0].rules[0].when[0].keys: unknown key: did you mean \"key\"? (keys: key, notValues, values)",
	} {
		if _, err := Parse("f", []byte(minimal+text)); err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", text, err, want)
		}
	}
}

// Providers are read as Istio's mesh configuration spells them.
func TestEverySettingOfAProviderIsRead(t *testing.T) {
	c := parse(t, minimal+`
extension_providers:
- name: opa
  envoyExtAuthzGrpc:
    service: ns/opa.default.svc.cluster.local
    port: 9000
    timeout: 250ms
    failOpen: true
    statusOnError: "503"
    includeRequestBodyInCheck: {maxRequestBytes: 8192, allowPartialMessage: true, packAsBytes: true}
- name: web
  envoyExtAuthzHttp:
    service: web.default.svc.cluster.local
    port: 80
    pathPrefix: /check
    includeRequestHeadersInCheck: [X-A, "x-b*"]
    includeAdditionalHeadersInCheck: {X-C: "1"}
    headersToUpstreamOnAllow: [x-d]
    headersToDownstreamOnDeny: [x-e]
    headersToDownstreamOnAllow: [x-f]
policies:
- {name: ask, action: CUSTOM, provider: {name: opa}, rules: [{}]}
`)
	want := []extauthz.Provider{
		{Name: "opa", Address: "opa.default.svc.cluster.local:9000", Timeout: 250 * time.Millisecond, FailOpen: true, StatusOnError: 503, Body: 8192, AllowPartial: true, PackAsBytes: true},
		{Name: "web", Address: "web.default.svc.cluster.local:80", HTTP: true, PathPrefix: "/check", IncludeHeaders: []string{"x-a", "x-b*"}, AddHeaders: map[string]string{"x-c": "1"},
			ToUpstreamOnAllow: []string{"x-d"}, ToClientOnDeny: []string{"x-e"}, ToClientOnAllow: []string{"x-f"}},
	}
	if !reflect.DeepEqual(c.World.Authorizers, want) || c.World.Access.Policies[0].Provider != "opa" {
		t.Errorf("got  %+v\nwant %+v", c.World.Authorizers, want)
	}
}

func TestParseKeys(t *testing.T) {
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("secret")))
	other := fmt.Sprintf("sha256:%X", sha256.Sum256([]byte("other")))
	keys, err := ParseKeys("keys", []byte("# comment\n\nteam-a "+sum+"\n\t team-a\t"+other+"\r\n"))
	want := []authz.Key{{Name: "team-a", Sum: sha256.Sum256([]byte("secret"))}, {Name: "team-a", Sum: sha256.Sum256([]byte("other"))}}
	if err != nil || !reflect.DeepEqual(keys, want) {
		t.Errorf("%v, %v", keys, err)
	}
	for _, line := range []string{"secret", "team-a secret", "team-a sha256:secret", "team-a " + sum[:60], "team-a " + sum + " x", "a/b " + sum, sum, "\xff " + sum, "team-a " + strings.TrimPrefix(sum, "sha256:")} {
		_, err := ParseKeys("keys", []byte("ok "+other+"\n"+line))
		if err == nil || err.Error() != "keys:2: want a name and sha256: with 64 hex digits, the sum of the key" {
			t.Errorf("%q: %v", line, err)
		}
	}
	if _, err := ParseKeys("keys", []byte("a "+sum+"\nb "+sum)); err == nil || err.Error() != "keys:2: the same key as on line 1" {
		t.Error(err)
	}
}
