package account

import (
	"bytes"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// flushAfter is how long a line waits at most to be written, flushSize how many bytes may.
	flushAfter = 50 * time.Millisecond
	flushSize  = 256 << 10
)

// A Format is how the lines of an access log are laid out.
type Format uint8

const (
	Text Format = iota // key=value, as package slog writes text
	JSON               // an object
)

// Log is an access log. Lines are written together, whole and in order: as soon as there are 256 KiB of them, 50 ms after the first of
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
	broken  bool       // what was written last is no whole line; guarded by writing

	lost atomic.Uint64
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
		l.write(lines)
	}
	l.spare = lines[:0]
}

// write writes whole lines, and counts those that could not be, as on a disk that is full. What was begun of one ends
// before the next, once there is room again. The caller holds writing.
func (l *Log) write(lines []byte) {
	if l.broken {
		if _, err := l.w.Write([]byte("\n")); err != nil {
			l.lost.Add(uint64(bytes.Count(lines, []byte("\n"))))
			return
		}
		l.broken = false
	}
	n, err := l.w.Write(lines)
	if err == nil {
		return
	}
	if l.err == nil {
		l.err = err
	}
	n = max(n, 0)
	l.lost.Add(uint64(bytes.Count(lines[n:], []byte("\n"))))
	l.broken = n > 0 && lines[n-1] != '\n'
}

// Lost is how many lines could not be written.
func (l *Log) Lost() uint64 { return l.lost.Load() }

// Close writes what is there and tells of the first line that could not be written. A line that comes later is written all the same.
func (l *Log) Close() error {
	l.flush()
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.err
}

// key is a field's name, as a line of each Format has it.
type key [2]string

func named(name string) key { return key{Text: " " + name + "=", JSON: `,"` + name + `":`} }

// Keys of the access log.
var (
	keyRequestID        = named("request_id")
	keyMethod           = named("method")
	keyPath             = named("path")
	keyCode             = named("response_code")
	keyReason           = named("response_code_details")
	keyFlags            = named("response_flags")
	keyRemote           = named("downstream_remote_address")
	keyHost             = named("upstream_host")
	keyCluster          = named("upstream_cluster")
	keyModel            = named("model")
	keyStream           = named("stream")
	keyDuration         = named("duration_ms")
	keyBytesReceived    = named("bytes_received")
	keyBytesSent        = named("bytes_sent")
	keyAttempts         = named("upstream_request_attempt_count")
	keyCriticality      = named("criticality")
	keyShed             = named("shed")
	keyTTFT             = named("ttft_ms")
	keyQueue            = named("queue_ms")
	keyDecidedBy        = named("decided_by")
	keyPromptTokens     = named("prompt_tokens")
	keyCachedTokens     = named("cached_tokens")
	keyCompletionTokens = named("completion_tokens")
	keyPredictedPrompt  = named("predicted_prompt_tokens")
	keyPredictedCached  = named("predicted_cached_tokens")
	keyProtocol         = named("protocol")
	keyPeer             = named("downstream_peer_uri_san")
	keyService          = named("destination_service")
	keyPrincipal        = named("principal")
	keyDenied           = named("denied_by")
	keyDryRunDenied     = named("dry_run_denied_by")
	keyAudited          = named("audited_by")
)

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
	l.b = appendTime(l.b, at)
	l.b = append(l.b, " level=INFO msg=access"...)
}

// appendTime appends a time as package slog writes it in text, to the millisecond: the layout
// that package time is quick at, and three digits in it.
func appendTime(b []byte, t time.Time) []byte {
	zone := len(b) + len("2006-01-02T15:04:05")
	b = t.AppendFormat(b, time.RFC3339)
	ms := t.Nanosecond() / int(time.Millisecond)
	return slices.Insert(b, zone, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10))
}

func (l *line) end() {
	if l.format == JSON {
		l.b = append(l.b, '}')
	}
	l.b = append(l.b, '\n')
}

func (l *line) key(k key) { l.b = append(l.b, k[l.format]...) }

