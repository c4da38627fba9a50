package proxy

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/message"
)

// director is a Stream both of whose ends another proxy holds: that proxy forwards
// the request itself, to where Direct tells it (the Endpoint Picker Protocol). From
// then on the director is the carrier too, of what passes there.
type director interface {
	Stream
	carrier
	// Subset lists the only endpoints that may be named; ok is false where all may.
	Subset() (endpoints []string, ok bool)
	// Direct names endpoints, separated by commas: the first that takes the request
	// serves it.
	Direct(endpoints string)
	// Served is the endpoint that gave the answer, once its head was read; empty if
	// it is not known.
	Served() string
}

// direct has the proxy that holds the request send it to an endpoint, and lets its
// answer pass.
func (x *Exchange) direct(d director) error {
	if subset, ok := d.Subset(); ok {
		x.tried = x.tried[:0]
		x.passOver(func(e *picker.Endpoint) bool { return !slices.Contains(subset, e.Address()) })
		x.want.Exclude = x.tried
	}
	x.beginWeighing()
	asked := Now()
	x.want.Now = asked
	choice, err := x.pool.chooser.Choose(x.ctx, &x.want)
	x.notePick(asked)
	if err != nil {
		x.endWeighing()
		return x.noEndpoint(err)
	}
	lease := choice.Lease
	outcome := picker.Failed
	defer func() { lease.End(Now(), outcome) }()
	x.noteChoice(&lease)
	x.head.Fields = slices.DeleteFunc(x.head.Fields, func(f message.Field) bool { return authz.Steers(f.Name) }) // they have not been judged
	x.steer(&lease)
	d.Direct(inOrder(lease.Endpoint(), x.weighing.candidates, 1+x.server.config.Fallbacks))
	x.endWeighing()
	x.begun = true

	if err := x.forward(d); err != nil {
		own, is := errors.AsType[*Error](err)
		switch {
		case is:
			outcome = picker.ClientGone
			return own
		case err == io.EOF: // the proxy shows no answers
			outcome = picker.Done
			return nil
		}
		outcome = picker.ClientGone
		return errGone
	}
	x.settled()
	if served := d.Served(); served != "" && served != lease.Endpoint().Address() {
		x.follow(&lease, served)
	}
	_, outcome = x.relay(d, &lease)
	return nil
}

// follow moves the lease to the endpoint that the proxy turned to when the one it
// was told first took no connection.
func (x *Exchange) follow(lease *picker.Lease, served string) {
	now := Now()
	lease.Endpoint().Eject(now)
	lease.End(now, picker.NeverSent)
	x.noteFailure(lease.Endpoint(), errPassedOver)
	endpoints := x.pool.picker.Endpoints()
	engine := lease.Endpoint().Engine()
	i := slices.IndexFunc(endpoints, func(e *picker.Endpoint) bool { return e.Address() == served && e.Engine() == engine })
	if i < 0 {
		return // it has left the pool: the lease that has ended stands in
	}
	x.want.Now = now
	x.notePick(now)
	x.beginWeighing()
	*lease = x.pool.picker.Reserve(endpoints[i], &x.want, now)
	x.noteChoice(lease)
	x.endWeighing()
}

// errPassedOver is why another endpoint answered than the one that was named first.
var errPassedOver = errors.New("the proxy turned to another endpoint")

// inOrder names the endpoint that was picked, and those to turn to after it: most
// of them together. The head says the same to all of them: each is the like engine of
// its server.
func inOrder(picked *picker.Endpoint, candidates []picker.Candidate, most int) string {
	slices.SortStableFunc(candidates, func(a, b picker.Candidate) int {
		switch picked {
		case a.Endpoint:
			return -1
		case b.Endpoint:
			return 1
		}
		return cmp.Compare(a.Score, b.Score)
	})
	var list []string
	for i := range candidates {
		if e := candidates[i].Endpoint; e.Engine() == picked.Engine() && len(list) < most {
			list = append(list, e.Address())
		}
	}
	return strings.Join(list, ",")
}
