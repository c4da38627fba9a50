package authz

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// Keys of the tests, made once.
var (
	rsaKey, _     = rsa.GenerateKey(rand.Reader, 2048)
	otherKey, _   = rsa.GenerateKey(rand.Reader, 2048)
	ecKey, _      = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, edKey, _   = ed25519.GenerateKey(rand.Reader)
	sharedSecret  = []byte("a secret that is shared by both sides")
	rsaPublicPEM  = publicPEM(&rsaKey.PublicKey)
	inlineKeySet  = keySetOf(jwk("rsa", rsaKey.Public()), jwk("ec", ecKey.Public()), jwk("ed", edKey.Public()))
	tokenLifetime = time.Hour
)

func publicPEM(key any) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func jwk(id string, key any) jose.JSONWebKey { return jose.JSONWebKey{KeyID: id, Key: key} }

func keySetOf(keys ...jose.JSONWebKey) string {
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		panic(err)
	}
	return string(text)
}

// claims of a good token, changed by pairs of name and value; a nil value takes the
// claim away.
func claims(pairs ...any) map[string]any {
	c := map[string]any{"iss": "issuer", "sub": "sub", "exp": time.Now().Add(tokenLifetime).Unix()}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == nil {
			delete(c, pairs[i].(string))
		} else {
			c[pairs[i].(string)] = pairs[i+1]
		}
	}
	return c
}