func (l *line) text(k key, value string) {
	l.key(k)
	if l.format == Text && plain(value) {
		l.b = append(l.b, value...)
		return
	}
	l.b = appendQuoted(l.b, value)
}

// told is text, but for an empty value.
func (l *line) told(k key, value string) {
	if value != "" {
		l.text(k, value)
	}
}

func (l *line) number(k key, n int64) {
	l.key(k)
	l.b = appendInt(l.b, n)
}

// count is number, but for what nobody told.
func (l *line) count(k key, n int) {
	if n >= 0 {
		l.number(k, int64(n))
	}
}

func (l *line) truth(k key, v bool) {
	l.key(k)
	if v {
		l.b = append(l.b, "true"...)
	} else {
		l.b = append(l.b, "false"...)
	}
}

// milliseconds writes a time, to the microsecond.
func (l *line) milliseconds(k key, d time.Duration) {
	l.key(k)
	us := int64(math.Round(float64(max(d, 0)) / 1000))
	l.b = appendInt(l.b, us/1000)
	if rest := us % 1000; rest != 0 {
		l.b = append(l.b, '.', byte('0'+rest/100), byte('0'+rest/10%10), byte('0'+rest%10))
	}
}

// access lays out the line of an exchange. Text of prompts or answers never stands in it; field names are Envoy's where it has one.
func (l *line) access(rec *Record) {
	l.begin(rec)
	l.text(keyRequestID, rec.ID)
	l.text(keyMethod, rec.Method)
	l.text(keyPath, rec.Path)
	l.number(keyCode, int64(rec.Status))
	l.text(keyReason, rec.Reason)
	l.text(keyFlags, responseFlags(rec))
	l.text(keyRemote, rec.Remote)
	l.text(keyHost, rec.Endpoint)
	l.text(keyCluster, rec.Pool)
	l.text(keyModel, clip(rec.Model))
	l.truth(keyStream, rec.Streamed)
	l.milliseconds(keyDuration, rec.Duration)
	l.number(keyBytesReceived, rec.BytesIn)
	l.number(keyBytesSent, rec.BytesOut)
	l.number(keyAttempts, int64(1+rec.Retries))
	l.policy(rec)
	l.told(keyCriticality, rec.Criticality)
	l.told(keyShed, rec.Shed)
	if rec.TTFT > 0 {
		l.milliseconds(keyTTFT, rec.TTFT)
	}
	if rec.Pick.At > 0 {
		l.milliseconds(keyQueue, rec.Pick.Queued)
	}
	l.told(keyDecidedBy, rec.Pick.DecidedBy)
	l.count(keyPromptTokens, rec.PromptTokens)
	l.count(keyCachedTokens, rec.CachedTokens)
	l.count(keyCompletionTokens, rec.CompletionTokens)
	l.count(keyPredictedPrompt, rec.PredictedTokens)
	l.count(keyPredictedCached, rec.PredictedHit)
	l.mesh(rec)
	l.end()
}

// tcp lays out the line of a connection that was passed on unread.
func (l *line) tcp(rec *Record) {
	l.begin(rec)
	l.text(keyRequestID, rec.ID)
	l.text(keyProtocol, "tcp")
	l.text(keyReason, rec.Reason)
	l.text(keyFlags, responseFlags(rec))
	l.text(keyRemote, rec.Remote)
	l.text(keyHost, rec.Endpoint)
	l.text(keyCluster, rec.Pool)
	l.milliseconds(keyDuration, rec.Duration)
	l.number(keyBytesReceived, rec.BytesIn)
	l.number(keyBytesSent, rec.BytesOut)
	l.mesh(rec)
	l.policy(rec)
	l.end()
}

// mesh adds what only a tunnel tells.
func (l *line) mesh(rec *Record) {
	l.told(keyPeer, rec.Peer)
	l.told(keyService, rec.Service)
}

// policy adds whose the request is, and what policies say of it.
func (l *line) policy(rec *Record) {
	l.told(keyPrincipal, rec.Principal)
	l.told(keyDenied, rec.Policy)
	l.told(keyDryRunDenied, rec.DryRunPolicy)
	l.told(keyAudited, rec.AuditPolicy)
}
