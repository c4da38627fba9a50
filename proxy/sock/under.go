package sock

import "net"

// Bare is a TCP connection for TLS to stand on. It reads and writes as a Conn does,
// not two reads nor two writes at the same time, which TLS does not ask for.
type Bare struct {
	*net.TCPConn
	raw *raw
}

// Under gives c for TLS to stand on: a *Bare, where a Conn of c would not read and
// write by c itself.
func Under(c net.Conn) net.Conn {
	if raw := newRaw(c); raw != nil {
		return &Bare{c.(*net.TCPConn), raw}
	}
	return c
}

// Read is net.Conn's.
func (b *Bare) Read(p []byte) (int, error) { return b.raw.Read(p) }

// Write is net.Conn's.
func (b *Bare) Write(p []byte) (int, error) { return b.raw.Write(p) }

// TryWrite writes of p what the socket takes without waiting.
func (b *Bare) TryWrite(p []byte) (int, error) { return b.raw.TryWrite(p) }

// Readable tells whether a Read would find something at once, be it the end.
func (b *Bare) Readable() bool { return b.raw.Readable() }

// Listener gives the connections of another for TLS to stand on.
type Listener struct{ net.Listener }

// Accept is net.Listener's.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Under(c), nil
}
