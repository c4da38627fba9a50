package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// Some requests are for every endpoint rather than for one: what there is to
// list stands on all of them, and an adapter that is to be served by a pool has
// to be loaded by each.

// fanOutTimeout bounds the wait for the slowest endpoint of a list.
const fanOutTimeout = 5 * time.Second

// reply is what one endpoint said.
type reply struct {
	address string
	status  int
	fields  []message.Field
	body    []byte
	err     error
}

// fanOut answers the requests that are for every endpoint. It tells whether
// this was one.
func (x *Exchange) fanOut() (done bool, err error) {
	if x.pinned() || x.forPlain() {
		return false, nil
	}
	path := string(x.head.Path())
	switch method := string(x.head.Method); {
	case x.listing() && path == modelsPath:
		return true, x.listModels()
	case x.listing():
		return true, x.showModel(path[len(modelsPath)+1:])
	case method == "POST" && (path == "/v1/load_lora_adapter" || path == "/v1/unload_lora_adapter"):
		return true, x.tellPool()
	}
	return false, nil
}

// listing tells whether the request is for the list of models, or one of it.
func (x *Exchange) listing() bool {
	path := x.head.Path()
	return !x.pinned() && !x.forPlain() && string(x.head.Method) == "GET" && bytes.HasPrefix(path, []byte(modelsPath)) &&
		(len(path) == len(modelsPath) || path[len(modelsPath)] == '/')
}

// askAll sends the request to these endpoints at once and gives their answers
// in the same order. A bound of 0 leaves that of the request.
func (x *Exchange) askAll(transports []*upstream.Transport, bound time.Duration) []reply {
	ctx := x.ctx
	if bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	replies := make([]reply, len(transports))
	var wg sync.WaitGroup
	for i, t := range transports {
		wg.Go(func() {
			head := *x.head
			r := reply{address: t.Address}
			r.status, r.body, r.err = t.Ask(ctx, &head, x.body.bytes, nil, func(head *message.Response) { r.fields = lasting(head.Fields) })
			replies[i] = r
		})
	}
	wg.Wait()
	return replies
}

// tellPool has every endpoint of the pool do the same. The answer is that of
// the first, unless some did and others did not: then it says which.
func (x *Exchange) tellPool() error {
	pools := x.meant()
	if len(pools) != 1 {
		return errNoPool(string(x.head.Path()))
	}
	x.pool = pools[0]
	x.record.Pool = x.pool.name
	if err := x.receive(x.serving.bodyLimit + 1); err != nil {
		return err
	}
	replies := x.askAll(servers(x.pool.picker.All()), 0)
	if x.gone() {
		return errGone
	}
	var failed []string
	for _, r := range replies {
		switch {
		case r.err != nil:
			failed = append(failed, r.err.Error())
		case r.status/100 != 2:
			failed = append(failed, fmt.Sprintf("%s: %d %s", r.address, r.status, bytes.TrimSpace(r.body[:min(len(r.body), 300)])))
		}
	}
	if n := len(failed); n > 0 && n < len(replies) {
		return errPartlyDone(x.pool.name, len(replies), failed)
	}
	return x.passFirst(replies)
}

// passFirst gives the client the first answer there is.
func (x *Exchange) passFirst(replies []reply) error {
	if len(replies) == 0 {
		return errNoEndpoint(x.record.Pool)
	}
	for _, r := range replies {
		if r.err == nil {
			return x.answerBytes(r.status, r.fields, r.body)
		}
	}
	return errUpstream(replies[0].err)
}

// lasting is a copy of an answer's fields, but for those that we say ourselves.
func lasting(fields []message.Field) []message.Field {
	kept := make([]message.Field, 0, len(fields)+1)
	for _, f := range fields {
		if !message.EqualFold(f.Name, "x-request-id") && !ours(f.Name) {
			kept = append(kept, message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)})
		}
	}
	return kept
}

func (x *Exchange) answerJSON(v any, fields []message.Field) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.answerBytes(200, fields, text)
}

// answerBytes is a whole answer of status, fields, of which it takes hold, and
// body.
func (x *Exchange) answerBytes(status int, fields []message.Field, body []byte) error {
	x.record.Status = status
	x.record.BytesOut = int64(len(body))
	head := message.Response{Status: status, ContentLength: int64(len(body)), Fields: append(fields, message.Field{Name: fieldRequestID, Value: []byte(x.record.ID)})}
	if x.stream.WriteHead(&head) != nil {
		return errGone
	}
	if _, err := x.stream.Write(body); err != nil || x.stream.Finish(nil) != nil {
		return errGone
	}
	return nil
}
