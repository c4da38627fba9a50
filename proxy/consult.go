package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/authz"
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
		if err := c.ask(ctx); err != nil {
			return Choice{}, err
		}
	}
	pool := c.x.pool
	for _, e := range c.endpoints {
		if !slices.Contains(r.Exclude, e) {
			return Choice{Lease: pool.picker.Reserve(e, r, Now()), Transport: e.Owner().(*upstream.Transport)}, nil
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
	if c.picker.warns(Now()) {
		x.server.log.Warn("the pool's own endpoint picker failed", "pool", x.pool.name, "picker", c.picker.config.Address,
			"failure_mode", or(c.picker.config.FailureMode, FailClose), "error", why)
	}
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
	if err := x.read.ReadRest(x.body.bytes); err != nil {
		return unreadable(err)
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
	x.measure()
	return nil
}

// fieldDestination is where a picker's word stands, and nobody else's.
const fieldDestination = "x-gateway-destination-endpoint"

// protected tells of a field that a picker may not set: one that speaks of the
// request's framing or its way, or one that only the proxy says.
func protected(name []byte) bool {
	switch string(name) {
	case "host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect", "x-request-id":
		return true
	}
	return ours(name) || authz.Drops(name, false)
}

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

// foreignAnswer is what a picker, or an external authorizer, has a request answered
// with, as an error.
type foreignAnswer struct {
	head   message.Response
	body   []byte
	reason string // for the access log
}

func (p *foreignAnswer) Error() string {
	return fmt.Sprintf("%s: status %d", p.reason, p.head.Status)
}

// write gives the answer to the client.
func (p *foreignAnswer) write(s Stream, id string) error {
	fields := []message.Field{{Name: []byte("date"), Value: httpDate(time.Now())}, {Name: fieldRequestID, Value: []byte(id)}}
	for _, f := range p.head.Fields {
		if !protected(f.Name) {
			fields = append(fields, f)
		}
	}
	p.head.Fields = fields
	if err := s.WriteHead(&p.head); err != nil {
		return err
	}
	if _, err := s.Write(p.body); err != nil {
		return err
	}
	return s.Finish(nil)
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
		if !e.Ejected(now) {
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

// ownPicker is a pool's own picker, for as long as Worlds say the same of it.
type ownPicker struct {
	config Picker
	limit  int64 // of a body, in bytes
	client *extproc.Client

	warned   atomic.Int64 // when its failing was told last
	timeouts atomic.Int32 // in a row
	resting  atomic.Int64 // it is spared until then; 0: it is not
	renewed  atomic.Int64 // when it was connected to anew

	mu      sync.Mutex
	users   int  // exchanges that have it; guarded by mu
	retired bool // no World has it any more; guarded by mu
}

// setOwnPicker has the pool ask w, nil for nobody.
func (s *Server) setOwnPicker(p *pool, w *Picker, limit int64) {
	was := p.own.Load()
	switch {
	case w == nil && was == nil, w != nil && was != nil && was.config == *w && was.limit == limit:
		return
	case w == nil:
		p.own.Store(nil)
	default:
		p.own.Store(newOwnPicker(*w, limit))
	}
	if was != nil {
		was.retire()
	}
}

func newOwnPicker(c Picker, limit int64) *ownPicker {
	config := extproc.ClientConfig{
		Address: c.Address, Buffered: c.Body == BodyBuffered,
		TellHead: c.Answers != AnswersNone, TellBody: c.Answers == AnswersBody,
		MessageLimit: int(min(limit, 1<<30)) + 1<<20,
	}
	if !c.Plain {
		host, _, _ := net.SplitHostPort(c.Address)
		config.TLS = &tls.Config{ServerName: or(c.ServerName, host), MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Roots == ""}
		if c.Roots != "" {
			config.TLS.RootCAs = x509.NewCertPool()
			config.TLS.RootCAs.AppendCertsFromPEM([]byte(c.Roots))
		}
	}
	return &ownPicker{config: c, limit: limit, client: extproc.NewClient(config)}
}

func (o *ownPicker) failsOpen() bool { return o.config.FailureMode == FailOpen }

func (o *ownPicker) timeout() time.Duration { return or(o.config.Timeout, DefaultPickerTimeout) }

// begin has the connections kept until end; false if they have gone.
func (o *ownPicker) begin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retired {
		return false
	}
	o.users++
	return true
}

func (o *ownPicker) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.users--; o.users == 0 && o.retired {
		o.client.Close()
	}
}

// retire lets the connections go once nobody has them.
func (o *ownPicker) retire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retired = true; o.users == 0 {
		o.client.Close()
	}
}

const (
	// maxPickerTimeouts in a row have a picker connected to anew and, with FailOpen,
	// spared.
	maxPickerTimeouts = 3
	// pickerRest is for how long; then one request finds out whether it answers again.
	pickerRest = time.Second
	// warnEvery is how often a picker's failing is told.
	warnEvery = 10 * time.Second
)

// mayAsk tells whether the picker is worth the wait.
func (o *ownPicker) mayAsk(now time.Duration) bool {
	until := o.resting.Load()
	return until == 0 || int64(now) >= until && o.resting.CompareAndSwap(until, int64(now+pickerRest))
}

// heard takes in how it went to ask it.
func (o *ownPicker) heard(err error) {
	if !errors.Is(err, extproc.ErrTimeout) {
		o.timeouts.Store(0)
		o.resting.Store(0)
		return
	}
	if o.timeouts.Add(1) < maxPickerTimeouts {
		return
	}
	now := Now()
	if o.failsOpen() {
		o.resting.Store(int64(now + pickerRest))
	}
	if once(&o.renewed, now, pickerRest) {
		o.client.Reconnect()
	}
}

func (o *ownPicker) warns(now time.Duration) bool { return once(&o.warned, now, warnEvery) }

// once tells whether it is the first call in so much time.
func once(last *atomic.Int64, now, every time.Duration) bool {
	was := last.Load()
	return (was == 0 || int64(now)-was >= int64(every)) && last.CompareAndSwap(was, int64(now))
}

// PickerOutcome is what came of asking a pool's own picker.
type PickerOutcome int

const (
	PickerNamed       PickerOutcome = iota // it named an endpoint of the pool
	PickerAnswered                         // it answered in the endpoint's place
	PickerTimeout                          // it took too long
	PickerUnavailable                      // it could not be asked, or broke off
	PickerProtocol                         // it said what cannot be
	PickerOutside                          // it named only what the pool does not have
	PickerSpared                           // it was not asked, having taken too long for others
	pickerOutcomes
)

func (o PickerOutcome) String() string {
	return [...]string{"named", "answered", "timeout", "unavailable", "protocol", "outside", "spared"}[o]
}

// consultedCounts are what a pool tells of its own picker.
type consultedCounts struct {
	outcomes  [pickerOutcomes]atomic.Uint64
	fallbacks atomic.Uint64
}

func (c *consultedCounts) count(o PickerOutcome) { c.outcomes[o].Add(1) }

// PickerState is what came of asking a pool's own picker so far.
type PickerState struct {
	Pool     string
	Outcomes [pickerOutcomes]uint64 // by PickerOutcome
	// Fallbacks are the choices that the embedded picker made in its place.
	Fallbacks uint64
}

// Pickers tells of the pools, in the World in force, that have a picker of their own.
func (s *Server) Pickers() []PickerState {
	v := s.serving.Load()
	if v == nil {
		return nil
	}
	var all []PickerState
	for _, p := range v.pools {
		if p.own.Load() == nil {
			continue
		}
		state := PickerState{Pool: p.name, Fallbacks: p.consulted.fallbacks.Load()}
		for o := range p.consulted.outcomes {
			state.Outcomes[o] = p.consulted.outcomes[o].Load()
		}
		all = append(all, state)
	}
	return all
}