// sign makes a token.
func sign(t testing.TB, algorithm jose.SignatureAlgorithm, id string, key any, claims any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	if id != "" {
		options = options.WithHeader("kid", id)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, ok := claims.([]byte)
	if !ok {
		if payload, err = json.Marshal(claims); err != nil {
			t.Fatal(err)
		}
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func good(t testing.TB) string { return sign(t, jose.RS256, "rsa", rsaKey, claims()) }

// raw makes a token of a header and claims as they are, with a signature of our own.
func raw(header, claims string, signature []byte) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(header)) + "." + e.EncodeToString([]byte(claims)) + "." + e.EncodeToString(signature)
}

// guardOf takes tokens by rules, and asks for nothing else.
func guardOf(t testing.TB, sets *KeySets, rules ...TokenRule) *Guard {
	t.Helper()
	g, findings := compile(&Config{Tokens: rules}, sets)
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	return g
}

// bearing is a request with fields, given as pairs.
func bearing(target string, pairs ...string) *Request {
	head := &message.Request{Method: []byte("GET"), Target: []byte(target)}
	for i := 0; i < len(pairs); i += 2 {
		head.Fields = append(head.Fields, message.Field{Name: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	return &Request{Head: head}
}

func TestTokens(t *testing.T) {
	rule := TokenRule{Issuer: "issuer", Audiences: []string{"me", "us"}, JWKS: inlineKeySet}
	g := guardOf(t, nil, rule)
	now := time.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	text := func(c map[string]any) string { b, _ := json.Marshal(c); return string(b) }
	mine := func(pairs ...any) map[string]any { return claims(append([]any{"aud", "me"}, pairs...)...) }
	hs := func(key []byte) string { return sign(t, jose.HS256, "rsa", key, mine()) }
	signature := func(token string) string { return token[strings.LastIndexByte(token, '.')+1:] }
	whole := sign(t, jose.RS256, "rsa", rsaKey, mine())
	for _, tt := range []struct {
		name, token string
		says        string // of the refusal; empty: it is good
	}{
		{"RS256", whole, ""},
		{"PS512", sign(t, jose.PS512, "rsa", rsaKey, mine()), ""},
		{"ES256", sign(t, jose.ES256, "ec", ecKey, mine()), ""},
		{"EdDSA", sign(t, jose.EdDSA, "ed", edKey, mine()), ""},
		{"without a kid", sign(t, jose.ES256, "", ecKey, mine()), ""},
		{"one of several audiences", sign(t, jose.RS256, "rsa", rsaKey, mine("aud", []string{"x", "us"})), ""},
		{"without exp", sign(t, jose.RS256, "rsa", rsaKey, mine("exp", nil)), ""},
		{"expired within the leeway", sign(t, jose.RS256, "rsa", rsaKey, mine("exp", at(-30*time.Second))), ""},
		{"nbf within the leeway", sign(t, jose.RS256, "rsa", rsaKey, mine("nbf", at(30*time.Second))), ""},
		{"exp with a fraction", sign(t, jose.RS256, "rsa", rsaKey, mine("exp", float64(at(time.Hour))+0.5)), ""},

		{"expired", sign(t, jose.RS256, "rsa", rsaKey, mine("exp", at(-2*time.Minute))), "has expired"},
		{"exp in words", sign(t, jose.RS256, "rsa", rsaKey, mine("exp", "2100-01-01")), "exp is not a number"},
		{"exp beyond time", sign(t, jose.RS256, "rsa", rsaKey, []byte(`{"iss":"issuer","aud":"me","exp":1e300}`)), "exp is not a time"},
		{"exp beyond numbers", sign(t, jose.RS256, "rsa", rsaKey, []byte(`{"iss":"issuer","aud":"me","exp":1e999}`)), "exp is not a time"},
		{"not valid yet", sign(t, jose.RS256, "rsa", rsaKey, mine("nbf", at(2*time.Minute))), "not valid yet"},
		{"wrong audience", sign(t, jose.RS256, "rsa", rsaKey, mine("aud", "you")), "another audience"},
		{"wrong audiences", sign(t, jose.RS256, "rsa", rsaKey, mine("aud", []any{"you", 1})), "another audience"},
		{"no audience", sign(t, jose.RS256, "rsa", rsaKey, claims()), "another audience"},
		{"wrong issuer", sign(t, jose.RS256, "rsa", rsaKey, mine("iss", "other")), "issuer"},
		{"no issuer", sign(t, jose.RS256, "rsa", rsaKey, mine("iss", nil)), "issuer"},
		{"issuer as a list", sign(t, jose.RS256, "rsa", rsaKey, mine("iss", []string{"issuer"})), "issuer"},
		{"unknown kid", sign(t, jose.RS256, "unknown", rsaKey, mine()), "not signed by a key"},
		{"another key under a known kid", sign(t, jose.RS256, "rsa", otherKey, mine()), "not signed by a key"},
		{"another key without a kid", sign(t, jose.RS256, "", otherKey, mine()), "not signed by a key"},
		{"a key of another kind", sign(t, jose.ES256, "rsa", ecKey, mine()), "not signed by a key"},

		{"alg none", raw(`{"alg":"none"}`, text(mine()), nil), "not a JWT signed by an algorithm"},
		{"alg None", raw(`{"alg":"None","kid":"rsa"}`, text(mine()), nil), "not a JWT signed by an algorithm"},
		{"alg none with a signature", raw(`{"alg":"none"}`, text(mine()), []byte("x")), "not a JWT signed by an algorithm"},
		{"no alg", raw(`{"kid":"rsa"}`, text(mine()), []byte("x")), "not a JWT signed by an algorithm"},
		{"HS256 by the public key in PEM", hs(rsaPublicPEM), "not a JWT signed by an algorithm"},
		{"HS256 by the modulus", hs(rsaKey.N.Bytes()), "not a JWT signed by an algorithm"},
		{"HS256 by a shared secret", hs(sharedSecret), "not a JWT signed by an algorithm"},
		{"RS256 in the head, an HS256 signature", raw(`{"alg":"RS256","kid":"rsa"}`, text(mine()), []byte(signature(hs(rsaPublicPEM)))), "not signed by a key"},
		{"no signature", raw(`{"alg":"RS256","kid":"rsa"}`, text(mine()), nil), "not signed by a key"},
		{"another token's signature", raw(`{"alg":"RS256","kid":"rsa"}`, text(mine("sub", "root")), nil) + signature(whole), "not signed by a key"},
		{"unknown critical header", raw(`{"alg":"RS256","kid":"rsa","crit":["x"],"x":1}`, text(mine()), []byte("x")), "not signed by a key"},
		{"own key in the head", sign(t, jose.RS256, "", otherKey, mine()), "not signed by a key"},

		{"words", "nonsense", "not a JWT"},
		{"two parts", "a.b", "not a JWT"},
		{"four parts", whole + ".x", "not a JWT"},
		{"five parts", "a.b.c.d.e", "not a JWT"},
		{"not base64", "!!.!!.!!", "not a JWT"},
		{"head is no JSON", raw(`{"alg"`, text(mine()), nil), "not a JWT"},
		{"claims are no JSON", sign(t, jose.RS256, "rsa", rsaKey, []byte("{")), "not a JSON object"},
		{"claims are a list", sign(t, jose.RS256, "rsa", rsaKey, []byte("[]")), "not a JSON object"},
		{"claims are null", sign(t, jose.RS256, "rsa", rsaKey, []byte("null")), "not a JSON object"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := bearing("/", "Authorization", "Bearer "+tt.token)
			err := g.Authenticate(t.Context(), r)
			if tt.says == "" {
				if err != nil || r.Identity.String() != "issuer/sub" || len(r.Head.Fields) != 0 {
					t.Errorf("%v, %v, %s", err, r.Identity, r.Head.Fields)
				}
				return
			}
			bad, ok := errors.AsType[*TokenError](err)
			if !ok || bad.Unavailable || !strings.Contains(bad.Reason, tt.says) || r.Identity != nil {
				t.Errorf("%v, %v; want %q", err, r.Identity, tt.says)
			}
		})
	}
}

// A request without a token passes, and has no identity.
func TestNoTokenPasses(t *testing.T) {
	g := guardOf(t, nil, TokenRule{Issuer: "issuer", JWKS: inlineKeySet})
	for _, r := range []*Request{bearing("/"), bearing("/?access_token="), bearing("/", "Authorization", "Basic YTpi"), bearing("/", "Authorization", "Bearer"), bearing("/", "Authorization", "Bearer ")} {
		if err := g.Authenticate(t.Context(), r); err != nil || r.Identity != nil {
			t.Errorf("%s: %v, %v", r.Head.Fields, err, r.Identity)
		}
	}
}

// Where tokens are looked for, and what is left of them.
func TestTokenPlaces(t *testing.T) {
	token := good(t)
	for _, tt := range []struct {
		name  string
		rule  TokenRule
		r     *Request
		found bool
		left  string // target and fields
	}{
		{"Authorization", TokenRule{}, bearing("/", "authorization", "bearer "+token, "x", "1"), true, "/ x: 1"},
		{"access_token", TokenRule{}, bearing("/a?b=c&access_token="+token+"&d", "x", "1"), true, "/a?b=c&d x: 1"},
		{"access_token alone", TokenRule{}, bearing("/a?access_token=" + token), true, "/a"},
		{"a parameter spelled otherwise", TokenRule{}, bearing("/a?%61ccess_token=" + token), true, "/a"},
		{"both", TokenRule{}, bearing("/a?access_token="+token, "Authorization", "Bearer "+token), true, "/a"},
		{"forwarded", TokenRule{ForwardOriginalToken: true}, bearing("/a?access_token=" + token), true, "/a?access_token=" + token},
		{"a field", TokenRule{FromHeaders: []TokenHeader{{Name: "X-JWT"}}}, bearing("/", "x-jwt", token), true, "/"},
		{"a field with a prefix", TokenRule{FromHeaders: []TokenHeader{{"X-JWT", "Token "}}}, bearing("/", "x-jwt", "Token "+token), true, "/"},
		{"a field without its prefix", TokenRule{FromHeaders: []TokenHeader{{"X-JWT", "Token "}}}, bearing("/", "x-jwt", token), false, "/ x-jwt: " + token},
		{"own places only", TokenRule{FromParams: []string{"t"}}, bearing("/", "Authorization", "Bearer nonsense"), false, "/ Authorization: Bearer nonsense"},
		{"a parameter", TokenRule{FromParams: []string{"t", "u"}}, bearing("/?u=" + token), true, "/"},
		{"a cookie", TokenRule{FromCookies: []string{"session"}}, bearing("/", "Cookie", "a=b; session="+token+"; c=d"), true, "/ Cookie: a=b; session=" + token + "; c=d"},
		{"a cookie in quotes", TokenRule{FromCookies: []string{"session"}}, bearing("/", "Cookie", `session="`+token+`"`), true, `/ Cookie: session="` + token + `"`},
	} {
		tt.rule.Issuer, tt.rule.JWKS = "issuer", inlineKeySet
		err := guardOf(t, nil, tt.rule).Authenticate(t.Context(), tt.r)
		left := string(tt.r.Head.Target)
		for _, f := range tt.r.Head.Fields {
			left += fmt.Sprintf(" %s: %s", f.Name, f.Value)
		}
		if err != nil || (tt.r.Identity != nil) != tt.found || left != tt.left {
			t.Errorf("%s: %v, %v, %s", tt.name, err, tt.r.Identity, left)
		}
	}
}

func TestTokenOutputs(t *testing.T) {
	g := guardOf(t, nil, TokenRule{
		Issuer: "issuer", JWKS: inlineKeySet, OutputPayloadToHeader: "x-payload",
		OutputClaimToHeaders: []ClaimHeader{{"X-Sub", "sub"}, {"x-tier", "org.tier"}, {"x-admin", "admin"}, {"x-list", "list"}, {"x-none", "none"}, {"x-evil", "evil"}},
	})
	token := sign(t, jose.RS256, "rsa", rsaKey, claims("org", map[string]any{"tier": 3}, "admin", true, "list", []int{1}, "evil", "a\r\nx-admin: root"))
	forged := []string{"x-sub", "forged", "X-Payload", "forged", "x-tier", "forged", "x-list", "forged", "x-none", "forged", "x-evil", "forged"}
	r := bearing("/", append(forged, "authorization", "Bearer "+token)...)
	if err := g.Authenticate(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range r.Head.Fields {
		got = append(got, string(f.Name)+": "+string(f.Value))
	}
	want := []string{"x-payload: " + strings.Split(token, ".")[1], "X-Sub: sub", "x-tier: 3", "x-admin: true"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
	// Nobody without a token may say so either.
	r = bearing("/", forged...)
	if err := g.Authenticate(t.Context(), r); err != nil || len(r.Head.Fields) != 0 {
		t.Errorf("%v, %s", err, r.Head.Fields)
	}
}

func TestSeveralTokenRules(t *testing.T) {
	other := TokenRule{Issuer: "other", JWKS: keySetOf(jwk("o", otherKey.Public()))}
	g := guardOf(t, nil, TokenRule{Issuer: "issuer", JWKS: inlineKeySet}, other, TokenRule{Issuer: "third", JWKS: inlineKeySet, FromParams: []string{"t"}})
	theirs := sign(t, jose.RS256, "o", otherKey, claims("iss", "other"))
	for name, tt := range map[string]struct {
		r    *Request
		want string // principal, or in the error
	}{
		"of the first":           {bearing("/", "authorization", "Bearer "+good(t)), "issuer/sub"},
		"of the second":          {bearing("/", "authorization", "Bearer "+theirs), "other/sub"},
		"keys do not mix":        {bearing("/", "authorization", "Bearer "+sign(t, jose.RS256, "o", otherKey, claims())), "not signed"},
		"of nobody":              {bearing("/", "authorization", "Bearer "+sign(t, jose.RS256, "o", otherKey, claims("iss", "x"))), "issuer is not"},
		"one good, one not":      {bearing("/?t=nonsense", "authorization", "Bearer "+theirs), "other/sub"},
		"an expired one is told": {bearing("/", "authorization", "Bearer "+sign(t, jose.RS256, "rsa", rsaKey, claims("exp", 1))), "expired"},
	} {
		err := g.Authenticate(t.Context(), tt.r)
		if got := fmt.Sprint(tt.r.Identity.String(), err); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestSpaceDelimitedClaims(t *testing.T) {
	g, _ := compile(&Config{
		Tokens:   []TokenRule{{Issuer: "issuer", JWKS: inlineKeySet, SpaceDelimitedClaims: []string{"roles"}}},
		Policies: rules(Allow, Rule{When: []Condition{{Key: "request.auth.claims[scope]", Values: list("write")}, {Key: "request.auth.claims[roles]", Values: list("dev")}}}),
	}, nil)
	for _, tt := range []struct {
		scope, roles string
		allowed      bool
	}{{"read write", "ops dev", true}, {"read", "dev", false}, {"write", "devs", false}, {"write", "dev", true}} {
		r := bearing("/", "authorization", "Bearer "+sign(t, jose.RS256, "rsa", rsaKey, claims("scope", tt.scope, "roles", tt.roles)))
		if err := g.Authenticate(t.Context(), r); err != nil || g.Judge(r).Denied == tt.allowed {
			t.Errorf("%+v: %v, %+v", tt, err, g.Judge(r))
		}
	}
}

func TestAPIKeys(t *testing.T) {
	c := Config{HasKeys: true, Required: true, Keys: []Key{{"team-a", sha256.Sum256([]byte("secret"))}, {"team-a", sha256.Sum256([]byte("next"))}, {"team-b", sha256.Sum256([]byte("b"))}},
		Tokens: []TokenRule{{Issuer: "issuer", JWKS: inlineKeySet}}}
	g, _ := compile(&c, nil)
	for _, tt := range []struct {
		r    *Request
		want string // principal, or in the error
	}{
		{bearing("/", "Authorization", "Bearer secret"), "key/team-a"},
		{bearing("/", "authorization", "bearer  next"), "key/team-a"},
		{bearing("/", "x-api-key", "b"), "key/team-b"},
		{bearing("/", "authorization", "Bearer "+good(t)), "issuer/sub"},
		{bearing("/", "authorization", "Bearer Secret"), "not a JWT"},
		{bearing("/", "authorization", "Bearer nonsense", "x-api-key", "b"), "not a JWT"},
		{bearing("/", "x-api-key", "nonsense"), "not known"},
		{bearing("/", "x-api-key", ""), "not known"},
		{bearing("/", "authorization", "secret"), "needs an API key"},
		{bearing("/", "authorization", "Basic secret"), "needs an API key"},
		{bearing("/?key=secret"), "needs an API key"},
		{bearing("/"), "needs an API key"},
	} {
		err := g.Authenticate(t.Context(), tt.r)
		if got := fmt.Sprint(tt.r.Identity.String(), err); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %s", tt.r.Head.Fields, got, tt.want)
		}
		if tt.r.Identity != nil && len(tt.r.Head.Fields) > 0 {
			t.Errorf("a key is passed on: %s", tt.r.Head.Fields)
		}
	}
	preflight := bearing("/", "Origin", "https://a", "Access-Control-Request-Method", "POST")
	if preflight.Head.Method = []byte("OPTIONS"); g.Authenticate(t.Context(), preflight) != nil {
		t.Error("a preflight, which never has a key, is refused")
	}
	c.Tokens = nil
	g, _ = compile(&c, nil)
	if err := g.Authenticate(t.Context(), bearing("/", "authorization", "Bearer nonsense")); err != ErrUnknownKey {
		t.Error(err)
	}
	c.Required = false
	g, _ = compile(&c, nil)
	if err := g.Authenticate(t.Context(), bearing("/")); err != nil {
		t.Error(err)
	}
	if err := g.Authenticate(t.Context(), bearing("/", "authorization", "Bearer nonsense")); err != ErrUnknownKey {
		t.Error(err)
	}
	c.Keys = nil // an empty file is not an open door
	g, _ = compile(&c, nil)
	if err := g.Authenticate(t.Context(), bearing("/", "authorization", "Bearer secret")); err != ErrUnknownKey {
		t.Error(err)
	}
}

func TestAPIKeyAllocs(t *testing.T) {
	g, _ := compile(&Config{HasKeys: true, Required: true, Keys: []Key{{"team-a", sha256.Sum256([]byte("secret"))}}}, nil)
	r := bearing("/", "x", "1")
	key := message.Field{Name: []byte("authorization"), Value: []byte("Bearer secret")}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		r.Head.Fields = append(r.Head.Fields[:1], key)
		if g.Authenticate(ctx, r) != nil {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestParseKeys(t *testing.T) {
	private := jwk("private", rsaKey)
	encryption := jwk("enc", otherKey.Public())
	encryption.Use = "enc"
	keys, err := ParseKeys([]byte(strings.Replace(keySetOf(private, encryption, jwk("oct", sharedSecret), jwk("ec", ecKey.Public())), `{"keys":[`, `{"keys":[{"kty":"new"},{},7,`, 1)))
	if err != nil || len(keys) != 2 || keys[0].KeyID != "private" || keys[1].KeyID != "ec" || !keys[0].IsPublic() {
		t.Errorf("%v, %v", keys, err)
	}
	for _, document := range []string{"", "{}", "[]", "null", `{"keys":{}}`, keySetOf(jwk("oct", sharedSecret)), keySetOf(encryption)} {
		if keys, err := ParseKeys([]byte(document)); err == nil {
			t.Errorf("%s: %v", document, keys)
		}
	}
	// A key that says what it is for is not used for anything else.
	only := jwk("rsa", rsaKey.Public())
	only.Algorithm = "RS512"
	g := guardOf(t, nil, TokenRule{Issuer: "issuer", JWKS: keySetOf(only)})
	if err := g.Authenticate(t.Context(), bearing("/", "authorization", "Bearer "+good(t))); err == nil {
		t.Error("RS256 by a key for RS512")
	}
}

// issuer serves a key set without a network.
type issuer struct {
	document atomic.Pointer[string] // nil: it is down
	asked    atomic.Int64
	mute     bool // it takes the request and never answers
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.asked.Add(1)
	if i.mute {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	document := i.document.Load()
	if document == nil {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(*document)), Request: r}, nil
}

func (i *issuer) serve(keys ...jose.JSONWebKey) { s := keySetOf(keys...); i.document.Store(&s) }

// remote runs test in fake time with a rule whose keys are fetched.
func remote(t *testing.T, i *issuer, test func(t *testing.T, try func(token string) error)) {
	synctest.Test(t, func(t *testing.T) {
		sets := &KeySets{Client: &http.Client{Transport: i}, Log: slog.New(slog.DiscardHandler)}
		defer sets.Close()
		g := guardOf(t, sets, TokenRule{Issuer: "issuer", JWKSURI: "https://issuer.example/keys"})
		test(t, func(token string) error {
			return g.Authenticate(t.Context(), bearing("/", "authorization", "Bearer "+token))
		})
	})
}

func unavailable(err error) bool {
	e, ok := errors.AsType[*TokenError](err)
	return ok && e.Unavailable
}

func TestKeySetIsFetchedOnce(t *testing.T) {
	i := new(issuer)
	i.serve(jwk("rsa", rsaKey.Public()))
	remote(t, i, func(t *testing.T, try func(string) error) {
		for range 100 {
			if err := try(good(t)); err != nil {
				t.Fatal(err)
			}
		}
		if n := i.asked.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
}

func TestIssuerDownAtStart(t *testing.T) {
	i := new(issuer)
	remote(t, i, func(t *testing.T, try func(string) error) {
		for range 10 {
			if err := try(good(t)); !unavailable(err) {
				t.Errorf("%v", err)
			}
		}
		if n := i.asked.Load(); n > 2 {
			t.Errorf("%d fetches in a moment", n)
		}
		i.serve(jwk("rsa", rsaKey.Public()))
		time.Sleep(leastPause)
		if err := try(good(t)); err != nil {
			t.Errorf("when it is up: %v", err)
		}
	})
}

func TestIssuerDownLater(t *testing.T) {
	i := new(issuer)
	i.serve(jwk("rsa", rsaKey.Public()))
	remote(t, i, func(t *testing.T, try func(string) error) {
		if err := try(good(t)); err != nil {
			t.Fatal(err)
		}
		i.document.Store(nil)
		for range 48 {
			time.Sleep(30 * time.Minute)
			if err := try(good(t)); err != nil {
				t.Fatalf("the keys that were known are forgotten: %v", err)
			}
		}
		if err := try(sign(t, jose.RS256, "rsa", otherKey, claims())); err == nil || unavailable(err) {
			t.Errorf("a bad token: %v", err)
		}
	})
}

func TestMuteIssuer(t *testing.T) {
	i := &issuer{mute: true}
	remote(t, i, func(t *testing.T, try func(string) error) {
		start := time.Now()
		if err := try(good(t)); !unavailable(err) {
			t.Error(err)
		}
		if took := time.Since(start); took > fetchTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

func TestRotation(t *testing.T) {
	i := new(issuer)
	i.serve(jwk("old", rsaKey.Public()))
	remote(t, i, func(t *testing.T, try func(string) error) {
		old, next := sign(t, jose.RS256, "old", rsaKey, claims("exp", nil)), sign(t, jose.RS256, "new", otherKey, claims("exp", nil))
		if try(old) != nil || try(next) == nil {
			t.Fatal("before")
		}
		i.serve(jwk("old", rsaKey.Public()), jwk("new", otherKey.Public()))
		time.Sleep(leastPause)
		if err := try(next); err != nil {
			t.Errorf("a new key is looked for: %v", err)
		}
		if err := try(old); err != nil {
			t.Errorf("the old one is still there: %v", err)
		}
		i.serve(jwk("new", otherKey.Public()))
		time.Sleep(2 * freshFor)
		if err := try(old); err == nil {
			t.Error("a key that was withdrawn still counts")
		}
		if err := try(next); err != nil {
			t.Error(err)
		}
	})
}

// Strangers who name keys that do not exist cannot have the issuer asked at their rate.
func TestUnknownKeysAskLittle(t *testing.T) {
	i := new(issuer)
	i.serve(jwk("rsa", rsaKey.Public()))
	remote(t, i, func(t *testing.T, try func(string) error) {
		for range 60 {
			if try(sign(t, jose.RS256, fmt.Sprint(time.Now().UnixNano()), otherKey, claims())) == nil {
				t.Fatal("passed")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := i.asked.Load(); n > 3 {
			t.Errorf("%d fetches in 6 s", n)
		}
	})
}

// Keys change every few seconds under load: no token of a key that is served is ever
// refused, and none of a key that never was is ever taken.
func TestRotationUnderLoad(t *testing.T) {
	i := new(issuer)
	keys := []crypto.Signer{rsaKey, otherKey, ecKey}
	algorithms := []jose.SignatureAlgorithm{jose.RS256, jose.RS256, jose.ES256}
	i.serve(jwk("0", keys[0].Public()))
	remote(t, i, func(t *testing.T, try func(string) error) {
		var tokens []string
		for k := range keys {
			tokens = append(tokens, sign(t, algorithms[k], fmt.Sprint(k), keys[k], claims("exp", nil)))
		}
		forged := sign(t, jose.RS256, "0", otherKey, claims("exp", nil))
		var served atomic.Int64 // the newest key
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var tried atomic.Int64
		for range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					newest := served.Load()
					if err := try(tokens[newest]); err != nil {
						t.Errorf("token of key %d: %v", newest, err)
					}
					if try(forged) == nil {
						t.Error("a forged token passed")
					}
					tried.Add(1)
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		for k := 1; k < len(keys); k++ {
			time.Sleep(2 * leastPause)
			i.serve(jwk(fmt.Sprint(k-1), keys[k-1].Public()), jwk(fmt.Sprint(k), keys[k].Public()))
			time.Sleep(2 * leastPause) // the issuer publishes a key before it signs by it
			served.Store(int64(k))
		}
		time.Sleep(2 * leastPause)
		cancel()
		wg.Wait()
		if n := tried.Load(); n < 1000 {
			t.Errorf("%d tries: this shows little", n)
		}
	})
}

// A set outlives the Guard it was fetched for, unless no Config names it any more.
func TestKeySetsOutliveGuards(t *testing.T) {
	i := new(issuer)
	i.serve(jwk("rsa", rsaKey.Public()))
	sets := &KeySets{Client: &http.Client{Transport: i}}
	defer sets.Close()
	c := &Config{Tokens: []TokenRule{{Issuer: "issuer", JWKSURI: "https://issuer.example/keys"}}}
	for range 3 {
		g, _ := compile(c, sets)
		if err := g.Authenticate(t.Context(), bearing("/", "authorization", "Bearer "+good(t))); err != nil {
			t.Fatal(err)
		}
	}
	if n := i.asked.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	NewCompiler(&Config{}, sets).Finish()
	if len(sets.sets) != 0 {
		t.Error("a set that nobody names is kept")
	}
}

// Whatever stands in the place of a token, nothing panics and nothing passes.
func FuzzToken(f *testing.F) {
	f.Add("a.b.c")
	f.Add(good(f))
	f.Add(raw(`{"alg":"RS256","jwk":{"kty":"RSA","n":"AQ","e":"AQAB"}}`, `{"iss":"issuer"}`, []byte("x")))
	f.Add(raw(`{"alg":"ES256","kid":"ec","x5c":[]}`, `{"iss":"issuer","exp":[]}`, nil))
	g := guardOf(f, nil, TokenRule{Issuer: "issuer", JWKS: keySetOf(jwk("k", otherKey.Public()), jwk("ec", ecKey.Public()))})
	f.Fuzz(func(t *testing.T, token string) {
		for _, r := range []*Request{bearing("/", "authorization", "Bearer "+token), bearing("/?access_token=" + token), bearing("/", "cookie", token)} {
			if g.Authenticate(t.Context(), r); r.Identity != nil {
				t.Errorf("%s passed", token)
			}
		}
	})
}
