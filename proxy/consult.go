package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/extproc"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// consultation is the Chooser of one exchange whose pool has a picker of its own: that one
// says where the request goes, what it is to say there, or what is answered in its
// place. It can neither keep a request for longer than it is given, nor send it out of
// the pool, nor have it say what only the proxy says.
type consultation struct {
	x      *Exchange
	picker *ownPicker // nil: the pool has none

	done      bool               // it was asked
	endpoints []*picker.Endpoint // that it named, in order
	ruling    *extproc.Ruling    // nil without one that holds
}

// beginChoice finds out who chooses the request's endpoint.
func (x *Exchange) beginChoice() {
	x.chooser = x.pool.chooser
	for own := x.pool.own.Load(); own != nil; own = x.pool.own.Load() {
		if own.begin() {
			x.consult.x, x.consult.picker = x, own
			x.chooser = &x.consult
			return
		}
	}
}

// end lets the picker go.
func (c *consultation) end() {
	if c.ruling != nil {
		c.ruling.End()
	}
	if c.picker != nil {
		c.picker.end()
	}
	clear(c.endpoints)
	*c = consultation{endpoints: c.endpoints[:0]}
}

// Choose gives the first endpoint that the picker named and that has not been tried.
// With FailOpen, the embedded picker chooses where that one has not, and beyond it.
func (c *consultation) Choose(ctx context.Context, r *picker.Request) (Choice, error) {
	if !c.done {
		c.done = true
		err := c.ask(ctx)
		r.Now = Now()
		if err != nil {
			return Choice{}, err
		}
	}
	pool := c.x.pool
	for _, e := range c.endpoints {
		if !slices.Contains(r.Exclude, e) {
			return Choice{Lease: pool.reserve(e, r), Transport: e.Owner().(*upstream.Transport)}, nil
		}
	}
	if !c.picker.failsOpen() {
		return Choice{}, picker.ErrExcluded
	}
	pool.consulted.fallbacks.Add(1)
	return pool.chooser.Choose(ctx, r)
}

