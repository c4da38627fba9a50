package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/prefix"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
	"github.com/fairway-proxy/fairway/proxy/hbone"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// Exchange is the life of one request: read, choose, forward, relay, account.
// One goroutine runs it from top to bottom. It is reused for the next request,
// so that in steady state an exchange allocates next to nothing.
type Exchange struct {
	server *Server
	progress
	memory
}

// progress is where an exchange stands. The next one begins with the zero value.
type progress struct {
	serving   *serving // the World it began in; once its body is there, the one it is routed by
	stream    Stream
	ctx       context.Context // done when the client has gone, or its time is over
	head      *message.Request
	guard     *authz.Guard       // who may do what there, in the World it belongs to
	judge     *authz.Guard       // the last that let it pass
	bodyAsked int64              // how much of the body external authorizers want
	verdicts  []*extauthz.Answer // what they said
	// someModels: the list of models is for it only as far as it may use them.
	someModels bool
	passed     bool // judged before it came here: a copy, or by a proxy that asks for an endpoint

	found     route.Found    // the rule it is served by; none without routes
	backend   *route.Backend // of that rule; nil without routes
	mirrored  bool           // a copy, sent to backend by a rule's mirror
	peer      *hbone.Peer    // of the tunnel it came through; nil for none
	dest      *destination   // where the tunnel leads
	http2     bool           // the endpoint is asked in HTTP/2
	call      *call          // of gRPC; nil for anything else
	pool      *pool
	model     *servedModel
	body      body
	kind      openai.Kind
	chooser   Chooser           // of the pool, or consult
	early     bool              // an endpoint is chosen by the start of the body
	steered   bool              // the head says which engine of the endpoint is meant
	prefilled bool              // and which computes its prompt
	unread    bool              // it goes to a plain pool, so that the body is not looked at
	override  string            // the name that a field asks to be served by, if that is believed
	objective string            // what it asks to be ranked by
	share     owner             // whose one of the requests under way it is
	shared    bool              // it is counted as such
	wanted    time.Duration     // how long its client waits for the first token; 0: as long as it takes
	slo       SLO               // what its head asks for
	spending  [2]queue.Spending // of budgets: for the name asked for, and for override
	fairness  string            // whose the request is by its own word, if that is believed
	target    string            // the model's name upstream
	salted    string            // the cache_salt that the body is given; empty: it keeps its own
	want      picker.Request    // what the picker is asked
	choice    Choice            // what it said last; here, for on the stack it would double that of every stream

	renames       bool // the answer is to call the model what the client does
	withholdUsage bool // the usage event is there because we asked for it
	explain       bool // the answer names its endpoint
	loadAsked     bool // the client wants the load report for itself

	start, until time.Duration // on Now's clock; until 0: no bound
	limit        time.Duration // from start to until
	attemptUntil time.Duration // when the present attempt has to be over; 0: no bound
	failure      error         // of the last endpoint that failed
	refuges      int           // of tried, known before not to take connections
	begun        bool          // some of the request may have been sent
	sent         bool          // the last one took the whole request
	resends      int           // how often the request was sent again
	retry        *retryPlace   // held in the retry budget
}

// memory is what an exchange has a use for in the next one, which begins with it empty
// or makes it so before it looks.
type memory struct {
	judged    authz.Request // what policies are asked about it
	asked     keptHead      // its head as they know it, before a route changed it
	presented keptHead      // that head with the credentials that it came with: what authorizers know
	spelled   []byte        // the head's target
	asks      []authz.Asked // external authorizers it is for
	owed      []authz.Asked // those of asks that wait for its body

	read     openai.Request
	segments [][]byte     // the body on its way up, edits included
	consult  consultation // of the pool's own picker; zero without one
	weighing *weighing    // the choice that is being made; nil at other times
	chain    []uint64
	tried    []*picker.Endpoint // that failed before they answered

	answer  message.Response
	events  openai.Events
	plain   openai.Body // watches an answer that is no stream
	rename  openai.Renamer
	renamed [][]byte // a piece of it that calls the model what the client does

	record      account.Record
	id          []byte // record.ID, for heads
	traceparent []byte // the field's value
	scratch     []byte

	lastPath, lastModel string // of an exchange before this one, as a rule those of this one too
}

// run serves one request. Every step that takes something leaves its release
// to a defer right after it; an error before the answer began becomes the
// answer.
func (x *Exchange) run() {
	defer x.account()
	defer x.contain()
	defer x.settled()
	if err := x.serve(); err != nil {
		x.refuse(err)
	}
}

