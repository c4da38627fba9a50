package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// What becomes of a request that an endpoint did not answer, and of one that
// cannot be answered at all.

// unreachable is for an endpoint that could not be connected to: nothing was
// sent, so any other may be tried, as long as there is one.
func (x *Exchange) unreachable(e *picker.Endpoint, err error) (again bool, _ error) {
	x.record.Unanswered = false
	if err := x.ended(); err != nil {
		return false, err
	}
	if errors.Is(err, upstream.ErrClosed) { // left the World in this moment
		x.tried = append(x.tried, e)
		return true, nil
	}
	if upstream.Exhausted(err) {
		return false, errExhausted(err)
	}
	if op, dialed := errors.AsType[*net.OpError](err); x.guessed() && !(dialed && op.Op == "dial") {
		x.tryElsewhere(e, err)
		return true, nil
	}
	if e.Eject(Now()) {
		x.server.log.Warn("endpoint does not take connections", "pool", x.pool.name, "endpoint", e.Name(), "error", err)
	} else if x.refuges++; x.refuges == maxRefuges {
		return false, errUpstream(err)
	}
	x.tryElsewhere(e, err)
	x.passOver(func(o *picker.Endpoint) bool { return o.SameServer(e) })
	return true, nil
}

// unanswered is for a request that was sent, in whole or in part, and got no
// answer: it is sent a second time at most, or as often as its route says, and
// only within the retry budget.
func (x *Exchange) unanswered(e *picker.Endpoint, conn carrier, err error) (again bool, _ error) {
	if conn.TimedOut() {
		if x.retryRule() != nil && x.attemptOver() && x.maySendAgain() {
			x.sendAgain(e, fmt.Errorf("%s: %w", e.Name(), err))
			return true, nil
		}
		return false, x.timeout()
	}
	x.failure, x.record.Unanswered = fmt.Errorf("%s: %w", e.Name(), err), true
	switch {
	case conn.Used() && x.resends == 0 && !x.body.lost && x.repeatable():
		// Engines close idle connections, now and then in the very moment one
		// is used: the same endpoint may be asked again, on a new connection.
		x.resends++
		x.noteFailure(e, err)
		return true, nil
	case !x.maySendAgain():
		return false, errUpstream(x.failure)
	}
	x.sendAgain(e, x.failure)
	return true, nil
}

// maySendAgain tells whether a request that was sent may be sent once more.
func (x *Exchange) maySendAgain() bool {
	most := 1
	if x.retryRule() != nil {
		most = x.retryRule().Attempts
	}
	return x.resends < most && !x.body.lost && x.repeatable()
}

// repeatable tells whether a request may be sent again though it may have been served. Inference does nothing but
// compute. What other services do is not known: theirs are repeated if their method is idempotent (RFC 9110, section
// 9.2.2), or if their route says so.
func (x *Exchange) repeatable() bool {
	if !x.pool.plain || x.retryRule() != nil {
		return true
	}
	switch x.record.Method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return true
	}
	return false
}

// sendAgain has a request that e failed sent to another endpoint, if there is one
// that has not failed it. A route that asks for more begins with all of them anew.
func (x *Exchange) sendAgain(e *picker.Endpoint, why error) {
	x.resends++
	x.want.RemotePrefill = 0 // whether this or the other endpoint failed is not known
	if x.retry != nil {
		x.retry.end()
		x.retry = nil
	}
	x.tryElsewhere(e, why)
	if x.retryRule() != nil && len(x.tried) >= len(x.pool.picker.Endpoints()) {
		x.tried = x.tried[:0]
	}
}

// passOver has the next pick pass over those of the pool's endpoints that out says.
func (x *Exchange) passOver(out func(*picker.Endpoint) bool) {
	for _, e := range x.pool.picker.Endpoints() {
		if out(e) && !slices.Contains(x.tried, e) {
			x.tried = append(x.tried, e)
		}
	}
}

