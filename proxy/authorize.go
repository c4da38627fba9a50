package proxy

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// Who may do what: judged from the head as soon as it is there, and once more when
// the body has come, if the model matters or the policies have changed meanwhile.

// spell gives the target the one spelling by which it is judged, routed and sent on.
func (x *Exchange) spell() error {
	x.notePath()
	if x.passed {
		return nil
	}
	target, err := x.guard.Normalization.Target(x.spelled, x.head.Target)
	if err != nil {
		return errBadRequest(sentence(err))
	}
	if len(target) > 0 && &target[0] != &x.head.Target[0] {
		x.head.Target, x.spelled = target, target
		x.notePath()
	}
	return nil
}

func (x *Exchange) notePath() {
	x.lastPath = again(x.lastPath, x.head.Path())
	x.record.Path = x.lastPath
}

// authorize finds out whose the request is and has it judged by what its head says.
func (x *Exchange) authorize() error {
	if x.passed {
		return nil
	}
	g, r := x.guard, &x.judged
	r.Remote = g.Remote(r.Source, x.head.Fields)
	r.Head, r.ModelPending = x.head, g.ReadsModel()
	if err := x.askNow(); err != nil {
		return err
	}
	x.presented.keep(x.head)
	changes := g.Changes()
	if changes {
		x.presented.part()
	}
	if err := g.Authenticate(x.ctx, r); err != nil {
		switch token, ok := errors.AsType[*authz.TokenError](err); {
		case x.gone():
			return errGone
		case ok && token.Unavailable:
			return errKeysUnavailable(err)
		}
		return errUnauthenticated(err)
	}
	x.record.Principal = r.Identity.String()
	x.asked.keep(x.head)
	if changes {
		x.present()
	}
	r.Head, r.ModelPending = &x.asked.Request, g.ReadsModel()
	return x.permit(g)
}

// keptHead is a head as it was when it was kept. Hardly any is looked at again after it has
// changed, so it shares the fields of the one it was kept of until part.
type keptHead struct {
	message.Request
	own []message.Field // memory for fields of its own
}

func (k *keptHead) keep(head *message.Request) {
	k.Request = *head
	k.Fields = slices.Clip(head.Fields)
}

// part gives k fields of its own. It comes before those of the head it was kept of, or its own,
// are changed in place.
func (k *keptHead) part() {
	k.own = append(k.own[:0], k.Fields...)
	k.Fields = k.own
}

// forget lets go of everything but the memory.
func (k *keptHead) forget() {
	clear(k.own[:cap(k.own)])
	k.Request = message.Request{}
}

// partHeads comes before x.head is changed in place, once it was judged.
func (x *Exchange) partHeads() {
	x.asked.part()
	x.presented.part()
}

// present has authorizers that are asked later see of the fields that only tokens may set
// what tokens have set.
func (x *Exchange) present() {
	x.presented.Fields = slices.DeleteFunc(x.presented.Fields, func(f message.Field) bool { return x.guard.Owns(f.Name) })
	for _, f := range x.asked.Fields {
		if x.guard.Owns(f.Name) {
			x.presented.Fields = append(x.presented.Fields, f)
		}
	}
}

// authorizeModel has the request judged, once its model is known, by the policies that
// are in force by now. From here on it belongs to their World.
func (x *Exchange) authorizeModel() error {
	x.serving = x.server.serving.Load()
	if err := x.arrive(); err != nil {
		return err
	}
	if x.unread && (!x.passed && x.guard.ReadsModel() || !x.forPlain()) { // that is new
		x.unread = false
		x.classify()
		if err := x.understand(); err != nil {
			return err
		}
	}
	g, r := x.guard, &x.judged
	if x.passed || g == x.judge && !r.ModelPending && len(x.owed) == 0 {
		return nil
	}
	model, err := x.askedModel()
	if err != nil {
		return err
	}
	r.ModelPending = false
	if x.listing() && g.ReadsModel() {
		if err := x.askRest(); err != nil {
			return err
		}
		return x.permitList(g)
	}
	if err := x.judgeModel(model); err != nil || x.override == "" {
		return err
	}
	return x.judgeModel([]byte(x.override))
}

// judgeModel has the request judged as one for a model.
func (x *Exchange) judgeModel(model []byte) error {
	x.judged.Model = model
	if err := x.askRest(); err != nil {
		return err
	}
	return x.permit(x.guard)
}

// askedModel is the model that the request names: in its body, or for vLLM's WebSocket
// in its query, as OpenAI has it.
func (x *Exchange) askedModel() (model []byte, err error) {
	path, query, ok := bytes.Cut(x.head.Target, []byte("?"))
	if !ok || string(path) != realtimePath {
		return x.read.Model, nil
	}
	for pair := range bytes.SplitSeq(query, []byte("&")) {
		name, value, _ := bytes.Cut(pair, []byte("="))
		if n, err := url.QueryUnescape(string(name)); err != nil || n != "model" {
			continue
		}
		v, err := url.QueryUnescape(string(value))
		if err != nil || model != nil && string(model) != v {
			return nil, errBadRequest("The query names no model, or more than one.")
		}
		model = []byte(v)
	}
	return model, nil
}

