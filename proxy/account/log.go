package account

import (
	"io"
	"math"
	"sync"
	"time"
)

const (
	// flushAfter is how long a line waits at most to be written, flushSize how many bytes may.
	flushAfter = 50 * time.Millisecond
	flushSize  = 64 << 10
)

// A Format is how the lines of an access log are laid out.
type Format uint8

const (
	Text Format = iota // key=value, as package slog writes text
	JSON               // an object
)

// Log is an access log. Lines are written together, whole and in order: as soon as there are 64 KiB of them, 50 ms after the first of
// them at the latest, and at Close. While the writer takes no more, whoever has a line waits. It is safe for concurrent use.
type Log struct {
	w      io.Writer
	format Format

	mu    sync.Mutex
	lines []byte      // not written yet; guarded by mu
	timer *time.Timer // runs while there are lines; guarded by mu

	writing sync.Mutex // held while writing, taken before mu
	spare   []byte     // the memory that is not lines'; guarded by writing
	err     error      // of the first write that failed; guarded by writing
}

// NewLog makes an access log that writes to w.
func NewLog(w io.Writer, f Format) *Log { return &Log{w: w, format: f} }

// add takes a line, which ends with a newline.
func (l *Log) add(line []byte) {
	l.mu.Lock()
	l.lines = append(l.lines, line...)
	full := len(l.lines) >= flushSize
	if len(l.lines) == len(line) && !full {
		if l.timer == nil {
			l.timer = time.AfterFunc(flushAfter, l.flush)
		} else {
			l.timer.Reset(flushAfter)
		}
	}
	l.mu.Unlock()
	if full {
		l.flush()
	}
}

// flush writes the lines there are.
func (l *Log) flush() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	lines := l.lines
	l.lines = l.spare[:0]
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	if len(lines) > 0 {
		if _, err := l.w.Write(lines); err != nil && l.err == nil {
			l.err = err
		}
	}
	l.spare = lines[:0]
}

// Close writes what is there and tells of the first line that could not be written. A line that comes later is written all the same.
func (l *Log) Close() error {
	l.flush()
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.err
}

// line is one that is being laid out.
type line struct {
	b      []byte
	format Format
}

func (l *line) begin(rec *Record) {
	at := rec.Start.Add(rec.Duration)
	if l.format == JSON {
		l.b = append(l.b, `{"time":"`...)
		l.b = at.AppendFormat(l.b, time.RFC3339Nano)
		l.b = append(l.b, `","level":"INFO","msg":"access"`...)
		return
	}
	l.b = append(l.b, "time="...)
	l.b = at.AppendFormat(l.b, "2006-01-02T15:04:05.000Z07:00")
	l.b = append(l.b, " level=INFO msg=access"...)
}

func (l *line) end() {
	if l.format == JSON {
		l.b = append(l.b, '}')
	}
	l.b = append(l.b, '\n')
}

func (l *line) key(name string) {
	if l.format == JSON {
		l.b = append(l.b, ',', '"')
		l.b = append(l.b, name...)
		l.b = append(l.b, '"', ':')
		return
	}
	l.b = append(l.b, ' ')
	l.b = append(l.b, name...)
	l.b = append(l.b, '=')
}

func (l *line) text(name, value string) {
	l.key(name)
	if l.format == Text && plain(value) {
		l.b = append(l.b, value...)
		return
	}
	l.b = appendQuoted(l.b, value)
}

// told is text, but for an empty value.
func (l *line) told(name, value string) {
	if value != "" {
		l.text(name, value)
	}
}

func (l *line) number(name string, n int64) {
	l.key(name)
	l.b = appendInt(l.b, n)
}

// count is number, but for what nobody told.
func (l *line) count(name string, n int) {
	if n >= 0 {
		l.number(name, int64(n))
	}
}

func (l *line) truth(name string, v bool) {
	l.key(name)
	if v {
		l.b = append(l.b, "true"...)
	} else {
		l.b = append(l.b, "false"...)
	}
}

// milliseconds writes a time, to the microsecond.
func (l *line) milliseconds(name string, d time.Duration) {
	l.key(name)
	us := int64(math.Round(float64(max(d, 0)) / 1000))
	l.b = appendInt(l.b, us/1000)
	if rest := us % 1000; rest != 0 {
		l.b = append(l.b, '.', byte('0'+rest/100), byte('0'+rest/10%10), byte('0'+rest%10))
	}
}

// access lays out the line of an exchange. Text of prompts or answers never stands in it; field names are Envoy's where it has one.
func (l *line) access(rec *Record) {
	l.begin(rec)
	l.text("request_id", rec.ID)
	l.text("method", rec.Method)
	l.text("path", rec.Path)
	l.number("response_code", int64(rec.Status))
	l.text("response_code_details", rec.Reason)
	l.text("downstream_remote_address", rec.Remote)
	l.text("upstream_host", rec.Endpoint)
	l.text("upstream_cluster", rec.Pool)
	l.text("model", clip(rec.Model))
	l.truth("stream", rec.Streamed)
	l.milliseconds("duration_ms", rec.Duration)
	l.number("bytes_received", rec.BytesIn)
	l.number("bytes_sent", rec.BytesOut)
	l.number("upstream_request_attempt_count", int64(1+rec.Retries))
	l.policy(rec)
	l.told("criticality", rec.Criticality)
	l.told("shed", rec.Shed)
	if rec.TTFT > 0 {
		l.milliseconds("ttft_ms", rec.TTFT)
	}
	if rec.Pick.At > 0 {
		l.milliseconds("queue_ms", rec.Pick.Queued)
	}
	l.told("decided_by", rec.Pick.DecidedBy)
	l.count("prompt_tokens", rec.PromptTokens)
	l.count("cached_tokens", rec.CachedTokens)
	l.count("completion_tokens", rec.CompletionTokens)
	l.count("predicted_prompt_tokens", rec.PredictedTokens)
	l.count("predicted_cached_tokens", rec.PredictedHit)
	l.mesh(rec)
	l.end()
}

// tcp lays out the line of a connection that was passed on unread.
func (l *line) tcp(rec *Record) {
	l.begin(rec)
	l.text("request_id", rec.ID)
	l.text("protocol", "tcp")
	l.text("response_code_details", rec.Reason)
	l.text("downstream_remote_address", rec.Remote)
	l.text("upstream_host", rec.Endpoint)
	l.text("upstream_cluster", rec.Pool)
	l.milliseconds("duration_ms", rec.Duration)
	l.number("bytes_received", rec.BytesIn)
	l.number("bytes_sent", rec.BytesOut)
	l.mesh(rec)
	l.policy(rec)
	l.end()
}

// mesh adds what only a tunnel tells.
func (l *line) mesh(rec *Record) {
	l.told("downstream_peer_uri_san", rec.Peer)
	l.told("destination_service", rec.Service)
}

// policy adds whose the request is, and what policies say of it.
func (l *line) policy(rec *Record) {
	l.told("principal", rec.Principal)
	l.told("denied_by", rec.Policy)
	l.told("dry_run_denied_by", rec.DryRunPolicy)
	l.told("audited_by", rec.AuditPolicy)
}
