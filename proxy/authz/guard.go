package authz

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/normalize"
)

// Config is who may do what, as declared.
type Config struct {
	Policies []Policy
	// Tokens are the rules of RequestAuthentications.
	Tokens []TokenRule
	// Keys are the API keys that are known. HasKeys says that they are asked for, even
	// if there are none.
	Keys    []Key
	HasKeys bool
	// Required refuses requests that bring neither a key nor a token. Without it,
	// they pass and have no identity, as in Istio.
	Required bool
	// TrustDomains is ours and then its aliases.
	TrustDomains []string
	// Normalization is how paths are spelled.
	Normalization normalize.Mode
	// Elsewhere says that whoever brings the requests has judged them: nothing is
	// judged, spelled or taken out here.
	Elsewhere bool
	// TrustedProxies are the addresses from which fields that say where a request
	// comes from, or where it is to go, are believed.
	TrustedProxies []netip.Prefix
}

// Key is an API key: the SHA-256 sum of it, and whose it is.
type Key struct {
	Name string
	Sum  [sha256.Size]byte
}

// KeyIssuer stands for the issuer in the principal of an API key, "key/<name>".
const KeyIssuer = "key"

// Guard judges by a Config and a Scope. It is safe for concurrent use.
type Guard struct {
	Normalization normalize.Mode
	Elsewhere     bool
	// Withheld says why nothing is to be let in for the moment, as in its Scope.
	Withheld string

	policies evaluator
	tokens   []*tokenRule
	keys     map[[sha256.Size]byte]*Identity
	hasKeys  bool
	required bool
	outputs  []string // fields that only tokens may set
	trusted  []netip.Prefix
}

// newGuard makes the Guard of a Config without policies and tokens.
func newGuard(c *Config) *Guard {
	g := &Guard{Normalization: c.Normalization, Elsewhere: c.Elsewhere, hasKeys: c.HasKeys, required: c.Required, trusted: c.TrustedProxies}
	if len(c.Keys) > 0 {
		g.keys = make(map[[sha256.Size]byte]*Identity, len(c.Keys))
	}
	for _, k := range c.Keys {
		g.keys[k.Sum] = newIdentity(KeyIssuer, k.Name, nil)
	}
	return g
}

// clone makes another that can be added to.
func (g *Guard) clone() *Guard {
	c := *g
	for i := range c.policies.http {
		c.policies.http[i], c.policies.conn[i] = slices.Clip(c.policies.http[i]), slices.Clip(c.policies.conn[i])
	}
	c.tokens, c.outputs = slices.Clip(c.tokens), slices.Clip(c.outputs)
	return &c
}

func (g *Guard) addTokens(t *tokenRule) {
	g.tokens = append(g.tokens, t)
	g.outputs = append(g.outputs, t.outputs()...)
}

// Asks appends to all who has to be asked about a request before its Identity is
// settled, each provider once: what hangs on a model that is pending comes later.
func (g *Guard) Asks(all []Asked, r *Request) []Asked { return g.policies.http.asks(all, r) }

// AsksConn does so for a connection that is not HTTP.
func (g *Guard) AsksConn(all []Asked, r *Request) []Asked { return g.policies.conn.asks(all, r) }

// Judge says what the policies make of a request whose Identity is settled.
func (g *Guard) Judge(r *Request) Decision { return g.policies.http.judge(r) }

// JudgeConn does so for a connection that is not HTTP.
func (g *Guard) JudgeConn(r *Request) Decision { return g.policies.conn.judge(r) }

// ReadsModel tells whether some policy is about the model, so that a request is to be
// judged once its Model is known.
func (g *Guard) ReadsModel() bool { return g.policies.readsModel }

// ReadsSNI tells whether some policy is about the name that the TLS client asked for.
func (g *Guard) ReadsSNI() bool { return g.policies.readsSNI }

// Required tells whether requests that bring no credentials are refused. A connection that is not
// HTTP can bring none.
func (g *Guard) Required() bool { return g.required && (g.hasKeys || len(g.tokens) > 0) }

// Trusts tells whether what an address says of a request's way is believed.
func (g *Guard) Trusts(a netip.Addr) bool { return len(g.trusted) > 0 && inPrefixes(g.trusted, a) }

// Drops tells of a field that must not be passed on: one that speaks of the request's
// way and comes from somebody who is not believed, one that steers, or one with an
// underscore in its name, which a server may take for a hyphen.
func Drops(name []byte, trusted bool) bool {
	if bytes.IndexByte(name, '_') >= 0 {
		return true
	}
	if len(name) == 0 {
		return false
	}
	if trusted {
		return Steers(name) // whom trusted proxies pass it on for is not known
	}
	switch name[0] | 0x20 {
	case 'f':
		return message.EqualFold(name, "forwarded")
	case 'x':
		return begins(name, "x-forwarded-") || begins(name, "x-gateway-") || message.EqualFold(name, "x-real-ip") || Steers(name)
	}
	return false
}

