package upstream

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// MaxPage bounds what Fetch reads: a vLLM metrics page is 50 to 100 KB.
const MaxPage = 4 << 20

// Fetch gets a small page, such as /metrics or /health, by the way that
// requests take, appending its body to buf.
func (t *Transport) Fetch(ctx context.Context, path string, buf []byte) (status int, page []byte, err error) {
	return t.Ask(ctx, &message.Request{
		Method:    []byte("GET"),
		Target:    []byte(path),
		Authority: []byte(t.Address),
		Fields:    []message.Field{{Name: []byte("user-agent"), Value: []byte("fairway")}},
	}, nil, buf, nil)
}

// Ask sends a request and takes in the whole of a small answer, appending its
// body to buf. If an idle connection turns out to be closed it is sent again on
// a new one. look, unless it is nil, is shown the answer's head, which is valid
// until it returns.
func (t *Transport) Ask(ctx context.Context, r *message.Request, body, buf []byte, look func(*message.Response)) (status int, answer []byte, err error) {
	plain := *r
	plain.Upgrade = nil // a tunnel has no small answer
	for connect := t.Get; ; connect = t.Dial {
		c, err := connect(ctx)
		if err != nil {
			return 0, buf, err
		}
		if deadline, ok := ctx.Deadline(); ok {
			c.SetTimeout(time.Until(deadline))
		}
		stop := context.AfterFunc(ctx, c.Interrupt)
		status, answer, err := c.ask(&plain, body, buf, look)
		if stop() && err == nil {
			t.Put(c)
			return status, answer, nil
		}
		stale := c.Used() && status == 0
		c.Close()
		switch {
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case stale:
			continue
		}
		return status, answer, fmt.Errorf("%s %s at %s: %w", r.Method, r.Target, t.Address, err)
	}
}

func (c *Conn) ask(r *message.Request, body, buf []byte, look func(*message.Response)) (int, []byte, error) {
	if err := c.Send(r, body); err != nil {
		return 0, buf, err
	}
	var resp message.Response
	if err := c.ReadHead(&resp); err != nil {
		return 0, buf, err
	}
	if look != nil {
		look(&resp)
	}
	for start := len(buf); ; {
		piece, err := c.Next()
		buf = append(buf, piece...)
		switch {
		case err == io.EOF:
			return resp.Status, buf, nil
		case err != nil:
			return resp.Status, buf, err
		case len(buf)-start > MaxPage:
			return resp.Status, buf[:start], fmt.Errorf("the answer is larger than %d bytes", MaxPage)
		}
	}
}
