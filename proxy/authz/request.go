package authz

import (
	"net/netip"
	"strings"
	"unsafe"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// Request is what is judged. The zero value of a field means that there is nothing
// to know, which matches no value. It is used by one goroutine and may be used
// again, which saves memory.
type Request struct {
	// Peer is the sender as its certificate says.
	Peer Peer
	// Source is the address of the other end of the connection, Remote that of the
	// client behind proxies that are trusted.
	Source, Remote netip.Addr
	// Destination and Port are where the connection was going.
	Destination netip.Addr
	Port        uint16
	// SNI is the name that the TLS client asked for, if some policy goes by it (Guard.ReadsSNI); empty without TLS.
	SNI string

	// Head is what will be sent upstream; nil for a connection that is not HTTP.
	Head *message.Request
	// Identity is the request's own, apart from its sender's; nil for none.
	Identity *Identity

	// Model is the name of the model that the request asks for, empty when it asks
	// for none.
	Model []byte
	// ModelPending says that Model is not known yet: then only what holds whatever
	// it is gets denied.
	ModelPending bool

	merged []byte // values of one field, joined
}

// Peer is a sender's SPIFFE ID, taken apart. The zero value is nobody.
type Peer struct {
	id, trustDomain, namespace, serviceAccount string
}

const spiffeScheme = "spiffe://"

// ParsePeer takes a SPIFFE ID, "spiffe://<trust domain>/ns/<namespace>/sa/<service
// account>". Segments may stand between and behind those; an ID that lacks them has
// no namespace, or no service account.
func ParsePeer(id string) Peer {
	p := Peer{id: id}
	rest, ok := strings.CutPrefix(id, spiffeScheme)
	if !ok {
		return p
	}
	p.trustDomain, rest, _ = strings.Cut(rest, "/")
	rest = "/" + rest
	_, rest, ok = strings.Cut(rest, "/ns/")
	if !ok {
		return p
	}
	namespace, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return p
	}
	p.namespace = namespace
	_, rest, ok = strings.Cut("/"+rest, "/sa/")
	if !ok {
		return p
	}
	p.serviceAccount, _, _ = strings.Cut(rest, "/")
	return p
}

// String is the SPIFFE ID.
func (p Peer) String() string { return p.id }

// field gives the value of a header field, several joined by commas as Envoy does.
// Pseudo-fields are those of HTTP/2. The value is valid until the next call.
func (r *Request) field(name string) (value string, ok bool) {
	switch name {
	case ":method":
		return view(r.Head.Method), true
	case ":path":
		return view(r.Head.Target), true
	case ":authority", "host":
		return view(r.Head.Authority), len(r.Head.Authority) > 0
	}
	var first []byte
	n := 0
	for i := range r.Head.Fields {
		f := &r.Head.Fields[i]
		if len(f.Name) != len(name) || !message.EqualFold(f.Name, name) {
			continue
		}
		switch n {
		case 0:
			first = f.Value
		case 1:
			r.merged = append(append(append(r.merged[:0], first...), ','), f.Value...)
		default:
			r.merged = append(append(r.merged, ','), f.Value...)
		}
		n++
	}
	if n > 1 {
		return view(r.merged), true
	}
	return view(first), n > 0
}

// view is b as a string, without a copy: it is compared and let go before b changes.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Forget lets go of everything that belongs to a request, and keeps the memory.
func (r *Request) Forget() { *r = Request{merged: r.merged[:0]} }
