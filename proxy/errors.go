package proxy

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// Error is an answer of our own making: what went wrong, as the client hears
// it. The body is OpenAI's error object; Type stands in the access log and in
// the metrics too.
type Error struct {
	Status  int
	Type    string // "fairway_…"
	Message string
	Param   string // the part of the request at fault; may be empty
	// RetryAfter, when set, is said in the Retry-After field, rounded up to
	// seconds.
	RetryAfter time.Duration
	// Dropped, when set, is said in the x-llm-d-request-dropped-reason field.
	Dropped string
}

func (e *Error) Error() string { return e.Message }

const (
	typeBadRequest      = "fairway_bad_request"
	typeUpstreamFailed  = "fairway_upstream_failed"
	typeBuffersSpent    = "fairway_buffers_spent"
	typeForbidden       = "fairway_forbidden"
	typeUnauthenticated = "fairway_unauthenticated"
	typeNotReady        = "fairway_not_ready"
	typeTimeout         = "fairway_timeout"
	typeBodyTooLarge    = "fairway_body_too_large"
	typeTooManyRequests = "fairway_too_many_requests"
)

func errBodyTooLarge(limit int64) *Error {
	return &Error{Status: 413, Type: typeBodyTooLarge,
		Message: fmt.Sprintf("The request body is larger than this proxy takes (%d bytes; limits.body).", limit)}
}

func errBuffersSpent() *Error {
	return &Error{Status: 503, Type: typeBuffersSpent, RetryAfter: time.Second,
		Message: "The proxy holds as many request bodies as it may (limits.buffers). Try again shortly."}
}

func errTooManyRequests(most int) *Error {
	return &Error{Status: 429, Type: typeTooManyRequests, RetryAfter: time.Second,
		Message: fmt.Sprintf("You have as many requests under way as you may (%d; limits.requests_per_principal). Try again when one has ended.", most)}
}

func errUnknownModel(model, known string) *Error {
	return &Error{Status: 404, Type: "fairway_unknown_model", Param: "model",
		Message: fmt.Sprintf("The model `%s` is not served here. Models: %s.", model, known)}
}

func errNoPool(path string) *Error {
	return &Error{Status: 404, Type: "fairway_no_route",
		Message: fmt.Sprintf("Nothing says which of the pools %s is for: it names no model.", path)}
}

func errNoRoute(method, authority, path string) *Error {
	return &Error{Status: 404, Type: "fairway_no_route",
		Message: fmt.Sprintf("No route matches this request: %s %s at host %q.", method, path, authority)}
}

func errNoBackend(rule string) *Error {
	return &Error{Status: 500, Type: "fairway_no_backend",
		Message: fmt.Sprintf("The rule for this request, %s, sends it to no backend that exists.", rule)}
}

func errNotOurs(authority string) *Error {
	return &Error{Status: 404, Type: "fairway_no_route",
		Message: fmt.Sprintf("%s is no address of a Service or pod that this waypoint is for.", authority)}
}

func errNotReady() *Error {
	return &Error{Status: 503, Type: typeNotReady, RetryAfter: time.Second, Message: "No configuration is in force yet."}
}

func errWithheld(why string) *Error {
	return &Error{Status: 503, Type: typeNotReady, RetryAfter: time.Second, Message: "Nothing is let in for the moment: " + why + "."}
}

func errNoEndpoint(pool string) *Error {
	return &Error{Status: 503, Type: "fairway_no_endpoint", RetryAfter: time.Second,
		Message: fmt.Sprintf("No endpoint of pool %s is there to serve this request.", pool)}
}

func errPickerFailed(pool string, cause error) *Error {
	return &Error{Status: 503, Type: "fairway_picker_failed", RetryAfter: time.Second,
		Message: fmt.Sprintf("The endpoint picker of pool %s failed: %v.", pool, cause)}
}

func errUpstream(cause error) *Error {
	return &Error{Status: 502, Type: typeUpstreamFailed,
		Message: fmt.Sprintf("The engine failed before it answered: %v.", cause)}
}

func errExhausted(cause error) *Error {
	return &Error{Status: 503, Type: "fairway_exhausted", RetryAfter: time.Second,
		Message: fmt.Sprintf("The proxy cannot make another connection: %v.", cause)}
}

func errTimeout(phase string, after time.Duration) *Error {
	return &Error{Status: 504, Type: typeTimeout,
		Message: fmt.Sprintf("The engine gave no %s within %s (timeouts).", phase, after)}
}

func errBodyLate(after time.Duration) *Error {
	return &Error{Status: 408, Type: typeTimeout,
		Message: fmt.Sprintf("The request was not whole within %s (timeouts).", after)}
}

