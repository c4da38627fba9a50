package proxy

import (
	"errors"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// How a body gets from the client to the endpoint: what is received of it, and
// what is sent on while it is received.

// receive takes in n bytes of the body, or all of it.
func (x *Exchange) receive(n int64) error {
	for !x.body.whole && int64(len(x.body.bytes)) < n {
		if _, err := x.body.more(x.stream); err != nil {
			return x.bodyError(err)
		}
		if err := x.bodyLate(); err != nil {
			return err
		}
	}
	return nil
}

// bodyLate is the error for a body that is not whole when the request's time is over:
// whoever sends a byte now and then would never be timed out.
func (x *Exchange) bodyLate() error {
	if x.until > 0 && !x.body.whole && Now() >= x.until {
		return errBodyLate(x.limit)
	}
	return nil
}

// receiveAll takes in the rest of a body of which the start has been read, and reads it.
func (x *Exchange) receiveAll() error {
	if err := x.receive(x.serving.bodyLimit + 1); err != nil {
		return err
	}
	x.early = false
	return x.readRest()
}

// readRest reads a body of which the start has been read.
func (x *Exchange) readRest() error {
	return x.look(func() error { return x.read.ReadRest(x.body.bytes) })
}

// pump sends what there is of the body, and the rest as it is received. An
// *Error is the client's doing.
func (x *Exchange) pump(conn carrier) error {
	head := *x.head
	if head.ContentLength != message.Unknown {
		for _, s := range x.segments {
			head.ContentLength += int64(len(s))
		}
		head.ContentLength -= int64(len(x.body.bytes))
	}
	if err := conn.SendHead(&head); err != nil {
		return err
	}
	for _, s := range x.segments {
		if err := conn.WriteBody(s); err != nil {
			return err
		}
	}
	for !x.body.whole {
		piece, err := x.moreBody()
		if err != nil {
			return err
		}
		if err := conn.WriteBody(piece); err != nil {
			return err
		}
	}
	return conn.EndBody()
}

// moreBody receives the next piece of a body of which the start was sent. It
// does not give the last one of a body that took back what it said at its start.
func (x *Exchange) moreBody() (piece []byte, err error) {
	if x.kind == openai.Other {
		piece, err = x.body.pass(x.stream, x.repeatable())
	} else {
		piece, err = x.body.more(x.stream)
	}
	if err != nil {
		return nil, x.bodyError(err)
	}
	if !x.body.whole || x.kind == openai.Other {
		return piece, x.bodyLate()
	}
	if err := x.readRest(); err != nil {
		return nil, err
	}
	x.edit()
	return piece, nil
}

// bodyError says what a body that could not be read means to the client.
func (x *Exchange) bodyError(err error) error {
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	if x.gone() {
		return errGone
	}
	if status := malformed(err); status != 0 {
		return errMalformed(status, "The request body cannot be taken: "+err.Error()+".")
	}
	return errBadRequest("The request body broke off: " + err.Error() + ".")
}
