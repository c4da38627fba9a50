//go:build !linux

package sock

import "net"

// raw is what Linux has; elsewhere a connection reads and writes itself.
type raw struct{ net.Conn }

func newRaw(net.Conn) *raw { return nil }

func (r *raw) WriteBuffers(v *net.Buffers) (int64, error) { return v.WriteTo(r.Conn) }

func (r *raw) ReadLent(from Lender) ([]byte, int, error) { return nil, 0, net.ErrClosed }

func (r *raw) Readable() bool { return false }

func (r *raw) TryWrite([]byte) (int, error) { return 0, nil }
