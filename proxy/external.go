package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// External authorizers, whom CUSTOM policies have asked: before anything else is judged,
// or if the policy goes by the model, or the authorizer by the body, when that is there.

const typeAuthorizerFailed = "fairway_authorizer_failed"

// askNow asks whoever can be asked by the head alone.
func (x *Exchange) askNow() error {
	x.asks = x.guard.Asks(x.asks[:0], &x.judged)
	for _, a := range x.asks {
		if p := x.serving.authorizers[a.Provider]; p != nil && p.Body > 0 {
			x.owed = append(x.owed, a)
			x.bodyAsked = max(x.bodyAsked, int64(p.Body))
		} else if err := x.ask(a); err != nil {
			return err
		}
	}
	return nil
}

// askRest asks the others, the model being known and the body being there as far as
// they want it: about the request as it came, as if they had been asked before whose it is
// was found out.
func (x *Exchange) askRest() error {
	r := &x.judged
	r.Head = &x.presented.Request
	defer func() { r.Head = &x.asked.Request }()
	before := len(x.asks)
	x.asks = x.guard.Asks(x.asks, r)
	x.owed = append(x.owed, x.asks[before:]...)
	for _, a := range x.owed {
		if err := x.ask(a); err != nil {
			return err
		}
	}
	x.owed = x.owed[:0]
	return nil
}

// ask has a request judged by an authorizer, and changed as it says.
func (x *Exchange) ask(a authz.Asked) error {
	p := x.serving.authorizers[a.Provider]
	if p == nil {
		x.record.Policy = a.Policy
		return errForbidden("make this request")
	}
	r := &x.judged
	q := extauthz.Request{
		ID: x.record.ID, Source: netip.AddrPortFrom(r.Source, 0), Destination: netip.AddrPortFrom(r.Destination, r.Port),
		Principal: r.Peer.String(), Head: r.Head,
	}
	if p.Body > 0 {
		q.Body = x.body.bytes
		if q.Partial = x.call != nil || !x.body.whole || len(q.Body) > p.Body; q.Partial {
			if !p.AllowPartial {
				return errBodyTooLargeToJudge(p.Body)
			}
			q.Body = q.Body[:min(len(q.Body), p.Body)]
		}
	}
	answer := p.Check(x.ctx, &q)
	if err := x.ended(); err != nil { // not the provider's failing
		return err
	}
	if e := x.overdue(); e != nil { // nor is what ctx, whose timer may be late, has not heard of yet
		return e
	}
	if !answer.Allowed {
		x.record.Policy, x.record.ByAuthorizer = a.Policy, true
		return denial(answer)
	}
	x.partHeads()
	x.head.Fields = x.change(x.head.Fields, answer)
	if r.Head == &x.presented.Request {
		x.asked.Fields = x.change(x.asked.Fields, answer)
		x.presented.Fields = x.change(x.presented.Fields, answer)
	}
	x.verdicts = append(x.verdicts, answer)
	return nil
}

func errBodyTooLargeToJudge(most int) *Error {
	return &Error{Status: 413, Type: "fairway_body_too_large",
		Message: fmt.Sprintf("The request body is larger than its external authorizer takes (%d bytes).", most)}
}

// denial is what the client is answered.
func denial(a *extauthz.Answer) error {
	if a.Err != nil {
		return &Error{Status: a.Status, Type: typeAuthorizerFailed, Message: "The external authorizer of this request cannot be asked at the moment."}
	}
	answer := &foreignAnswer{head: message.Response{Status: a.Status, Fields: a.Fields}, body: a.Body, reason: typeForbidden}
	if len(a.Body) == 0 && a.Status >= 400 {
		e := errForbidden("make this request")
		answer.body = openai.AppendError(nil, a.Status, e.Type, e.Message, "")
		answer.head.Fields = append(message.Delete(answer.head.Fields, "content-type"), message.Field{Name: []byte("content-type"), Value: []byte("application/json")})
	} else if len(a.Body) > 0 && message.Get(a.Fields, "content-type") == nil {
		answer.head.Fields = append(answer.head.Fields, message.Field{Name: []byte("content-type"), Value: []byte("text/plain; charset=utf-8")})
	}
	answer.head.ContentLength = int64(len(answer.body))
	return answer
}

// change has a head say what an authorizer wants it to: but for what only the proxy or a
// token says, and what nobody may say of a request's way.
func (x *Exchange) change(fields []message.Field, a *extauthz.Answer) []message.Field {
	may := func(name []byte) bool { return !protected(name) && !x.guard.Owns(name) }
	for _, name := range a.Remove {
		if may([]byte(name)) {
			fields = message.Delete(fields, name)
		}
	}
	return put(fields, a.Set, a.Append, may)
}

// withTold has an answer say what authorizers want the client told.
func (x *Exchange) withTold(fields []message.Field) []message.Field {
	for _, a := range x.verdicts {
		fields = put(fields, a.SetToClient, a.AppendToClient, func(name []byte) bool { return !protected(name) })
	}
	return fields
}

// put has fields say those of set in the place of others of their names, and those of
// added besides, as far as they may be said.
func put(fields, set, added []message.Field, may func(name []byte) bool) []message.Field {
	for _, f := range set {
		if may(f.Name) {
			fields = append(message.Delete(fields, string(f.Name)), f)
		}
	}
	for _, f := range added {
		if may(f.Name) {
			fields = append(fields, f)
		}
	}
	return fields
}

// admit tells whether the policies of a destination let a connection that is not HTTP
// in, and keeps what they say in its record.
func (s *Server) admit(d *destination, rec *account.Record, p *hbone.Peer, c net.Conn) bool {
	if d.guard.Required() {
		rec.Reason = typeUnauthenticated
		return false
	}
	var r authz.Request
	place(&r, p, d, c.RemoteAddr(), c.LocalAddr())
	r.Remote = r.Source
	for _, a := range d.guard.AsksConn(nil, &r) {
		authorizer := s.serving.Load().authorizers[a.Provider]
		if authorizer == nil {
			rec.Reason, rec.Policy = typeForbidden, a.Policy
			return false
		}
		answer := authorizer.CheckConn(context.Background(), &extauthz.Request{
			ID: rec.ID, Source: sourceOf(p, c.RemoteAddr()), Destination: netip.AddrPortFrom(r.Destination, r.Port), Principal: r.Peer.String(),
		})
		if !answer.Allowed {
			rec.Reason, rec.Policy, rec.ByAuthorizer = typeForbidden, a.Policy, true
			if answer.Err != nil {
				rec.Reason = typeAuthorizerFailed
			}
			return false
		}
	}
	decision := d.guard.JudgeConn(&r)
	note(rec, decision)
	if decision.Denied {
		rec.Reason = typeForbidden
	}
	return !decision.Denied
}
