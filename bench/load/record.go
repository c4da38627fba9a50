package load

import (
	"encoding/json"
	"net/http"
	"time"
)

// ErrorClass says how a request failed; "" is that it did not.
type ErrorClass string

const (
	ErrConnect   ErrorClass = "connect"     // no connection, or it broke before the head of an answer
	Err3xx       ErrorClass = "status_3xx"  // redirected: the target's URL is wrong
	Err4xx       ErrorClass = "status_4xx"  // refused with such a status
	Err5xx       ErrorClass = "status_5xx"  // likewise
	ErrCut       ErrorClass = "cut"         // the stream ended without [DONE]
	ErrEvent     ErrorClass = "error_event" // the stream held an error instead of an answer's end
	ErrAbort     ErrorClass = "abort"       // the answer's finish_reason is abort: vLLM shut down, or gave it up
	ErrMalformed ErrorClass = "malformed"   // status 200, but no stream of chat completion chunks
	ErrTimeout   ErrorClass = "timeout"     // it took longer than Config.Timeout
	ErrCancelled ErrorClass = "cancelled"   // Run's context ended first; the server is not to blame
)

func statusClass(status int) ErrorClass {
	switch status / 100 {
	case 3:
		return Err3xx
	case 4:
		return Err4xx
	case 5:
		return Err5xx
	}
	return ErrMalformed
}

// Record is one request as measured. Times count from the start of Run.
type Record struct {
	Session uint64 // the conversation it belongs to
	Turn    int    // in it, from 0

	Criticality string // what the workload says that it is worth: Critical, Standard or Sheddable; "": it does not say

	Intended   time.Duration // when it was due
	Sent       time.Duration // when it was handed to the client
	FirstToken time.Duration // when the first content arrived; 0: none did
	LastToken  time.Duration // when the last content arrived
	End        time.Duration // when it ended, well or not

	MaxGap time.Duration // the longest time between two events with content; 0: there were not two

	Status int        // of the answer; 0: none came
	Error  ErrorClass // "": it went well
	Detail string     // what the error said
	Finish string     // the answer's finish_reason

	PromptTokens     int  // as usage says; 0: not told
	CachedTokens     *int // those of the prompt that were in the engine's cache; nil: not told
	CompletionTokens int  // as usage says, else the events with content

	Endpoint  string // who served, if the proxy said so (x-fairway-endpoint)
	RequestID string // the answer's x-request-id
}

// TTFT is the time from when the request was due to its first token.
func (r *Record) TTFT() time.Duration { return r.FirstToken - r.Intended }

// E2E is the time from when the request was due to its end.
func (r *Record) E2E() time.Duration { return r.End - r.Intended }

// TPOT is the mean time of a token after the first; 0 if there was none.
func (r *Record) TPOT() time.Duration {
	if r.CompletionTokens < 2 {
		return 0
	}
	return (r.LastToken - r.FirstToken) / time.Duration(r.CompletionTokens-1)
}

// Failed reports whether the request ended badly and not because Run was interrupted.
func (r *Record) Failed() bool { return r.Error != "" && r.Error != ErrCancelled }

// Refused reports whether the server declined to serve for want of room.
func (r *Record) Refused() bool {
	return r.Status == http.StatusTooManyRequests || r.Status == http.StatusServiceUnavailable
}

// Good reports whether the answer came whole and kept the SLO.
func (r *Record) Good(slo SLO) bool {
	slo = slo.withDefaults()
	return r.Error == "" && r.TTFT() <= slo.TTFT && r.TPOT() <= slo.TPOT
}

// MarshalJSON writes the record with its times in seconds.
func (r Record) MarshalJSON() ([]byte, error) {
	line := struct {
		Session          uint64     `json:"session"`
		Turn             int        `json:"turn"`
		Criticality      string     `json:"criticality,omitempty"`
		Intended         float64    `json:"intended_s"`
		Sent             float64    `json:"sent_s"`
		End              float64    `json:"end_s"`
		TTFT             *float64   `json:"ttft_s,omitempty"`
		TPOT             *float64   `json:"tpot_s,omitempty"`
		MaxGap           *float64   `json:"itl_max_s,omitempty"`
		E2E              float64    `json:"e2e_s"`
		Status           int        `json:"status,omitempty"`
		Error            ErrorClass `json:"error,omitempty"`
		Detail           string     `json:"detail,omitempty"`
		Finish           string     `json:"finish_reason,omitempty"`
		PromptTokens     int        `json:"prompt_tokens,omitempty"`
		CachedTokens     *int       `json:"cached_tokens,omitempty"`
		CompletionTokens int        `json:"completion_tokens"`
		Endpoint         string     `json:"endpoint,omitempty"`
		RequestID        string     `json:"request_id,omitempty"`
	}{
		Session: r.Session, Turn: r.Turn, Criticality: r.Criticality, Intended: r.Intended.Seconds(), Sent: r.Sent.Seconds(), End: r.End.Seconds(),
		E2E: r.E2E().Seconds(), Status: r.Status, Error: r.Error, Detail: r.Detail, Finish: r.Finish, PromptTokens: r.PromptTokens,
		CachedTokens: r.CachedTokens, CompletionTokens: r.CompletionTokens, Endpoint: r.Endpoint, RequestID: r.RequestID,
	}
	if r.FirstToken > 0 {
		line.TTFT = seconds(r.TTFT())
	}
	if tpot := r.TPOT(); tpot > 0 {
		line.TPOT = seconds(tpot)
	}
	if r.MaxGap > 0 {
		line.MaxGap = seconds(r.MaxGap)
	}
	return json.Marshal(line)
}

func seconds(d time.Duration) *float64 {
	s := d.Seconds()
	return &s
}
