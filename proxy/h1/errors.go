package h1

import "errors"

// ProtocolError says why a message was refused.
type ProtocolError struct {
	// Status is what to answer to a request: 400, 414, 417, 431, 501 or 505.
	Status int
	// Reason is one line for people.
	Reason string
}

func (e *ProtocolError) Error() string { return "http/1.1: " + e.Reason }

func bad(reason string) *ProtocolError { return &ProtocolError{400, reason} }

// All reasons exist from the start: refusing allocates nothing.
var (
	errPreface         = &ProtocolError{505, "HTTP/2 is not spoken here"}
	errRequestLine     = bad("malformed request line")
	errMethod          = bad("the method is not a token")
	errTarget          = bad("malformed request target")
	errTargetLong      = &ProtocolError{414, "the request target is too long"}
	errConnect         = &ProtocolError{501, "CONNECT is not supported"}
	errVersion         = &ProtocolError{505, "HTTP version not supported"}
	errBareLF          = bad("a line ends in LF without CR")
	errFold            = bad("folded field line, or white space before a field name")
	errName            = bad("a field name is not a token followed by a colon")
	errValue           = bad("control character in a field value")
	errHeadLong        = &ProtocolError{431, "the header fields are too large"}
	errFieldCount      = &ProtocolError{431, "too many header fields"}
	errHostMissing     = bad("no Host field")
	errHostTwice       = bad("more than one Host field")
	errHost            = bad("malformed Host or authority")
	errLength          = bad("malformed Content-Length")
	errLengthTwice     = bad("more than one Content-Length field")
	errLengthAndCoding = bad("both Content-Length and Transfer-Encoding")
	errCoding          = &ProtocolError{501, "transfer coding other than chunked"}
	errCodingTwice     = bad("more than one Transfer-Encoding field")
	errCodingOld       = bad("Transfer-Encoding in an HTTP/1.0 message")
	errConnection      = bad("malformed Connection field")
	errExpect          = &ProtocolError{417, "unknown expectation"}
	errChunkSize       = bad("malformed chunk size")
	errChunkLong       = bad("chunk extension or trailer section too long")
	errChunkEnd        = bad("no CRLF after chunk data")
	errStatusLine      = bad("malformed status line")
	errInterim         = bad("too many interim responses")
	errSwitch          = bad("a switch to a protocol that was not asked for")
)

// What the methods of Stream and ClientConn return, besides ProtocolError and
// what the connection itself returns.
var (
	// ErrClientGone: the client closed the connection, its sending half
	// included, while it was owed an answer or still owed a body.
	ErrClientGone = errors.New("http/1.1: the client closed the connection")
	// ErrTimeout: the peer made no progress for as long as it is given.
	ErrTimeout = errors.New("http/1.1: the peer made no progress in time")
	// ErrServerClosed is the cause of a context that Server.Close ended.
	ErrServerClosed = errors.New("http/1.1: the server was closed")
	// ErrConnClosed is the cause of a context whose connection has ended.
	ErrConnClosed = errors.New("http/1.1: the connection has ended")
	// ErrLength: more body than the declared Content-Length, or less at its end.
	ErrLength = errors.New("http/1.1: the body is not as long as its Content-Length")
	// ErrField: a head to be written holds what cannot be written, such as a
	// line break in a field's value.
	ErrField = errors.New("http/1.1: the head holds a character that cannot be sent")
	// ErrState: the method was called out of turn, such as a body before its head.
	ErrState = errors.New("http/1.1: called out of turn")
)
