package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/prefix"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// Exchange is the life of one request: read, choose, forward, relay, account.
// One goroutine runs it from top to bottom. It is reused for the next request,
// so that in steady state an exchange allocates next to nothing.
type Exchange struct {
	server  *Server
	serving *serving // the World this exchange began in
	stream  Stream
	head    *message.Request

	pool     *pool
	model    *servedModel
	body     body
	read     openai.Request
	segments [][]byte       // the body on its way up, edits included
	want     picker.Request // what the picker is asked
	chain    []uint64

	answer        message.Response
	events        openai.Events
	plain         openai.Body // watches an answer that is no stream
	withholdUsage bool        // the usage event is there because we asked for it
	explain       bool        // the answer names its endpoint
	loadAsked     bool        // the client wants the load report for itself

	start, until time.Duration      // on Now's clock; until 0: no bound
	tried        []*picker.Endpoint // that failed before they answered
	failure      error              // of the last one
	resent       bool               // the body was sent a second time
	retrying     bool               // counted in the retry budget
	record       account.Record
	scratch      []byte
}

// run serves one request. Every step that takes something leaves its release
// to a defer right after it; an error before the answer began becomes the
// answer.
func (x *Exchange) run() {
	defer x.account()
	defer x.contain()
	defer x.body.release()
	if err := x.serve(); err != nil {
		x.refuse(err)
	}
}

func (x *Exchange) serve() error {
	if err := x.begin(); err != nil {
		return err
	}
	if err := x.readBody(); err != nil {
		return err
	}
	if done, err := x.fanOut(); done || err != nil {
		return err
	}
	if err := x.route(); err != nil {
		return err
	}
	for {
		if err := x.waitToRetry(); err != nil {
			return err
		}
		if again, err := x.attempt(); !again {
			return err
		}
	}
}

// begin takes from the head what the exchange needs of it.
func (x *Exchange) begin() error {
	x.serving = x.server.serving.Load()
	if x.serving == nil {
		return &Error{Status: 503, Type: "fairway_not_ready", RetryAfter: time.Second, Message: "No configuration is in force yet."}
	}
	x.head = x.stream.Head()
	x.takeFields()
	if limit := x.serving.timeouts.Request; limit > 0 {
		x.until = x.start + limit
	}
	return nil
}

