package proxy

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// What the rule of a route makes of an exchange. Without routes, nothing.

// match finds the rule that the request is served by and has the request's head
// say upstream what it is to say there. Done tells that the rule has answered.
func (x *Exchange) match() (done bool, err error) {
	table := x.serving.routes
	if x.dest != nil {
		table = x.dest.routes
	}
	if table == nil || x.mirrored {
		return false, nil
	}
	x.found = table.Find(x.head)
	if x.found.Rule == nil {
		return false, errNoRoute(x.record.Method, string(x.head.Authority), x.record.Path)
	}
	if x.found.Redirect != nil {
		return true, x.redirect()
	}
	x.backend = x.found.Backend(rand.Uint64())
	if x.backend == nil || x.serving.byName[x.backend.Pool] == nil {
		return false, errNoBackend(x.found.Route.Name)
	}
	x.partHeads()
	x.found.Rewrite(x.head)
	x.head.Fields = x.found.RequestHeaders.Apply(x.head.Fields)
	x.head.Fields = x.backend.RequestHeaders.Apply(x.head.Fields)
	return false, nil
}

// redirect answers with the place where the rule sends the client.
func (x *Exchange) redirect() error {
	x.record.Status = x.found.Redirect.StatusCode()
	scheme := "http"
	if x.clientTLS() != nil {
		scheme = "https"
	}
	fields := x.found.ResponseHeaders.Apply([]message.Field{
		{Name: []byte("date"), Value: httpDate(time.Now())},
		{Name: []byte("location"), Value: x.found.Location(x.head, scheme)},
	})
	fields = append(fields, message.Field{Name: fieldRequestID, Value: []byte(x.record.ID)})
	if x.stream.WriteHead(&message.Response{Status: x.record.Status, Fields: fields}) != nil || x.stream.Finish(nil) != nil {
		return errGone
	}
	return nil
}

// changeAnswer changes the fields of the answer as the rule says.
func (x *Exchange) changeAnswer(fields []message.Field) []message.Field {
	if x.found.Rule == nil {
		return fields
	}
	return x.backend.ResponseHeaders.Apply(x.found.ResponseHeaders.Apply(fields))
}

// chosen is the pool that a rule or the tunnel has chosen, "" without one.
func (x *Exchange) chosen() string {
	switch {
	case x.backend != nil:
		return x.backend.Pool
	case x.dest != nil && x.dest.pool != nil:
		return x.dest.pool.name
	}
	return ""
}

// meant are the pools of engines that the request may be for.
func (x *Exchange) meant() []*pool {
	var all []*pool
	switch {
	case x.backend == nil && x.dest != nil && x.dest.pool != nil:
		return []*pool{x.dest.pool}
	case x.backend == nil:
		for _, p := range x.serving.pools {
			if !p.plain {
				all = append(all, p)
			}
		}
		return all
	case x.found.Rule == nil:
		return []*pool{x.serving.byName[x.backend.Pool]}
	}
	for _, b := range x.found.Backends {
		if p := x.serving.byName[b.Pool]; p != nil && !p.plain && b.Weight > 0 && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

// modelsOf are the models of these pools, each name once.
func (v *serving) modelsOf(pools []*pool) []Model {
	var models []Model
	seen := make(map[string]bool)
	for _, m := range v.world.Models {
		if !seen[m.Name] && slices.ContainsFunc(pools, func(p *pool) bool { return p.name == m.Pool }) {
			seen[m.Name] = true
			models = append(models, m)
		}
	}
	return models
}

// requestLimit bounds the whole exchange; 0: no bound.
func (x *Exchange) requestLimit() time.Duration {
	if x.found.Rule != nil && x.found.Timeouts.Request != nil {
		return *x.found.Timeouts.Request
	}
	return x.serving.timeouts.Request
}

// beginAttempt begins the time that the rule gives one attempt.
func (x *Exchange) beginAttempt() {
	x.attemptUntil = 0
	if x.found.Rule != nil && x.found.Timeouts.BackendRequest != nil && *x.found.Timeouts.BackendRequest > 0 {
		x.attemptUntil = Now() + *x.found.Timeouts.BackendRequest
	}
}

// attemptOver tells whether that time is over.
func (x *Exchange) attemptOver() bool { return x.attemptUntil > 0 && Now() >= x.attemptUntil }

// overdue is the error for an exchange, or an attempt, whose time is over.
func (x *Exchange) overdue() *Error {
	switch {
	case x.until > 0 && Now() >= x.until:
		return errTimeout("whole answer", x.limit)
	case x.attemptOver():
		return errTimeout("whole answer", *x.found.Timeouts.BackendRequest)
	}
	return nil
}

// retryRule is what the rule says of retries; nil for nothing.
func (x *Exchange) retryRule() *route.Retry {
	if x.found.Rule == nil {
		return nil
	}
	return x.found.Retry
}

// triesAgain tells whether an answer of that status is no answer yet.
func (x *Exchange) triesAgain(status int) bool {
	r := x.retryRule()
	return r != nil && slices.Contains(r.Codes, status) && x.maySendAgain()
}

// backOff waits as long as the rule has a request wait before it is sent again:
// twice as long each time, up to sixteen times its least.
func (x *Exchange) backOff() error {
	r := x.retryRule()
	if r == nil || r.Backoff == 0 {
		return nil
	}
	timer := time.NewTimer(r.Backoff << min(x.resends-1, 4))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-x.ctx.Done():
		if x.gone() {
			return errGone
		}
		return x.timeout()
	}
}
