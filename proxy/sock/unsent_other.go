//go:build !linux

package sock

import "net"

// LimitUnsent is what Linux has.
func LimitUnsent(net.Conn) {}
