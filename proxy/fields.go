package proxy

import (
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/message"
)

// Fields of a request's head: what they say to the proxy, and which of them only it may say.

// takeFields reads and removes the fields that speak to the proxy, removes those
// that must not be passed on, and sees that the request has an id. What a trusted
// client says of the request's way is kept.
func (x *Exchange) takeFields(trusted bool) {
	believed := x.believed()
	fields, n := x.head.Fields, 0
	for i := range fields {
		f := &fields[i]
		if x.takeField(f, believed) && (x.passed || !authz.Drops(f.Name, trusted)) {
			if n < i {
				fields[n] = *f
			}
			n++
		}
	}
	kept := fields[:n]
	if len(x.id) == 0 {
		x.id = appendID(x.id)
		kept = append(kept, message.Field{Name: fieldRequestID, Value: x.id})
	}
	x.record.ID = string(x.id)
	x.head.Fields = kept
	x.explain = x.explain || x.serving.explain == ExplainAlways
	x.record.Method = methodOf(x.head)
}

// takeField takes from a field what it says to the proxy, and tells whether it is passed on.
func (x *Exchange) takeField(f *message.Field, believed bool) bool {
	if len(f.Name) == 0 || f.Name[0]|0x20 != 'x' {
		x.loadAsked = x.loadAsked || message.EqualFold(f.Name, fieldLoadFormat)
		return true
	}
	x.takeRank(f)
	switch {
	case message.EqualFold(f.Name, "x-request-id"):
		if len(x.id) > 0 || !validID(f.Value) {
			return false
		}
		x.id = append(x.id, f.Value...)
		return true
	case message.EqualFold(f.Name, "x-fairway-explain"):
		x.explain = string(f.Value) == "1" && x.serving.explain == ExplainOnRequest && x.peer == nil
		return false
	}
	return !x.takeModelField(f, believed) && !ours(f.Name)
}

// methodOf is a request's method as a string.
func methodOf(r *message.Request) string {
	switch string(r.Method) {
	case "POST":
		return "POST"
	case "GET":
		return "GET"
	}
	return string(r.Method)
}

// ours tells whether a field is one that only the proxy says.
func ours(name []byte) bool {
	const prefix = "x-fairway-"
	return len(name) > len(prefix) && message.EqualFold(name[:len(prefix)], prefix)
}

// protected tells of a field that neither a picker nor an authorizer may set: one that speaks of the
// request's framing or its way, or one that only the proxy says. Who does parts of the work is for them to say.
func protected(name []byte) bool {
	return message.Framing(name) || message.EqualFold(name, "x-request-id") || ours(name) || authz.Drops(name, false) && !authz.Steers(name)
}