func (x *Exchange) serve() error {
	if err := x.begin(); err != nil {
		return err
	}
	if err := x.authorize(); err != nil {
		return err
	}
	if err := x.takeShare(); err != nil {
		return err
	}
	defer x.giveShare()
	if done, err := x.match(); done || err != nil {
		return err
	}
	if x.limit = x.requestLimit(); x.limit > 0 {
		x.until = x.start + x.limit
		ctx, cancel := context.WithTimeout(x.ctx, x.limit)
		defer cancel()
		x.ctx = ctx
	}
	if err := x.readBody(); err != nil {
		return err
	}
	if err := x.ended(); err != nil {
		return err
	}
	if err := x.authorizeModel(); err != nil {
		return err
	}
	if done, err := x.fanOut(); done || err != nil {
		return err
	}
	if err := x.route(); err != nil {
		return err
	}
	x.beginChoice()
	defer x.consult.end()
	x.mirror()
	if d, ok := x.stream.(director); ok {
		return x.direct(d)
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
		return errNotReady()
	}
	x.head = x.stream.Head()
	x.ctx = x.stream.Context()
	if err := x.enter(); err != nil {
		return err
	}
	x.locate()
	x.passed = x.mirrored || x.guard.Elsewhere
	x.takeFields(x.guard.Trusts(x.judged.Source))
	x.trace()
	x.http2 = x.dest != nil && x.dest.http2() || x.isGRPC()
	return x.spell()
}

// readBody takes in the body, and what it says when it is one of those that
// are read. Of a large one only as much is received as it takes to choose an
// endpoint; the rest follows while it is sent.
func (x *Exchange) readBody() error {
	if x.beginCall() {
		return nil
	}
	if err := x.body.begin(x.stream, x.serving.bodyLimit, &x.server.buffers); err != nil {
		return err
	}
	x.read.Reset()
	x.unread = x.forPlain() && (x.passed || !x.guard.ReadsModel())
	if !x.unread {
		x.classify()
	}
	first := int64(wholeSize)
	switch {
	case x.mirrors():
		first = x.serving.bodyLimit + 1
	case x.unread:
		first = 1 // an endpoint that is no engine may want to have it as it comes
	}
	if x.bodyAsked > 0 {
		first = max(first, x.bodyAsked+1)
	}
	if err := x.receive(first); err != nil {
		return err
	}
	if x.unread {
		return nil
	}
	return x.understand()
}

// classify finds out what kind of request it is.
func (x *Exchange) classify() {
	x.kind = openai.KindOf(x.head.Method, x.head.Path())
	x.record.Operation = x.kind.Operation()
}

// understand finds out what the body says, of which the start has been received.
func (x *Exchange) understand() error {
	if x.kind == openai.Other {
		return nil
	}
	if x.kind.Form() {
		if err := x.receive(x.serving.bodyLimit + 1); err != nil {
			return err
		}
		return x.look(func() error {
			return x.read.ReadForm(x.kind, message.Get(x.head.Fields, "content-type"), x.body.bytes)
		})
	}
	if !x.body.whole {
		known := false
		if err := x.look(func() (err error) {
			known, err = x.read.ReadStart(x.kind, x.body.bytes)
			return err
		}); err != nil {
			return err
		}
		if known {
			x.read.Model = bytes.Clone(x.read.Model) // the body moves as it grows
			x.early = true
			return nil
		}
		if err := x.receive(x.serving.bodyLimit + 1); err != nil {
			return err
		}
	}
	return x.look(func() error { return x.read.Read(x.kind, x.body.bytes) })
}

// route finds the pool, the name its engines know the model by, and what the
// picker is to know of the request.
func (x *Exchange) route() error {
	var err error
	x.pool, x.model, err = x.serving.route(x.chosen(), x.read.Model, x.head.Path())
	if err != nil {
		return err
	}
	x.pin()
	x.record.Pool = x.pool.name
	x.lastModel = again(x.lastModel, x.read.Model)
	x.record.Model = x.lastModel
	if x.pool.plain {
		return x.passAsItIs()
	}
	x.record.Streamed = x.read.Stream

	if err := x.nameTarget(); err != nil {
		return err
	}
	if err := x.season(); err != nil {
		return err
	}
	x.edit()
	x.askLoad()
	x.measure()
	x.rank()
	return x.spend()
}

// measure says what the picker is to know of the request.
func (x *Exchange) measure() {
	seed := prefix.ExtendSeed(prefix.Seed(x.target), x.salt())
	x.chain, x.want.Hash, x.want.Bytes = prefix.AppendChain(x.chain[:0], seed, x.read.Spans)
	x.want.Chain = x.chain
	x.want.Tokens = x.read.MediaTokens
	if x.read.Tokens >= 0 { // the prompt's bytes are token ids
		x.want.Tokens += x.read.Tokens
		x.want.Bytes = 0
	}
	x.want.Model = x.target
	x.want.MaxTokens = x.read.MaxGenerated()
	if x.kind.Generates() {
		x.want.Answers = x.read.Answers()
	}
	x.want.Stream = x.read.Stream
	x.want.RemotePrefill = x.remotePrefill()
}

// edit has the body say upstream what it is to say there.
func (x *Exchange) edit() {
	if x.target != x.record.Model {
		x.read.ReplaceModel(x.target)
	}
	x.read.ReplaceSalt(x.salted)
	x.withholdUsage = !x.early && x.serving.usage == UsageInject && x.read.InjectUsage()
	if x.withholdUsage && message.Get(x.head.Fields, "accept-encoding") != nil {
		x.partHeads()
		x.head.Fields = message.Delete(x.head.Fields, "accept-encoding") // nothing can be withheld of what is encoded
	}
}

