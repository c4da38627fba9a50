// Package message holds the heads of HTTP requests and responses apart from
// the HTTP version that carried them.
//
// A codec (proxy/h1, proxy/h2) fills them and writes them; everything
// between, such as routing, policy and the picker, reads and edits them without
// knowing which version is spoken on either side.
//
// What a head holds is end to end: the codec has taken framing (RFC 9112
// section 6) and hop-by-hop fields (RFC 9110 section 7.6.1) out, and puts its own
// in when it writes. Of a switch of protocols (RFC 9110 section 7.8), which is hop
// by hop too, Upgrade is what is left: whoever is between decides whether to ask
// for it in turn.
//
// All byte slices lie in memory owned by whoever filled the head and are valid
// until its exchange ends. Nothing here is safe for concurrent use.
package message

// Field is one header or trailer field. The name is spelled as it was sent;
// compare it with EqualFold.
type Field struct {
	Name, Value []byte
}

// Unknown is the ContentLength of a body whose length the head does not say.
const Unknown int64 = -1

// Request is the head of a request.
type Request struct {
	Method []byte
	// Target is the path with its query, in origin form ("/v1/models?a=b"),
	// or "*". The absolute form is split into Scheme, Authority and Target.
	Target []byte
	// Authority is the Host field's value or the :authority pseudo-field. The
	// Host field itself is not among Fields.
	Authority []byte
	Fields    []Field
	// ContentLength is the length of the body in bytes: 0 none, Unknown when
	// the framing alone ends it. No Content-Length field is among Fields.
	ContentLength int64
	// Upgrade is the protocol that the client asks to switch to, such as
	// "websocket"; nil for none, and beside a body. No Upgrade field is among
	// Fields.
	Upgrade []byte
}

// Response is the head of a response.
type Response struct {
	Status int
	Fields []Field
	// ContentLength as in Request. A response that has no body by rule (to
	// HEAD, 204, 304) may carry the length the body would have had; see NoBody.
	ContentLength int64
	// Upgrade is the protocol that a 101 switches to; nil in any other.
	Upgrade []byte
}

// NoBody tells whether a response of this status to this method never has a
// body, whatever its fields say (RFC 9112 section 6.3).
func NoBody(method []byte, status int) bool {
	return string(method) == "HEAD" || status == 204 || status == 304 || status < 200
}

// Get gives the value of the first field of that name, nil without one. The
// name must be in lower case.
func Get(fields []Field, name string) []byte {
	for i := range fields {
		if EqualFold(fields[i].Name, name) {
			return fields[i].Value
		}
	}
	return nil
}

// EqualFold compares a field name with one in lower case, by ASCII folding. Names of another length, which most
// are, cost no call.
func EqualFold(name []byte, lower string) bool {
	return len(name) == len(lower) && equalFold(name, lower)
}

func equalFold(name []byte, lower string) bool {
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// Framing tells of a field that says how a message is framed, which connection it is on or whom it is for. It
// belongs to whoever writes the message, and to nobody that changes one.
func Framing(name []byte) bool {
	for _, f := range framing {
		if EqualFold(name, f) {
			return true
		}
	}
	return false
}

var framing = [...]string{"connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}

// Delete removes every field of that name, in lower case, keeping the order of
// the others; it reuses the slice.
func Delete(fields []Field, name string) []Field {
	kept := fields[:0]
	for _, f := range fields {
		if !EqualFold(f.Name, name) {
			kept = append(kept, f)
		}
	}
	return kept
}

// Path is the target up to the query.
func (r *Request) Path() []byte {
	for i, c := range r.Target {
		if c == '?' {
			return r.Target[:i]
		}
	}
	return r.Target
}