// unreadable is the error for a body that openai.Request cannot read; nil for
// none.
func unreadable(err error) error {
	e, ok := errors.AsType[*openai.Error](err)
	if !ok {
		return err
	}
	return &Error{Status: 400, Type: typeBadRequest, Param: e.Param, Message: "T" + e.Error()[1:]}
}

// challenge is what a 401 must ask for (RFC 9110 section 15.5.2).
const challenge = "Bearer"

func errUnauthenticated(cause error) *Error {
	return &Error{Status: 401, Type: typeUnauthenticated, Message: sentence(cause)}
}

func errKeysUnavailable(cause error) *Error {
	return &Error{Status: 503, Type: "fairway_keys_unavailable", RetryAfter: 5 * time.Second, Message: sentence(cause)}
}

func errForbidden(what string) *Error {
	return &Error{Status: 403, Type: typeForbidden, Message: "You are not allowed to " + what + "."}
}

// sentence makes one of an error.
func sentence(err error) string {
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

func errBadRequest(reason string) *Error {
	return &Error{Status: 400, Type: typeBadRequest, Message: reason}
}

// errMalformed is for what breaks the rules of its HTTP version, which say the status.
func errMalformed(status int, reason string) *Error {
	return &Error{Status: status, Type: typeBadRequest, Message: reason}
}

func errPartlyDone(pool string, of int, failed []string) *Error {
	return &Error{Status: 502, Type: "fairway_partly_done",
		Message: fmt.Sprintf("%d of %d endpoints of pool %s did not do it: %s", len(failed), of, pool, strings.Join(failed, "; "))}
}

func errCut() *Error {
	return &Error{Status: 502, Type: typeUpstreamFailed, Message: "The engine failed in the middle of this answer."}
}

// errSilent is for an answer that was given up because its engine said nothing more.
func errSilent(after time.Duration) *Error {
	return &Error{Status: 502, Type: typeUpstreamFailed,
		Message: fmt.Sprintf("The engine said nothing for %s in the middle of this answer (timeouts.stream_idle).", after)}
}

// Why a request was dropped, in the field and the words that llm-d's router has for it.
const (
	fieldDropped     = "x-llm-d-request-dropped-reason"
	droppedSaturated = "rejected-saturated"
	droppedExpired   = "rejected-ttl-expired"
	droppedBudget    = "rejected-over-budget"
)

func errSaturated(pool string, after time.Duration) *Error {
	return &Error{Status: 429, Type: "fairway_saturated", RetryAfter: after, Dropped: droppedSaturated,
		Message: fmt.Sprintf("Every engine of pool %s is busy, and requests of this priority do not wait. Try again later.", pool)}
}

func errQueueFull(pool string, after time.Duration) *Error {
	return &Error{Status: 429, Type: "fairway_queue_full", RetryAfter: after, Dropped: droppedSaturated,
		Message: fmt.Sprintf("As many requests wait for pool %s as may (queue.requests, queue.bytes). Try again later.", pool)}
}

func errQueueTimeout(pool string, after time.Duration) *Error {
	return &Error{Status: 429, Type: "fairway_queue_timeout", RetryAfter: after, Dropped: droppedExpired,
		Message: fmt.Sprintf("No engine of pool %s had room for this request in time (queue.wait). Try again later.", pool)}
}

func errDeadline(pool string, after time.Duration) *Error {
	return &Error{Status: 429, Type: "fairway_deadline", RetryAfter: after, Dropped: droppedExpired,
		Message: fmt.Sprintf("Pool %s would give the first token later than this request wants it. Try again later.", pool)}
}

func errSLO(pool string, after time.Duration) *Error {
	return &Error{Status: 429, Type: "fairway_slo", RetryAfter: after, Dropped: droppedSaturated,
		Message: fmt.Sprintf("No engine of pool %s is expected to be as fast as this request asks for (x-slo-ttft-ms, x-slo-tpot-ms or slo), and requests of this priority do not go elsewhere. Try again later.", pool)}
}

func errBudget(after time.Duration) *Error {
	return &Error{Status: 429, Type: "fairway_budget_exceeded", RetryAfter: after, Dropped: droppedBudget,
		Message: "The tokens that you may have of this model in a minute are spent (budgets). Try again later."}
}

func errInternal() *Error {
	return &Error{Status: 500, Type: "fairway_internal",
		Message: "The proxy failed on this request. Its log says more under this request's id."}
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

// write gives the answer to the client, whose request is that of rec, and notes there
// how much that was.
func (p *foreignAnswer) write(s Stream, rec *account.Record) error {
	fields := []message.Field{{Name: []byte("date"), Value: httpDate(time.Now())}, {Name: fieldRequestID, Value: []byte(rec.ID)}}
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
	rec.BytesOut += int64(len(p.body))
	return s.Finish(nil)
}
