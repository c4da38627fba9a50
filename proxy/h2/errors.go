package h2

import "errors"

// ProtocolError says why a request was refused.
type ProtocolError struct {
	// Status is what to answer: 400, 414, 417, 431 or 501.
	Status int
	// Reason is one line for people.
	Reason string
}

func (e *ProtocolError) Error() string { return "http/2: " + e.Reason }

func bad(reason string) *ProtocolError { return &ProtocolError{400, reason} }

var (
	errMethod      = bad("the method is not a token")
	errConnect     = &ProtocolError{501, "CONNECT is not supported"}
	errTarget      = bad("malformed request target")
	errTargetLong  = &ProtocolError{414, "the request target is too long"}
	errAuthority   = bad("malformed authority, or none")
	errHost        = bad("a Host that is not the authority, or more than one")
	errHeadLong    = &ProtocolError{431, "the header fields are too large"}
	errFieldCount  = &ProtocolError{431, "too many header fields"}
	errLength      = bad("malformed Content-Length, or more than one")
	errLengthWrong = bad("the body is not as long as its Content-Length")
	errExpect      = &ProtocolError{417, "unknown expectation"}
)

// errFlood is what the library reads on a connection that sends frames for their own sake.
var errFlood = errors.New("http/2: too many frames that cost nothing to send")

// Flood is what Misbehaved is told of a connection that was cut for it.
const Flood = "flood"

// What the methods of Stream return, besides ProtocolError.
var (
	// ErrClientGone: the client reset the stream, or the connection has ended.
	ErrClientGone = errors.New("http/2: the client has reset the stream or closed the connection")
	// ErrTimeout: the client made no progress for as long as it is given.
	ErrTimeout = errors.New("http/2: the client made no progress in time")
	// ErrLength: more body than the declared Content-Length, or less at its end.
	ErrLength = errors.New("http/2: the body is not as long as its Content-Length")
	// ErrState: the method was called out of turn, such as a body before its head.
	ErrState = errors.New("http/2: called out of turn")
)
