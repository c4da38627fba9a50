package authz

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// TokenRule is a JWTRule of a RequestAuthentication: tokens of one issuer
// (istio/api security/v1beta1, request_authentication.proto).
type TokenRule struct {
	// Issuer must be the token's iss; empty: any.
	Issuer string `json:"issuer"`
	// Audiences: the token must be for one of them; none: for anybody.
	Audiences []string `json:"audiences"`
	// JWKS is the issuer's key set, JWKSURI where to fetch it; JWKS wins.
	JWKS    string `json:"jwks"`
	JWKSURI string `json:"jwksUri"`
	// Where the token is. Nothing of the three: a Bearer in Authorization, or the
	// parameter access_token.
	FromHeaders []TokenHeader `json:"fromHeaders"`
	FromParams  []string      `json:"fromParams"`
	FromCookies []string      `json:"fromCookies"`
	// ForwardOriginalToken leaves the token in the request.
	ForwardOriginalToken bool `json:"forwardOriginalToken"`
	// OutputPayloadToHeader is the field to put the token's payload into, as it is in
	// the token (base64url).
	OutputPayloadToHeader string `json:"outputPayloadToHeader"`
	// OutputClaimToHeaders are the fields to put claims into: strings, numbers and
	// booleans.
	OutputClaimToHeaders []ClaimHeader `json:"outputClaimToHeaders"`
	// SpaceDelimitedClaims are lists written as one string, besides scope and
	// permission.
	SpaceDelimitedClaims []string `json:"spaceDelimitedClaims"`
	// Timeout of fetching the key set; zero: 5 s.
	Timeout time.Duration `json:"-"` // the API writes it otherwise
}

// TokenHeader is a field that a token may be in, behind Prefix.
type TokenHeader struct {
	Name   string `json:"name"`
	Prefix string `json:"prefix"`
}

// ClaimHeader puts a claim, its path written with points, into a field.
type ClaimHeader struct {
	Header string `json:"header"`
	Claim  string `json:"claim"`
}

// TokenError says why a token is no good. Unavailable says that it is not the token's
// fault: the issuer's keys cannot be had.
type TokenError struct {
	Reason      string
	Unavailable bool
}

func (e *TokenError) Error() string { return e.Reason }

var errIssuer error = badToken("the token's issuer is not one that is trusted here")

func badToken(format string, args ...any) *TokenError {
	return &TokenError{Reason: fmt.Sprintf(format, args...)}
}

// tokenRule is a TokenRule made ready.
type tokenRule struct {
	TokenRule
	keys   keySource
	spaced []string
	claims [][]string // of OutputClaimToHeaders
}

// tokens tells what of the rules makes no sense (istio/istio validation.go,
// validateJwtRule). Such a rule takes no token.
func (c *compiler) tokens(rules []TokenRule) {
	for i := range rules {
		r := &rules[i]
		at := fmt.Sprintf("jwtRules[%d]", i)
		if r.Issuer == KeyIssuer {
			c.find(at+".issuer", "%q stands for API keys", KeyIssuer)
		}
		switch u, err := url.Parse(r.JWKSURI); {
		case r.JWKS != "":
			if _, err := ParseKeys([]byte(r.JWKS)); err != nil {
				c.find(at+".jwks", "%v", err)
			}
		case r.JWKSURI == "":
			c.find(at, "no keys: want jwks or jwksUri (they are not looked for at the issuer)")
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			c.find(at+".jwksUri", "%q is no URL: want http or https", r.JWKSURI)
		}
		for field, names := range map[string][]string{"audiences": r.Audiences, "fromParams": r.FromParams, "fromCookies": r.FromCookies} {
			if slices.Contains(names, "") {
				c.find(at+"."+field, "an empty one")
			}
		}
		headers := []string{}
		for _, h := range r.FromHeaders {
			headers = append(headers, h.Name)
		}
		for _, o := range r.OutputClaimToHeaders {
			headers = append(headers, o.Header)
			if o.Claim == "" {
				c.find(at+".outputClaimToHeaders", "no claim for %s", o.Header)
			}
		}
		if r.OutputPayloadToHeader != "" {
			headers = append(headers, r.OutputPayloadToHeader)
		}
		for _, name := range headers {
			if err := seen(strings.ToLower(name), "request.headers["+name+"]"); err != nil || name[0] == ':' {
				c.find(at, "%q: no field of that name can be read or set here", name)
			}
		}
	}
}

// keySource gives the keys that a signature may be made by.
type keySource interface {
	// find gives the keys of an id; all if it is empty.
	find(ctx context.Context, id string) ([]jose.JSONWebKey, error)
}

