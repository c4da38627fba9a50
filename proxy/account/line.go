package account

import (
	"slices"
	"time"
)

// How the lines of an access log are laid out: all of a line in one buffer, with as few looks at each byte as it takes.

// keyRoom is the length of the longest key, rounded up.
const keyRoom = 40

// key is a field's name with what stands around it, as a line of each Format has it. All of its text is copied, as much counts as is used:
// a copy of a length that the compiler knows is a few instructions.
type key [2]struct {
	text [keyRoom]byte
	used int
}

func named(name string) (k key) {
	for format, text := range [...]string{Text: " " + name + "=", JSON: `,"` + name + `":`} {
		k[format].used = copy(k[format].text[:], text)
	}
	return k
}

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

// stamp is a second as lines have it, in a zone.
type stamp struct {
	second int64 // since 1970
	zone   *time.Location
	text   [len("2006-01-02T15:04:05+00:00")]byte
	used   int // of text; 0: it is no second's
}

// digits is how many of a stamp come before the fraction of the second.
const digits = len("2006-01-02T15:04:05")

func (s *stamp) set(t time.Time) {
	second, zone := t.Unix(), t.Location()
	if s.second == second && s.zone == zone && s.used > 0 {
		return
	}
	s.second, s.zone = second, zone
	s.used = copy(s.text[:], t.AppendFormat(s.text[:0], time.RFC3339))
}

// last is how a desk's last line had what most lines have alike, and its second. Copying that takes a fraction of the time.
type last struct {
	stamp  stamp
	asked  alike[asked]
	served alike[served]
}

// asked is what lines say of what was asked for and how that ended.
type asked struct {
	method, path, reason, flags string
	code                        int
}

// served is what they say of whose model it was.
type served struct {
	pool, model string
	streamed    bool
}

// alike is how the last line had what it said of a K.
type alike[K comparable] struct {
	of   K
	text []byte
}

// longestAlike bounds what is kept, in bytes.
const longestAlike = 512

// append appends what a line says of k, which layOut lays out if the last one said something else.
func (a *alike[K]) append(l *line, k K, layOut func(*line)) {
	if len(a.text) > 0 && a.of == k {
		l.b = append(l.b, a.text...)
		return
	}
	start := len(l.b)
	layOut(l)
	if text := l.b[start:]; len(text) <= longestAlike {
		a.of, a.text = k, append(a.text[:0], text...)
	}
}

// line is one that is being laid out.
type line struct {
	b      []byte
	format Format
}

// begin lays out what every line begins with, its time as package slog has it: in text to the millisecond, in JSON as precise as it is.
func (l *line) begin(rec *Record, s *stamp) {
	t := rec.Start.Add(rec.Duration)
	s.set(t)
	ns := uint32(t.Nanosecond())
	if l.format == JSON {
		l.b = append(l.b, `{"time":"`...)
		l.b = append(l.b, s.text[:digits]...)
		if ns > 0 {
			l.b = append(l.b, '.')
			l.b = appendThree(appendThree(appendThree(l.b, ns/1e6), ns/1e3%1e3), ns%1e3)
			for l.b[len(l.b)-1] == '0' {
				l.b = l.b[:len(l.b)-1]
			}
		}
		l.b = append(l.b, s.text[digits:s.used]...)
		l.b = append(l.b, `","level":"INFO","msg":"access"`...)
		return
	}
	l.b = append(l.b, "time="...)
	l.b = append(l.b, s.text[:digits]...)
	l.b = append(l.b, '.')
	l.b = appendThree(l.b, ns/1e6)
	l.b = append(l.b, s.text[digits:s.used]...)
	l.b = append(l.b, " level=INFO msg=access"...)
}

// appendThree appends a number below 1,000 as three digits.
func appendThree(b []byte, n uint32) []byte {
	return append(b, byte('0'+n/100), byte('0'+n/10%10), byte('0'+n%10))
}

func (l *line) end() {
	if l.format == JSON {
		l.b = append(l.b, '}')
	}
	l.b = append(l.b, '\n')
}

// append appends a field's name.
func (k *key) append(b []byte, f Format) []byte {
	at := len(b)
	if cap(b)-at < keyRoom {
		b = slices.Grow(b, keyRoom)
	}
	b = b[:at+keyRoom]
	*(*[keyRoom]byte)(b[at:]) = k[f].text
	return b[:at+k[f].used]
}

func (l *line) text(k *key, value string) {
	l.b = appendText(k.append(l.b, l.format), value, l.format)
}

