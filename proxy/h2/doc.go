// Package h2 is HTTP/2 with prior knowledge (h2c, RFC 9113) as the proxy speaks
// it: each request of a connection as a Stream, with the methods of one of
// proxy/h1.
//
// Frames and flow control are those of net/http's HTTP/2, and so are the bounds on
// streams, on heads without end and on answers that are not taken; what this package
// adds is the bound on frames that cost nothing to send (proxy/flood), the proxy's
// judgement of a request's head, which is proxy/h1's, the time-outs of one stream, and
// an end of the client that tells: a reset of the stream and the loss of the connection
// end the Context in whatever phase the request is, the end of the request's body
// does not.
//
// A Stream's methods may be called from any goroutine, one at a time, but that
// Read may run beside the writing half.
package h2
