package proxy

import (
	"context"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// Chooser says which endpoint a request goes to. It is the one seam of the
// request path: the embedded picker is one Chooser, an external endpoint picker
// another.
type Chooser interface {
	// Choose gives an endpoint that is not among those r excludes, with a
	// lease on it, as soon as it is r's turn, or ctx is done. It begins at r.Now, which
	// it brings up to date if it waits for anything. An *Error is the
	// answer to give instead, a *queue.Refusal the reason for one; any other error
	// says that no endpoint is there.
	Choose(ctx context.Context, r *picker.Request) (Choice, error)
}

// Choice is where a request goes.
type Choice struct {
	// Lease reserves the endpoint's capacity. Whoever got the Choice ends it.
	Lease picker.Lease
	// Transport leads to the endpoint.
	Transport *upstream.Transport
}

// embedded is the Chooser of a pool that is picked for in the process: the picker, and
// the queue before it.
type embedded struct{ line *line }

func (e embedded) Choose(ctx context.Context, r *picker.Request) (c Choice, err error) {
	if c.Lease, err = e.line.lease(ctx, r); err == nil {
		c.Transport = c.Lease.Endpoint().Owner().(*upstream.Transport)
	}
	return
}