// told is text, but for an empty value.
func (l *line) told(k *key, value string) {
	if value != "" {
		l.text(k, value)
	}
}

func (l *line) number(k *key, n int64) {
	l.b = appendInt(k.append(l.b, l.format), n)
}

// count is number, but for what nobody told.
func (l *line) count(k *key, n int) {
	if n >= 0 {
		l.number(k, int64(n))
	}
}

func (l *line) truth(k *key, v bool) {
	l.b = k.append(l.b, l.format)
	if v {
		l.b = append(l.b, "true"...)
	} else {
		l.b = append(l.b, "false"...)
	}
}

// milliseconds writes a time, to the microsecond.
func (l *line) milliseconds(k *key, d time.Duration) {
	us := uint64(max(d, 0)+500) / 1e3
	l.b = appendInt(k.append(l.b, l.format), int64(us/1e3))
	if rest := us % 1e3; rest != 0 {
		l.b = append(l.b, '.')
		l.b = appendThree(l.b, uint32(rest))
	}
}

// access lays out the line of an exchange. Text of prompts or answers never stands in it; field names are Envoy's where it has one.
func (l *line) access(rec *Record, last *last) {
	l.begin(rec, &last.stamp)
	l.text(&keyRequestID, rec.ID)
	flags := responseFlags(rec)
	last.asked.append(l, asked{rec.Method, rec.Path, rec.Reason, flags, rec.Status}, func(l *line) {
		l.text(&keyMethod, rec.Method)
		l.text(&keyPath, rec.Path)
		l.number(&keyCode, int64(rec.Status))
		l.text(&keyReason, rec.Reason)
		l.text(&keyFlags, flags)
	})
	l.text(&keyRemote, rec.Remote)
	l.text(&keyHost, rec.Endpoint)
	last.served.append(l, served{rec.Pool, rec.Model, rec.Streamed}, func(l *line) {
		l.text(&keyCluster, rec.Pool)
		l.text(&keyModel, clip(rec.Model))
		l.truth(&keyStream, rec.Streamed)
	})
	l.milliseconds(&keyDuration, rec.Duration)
	l.number(&keyBytesReceived, rec.BytesIn)
	l.number(&keyBytesSent, rec.BytesOut)
	l.number(&keyAttempts, int64(1+rec.Retries))
	l.policy(rec)
	l.told(&keyCriticality, rec.Criticality)
	l.told(&keyShed, rec.Shed)
	if rec.TTFT > 0 {
		l.milliseconds(&keyTTFT, rec.TTFT)
	}
	if rec.Pick.At > 0 {
		l.milliseconds(&keyQueue, rec.Pick.Queued)
	}
	l.told(&keyDecidedBy, rec.Pick.DecidedBy)
	l.count(&keyPromptTokens, rec.PromptTokens)
	l.count(&keyCachedTokens, rec.CachedTokens)
	l.count(&keyCompletionTokens, rec.CompletionTokens)
	l.count(&keyPredictedPrompt, rec.PredictedTokens)
	l.count(&keyPredictedCached, rec.PredictedHit)
	l.mesh(rec)
	l.end()
}

// tcp lays out the line of a connection that was passed on unread.
func (l *line) tcp(rec *Record, s *stamp) {
	l.begin(rec, s)
	l.text(&keyRequestID, rec.ID)
	l.text(&keyProtocol, "tcp")
	l.text(&keyReason, rec.Reason)
	l.text(&keyFlags, responseFlags(rec))
	l.text(&keyRemote, rec.Remote)
	l.text(&keyHost, rec.Endpoint)
	l.text(&keyCluster, rec.Pool)
	l.milliseconds(&keyDuration, rec.Duration)
	l.number(&keyBytesReceived, rec.BytesIn)
	l.number(&keyBytesSent, rec.BytesOut)
	l.mesh(rec)
	l.policy(rec)
	l.end()
}

// mesh adds what only a tunnel tells.
func (l *line) mesh(rec *Record) {
	l.told(&keyPeer, rec.Peer)
	l.told(&keyService, rec.Service)
}

// policy adds whose the request is, and what policies say of it.
func (l *line) policy(rec *Record) {
	l.told(&keyPrincipal, rec.Principal)
	l.told(&keyDenied, rec.Policy)
	l.told(&keyDryRunDenied, rec.DryRunPolicy)
	l.told(&keyAudited, rec.AuditPolicy)
}