func newTokenRule(r *TokenRule, sets *KeySets) *tokenRule {
	t := &tokenRule{TokenRule: *r, spaced: append([]string{"scope", "permission"}, r.SpaceDelimitedClaims...)}
	if len(t.FromHeaders)+len(t.FromParams)+len(t.FromCookies) == 0 {
		t.FromHeaders = []TokenHeader{{"Authorization", "Bearer "}}
		t.FromParams = []string{"access_token"}
	}
	t.FromHeaders = slices.Clone(t.FromHeaders)
	for i := range t.FromHeaders {
		t.FromHeaders[i].Name = strings.ToLower(t.FromHeaders[i].Name)
	}
	if r.JWKS != "" {
		keys, err := ParseKeys([]byte(r.JWKS))
		t.keys = fixedKeys{keys, err}
	} else {
		t.keys = sets.get(r.JWKSURI, r.Timeout)
	}
	if r.Issuer == KeyIssuer {
		t.keys = fixedKeys{err: errKeysUnavailable}
	}
	for _, o := range r.OutputClaimToHeaders {
		t.claims = append(t.claims, strings.Split(o.Claim, "."))
	}
	return t
}

// outputs are the fields that only this rule's tokens may set, in lower case.
func (t *tokenRule) outputs() (names []string) {
	if t.OutputPayloadToHeader != "" {
		names = append(names, strings.ToLower(t.OutputPayloadToHeader))
	}
	for _, o := range t.OutputClaimToHeaders {
		names = append(names, strings.ToLower(o.Header))
	}
	return names
}

// fixedKeys are the keys of a rule that has them in it.
type fixedKeys struct {
	keys []jose.JSONWebKey
	err  error
}

func (f fixedKeys) find(_ context.Context, id string) ([]jose.JSONWebKey, error) {
	if f.err != nil {
		return nil, &TokenError{Reason: "the key set of the token's issuer cannot be read", Unavailable: true}
	}
	return withID(f.keys, id), nil
}

// withID gives the keys that a token of this id may be signed by: those that have it
// and those that have none, as Envoy takes them.
func withID(keys []jose.JSONWebKey, id string) (found []jose.JSONWebKey) {
	for _, k := range keys {
		if id == "" || k.KeyID == "" || k.KeyID == id {
			found = append(found, k)
		}
	}
	return found
}

// verify looks for tokens where the rules say. One that is good is enough; without a
// good one, none may be bad.
func (g *Guard) verify(ctx context.Context, r *Request) (found bool, err error) {
	now := time.Now()
	for i := range g.tokens {
		t := g.tokens[i]
		token := t.token(r.Head)
		if token == "" {
			continue
		}
		verified, tokenErr := t.verify(ctx, token, now)
		if tokenErr != nil {
			if err == nil || err == errIssuer { // which rule the token belongs to is its issuer's word
				err = tokenErr
			}
			continue
		}
		r.Identity = verified.identity
		g.takeTokens(r.Head)
		t.addOutputs(r.Head, verified)
		return true, nil
	}
	return false, err
}

// takeTokens takes out of the head what could be read as a token and is not to be
// forwarded. Cookies stay: they hold more than that.
func (g *Guard) takeTokens(head *message.Request) {
	for i := range g.tokens {
		t := g.tokens[i]
		if t.ForwardOriginalToken {
			continue
		}
		for _, h := range t.FromHeaders {
			head.Fields = message.Delete(head.Fields, h.Name)
		}
		for _, name := range t.FromParams {
			head.Target = withoutParam(head.Target, name)
		}
	}
}

// token is the first token in the places of the rule, empty for none.
func (t *tokenRule) token(head *message.Request) string {
	for _, h := range t.FromHeaders {
		value := message.Get(head.Fields, h.Name)
		if len(value) > len(h.Prefix) && strings.EqualFold(string(value[:len(h.Prefix)]), h.Prefix) {
			return string(bytes.TrimSpace(value[len(h.Prefix):]))
		}
	}
	if len(t.FromParams) > 0 {
		if _, query, ok := bytes.Cut(head.Target, []byte("?")); ok {
			for pair := range bytes.SplitSeq(query, []byte("&")) {
				name, value, _ := bytes.Cut(pair, []byte("="))
				if isParam(name, t.FromParams...) {
					if v, err := url.QueryUnescape(string(value)); err == nil && v != "" {
						return v
					}
				}
			}
		}
	}
	if len(t.FromCookies) > 0 {
		for _, f := range head.Fields {
			if !message.EqualFold(f.Name, "cookie") {
				continue
			}
			for pair := range strings.SplitSeq(string(f.Value), ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
				if value = strings.Trim(value, `"`); value != "" && slices.Contains(t.FromCookies, name) {
					return value
				}
			}
		}
	}
	return ""
}

// isParam tells whether a query's name, encoded or not, is one of names.
func isParam(name []byte, names ...string) bool {
	decoded, err := url.QueryUnescape(string(name))
	return err == nil && slices.Contains(names, decoded)
}

