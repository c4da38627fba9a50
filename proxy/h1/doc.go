// Package h1 speaks HTTP/1.1 (RFC 9112), both ends of it: Server takes requests
// off connections and hands each to a handler as a Stream; ClientConn sends a
// request and reads its response. Heads are message.Request and
// message.Response; neither end knows what is done with them.
//
// It reads strictly, so that no two parties can disagree about where a message
// ends or whom it is for: what RFC 9112 calls malformed is refused, and so is
// most of what it lets a recipient tolerate. A message with both Content-Length
// and Transfer-Encoding, two Content-Lengths, a bare CR or LF, folded lines, a
// transfer coding other than chunked, and a missing or doubled Host are refused,
// never repaired. Hop-by-hop fields and those that Connection names are taken
// out, framing is consumed, and each end writes its own.
//
// A switch of protocols (RFC 9110 section 7.8) is the callers' to ask for, to grant
// and to carry: each end tells of it, writes it, and then gives the connection
// itself. A switch to anything that is HTTP is never asked for.
//
// Nothing that a peer sends grows without bound: heads, field counts, targets,
// chunk extensions and trailers have limits, and every wait has a time-out. A
// request and its answer allocate nothing in the steady state; heads are slices
// of the connection's pooled read buffer.
//
// A connection's state belongs to the goroutine that serves it. What another
// goroutine may touch, which is the hang-up of the client and the end of the
// server, is guarded by a mutex of the connection.
package h1
