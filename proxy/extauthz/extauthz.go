// Package extauthz asks external authorizers whether a request may pass: Envoy's
// ext_authz, by gRPC (envoy.service.auth.v3) or by HTTP, as the extension providers of
// Istio's mesh configuration describe them (istio/api mesh/v1alpha1, config.proto,
// EnvoyExternalAuthorizationGrpcProvider and …HttpProvider).
//
// A Provider is plain data. Authorizers keep the connections to providers and are safe
// for concurrent use. A provider that cannot be reached, or does not answer in time, denies
// unless its FailOpen says otherwise. One that denies is heard whatever else it says, and one
// that allows in a way that cannot be done denies.
package extauthz

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// DefaultTimeout is how long a provider may take. (Istio's is ten minutes, which no
// client waits.)
const DefaultTimeout = 5 * time.Second

// maxAnswer bounds what is read of a provider's answer, in bytes.
const maxAnswer = 1 << 20

// Provider is an external authorizer.
type Provider struct {
	Name string
	// Address is host:port; a host name is resolved by DNS.
	Address string
	// HTTP asks by HTTP instead of gRPC.
	HTTP bool
	// Timeout; zero: DefaultTimeout.
	Timeout time.Duration
	// FailOpen lets pass what the provider does not answer, or answers with an error of
	// its protocol (by HTTP, a 5xx).
	FailOpen bool
	// StatusOnError is what is answered when it fails; zero: 403.
	StatusOnError int
	// Body is how much of the body the provider is shown, in bytes; zero: nothing. A
	// longer one is refused with 413, unless AllowPartial has it shown its start. PackAsBytes
	// has it in raw_body instead of body.
	Body         int
	AllowPartial bool
	PackAsBytes  bool

	// The rest is for HTTP alone. Names of fields may be patterns, with an asterisk at
	// an end, and are in lower case.

	// PathPrefix is put before the path.
	PathPrefix string
	// IncludeHeaders are the fields of the request that the provider is shown, besides
	// Authorization; AddHeaders are fields that it is shown besides.
	IncludeHeaders []string
	AddHeaders     map[string]string
	// ToUpstreamOnAllow are the fields of its answer that replace those of the request.
	ToUpstreamOnAllow []string
	// ToClientOnDeny are the fields of its answer that the client gets when it denies;
	// none: all. ToClientOnAllow are those that the client gets with the engine's answer.
	ToClientOnDeny, ToClientOnAllow []string
}

// Request is what a provider is asked about.
type Request struct {
	ID                  string
	Source, Destination netip.AddrPort
	Principal           string           // the sender's SPIFFE ID, empty for none
	Head                *message.Request // nil: a connection that is not HTTP
	Body                []byte           // as much as the provider is to see
	Partial             bool             // there is more of it
}

// Answer is what a provider says. What it wants changed has to be judged by whoever
// changes it: nothing is left out here but what has no place in a head.
type Answer struct {
	Allowed bool
	// Err says that the provider failed; Status is then as its Provider has it.
	Err error

	// Of a denial: what the client is to be answered.
	Status int
	Fields []message.Field
	Body   []byte

	// Of an allowance: what is to be changed in the request, and added to the answer.
	Set, Append                 []message.Field
	Remove                      []string // in lower case
	SetToClient, AppendToClient []message.Field
}

// Authorizers keep the connections to providers, from one configuration to the next.
// The zero value works.
type Authorizers struct {
	// Log is told of providers that fail, of each at most once a second; nil:
	// slog.Default.
	Log *slog.Logger

	mu      sync.Mutex
	clients map[string]*Authorizer // by name; guarded by mu
}

// Authorizer asks one provider.
type Authorizer struct {
	Provider
	client client
	log    *slog.Logger

	telling rate.Sometimes // of failures

	mu      sync.Mutex
	asking  int  // checks under way; guarded by mu
	retired bool // there will be no more; guarded by mu
}

// client asks by gRPC or by HTTP.
type client interface {
	// check's error says that there is no answer; Answer.Err, that there is one which
	// lets nothing pass because it cannot be done.
	check(ctx context.Context, r *Request) (*Answer, error)
	close()
}

// Set gives the authorizers of these providers by name. Those of an earlier call that
// have not changed keep their connections; the others' are closed when what they were
// asked has been answered.
func (a *Authorizers) Set(providers []Provider) map[string]*Authorizer {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := make(map[string]*Authorizer, len(providers))
	for i := range providers {
		p := &providers[i]
		known := a.clients[p.Name]
		if known == nil || !reflect.DeepEqual(&known.Provider, p) {
			known = &Authorizer{Provider: *p, log: cmp.Or(a.Log, slog.Default()), telling: rate.Sometimes{Interval: time.Second}}
			if p.HTTP {
				known.client = newHTTPClient(p)
			} else {
				known.client = newGRPCClient(p)
			}
		}
		next[p.Name] = known
	}
	for name, c := range a.clients {
		if next[name] != c {
			c.retire()
		}
	}
	a.clients = next
	return next
}

// Close ends all connections.
func (a *Authorizers) Close() { a.Set(nil) }

// Check asks whether a request may pass.
func (a *Authorizer) Check(ctx context.Context, r *Request) *Answer {
	a.begin()
	defer a.end()
	bounded, cancel := context.WithTimeout(ctx, cmp.Or(a.Timeout, DefaultTimeout))
	defer cancel()
	answer, err := a.client.check(bounded, r)
	if err != nil {
		answer = &Answer{Allowed: a.FailOpen, Err: err}
	}
	if answer.Err != nil {
		answer.Status = cmp.Or(a.StatusOnError, 403)
		if ctx.Err() == nil {
			a.telling.Do(func() {
				a.log.Warn("an external authorizer fails", "provider", a.Name, "address", a.Address, "lets_pass", answer.Allowed, "error", answer.Err)
			})
		}
	}
	return answer
}

func (a *Authorizer) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asking++
}

func (a *Authorizer) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asking--; a.asking == 0 && a.retired {
		a.client.close()
	}
}

// retire closes the connections as soon as nothing is asked.
func (a *Authorizer) retire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.retired = true
	if a.asking == 0 {
		a.client.close()
	}
}

// CheckConn asks about a connection that is not HTTP, which only gRPC can be asked
// about.
func (a *Authorizer) CheckConn(ctx context.Context, r *Request) *Answer {
	if a.HTTP {
		return &Answer{Err: errNotHTTP}
	}
	return a.Check(ctx, r)
}

// matches tells whether a field's name, in lower case, is one of patterns.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if before, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(name, before) {
			return true
		}
		if after, ok := strings.CutPrefix(p, "*"); ok && strings.HasSuffix(name, after) {
			return true
		}
		if p == name {
			return true
		}
	}
	return false
}

// field makes a field of what a provider says, false where it cannot stand in a head:
// pseudo-fields, what the connection says, and what is not HTTP.
func field(name, value string) (f message.Field, ok bool) {
	f = message.Field{Name: []byte(strings.ToLower(name)), Value: []byte(value)}
	return f, message.ValidToken(f.Name) && message.ValidValue(f.Value) && !ofConnection(f.Name)
}

// ofConnection tells of the fields that speak of one connection, or frame a message.
func ofConnection(name []byte) bool {
	return message.Framing(name) || message.EqualFold(name, "proxy-authenticate") || message.EqualFold(name, "proxy-authorization")
}
