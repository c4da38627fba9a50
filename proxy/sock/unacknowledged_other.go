//go:build !linux

package sock

import (
	"net"
	"time"
)

// BoundUnacknowledged is what Linux has: the system's own bound for unacknowledged data holds.
func BoundUnacknowledged(net.Conn, time.Duration) error { return nil }
