//go:build !linux

package sock

import "net"

// Ignore is what Linux can.
func Ignore(net.Conn) (hear func()) { return func() {} }