// ask has the picker rule, and does as it says. Its error is what to answer.
func (c *consultation) ask(ctx context.Context) error {
	x, own := c.x, c.picker
	if err := x.receiveRest(); err != nil {
		return err
	}
	now := Now()
	if !own.mayAsk(now) {
		return c.failed(PickerSpared, errors.New("it took too long for others just before"))
	}
	x.partHeads()
	x.head.Fields = message.Delete(x.head.Fields, fieldDestination)
	q := extproc.Question{Head: x.head, Subset: x.pool.standing(now), Timeout: own.timeout(), Wait: !own.failsOpen()}
	if x.call == nil && len(x.body.bytes) > 0 {
		x.segments = x.read.AppendSegments(x.segments[:0], x.body.bytes)
		q.Body = x.segments
	}
	ruling, err := own.client.Ask(ctx, &q)
	if errors.Is(err, extproc.ErrUnavailable) && q.Wait {
		// It went away in this moment, and may be back, or a replica there.
		if q.Timeout -= Now() - now; q.Timeout > 0 {
			ruling, err = own.client.Ask(ctx, &q)
		}
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	own.heard(err)
	if err != nil {
		return c.failed(outcomeOfAsking(err), err)
	}
	c.ruling = ruling
	if ruling.Immediate != nil {
		x.pool.consulted.count(PickerAnswered)
		return &foreignAnswer{head: *ruling.Immediate, body: ruling.Body, reason: account.PickerAnswered}
	}
	if c.endpoints = x.pool.named(c.endpoints[:0], ruling.Endpoints); len(c.endpoints) == 0 {
		return c.failed(PickerOutside, fmt.Errorf("it named %.200q, of which the pool has none", ruling.Endpoints))
	}
	if ruling.Changed && x.call != nil {
		return c.failed(PickerProtocol, errors.New("it replaced the body of a call, which it was not shown"))
	}
	if ruling.Changed {
		if err := x.replaceBody(ruling.Body); err != nil {
			if own, ok := errors.AsType[*Error](err); ok {
				return own
			}
			return c.failed(PickerProtocol, fmt.Errorf("it made a body that cannot be read: %w", err))
		}
		if x.kind != openai.Other && !x.passed && x.guard.ReadsModel() {
			if err := x.judgeModel(x.read.Model); err != nil {
				return err
			}
		}
	}
	for i := range ruling.Fields {
		if change := &ruling.Fields[i]; !protected(change.Name) && !x.guard.Owns(change.Name) {
			x.head.Fields = changeField(x.head.Fields, change)
		}
	}
	x.pool.consulted.count(PickerNamed)
	return nil
}

// failed is for a request on which the picker has not ruled.
func (c *consultation) failed(o PickerOutcome, why error) error {
	x := c.x
	c.endpoints = c.endpoints[:0]
	if c.ruling != nil {
		c.ruling.End()
		c.ruling = nil
	}
	x.pool.consulted.count(o)
	c.picker.warning.Do(func() {
		x.server.log.Warn("the pool's own endpoint picker failed", "pool", x.pool.name, "picker", c.picker.config.Address,
			"failure_mode", or(c.picker.config.FailureMode, FailClose), "error", why)
	})
	if c.picker.failsOpen() {
		return nil
	}
	return errPickerFailed(x.pool.name, why)
}

func outcomeOfAsking(err error) PickerOutcome {
	switch {
	case errors.Is(err, extproc.ErrTimeout):
		return PickerTimeout
	case errors.Is(err, extproc.ErrUnavailable):
		return PickerUnavailable
	}
	return PickerProtocol
}

// receiveRest takes in what is left of the body: a picker gets it whole.
func (x *Exchange) receiveRest() error {
	if x.call != nil || x.body.whole {
		return nil
	}
	if err := x.receive(x.serving.bodyLimit + 1); err != nil {
		return err
	}
	if !x.early {
		return nil
	}
	if err := x.readRest(); err != nil {
		return err
	}
	x.early = false
	x.edit()
	x.measure()
	return nil
}

// replaceBody has another body sent than the client's, which stays if that one cannot
// be read. An *Error is the answer to give.
func (x *Exchange) replaceBody(b []byte) error {
	read := func(r *openai.Request) error {
		switch {
		case x.kind == openai.Other:
			r.Reset()
			return nil
		case x.kind.Form():
			return r.ReadForm(x.kind, message.Get(x.head.Fields, "content-type"), b)
		}
		return r.Read(x.kind, b)
	}
	if err := read(new(openai.Request)); err != nil {
		return err
	}
	if err := x.body.replace(b); err != nil {
		return err
	}
	x.head.ContentLength = int64(len(b))
	if err := read(&x.read); err != nil {
		return err
	}
	x.target = string(x.read.Model)
	x.read.ReplaceSalt(x.salted)
	x.measure()
	return nil
}

// fieldDestination is where a picker's word stands, and nobody else's.
const fieldDestination = "x-gateway-destination-endpoint"

// changeField makes one change of a head, as Envoy does (HeaderValueOption).
func changeField(fields []message.Field, c *extproc.FieldChange) []message.Field {
	name := string(c.Name)
	present := slices.ContainsFunc(fields, func(f message.Field) bool { return message.EqualFold(f.Name, name) })
	if c.Value != nil && (c.Absent && present || c.Present && !present) {
		return fields
	}
	if !c.Append {
		fields = message.Delete(fields, name)
	}
	if c.Value == nil {
		return fields
	}
	return append(fields, message.Field{Name: c.Name, Value: c.Value})
}

// told is conn, where the pool's own picker is told of what passes.
func (x *Exchange) told(conn carrier, by *picker.Endpoint) carrier {
	if x.consult.ruling == nil {
		return conn
	}
	x.consult.ruling.Answered(&x.answer, by.Address())
	return &tellingCarrier{conn, x.consult.ruling}
}

type tellingCarrier struct {
	carrier
	ruling *extproc.Ruling
}

func (c *tellingCarrier) Next() ([]byte, error) {
	piece, err := c.carrier.Next()
	c.ruling.Passed(piece)
	return piece, err
}

func (c *tellingCarrier) Trailers() []message.Field {
	trailers := c.carrier.Trailers()
	c.ruling.Ended(trailers)
	return trailers
}

// standing lists the endpoints that a picker may name, where some of the pool's take no
// connections; nil: it may name any.
func (p *pool) standing(now time.Duration) []string {
	all := p.picker.Endpoints()
	up := 0
	for _, e := range all {
		if !e.Ejected(now) {
			up++
		}
	}
	if up == len(all) || up == 0 {
		return nil
	}
	list := make([]string, 0, up)
	for _, e := range all {
		if !e.Ejected(now) && !slices.Contains(list, e.Address()) {
			list = append(list, e.Address())
		}
	}
	return list
}

// named appends the endpoints of the pool that have these addresses, in order.
func (p *pool) named(dst []*picker.Endpoint, addresses []string) []*picker.Endpoint {
	for _, address := range addresses {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			continue
		}
		if at.Addr().Is6() || at.Addr().Zone() != "" {
			address = at.String()
		}
		for _, e := range p.picker.Endpoints() {
			if e.Address() == address && !slices.Contains(dst, e) {
				dst = append(dst, e)
			}
		}
	}
	return dst
}
