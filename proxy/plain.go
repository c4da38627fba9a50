package proxy

import (
	"math/rand/v2"

	"github.com/fairway-proxy/fairway/proxy/openai"
)

// Plain pools, whose endpoints are no engines: what goes to them is passed on as it is.

// forPlain tells whether the request goes to a plain pool.
func (x *Exchange) forPlain() bool { return x.serving.plain(x.chosen()) }

// passAsItIs has a request to a plain pool forget what was read of it for policies. The
// picker is to share ties out evenly.
func (x *Exchange) passAsItIs() error {
	if x.early {
		if err := x.receiveAll(); err != nil { // the rest must not name another model
			return err
		}
	}
	x.read.Reset()
	x.kind, x.model, x.early, x.record.Operation = openai.Other, nil, false, ""
	x.want.Hash, x.want.Waited = rand.Uint64(), true
	return nil
}
