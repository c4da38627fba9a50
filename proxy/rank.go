package proxy

import (
	"cmp"
	"strconv"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/picker/prefix"
	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// What a request is worth when there is not enough for all, and whose it is.

// objectiveKey names an Objective in a pool.
type objectiveKey struct{ pool, name string }

// takeRank takes from a field of the head what it says of the request's rank, and of
// what it should get. Others may read it too. The names are those of the Inference
// Extension, the newer ones of llm-d, what OpenAI's SDKs say of their time-out, and Envoy
// of its own.
func (x *Exchange) takeRank(f *message.Field) {
	if len(f.Name) < len("x-slo-ttft-ms") || f.Name[0]|0x20 != 'x' {
		return
	}
	switch {
	case message.EqualFold(f.Name, "x-gateway-inference-objective"), message.EqualFold(f.Name, "x-llm-d-inference-objective"):
		x.objective = string(f.Value)
	case message.EqualFold(f.Name, "x-slo-ttft-ms"), message.EqualFold(f.Name, "x-llm-d-slo-ttft-ms"):
		x.slo.TTFT = shorter(x.slo.TTFT, f.Value, time.Millisecond)
	case message.EqualFold(f.Name, "x-slo-tpot-ms"), message.EqualFold(f.Name, "x-llm-d-slo-tpot-ms"):
		x.slo.TPOT = shorter(x.slo.TPOT, f.Value, time.Millisecond)
	case message.EqualFold(f.Name, "x-envoy-expected-rq-timeout-ms"):
		x.wanted = shorter(x.wanted, f.Value, time.Millisecond)
	case message.EqualFold(f.Name, "x-stainless-timeout"), message.EqualFold(f.Name, "x-stainless-read-timeout"):
		x.wanted = shorter(x.wanted, f.Value, time.Second)
	}
}

// shorter is the shorter of a time, 0 for none, and what a field says in units; what is
// no time, or as good as no limit, says nothing.
func shorter(d time.Duration, value []byte, unit time.Duration) time.Duration {
	const most = 24 * time.Hour
	v, err := strconv.ParseFloat(string(value), 64)
	if said := v * float64(unit); err == nil && said >= 1 && said < float64(most) {
		return min(or(d, time.Duration(said)), time.Duration(said))
	}
	return d
}

// rank says to the queue what the request is worth, whose it is and how long it may
// wait. What is not for a model does not wait.
func (x *Exchange) rank() {
	if x.kind == openai.Other || x.call != nil {
		x.want.Waited = true
		return
	}
	x.want.Priority = x.priority()
	x.want.Flow = x.flowKey()
	x.want.Held = x.body.taken
	x.want.Until = x.until
	if x.wanted > 0 {
		x.want.Until = min(or(x.until, x.start+x.wanted), x.start+x.wanted)
	}
	x.want.SLO = x.sought()
	switch {
	case x.want.Priority > 0:
		x.record.Criticality = account.Critical
	case x.want.Priority == 0:
		x.record.Criticality = account.Standard
	default:
		x.record.Criticality = account.Sheddable
	}
}

// sought is what the request should get: what its head says, or else the pool's own.
func (x *Exchange) sought() (want picker.SLO) {
	slo := x.slo
	if def := x.serving.slo(x.pool.name); def != nil {
		slo.TTFT, slo.TPOT = or(slo.TTFT, def.TTFT), or(slo.TPOT, def.TPOT)
	}
	x.record.WantTTFT, x.record.WantTPOT = slo.TTFT, slo.TPOT
	if slo.TTFT > 0 {
		want.FirstToken = x.start + slo.TTFT
	}
	want.PerToken = slo.TPOT
	return want
}

// priority is that of the model, or of the objective that the head names: anybody
// may have a lower one than the model's, a higher one who is believed. A copy of a
// request is never worth more than what real users ask for.
func (x *Exchange) priority() int {
	p := queue.Standard
	if x.model != nil {
		p = x.model.Criticality.Priority()
	}
	if x.objective != "" {
		if o := x.serving.objectives[objectiveKey{x.pool.name, x.objective}]; o != nil && (*o < p || x.believed()) {
			p = *o
		}
	}
	if x.mirrored {
		p = min(p, queue.Sheddable)
	}
	return p
}

// flowKey is a number for whose the request is: see flow. Who shows nothing that was
// verified is told apart by the network: a key for the engines could be another each time.
func (x *Exchange) flowKey() uint64 {
	if whose := x.flow(); whose != "" {
		return prefix.Seed(whose)
	}
	address := network(cmp.Or(x.judged.Remote, x.judged.Source)).As16()
	return prefix.ExtendSeed(1, address[:])
}

// spend takes from the budget of whose the request is what it is expected to cost, and
// as much from that for the name that a field asks to be served by.
func (x *Exchange) spend() error {
	if x.kind == openai.Other || x.mirrored {
		return nil
	}
	budgets := &x.server.budgets
	if !budgets.Any() {
		return nil
	}
	for i, model := range [...]string{x.record.Model, x.override} {
		if i > 0 && (model == "" || model == x.record.Model) {
			break
		}
		var err error
		x.spending[i], err = budgets.Take(model, cmp.Or(x.record.Principal, x.record.Peer), x.pool.picker.Tokens(&x.want), Now())
		if err != nil {
			return x.refusal(err.(*queue.Refusal))
		}
	}
	return nil
}

// settleBudget settles what was spent by what the engine counted; what it did not
// count costs what was expected, unless it was never sent or the engine refused it.
func (x *Exchange) settleBudget() {
	for i := range x.spending {
		if s := &x.spending[i]; s.Made() {
			x.server.budgets.Settle(*s, x.spent(s), Now())
		}
	}
}

// spent is what the request cost of what was taken for it, in tokens.
func (x *Exchange) spent(s *queue.Spending) float64 {
	tokens := s.Tokens()
	switch {
	case x.record.PromptTokens >= 0:
		tokens = float64(x.record.PromptTokens + max(x.record.CompletionTokens, 0))
	case !x.begun, x.record.Status/100 == 4 && x.record.Reason == "": // a reason would be ours
		tokens = 0
	}
	return tokens
}

// refusal is the answer to a request that the queue does not take, or no longer.
func (x *Exchange) refusal(r *queue.Refusal) *Error {
	x.record.Shed = r.Reason.String()
	after := min(max(r.RetryAfter, time.Second), maxRetryAfter)
	switch r.Reason {
	case queue.Saturated:
		return errSaturated(x.pool.name, after)
	case queue.Full:
		return errQueueFull(x.pool.name, after)
	case queue.TimedOut:
		return errQueueTimeout(x.pool.name, after)
	case queue.TooLate:
		return errDeadline(x.pool.name, after)
	case queue.Unmet:
		return errSLO(x.pool.name, after)
	}
	return errBudget(after)
}

// maxRetryAfter bounds what a client is told to wait: rates change.
const maxRetryAfter = time.Minute
