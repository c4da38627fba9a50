// Package hbone is the tunnel of Istio's ambient mesh, both ends of it: a
// connection inside a CONNECT stream of HTTP/2 inside mutual TLS between SPIFFE
// identities ("HTTP-based overlay network environment").
//
// A Listener's Accept gives tunnels, a Dialer's DialContext makes them, and each
// is a net.Conn: whoever reads and writes it need not know. What is known of the
// other end is its Peer, found with PeerOf. A Sandwich gives the same for
// connections that a ztunnel has unwrapped before and announces by the PROXY
// protocol.
//
// The tunnels of one connection do not hold each other up. Back-pressure is each
// stream's own window; the connection's window is given back on receipt, and
// what lies unread in all streams of the process is bounded by a Budget.
//
// A connection has one goroutine, which reads. Whoever writes first sends for
// all, in turn; nothing that is written is delayed. Neither the reading goroutine
// nor a tunnel's Write ever waits for a socket: what a socket does not take at
// once is handed to a goroutine that lasts until it is sent.
//
// Locks: conn.mu guards what is to be sent, the table of streams and their
// states; stream.mu what was received. The second is taken under the first, never
// the other way round.
package hbone