// takeFields reads and removes the fields that speak to the proxy, and sees
// that the request has an id.
func (x *Exchange) takeFields() {
	fields := x.head.Fields
	kept := fields[:0]
	for _, f := range fields {
		switch {
		case message.EqualFold(f.Name, "x-request-id"):
			if x.record.ID != "" || !validID(f.Value) {
				continue
			}
			x.record.ID = string(f.Value)
		case message.EqualFold(f.Name, fieldLoadFormat):
			x.loadAsked = true
		case message.EqualFold(f.Name, "x-fairway-explain"):
			x.explain = string(f.Value) == "1" && x.serving.explain == ExplainOnRequest
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
	x.record.Path = string(x.head.Path())
}

// readBody takes in the body, and what it says when it is one of those that
// are read.
func (x *Exchange) readBody() error {
	if err := x.body.read(x.stream, x.serving.bodyLimit, &x.server.buffers); err != nil {
		return x.bodyError(err)
	}
	x.record.BytesIn = int64(len(x.body.bytes))
	kind := openai.KindOf(x.head.Method, x.head.Path())
	x.read.Reset()
	if kind == openai.Other {
		return nil
	}
	if err := x.read.Read(kind, x.body.bytes); err != nil {
		if e, ok := errors.AsType[*openai.Error](err); ok {
			return errUnreadable(e)
		}
		return err
	}
	x.record.Model = string(x.read.Model)
	x.record.Streamed = x.read.Stream
	return nil
}

// route finds the pool, the name its engines know the model by, and what the
// picker is to know of the request.
func (x *Exchange) route() error {
	var err error
	x.pool, x.model, err = x.serving.route(x.read.Model, x.head.Path())
	if err != nil {
		return err
	}
	x.record.Pool = x.pool.name

	target := x.record.Model
	if x.model != nil && len(x.model.Targets) > 0 {
		target = x.model.target(rand.Uint64())
		x.read.ReplaceModel(openai.AppendQuoted(nil, target))
	}
	x.withholdUsage = x.serving.usage == UsageInject && x.read.InjectUsage()
	x.segments = x.read.AppendSegments(x.segments[:0], x.body.bytes)
	x.askLoad()

	seed := prefix.ExtendSeed(prefix.Seed(target), x.read.CacheSalt)
	x.chain, x.want.Hash, x.want.Bytes = prefix.AppendChain(x.chain[:0], seed, x.read.Spans)
	x.want.Chain = x.chain
	x.want.Tokens = x.read.MediaTokens()
	if x.read.Tokens >= 0 { // the prompt's bytes are token ids
		x.want.Tokens += x.read.Tokens
		x.want.Bytes = 0
	}
	x.want.Model = x.record.Model
	x.want.MaxTokens = x.read.MaxTokens
	x.want.Stream = x.read.Stream
	return nil
}

// attempt sends the request to one endpoint and relays its answer. An error
// comes from before the answer began; again says that another endpoint is to
// be tried.
func (x *Exchange) attempt() (again bool, err error) {
	ctx := x.stream.Context()
	x.want.Exclude = x.tried
	choice, err := x.pool.chooser.Choose(ctx, &x.want)
	if err != nil {
		return false, x.noEndpoint(err)
	}
	endpoint := choice.Lease.Endpoint()
	x.record.Endpoint = endpoint.Address()
	x.record.PredictedTokens, x.record.PredictedHit = choice.Lease.PromptTokens(), choice.Lease.HitTokens()
	outcome := picker.NeverSent
	defer func() { choice.Lease.End(Now(), outcome) }()

	connect := choice.Transport.Get
	if x.resent {
		connect = choice.Transport.Dial // no idle connection fails it a second time
	}
	conn, err := connect(ctx)
	if err != nil {
		return x.unreachable(endpoint, err)
	}
	reused := conn.Used()
	whole := false // the answer was read to its end: the connection can serve again
	defer func() {
		if whole {
			choice.Transport.Put(conn)
		} else {
			conn.Close()
		}
	}()
	if !x.stream.Bind(conn.Sock()) {
		return false, errGone
	}
	defer x.stream.Unbind()

	outcome = picker.Failed
	if err := x.forward(conn); err != nil {
		if x.gone() {
			outcome = picker.ClientGone
			return false, errGone
		}
		return x.unanswered(endpoint, conn, reused, err)
	}
	x.settled()
	whole, outcome = x.relay(conn, &choice.Lease)
	return false, nil
}

// forward sends the request and waits for the head of the answer.
func (x *Exchange) forward(conn *upstream.Conn) error {
	x.arm(conn, x.serving.timeouts.FirstByte)
	if err := conn.Send(x.head, x.segments...); err != nil {
		return err
	}
	return conn.ReadHead(&x.answer)
}

// arm bounds the next wait on the endpoint: by d, and by what the whole request
// has left.
func (x *Exchange) arm(conn *upstream.Conn, d time.Duration) {
	if x.until > 0 {
		left := max(x.until-Now(), time.Millisecond)
		if d == 0 || left < d {
			d = left
		}
	}
	conn.Sock().SetTimeout(d)
}

// unreachable is for an endpoint that could not be connected to: nothing was
// sent, so any other may be tried, as long as there is one.
func (x *Exchange) unreachable(e *picker.Endpoint, err error) (again bool, _ error) {
	if x.gone() {
		return false, errGone
	}
	if errors.Is(err, upstream.ErrClosed) { // left the World in this moment
		x.tried = append(x.tried, e)
		return true, nil
	}
	e.Eject(Now())
	x.server.log.Warn("endpoint does not take connections", "pool", x.pool.name, "endpoint", e.Address(), "error", err)
	x.tryElsewhere(e, err)
	return true, nil
}

// unanswered is for a request that was sent, in whole or in part, and got no
// answer: it is sent a second time at most, and only within the retry budget.
func (x *Exchange) unanswered(e *picker.Endpoint, conn *upstream.Conn, reused bool, err error) (again bool, _ error) {
	if conn.Sock().TimedOut() {
		return false, x.timeout()
	}
	x.failure = fmt.Errorf("%s: %w", e.Address(), err)
	if x.resent {
		return false, errUpstream(x.failure)
	}
	x.resent = true
	if reused {
		// Engines close idle connections, now and then in the very moment one
		// is used: the same endpoint may be asked again, on a new connection.
		x.record.Retries++
		return true, nil
	}
	x.tryElsewhere(e, x.failure)
	return true, nil
}

func (x *Exchange) tryElsewhere(e *picker.Endpoint, why error) {
	x.tried = append(x.tried, e)
	x.failure = why
	x.record.Retries++
}

// waitToRetry takes a place in the retry budget for a request that was sent
// before. Nothing is held meanwhile but the body.
func (x *Exchange) waitToRetry() error {
	if !x.resent || x.retrying {
		return nil
	}
	x.retrying = x.server.retries.begin(x.stream.Context(), &x.server.live)
	switch {
	case x.retrying:
		return nil
	case x.gone():
		return errGone
	}
	return errUpstream(x.failure)
}

// settled is for an answer that has begun: nothing is retried from here on.
func (x *Exchange) settled() {
	if x.retrying {
		x.retrying = false
		x.server.retries.end()
	}
}

// noEndpoint is the error for a request that no endpoint is left for.
func (x *Exchange) noEndpoint(err error) error {
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	if x.gone() {
		return errGone
	}
	if x.failure != nil {
		return errUpstream(x.failure)
	}
	return errNoEndpoint(x.pool.name)
}

func (x *Exchange) timeout() error {
	if x.until > 0 && Now() >= x.until {
		return errTimeout("whole answer", x.serving.timeouts.Request)
	}
	return errTimeout("answer", x.serving.timeouts.FirstByte)
}

// errGone ends an exchange whose client has left: nobody is there to answer.
var errGone = errors.New("the client has gone")

func (x *Exchange) gone() bool { return x.stream.Context().Err() != nil }

// bodyError says what a body that could not be read means to the client.
func (x *Exchange) bodyError(err error) error {
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	if x.gone() {
		return errGone
	}
	if status := malformed(err); status != 0 {
		return &Error{Status: status, Type: "fairway_bad_request", Message: "The request body cannot be taken: " + err.Error() + "."}
	}
	return errBadRequest("The request body broke off: " + err.Error() + ".")
}

// refuse answers with an error of ours.
func (x *Exchange) refuse(err error) {
	if errors.Is(err, errGone) || x.stream.Started() {
		x.record.Status, x.record.Reason = statusClientGone, account.ClientGone
		x.stream.Abort()
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		x.server.log.Error("unexpected error", "request_id", x.record.ID, "error", err)
		e = errInternal()
	}
	x.record.Status, x.record.Reason = e.Status, e.Type
	if err := writeError(x.stream, e, x.record.ID); err != nil {
		x.stream.Abort()
	}
}

// statusClientGone stands in the access log for an exchange whose client left
// before it got a status; nginx's word.
const statusClientGone = 499

// contain keeps a fault of ours to the one request that met it.
func (x *Exchange) contain() {
	if fault := recover(); fault != nil {
		x.server.log.Error("panic while serving", "request_id", x.record.ID, "fault", fault, "stack", string(debug.Stack()))
		x.settled()
		x.refuse(errInternal())
	}
}

// account tells of the exchange what there is to tell.
func (x *Exchange) account() {
	x.settled()
	x.record.Duration = Now() - x.start
	x.server.account.Done(&x.record)
}

// reset makes x ready for another request, keeping the memory it has.
func (x *Exchange) reset(s Stream) {
	now := Now()
	clear(x.tried)
	*x = Exchange{
		server: x.server,
		stream: s,
		read:   x.read, answer: x.answer, events: x.events, plain: x.plain,
		segments: x.segments[:0], chain: x.chain[:0], tried: x.tried[:0], scratch: x.scratch[:0],
		start: now,
		record: account.Record{
			Start: processStart.Add(now), Remote: s.RemoteAddr().String(),
			PromptTokens: account.Unknown, CachedTokens: account.Unknown, CompletionTokens: account.Unknown,
			PredictedTokens: account.Unknown, PredictedHit: account.Unknown,
		},
	}
}
