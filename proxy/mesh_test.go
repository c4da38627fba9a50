package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/authz"
)

// Tunnels to endpoints themselves are taken as WaypointFor says, and of those that
// Workloads leaves.
func TestWorkloads(t *testing.T) {
	for name, c := range map[string]struct {
		to   WaypointFor
		only []netip.Addr
		want string
	}{
		"services":  {ForServices, nil, ""},
		"all":       {ForAll, nil, "10.0.0.1:80 10.0.0.2:80 [fd00::1]:80"},
		"some":      {ForWorkloads, []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}, "10.0.0.2:80 [fd00::1]:80"},
		"none left": {ForAll, []netip.Addr{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := &World{WaypointFor: c.to, Workloads: c.only, Pools: []Pool{{Name: "p", Endpoints: []Endpoint{{Address: "10.0.0.1:80"}, {Address: "10.0.0.2:80"}, {Address: "[fd00::1]:80"}, {Address: "name:80"}}}}}
			var got []string
			for authority := range destinations(w, nil, authz.NewCompiler(&w.Access, nil)) {
				got = append(got, authority)
			}
			slices.Sort(got)
			if got := strings.Join(got, " "); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