// withoutParam is target without a parameter of its query.
func withoutParam(target []byte, name string) []byte {
	path, query, ok := bytes.Cut(target, []byte("?"))
	if !ok {
		return target
	}
	var kept [][]byte
	all := bytes.Split(query, []byte("&"))
	for _, pair := range all {
		if n, _, _ := bytes.Cut(pair, []byte("=")); !isParam(n, name) {
			kept = append(kept, pair)
		}
	}
	if len(kept) == len(all) {
		return target
	}
	out := bytes.Clone(path)
	if len(kept) > 0 {
		out = append(append(out, '?'), bytes.Join(kept, []byte("&"))...)
	}
	return out
}

// algorithms are those of public keys. There is no none, and nothing symmetric, which
// could be confused with a public key.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// leeway is by how much clocks may differ (Envoy's clock_skew_seconds).
const leeway = time.Minute

// verified is a token that is good.
type verified struct {
	identity *Identity
	payload  string // as in the token
}

func (t *tokenRule) verify(ctx context.Context, token string, now time.Time) (verified, error) {
	sig, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return verified{}, badToken("the token is not a JWT signed by an algorithm that is taken here (RS, PS, ES or EdDSA)")
	}
	var claims map[string]any
	decoder := json.NewDecoder(bytes.NewReader(sig.UnsafePayloadWithoutVerification()))
	decoder.UseNumber()
	if err := decoder.Decode(&claims); err != nil || claims == nil {
		return verified{}, badToken("the token's claims are not a JSON object")
	}
	issuer, _ := claims["iss"].(string)
	if t.Issuer != "" && issuer != t.Issuer {
		return verified{}, errIssuer
	}
	header := sig.Signatures[0].Header
	keys, err := t.keys.find(ctx, header.KeyID)
	if err != nil {
		return verified{}, err
	}
	if !signed(sig, header.Algorithm, keys) {
		return verified{}, badToken("the token is not signed by a key of its issuer")
	}
	if err := t.judgeClaims(claims, now); err != nil {
		return verified{}, err
	}
	for _, name := range t.spaced {
		if list, ok := claims[name].(string); ok {
			var all []any
			for _, each := range strings.Fields(list) {
				all = append(all, each)
			}
			claims[name] = all
		}
	}
	subject, _ := claims["sub"].(string)
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	return verified{newIdentity(issuer, subject, claims), payload}, nil
}

// signed tells whether one of the keys made the signature, by the algorithm it is for.
func signed(sig *jose.JSONWebSignature, algorithm string, keys []jose.JSONWebKey) bool {
	for i := range keys {
		if k := &keys[i]; k.Algorithm == "" || k.Algorithm == algorithm {
			if _, err := sig.Verify(k); err == nil {
				return true
			}
		}
	}
	return false
}

// judgeClaims judges time and audience: RFC 7519 section 4.1.
func (t *tokenRule) judgeClaims(claims map[string]any, now time.Time) error {
	if expiry, ok, err := date(claims, "exp"); err != nil {
		return err
	} else if ok && !now.Before(expiry.Add(leeway)) {
		return badToken("the token has expired")
	}
	if start, ok, err := date(claims, "nbf"); err != nil {
		return err
	} else if ok && now.Before(start.Add(-leeway)) {
		return badToken("the token is not valid yet")
	}
	if len(t.Audiences) == 0 {
		return nil
	}
	switch aud := claims["aud"].(type) {
	case string:
		if slices.Contains(t.Audiences, aud) {
			return nil
		}
	case []any:
		for _, each := range aud {
			if s, ok := each.(string); ok && slices.Contains(t.Audiences, s) {
				return nil
			}
		}
	}
	return badToken("the token is for another audience")
}

// date reads a NumericDate; ok false without one.
func date(claims map[string]any, name string) (at time.Time, ok bool, err error) {
	value, ok := claims[name]
	if !ok {
		return at, false, nil
	}
	number, ok := value.(json.Number)
	if !ok {
		return at, false, badToken("the token's %s is not a number", name)
	}
	seconds, parseErr := number.Float64()
	if parseErr != nil || math.Abs(seconds) > 1<<40 {
		return at, false, badToken("the token's %s is not a time", name)
	}
	return time.Unix(int64(seconds), 0), true, nil
}

// addOutputs puts into the head what the rule has tokens say there.
func (t *tokenRule) addOutputs(head *message.Request, v verified) {
	if t.OutputPayloadToHeader != "" {
		head.Fields = append(head.Fields, message.Field{Name: []byte(t.OutputPayloadToHeader), Value: []byte(v.payload)})
	}
	for i, o := range t.OutputClaimToHeaders {
		var value string
		switch claim := v.identity.claim(t.claims[i]).(type) {
		case string:
			value = claim
		case json.Number:
			value = claim.String()
		case bool:
			value = strconv.FormatBool(claim)
		default:
			continue
		}
		if isFieldValue(value) {
			head.Fields = append(head.Fields, message.Field{Name: []byte(o.Header), Value: []byte(value)})
		}
	}
}

// isFieldValue tells whether s can stand in a field as it is.
func isFieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return s == strings.TrimSpace(s)
}
