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
	fields := x.head.Fields
	kept := fields[:0]
	for _, f := range fields {
		x.takeRank(f)
		switch {
		case message.EqualFold(f.Name, "x-request-id"):
			if x.record.ID != "" || !validID(f.Value) {
				continue
			}
			x.record.ID = string(f.Value)
		case message.EqualFold(f.Name, fieldLoadFormat):
			x.loadAsked = true
		case message.EqualFold(f.Name, "x-fairway-explain"):
			x.explain = string(f.Value) == "1" && x.serving.explain == ExplainOnRequest && x.peer == nil
			continue
		case x.takeModelField(f, believed):
			continue
		case ours(f.Name), !x.passed && authz.Drops(f.Name, trusted):
			continue
		}
		kept = append(kept, f)
	}
	if x.record.ID == "" {
		x.record.ID = newID()
		kept = append(kept, message.Field{Name: fieldRequestID, Value: []byte(x.record.ID)})
	}
	x.head.Fields = kept
	x.explain = x.explain || x.serving.explain == ExplainAlways
	x.record.Method = string(x.head.Method)
}

// ours tells whether a field is one that only the proxy says.
func ours(name []byte) bool {
	const prefix = "x-fairway-"
	return len(name) > len(prefix) && message.EqualFold(name[:len(prefix)], prefix)
}

// protected tells of a field that neither a picker nor an authorizer may set: one that speaks of the
// request's framing or its way, or one that only the proxy says.
func protected(name []byte) bool {
	return message.Framing(name) || message.EqualFold(name, "x-request-id") || ours(name) || authz.Drops(name, false)
}