// Steers tells of a field by which a proxy in front of an engine asks other hosts for
// parts of the work (llm-d's routing sidecar): from a client it would have that proxy
// connect wherever the client likes.
func Steers(name []byte) bool {
	return message.EqualFold(name, "x-prefiller-host-port") || message.EqualFold(name, "x-encoder-hosts-ports") ||
		message.EqualFold(name, "x-data-parallel-host-port") || message.EqualFold(name, "x-kv-cache-source-host-port")
}

func begins(name []byte, lower string) bool {
	return len(name) >= len(lower) && message.EqualFold(name[:len(lower)], lower)
}

// Remote is the client's address: source, or if that is a trusted proxy the last one
// in X-Forwarded-For that is none.
func (g *Guard) Remote(source netip.Addr, fields []message.Field) netip.Addr {
	if !g.Trusts(source) {
		return source
	}
	remote := source
	for i := len(fields) - 1; i >= 0; i-- {
		if !message.EqualFold(fields[i].Name, "x-forwarded-for") {
			continue
		}
		for rest := view(fields[i].Value); rest != ""; {
			hop := rest
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, hop = rest[:at], rest[at+1:]
			} else {
				rest = ""
			}
			a, err := netip.ParseAddr(strings.Trim(hop, " \t"))
			if err != nil {
				return remote
			}
			if remote = a.Unmap(); !g.Trusts(remote) {
				return remote
			}
		}
	}
	return remote
}

// What Authenticate answers with, apart from a TokenError.
var (
	ErrNoCredentials = errors.New("this request needs an API key or a token, as a Bearer in the Authorization field")
	ErrUnknownKey    = errors.New("the API key is not known here")
)

// Authenticate finds out whose the request is, sets its Identity, and takes out of its
// head what is nobody else's business: API keys, tokens that are not to be forwarded,
// and fields that only tokens may set. The error says why the request cannot be let
// through: a *TokenError, or one of the above.
func (g *Guard) Authenticate(ctx context.Context, r *Request) error {
	r.Identity = nil
	if len(g.outputs) > 0 {
		g.dropOutputs(r.Head)
	}
	if !g.hasKeys && len(g.tokens) == 0 || isPreflight(r.Head) {
		return nil
	}
	var key []byte
	if g.hasKeys {
		key = presentedKey(r.Head.Fields)
		if key != nil {
			if r.Identity = g.keys[sha256.Sum256(key)]; r.Identity != nil {
				r.Head.Fields = message.Delete(message.Delete(r.Head.Fields, "authorization"), "x-api-key")
				return nil
			}
		}
	}
	found, err := g.verify(ctx, r)
	switch {
	case err != nil:
		return err
	case found:
		return nil
	case key != nil:
		return ErrUnknownKey
	case g.required:
		return ErrNoCredentials
	}
	return nil
}

// Changes tells whether Authenticate takes something out of the heads of some requests, or
// adds to them.
func (g *Guard) Changes() bool { return g.hasKeys || len(g.tokens) > 0 || len(g.outputs) > 0 }

// isPreflight tells of the request that a browser makes, without credentials, to ask
// whether it may make another. Istio passes it by too (bypass_cors_preflight).
func isPreflight(head *message.Request) bool {
	return string(head.Method) == "OPTIONS" && message.Get(head.Fields, "origin") != nil &&
		message.Get(head.Fields, "access-control-request-method") != nil
}

// presentedKey is the API key that a request brings: a Bearer token, or the X-Api-Key
// of Anthropic's clients.
func presentedKey(fields []message.Field) []byte {
	if value := message.Get(fields, "authorization"); value != nil {
		const scheme = "bearer "
		if len(value) > len(scheme) && begins(value, scheme) {
			return bytes.TrimLeft(value[len(scheme):], " ")
		}
	}
	return message.Get(fields, "x-api-key")
}

// Owns tells of a field that only tokens may set.
func (g *Guard) Owns(name []byte) bool {
	return slices.ContainsFunc(g.outputs, func(output string) bool { return message.EqualFold(name, output) })
}

func (g *Guard) dropOutputs(head *message.Request) {
	for _, name := range g.outputs {
		head.Fields = message.Delete(head.Fields, name)
	}
}

// Check tells what of c cannot be understood, without making a Guard.
func (c *Config) Check() []Finding {
	compiler := newCompiler(c)
	for i := range c.Policies {
		compiler.compile(i, &c.Policies[i])
	}
	compiler.policy = -1
	compiler.tokens(c.Tokens)
	return compiler.findings
}
