package proxy

import (
	"context"
	"net"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/sock"
)

// Stream is one request and the answer to it, apart from the HTTP version that
// carries them: proxy/h1 and proxy/h2 give one per request of a connection. All methods but
// the Context's are called from the goroutine that runs the Exchange.
//
// Backing off is the writer's: Write and Flush block while the client does not
// read. After any of them failed, the client is gone.
type Stream interface {
	// Context is done once the client has gone away; its cause says how.
	Context() context.Context
	// Head is the request's head, valid until the exchange ends. Its Fields
	// may be edited.
	Head() *message.Request
	// Read reads the request's body; io.EOF at its end.
	Read(p []byte) (int, error)

	// Bind has i interrupted, at most once, when the client goes away. It
	// answers false, and keeps nothing, if the client already has.
	Bind(i interface{ Interrupt() }) bool
	// Unbind takes back Bind. After it returns, i is not touched any more.
	Unbind()

	// WriteHead begins the answer. It may be held back until Flush.
	WriteHead(*message.Response) error
	// Write adds to the answer's body. It may be held back until Flush.
	Write(p []byte) (int, error)
	// Flush sends what was held back.
	Flush() error
	// Finish ends the answer and sends it all.
	Finish(trailers []message.Field) error
	// Abort cuts the answer off, so that the client sees that it is not whole.
	Abort()
	// Tunnel gives the connection to the client, both ways, after WriteHead of
	// a 101, which is sent at once: to be read by one goroutine, written by one,
	// and then left to Finish, when both sides have ended it, or Abort. The
	// client's ending it is no longer its going away: reading it tells.
	Tunnel() (*sock.Conn, error)
	// Started tells whether any byte of the answer may have left: from then
	// on nothing can be retried and no other status sent.
	Started() bool

	// RemoteAddr is the client's address, Remote the same as text.
	RemoteAddr() net.Addr
	Remote() string
	// Conn is the connection the request came on, nil for none, for what can be
	// asked of it. It is not to be read, written or closed.
	Conn() net.Conn
}

// carrier takes one request to an endpoint and brings the answer back, apart from
// how: a connection of proxy/upstream. The goroutine that runs the Exchange has it
// to itself, but for Interrupt.
type carrier interface {
	// Send sends the request with all of its body; SendHead, WriteBody and
	// EndBody send it piece by piece. The endpoint may have answered all the same
	// when one of them fails.
	Send(r *message.Request, body ...[]byte) error
	SendHead(*message.Request) error
	WriteBody(p []byte) error
	EndBody() error
	// Used tells whether the way was used before, and may have been closed as idle
	// at the very moment.
	Used() bool

	// ReadHead waits for the answer's head, Next for the next piece of its body,
	// valid until the next call; io.EOF ends it.
	ReadHead(*message.Response) error
	Next() ([]byte, error)
	// Pending tells whether Next would not wait.
	Pending() bool
	// Trailers are those of an answer that was read to its end.
	Trailers() []message.Field
	// Tunnel gives the connection as it is, after a 101.
	Tunnel() (*sock.Conn, error)

	// SetTimeout bounds the waits from now on together, 0 for not at all; TimedOut
	// tells whether that is why one failed.
	SetTimeout(time.Duration)
	TimedOut() bool
	// Interrupt ends every wait, from any goroutine.
	Interrupt()
}