func (x *Exchange) tryElsewhere(e *picker.Endpoint, why error) {
	x.tried = append(x.tried, e)
	x.failure = why
	x.noteFailure(e, why)
}

// waitToRetry takes a place in the retry budget for a request that was sent
// before, after the time that its route has it wait. Nothing is held meanwhile
// but the body.
func (x *Exchange) waitToRetry() error {
	if x.resends == 0 || x.retry != nil {
		return nil
	}
	if err := x.backOff(); err != nil {
		return err
	}
	x.retry = x.server.retries.begin(x.ctx, &x.server.live)
	if x.retry != nil {
		return nil
	}
	return x.ended()
}

// settled is for an answer that has begun, or will not: nothing is sent again
// from here on.
func (x *Exchange) settled() {
	if x.retry != nil {
		x.retry.end()
		x.retry = nil
	}
	x.record.BytesIn += int64(len(x.body.bytes)) + x.body.passed
	x.body.release()
}

// noEndpoint is the error for a request that no endpoint is left for.
func (x *Exchange) noEndpoint(err error) error {
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	if p, ok := errors.AsType[*foreignAnswer](err); ok {
		return p
	}
	if refused, ok := errors.AsType[*queue.Refusal](err); ok {
		return x.refusal(refused)
	}
	if err := x.ended(); err != nil {
		return err
	}
	if x.failure != nil {
		return errUpstream(x.failure)
	}
	return errNoEndpoint(x.pool.name)
}

// ended is the error for a request whose client has left, or whose time is over.
func (x *Exchange) ended() error {
	switch {
	case x.gone():
		return errGone
	case x.ctx.Err() != nil:
		return x.timeout()
	}
	return nil
}

func (x *Exchange) timeout() error {
	if e := x.overdue(); e != nil {
		return e
	}
	return errTimeout("answer", x.serving.timeouts.FirstByte)
}

// maxRefuges is how many endpoints a request tries that were known not to take
// connections. The picker gives such a one only when there is no other.
const maxRefuges = 2

// errGone ends an exchange whose client has left: nobody is there to answer.
var errGone = errors.New("the client has gone")

// refuse answers with an error of ours.
func (x *Exchange) refuse(err error) {
	started := x.stream.Started()
	if errors.Is(err, errGone) || started && x.gone() {
		x.record.Status, x.record.Reason = statusClientGone, x.leftBecause()
		x.stream.Abort()
		return
	}
	if p, ok := errors.AsType[*foreignAnswer](err); ok && !started {
		x.record.Status, x.record.Reason = p.head.Status, p.reason
		if err := p.write(x.stream, &x.record); err != nil {
			x.stream.Abort()
		}
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		x.server.log.Error("unexpected error", "request_id", x.record.ID, "error", err)
		e = errInternal()
	}
	if started { // with another status: all that is left is to say that it is not whole
		x.record.Reason = e.Type
		x.stream.Abort()
		return
	}
	if x.record.ID == "" { // its head was not looked at
		x.record.ID = newID()
	}
	x.record.Status, x.record.Reason = e.Status, e.Type
	if err := writeError(x.stream, e, &x.record); err != nil {
		x.stream.Abort()
	}
}

// leftBecause is the word for why nobody is there to answer.
func (x *Exchange) leftBecause() string {
	if x.server.cut.Load() {
		return account.Stopped
	}
	if slow(context.Cause(x.stream.Context())) {
		return account.ClientTimeout
	}
	return account.ClientGone
}

// statusClientGone stands in the access log for an exchange whose client left, or was
// cut off, before it got a status; nginx's word.
const statusClientGone = 499

// contain keeps a fault of ours to the one request that met it.
func (x *Exchange) contain() {
	if fault := recover(); fault != nil {
		x.server.log.Error("panic while serving", "request_id", x.record.ID, "fault", fault, "stack", string(debug.Stack()))
		x.refuse(errInternal())
	}
}
