package proxy

import (
	"bytes"
	"io"
	"strconv"
	"time"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// Names of the fields the proxy adds.
var (
	fieldRequestID = []byte("x-request-id")
	fieldEndpoint  = []byte("x-fairway-endpoint")
	fieldReceipt   = []byte("x-fairway-receipt")
)

// relay passes the answer on as it comes, reading in passing what it tells: the
// first token, and the usage. Whole says that it was read to its end.
func (x *Exchange) relay(conn carrier, lease *picker.Lease) (whole bool, outcome picker.Outcome) {
	if x.answer.Status == 101 {
		return x.relayTunnel(conn, lease)
	}
	streamed := isEventStream(&x.answer) && !encoded(&x.answer) && !x.pool.plain
	x.record.Status = x.answer.Status
	if !x.pool.plain {
		x.takeLoad(lease.Endpoint())
	}
	x.addFields(lease)
	x.beginRename(streamed)
	if streamed && x.withholdUsage || x.renames {
		x.answer.ContentLength = message.Unknown
	}
	if x.stream.WriteHead(&x.answer) != nil || !conn.Pending() && x.stream.Flush() != nil {
		return x.left()
	}
	var err error
	if streamed {
		x.spare()
		err = x.relayEvents(conn, lease)
	} else {
		err = x.relayBody(conn)
	}
	lease.Usage(x.record.PromptTokens, x.record.CachedTokens, x.record.CompletionTokens)

	switch {
	case err == nil:
		// The OpenAI Python SDK leaves at [DONE], before the body's end.
		if x.stream.Finish(conn.Trailers()) != nil && !(streamed && x.events.Done) {
			return x.left()
		}
		if streamed && (x.events.Aborted || x.events.Done && x.events.Count <= 1) {
			// It ended in order, or with [DONE] and nothing before it, and is a
			// failure all the same.
			x.record.Reason = account.UpstreamAborted
			return true, picker.Failed
		}
		return true, outcomeOf(x.answer.Status)
	case x.gone() || err == errGone:
		return x.left()
	}
	if e := x.overdue(); e != nil && conn.TimedOut() {
		x.cut(streamed, e)
		return false, picker.ClientGone
	}
	x.record.Reason = account.UpstreamCut
	x.server.log.Warn("answer broke off", "request_id", x.record.ID, "pool", x.pool.name, "endpoint", x.record.Endpoint, "error", err)
	why := errCut()
	if idle := x.serving.timeouts.StreamIdle; idle > 0 && conn.TimedOut() {
		why = errSilent(idle)
	}
	x.cut(streamed, why)
	return false, picker.Failed
}

// outcomeOf is what an answer of that status says of its endpoint.
func outcomeOf(status int) picker.Outcome {
	switch {
	case status >= 500 && status != 501 && status != 505: // these speak of the request
		return picker.Failed
	case status >= 400:
		return picker.Refused
	}
	return picker.Done
}

// cut ends an answer that cannot be completed. A stream is told why, in the way
// of its API.
func (x *Exchange) cut(streamed bool, why *Error) {
	if x.record.Reason == "" {
		x.record.Reason = why.Type
	}
	if !streamed {
		x.stream.Abort()
		return
	}
	tail := x.scratch[:0]
	if x.events.Open() {
		tail = append(tail, "\n\n"...)
	}
	tail = openai.AppendErrorEvents(tail, x.kind, why.Status, why.Type, why.Message)
	x.scratch = tail
	if _, err := x.stream.Write(tail); err != nil {
		x.stream.Abort()
		return
	}
	x.record.BytesOut += int64(len(tail))
	if x.stream.Finish(nil) != nil {
		x.stream.Abort()
	}
}

// spare gives back, for an answer that takes long, the memory that the request's head lies in, if its stream can: from
// here on nobody looks at it.
func (x *Exchange) spare() {
	if s, ok := x.stream.(interface{ Spare() }); ok {
		x.judged.Forget()
		x.asked.forget()
		x.presented.forget()
		s.Spare()
	}
}

// left is for a client that went away during its answer.
func (x *Exchange) left() (bool, picker.Outcome) {
	x.record.Reason = x.leftBecause()
	x.stream.Abort()
	return false, picker.ClientGone
}

// relayBody passes on an answer that is not a stream of events. A nil error is
// its proper end.
func (x *Exchange) relayBody(conn carrier) error {
	x.plain.Reset()
	for {
		piece, err := x.next(conn)
		if len(piece) > 0 {
			if int64(len(piece)) == x.answer.ContentLength {
				x.plain.Whole(piece)
			} else {
				x.plain.Pass(piece)
			}
			if x.send(conn, piece) != nil {
				return errGone
			}
		}
		if err == io.EOF {
			x.note(x.plain.Usage)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// relayEvents passes on a stream of server-sent events. What arrives together
// leaves together, and nothing waits: only while the usage event is to be
// withheld is an event held back until it is whole.
func (x *Exchange) relayEvents(conn carrier, lease *picker.Lease) error {
	x.events.Reset(x.withholdUsage)
	for {
		piece, err := x.next(conn)
		x.segments = x.events.Pass(x.segments[:0], piece)
		if x.events.FirstToken && x.record.TTFT == 0 {
			now := Now()
			x.record.TTFT = now - x.start
			lease.FirstToken(now)
		}
		if x.send(conn, x.segments...) != nil {
			return errGone
		}
		switch {
		case err == nil:
			continue
		case err != io.EOF && !x.events.Done: // cut after [DONE], the client has it all
			return err
		}
		x.note(x.events.Usage)
		if rest := x.events.Rest(); len(rest) > 0 && x.send(conn, rest) != nil {
			return errGone
		}
		return nil
	}
}

// next waits for the next piece of the answer. Only this wait is the engine's:
// the client may take its time with what it got before.
func (x *Exchange) next(conn carrier) ([]byte, error) {
	if conn.Pending() {
		return conn.Next()
	}
	x.arm(conn, x.serving.timeouts.StreamIdle)
	piece, err := conn.Next()
	if err == nil {
		conn.SetTimeout(0)
	}
	return piece, err
}

// send passes on what came, at once; what has arrived behind it leaves with it.
func (x *Exchange) send(conn carrier, pieces ...[]byte) error {
	if x.renames {
		x.renamed = x.renamed[:0]
		for _, p := range pieces {
			x.renamed = x.rename.Pass(x.renamed, p)
		}
		pieces = x.renamed
	}
	for _, p := range pieces {
		if _, err := x.stream.Write(p); err != nil {
			return err
		}
		x.record.BytesOut += int64(len(p))
	}
	if conn.Pending() {
		return nil
	}
	return x.stream.Flush()
}

// note keeps what the engine counted.
func (x *Exchange) note(u openai.Usage) {
	x.record.PromptTokens, x.record.CachedTokens, x.record.CompletionTokens = u.Prompt, u.Cached, u.Completion
}

// addFields puts our own fields into the answer's head.
func (x *Exchange) addFields(lease *picker.Lease) {
	fields := x.answer.Fields[:0]
	for _, f := range x.answer.Fields {
		if !message.EqualFold(f.Name, "x-request-id") && !ours(f.Name) {
			fields = append(fields, f)
		}
	}
	fields = x.withTold(x.changeAnswer(fields))
	fields = append(fields, message.Field{Name: fieldRequestID, Value: x.id})
	if x.explain {
		fields = append(fields,
			message.Field{Name: fieldEndpoint, Value: []byte(x.record.Endpoint)},
			message.Field{Name: fieldReceipt, Value: x.appendReceipt(nil, lease)})
	}
	x.answer.Fields = fields
}

func isEventStream(r *message.Response) bool {
	kind := message.Get(r.Fields, "content-type")
	return len(kind) >= len(eventStream) && bytes.EqualFold(kind[:len(eventStream)], eventStream)
}

// encoded tells whether a body says nothing as it is: it was compressed, say (RFC 9110 section 8.4).
func encoded(r *message.Response) bool {
	coding := message.Get(r.Fields, "content-encoding")
	return len(coding) > 0 && !bytes.EqualFold(coding, []byte("identity"))
}

var eventStream = []byte("text/event-stream")

// writeError answers with an error of ours, as OpenAI's error object, to the request
// of rec, and notes there how much that was.
func writeError(s Stream, e *Error, rec *account.Record) error {
	text := openai.AppendError(nil, e.Status, e.Type, e.Message, e.Param)
	fields := []message.Field{
		{Name: []byte("content-type"), Value: []byte("application/json")},
		{Name: []byte("date"), Value: httpDate(time.Now())},
	}
	if rec.ID != "" {
		fields = append(fields, message.Field{Name: fieldRequestID, Value: []byte(rec.ID)})
	}
	if e.Status == 401 {
		fields = append(fields, message.Field{Name: []byte("www-authenticate"), Value: []byte(challenge)})
	}
	if e.RetryAfter > 0 {
		seconds := int64((e.RetryAfter + time.Second - 1) / time.Second)
		fields = append(fields, message.Field{Name: []byte("retry-after"), Value: strconv.AppendInt(nil, seconds, 10)})
	}
	if e.Dropped != "" {
		fields = append(fields, message.Field{Name: []byte(fieldDropped), Value: []byte(e.Dropped)})
	}
	head := message.Response{Status: e.Status, Fields: fields, ContentLength: int64(len(text))}
	if err := s.WriteHead(&head); err != nil {
		return err
	}
	if _, err := s.Write(text); err != nil {
		return err
	}
	rec.BytesOut += int64(len(text))
	return s.Finish(nil)
}

// httpDate is a Date field's value (RFC 9110 section 5.6.7).
func httpDate(t time.Time) []byte {
	return t.UTC().AppendFormat(nil, "Mon, 02 Jan 2006 15:04:05 GMT")
}