// attempt sends the request to one endpoint and relays its answer. An error
// comes from before the answer began; again says that another endpoint is to
// be tried.
func (x *Exchange) attempt() (again bool, err error) {
	x.want.Exclude = x.tried
	x.beginWeighing()
	asked := Now()
	x.want.Now = asked
	choice := &x.choice
	*choice, err = x.chooser.Choose(x.ctx, &x.want)
	x.notePick(asked)
	if err != nil {
		x.endWeighing()
		return false, x.noEndpoint(err)
	}
	endpoint := choice.Lease.Endpoint()
	x.noteChoice(&choice.Lease)
	x.endWeighing()
	outcome := picker.NeverSent
	defer func() { choice.Lease.End(Now(), outcome) }()

	x.steer(&choice.Lease)
	conn, err := x.connect(choice.Transport)
	if err != nil {
		return x.unreachable(endpoint, err)
	}
	whole := false // request and answer are through: the connection can serve again
	defer func() {
		if whole {
			choice.Transport.Put(conn)
		} else {
			conn.Close()
		}
	}()
	if !x.stream.Bind(conn) {
		return false, errGone
	}
	defer x.stream.Unbind()
	defer x.endCall(conn)

	outcome, x.begun = x.failed(), true
	x.beginAttempt()
	if err := x.forward(conn); err != nil {
		if x.gone() {
			outcome = picker.ClientGone
			return false, errGone
		}
		if own, ok := errors.AsType[*Error](err); ok {
			outcome = picker.ClientGone
			return false, own
		}
		return x.unanswered(endpoint, conn, err)
	}
	if x.triesAgain(x.answer.Status) {
		outcome = outcomeOf(x.answer.Status)
		x.sendAgain(endpoint, fmt.Errorf("%s: answered with status %d", endpoint.Name(), x.answer.Status))
		return true, nil
	}
	x.settled()
	whole, outcome = x.relay(x.told(conn, endpoint), &choice.Lease)
	whole = whole && x.sent
	return false, nil
}

// forward sends the request and waits for the head of the answer. An engine may
// answer, with an error as a rule, before it has read the whole body, and close.
func (x *Exchange) forward(conn carrier) error {
	x.segments = x.read.AppendSegments(x.segments[:0], x.body.bytes)
	var sending error
	if x.call != nil {
		x.arm(conn, x.serving.timeouts.FirstByte)
		sending = x.sendCall(conn)
	} else if !x.body.whole {
		x.arm(conn, 0) // the client may take its time
		sending = x.pump(conn)
		x.arm(conn, x.serving.timeouts.FirstByte)
	} else {
		x.arm(conn, x.serving.timeouts.FirstByte)
		sending = conn.Send(x.head, x.segments...)
	}
	if _, ours := errors.AsType[*Error](sending); ours {
		return sending
	}
	x.sent = sending == nil
	if err := conn.ReadHead(&x.answer); err != nil {
		return cmp.Or(sending, err)
	}
	conn.SetTimeout(0)
	return nil
}

// arm bounds the next wait on the endpoint: by d, and by what the attempt and the
// whole request have left.
func (x *Exchange) arm(conn carrier, d time.Duration) {
	for _, until := range [...]time.Duration{x.until, x.attemptUntil} {
		if until > 0 {
			left := max(until-Now(), time.Millisecond)
			if d == 0 || left < d {
				d = left
			}
		}
	}
	conn.SetTimeout(d)
}

func (x *Exchange) gone() bool { return x.stream.Context().Err() != nil }

// account tells of the exchange what there is to tell.
func (x *Exchange) account() {
	x.settleBudget()
	x.record.Duration = Now() - x.start
	x.noteWorkloads()
	x.server.reached.count(&x.record)
	x.server.account.Done(&x.record)
}

// again is text as a string: the last one if it is the same, which takes no memory.
func again(last string, text []byte) string {
	if last == string(text) {
		return last
	}
	return string(text)
}

// forget lets go of everything that belongs to the request.
func (x *Exchange) forget() {
	x.progress = progress{}
	x.judged.Forget()
	x.asked.forget()
	x.presented.forget()
	x.read.Reset()
	clear(x.segments[:cap(x.segments)])
	clear(x.renamed[:cap(x.renamed)])
	clear(x.tried[:cap(x.tried)])
}

// reset makes x ready for another request, keeping the memory it has.
func (x *Exchange) reset(s Stream) {
	x.stream, x.start = s, Now()
	m := &x.memory
	m.asks, m.owed, m.tried, m.id = m.asks[:0], m.owed[:0], m.tried[:0], m.id[:0]
	m.record.Reset()
	m.record.Start, m.record.Remote = processStart.Add(x.start), s.Remote()
}
