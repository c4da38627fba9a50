package process

import (
	"net"
	"net/netip"
	"testing"
)

// Each address is given once, can be listened on, and is none that an outgoing connection may get.
func TestFreeAddress(t *testing.T) {
	seen := make(map[string]bool)
	for range 100 {
		address := FreeAddress()
		if p := netip.MustParseAddrPort(address).Port(); int(p) >= outgoing() && outgoing() > firstPort || seen[address] {
			t.Errorf("%s, of %v", address, seen)
		}
		seen[address] = true
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
}