const realtimePath = "/v1/realtime"

// permitList asks the policies about a request for the list of models, which is for
// whoever may use some of them.
func (x *Exchange) permitList(g *authz.Guard) error {
	r := &x.judged
	r.Model, r.ModelPending = nil, true
	if err := x.permit(g); err != nil {
		return err
	}
	r.ModelPending = false
	d := g.Judge(r)
	x.someModels, d.Denied = d.Denied, false
	note(&x.record, d)
	return nil
}

// mayUse tells whether the caller may make some request of a model, of those that models
// are there for.
func (x *Exchange) mayUse(model string) bool {
	if x.passed || !x.guard.ReadsModel() {
		return true
	}
	before := x.asked.Path()
	if at := bytes.LastIndex(before, []byte(modelsPath)); at >= 0 {
		before = before[:at]
	}
	r, head := x.judged, x.asked.Request
	r.Head, r.Model = &head, []byte(model)
	head.Method = []byte("POST")
	for _, path := range usePaths {
		head.Target = append(bytes.Clone(before), path...)
		if !x.guard.Judge(&r).Denied {
			return true
		}
	}
	return false
}

// usePaths are what models are there for.
var usePaths = []string{
	"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
	"/pooling", "/classify", "/v1/rerank", "/v1/score", "/v1/audio/transcriptions", "/v1/audio/translations",
}

// permit asks the policies.
func (x *Exchange) permit(g *authz.Guard) error {
	d := g.Judge(&x.judged)
	x.judge = g
	note(&x.record, d)
	if !d.Denied {
		return nil
	}
	what := "make this request"
	if len(x.judged.Model) > 0 {
		what = "make this request of this model"
	}
	return errForbidden(what)
}

// note keeps in a record what policies say.
func note(rec *account.Record, d authz.Decision) {
	rec.AuditPolicy, rec.DryRun = cmp.Or(rec.AuditPolicy, d.AuditPolicy), rec.DryRun || d.DryRun
	if d.DryRunDenied {
		rec.DryRunPolicy = cmp.Or(rec.DryRunPolicy, d.DryRunPolicy, byDefault)
	}
	if d.Denied {
		rec.Policy = cmp.Or(d.Policy, byDefault)
	}
}

// locate says to the policies where the request comes from and where it was going.
func (x *Exchange) locate() {
	var local net.Addr
	if c := x.stream.Conn(); c != nil {
		local = c.LocalAddr()
	}
	place(&x.judged, x.peer, x.dest, x.stream.RemoteAddr(), local)
	if x.guard.ReadsSNI() {
		if t := x.clientTLS(); t != nil {
			x.judged.SNI = t.ConnectionState().ServerName
		}
	}
}

// clientTLS is the TLS that the client itself has come by, nil without. That of a tunnel is its ztunnel's.
func (x *Exchange) clientTLS() *tls.Conn {
	if x.peer != nil {
		return nil
	}
	t, _ := sock.As[*tls.Conn](x.stream.Conn())
	return t
}

// place says where a connection comes from and where it was going, as its tunnel's peer
// knows it, or else by its own ends. Who asks for a Service by its name is going to its
// address: another spelling is no way round a policy.
func place(r *authz.Request, p *hbone.Peer, d *destination, remote, local net.Addr) {
	r.Source = sourceOf(p, remote).Addr()
	if p == nil {
		to := addressOf(local)
		r.Destination, r.Port = to.Addr(), to.Port()
		return
	}
	r.Peer = authz.ParsePeer(peerID(p))
	r.Destination, r.Port = p.Destination.Addr(), p.Destination.Port()
	if !p.Destination.IsValid() { // asked for by name
		r.Destination = d.vip
		if _, port, err := net.SplitHostPort(p.Authority); err == nil {
			n, _ := strconv.ParseUint(port, 10, 16)
			r.Port = uint16(n)
		}
	}
}

// sourceOf is where a connection comes from: its own other end, or that of the tunnel it is in.
func sourceOf(p *hbone.Peer, remote net.Addr) netip.AddrPort {
	switch {
	case p == nil:
		return addressOf(remote)
	case p.Remote != nil: // ztunnel connects from its workload's own address
		return addressOf(p.Remote)
	}
	return p.Forwarded
}

// byDefault stands for the policy where no ALLOW policy matched.
const byDefault = "default"

// addressOf is a as an address and a port; the zero value of what has none.
func addressOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	if a == nil {
		return netip.AddrPort{}
	}
	p, _ := netip.ParseAddrPort(a.String())
	return p
}
