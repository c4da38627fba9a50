package process

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

// firstPort is where ports to listen on are looked for, up to those that the system gives to outgoing connections.
const firstPort = 20000

// drawn is how many ports were looked at.
var drawn atomic.Uint32

// FreeAddress is a loopback address whose port was free just now, and that it gives once. The port is none that the system gives to
// outgoing connections: between now and when somebody listens on it, any program may make one. Processes begin at ports of their own,
// so that those at the same time rarely draw the same. It panics if there is none.
func FreeAddress() string {
	ports := uint32(outgoing() - firstPort)
	if ports == 0 {
		return free("127.0.0.1:0")
	}
	for range ports {
		at := uint32(os.Getpid())*101 + drawn.Add(1)
		if address := free(fmt.Sprintf("127.0.0.1:%d", firstPort+at%ports)); address != "" {
			return address
		}
	}
	panic(fmt.Sprintf("no port from %d to %d is free", firstPort, firstPort+ports-1))
}

// outgoing is the first port that the system gives to outgoing connections; firstPort if that is below it.
func outgoing() int {
	first := 32768 // Linux's default, ip(7)
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		fmt.Sscan(string(text), &first)
	}
	return max(first, firstPort)
}

// free is the address if nobody listens there, otherwise empty.
func free(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return ""
	}
	defer l.Close()
	return l.Addr().String()
}

// ClosedAddress is a loopback address where nobody listens while the test runs.
func ClosedAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	// The port of a connection stays taken while it lives: no other process is given it to listen on.
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().String()
}
