package picker

import (
	"testing"
	"time"
)

// ranks are endpoints of one pool: servers of so many engines each.
func ranks(servers, engines int) *Pool {
	var all []Spec
	for _, s := range specs(servers) {
		for e := range engines {
			s.Engine = string(rune('0' + e))
			all = append(all, s)
		}
	}
	p := NewPool(Config{})
	p.SetEndpoints(all)
	return p
}

func TestEnginesOfAServerAreEndpointsOfTheirOwn(t *testing.T) {
	p := ranks(2, 3)
	names, seats := map[string]bool{}, map[uint64]bool{}
	for _, e := range p.Endpoints() {
		names[e.Name()], seats[e.Rank(1)] = true, true
		if e.Address() != "10.0.0.1:8000" && e.Address() != "10.0.0.2:8000" {
			t.Errorf("address %s", e.Address())
		}
	}
	if len(names) != 6 || len(seats) != 6 || !names["10.0.0.2:8000@dp2"] {
		t.Errorf("names %v, %d ranks in rendezvous hashing", names, len(seats))
	}
	var messages []string
	var home *Endpoint
	for turn := range 6 {
		messages = append(messages, prose(turn, 1500))
		e := serve(t, p, prompt(messages...), time.Duration(turn)*10*time.Second)
		if home == nil {
			home = e
		}
		if e != home {
			t.Errorf("turn %d went to %s, the conversation is on %s", turn, e.Name(), home.Name())
		}
	}
}

func TestRefusedConnectionEjectsAllEnginesOfTheServer(t *testing.T) {
	p := ranks(2, 3)
	gone := p.Endpoints()[1]
	if !gone.Eject(0) || gone.Eject(time.Millisecond) {
		t.Error("the first refusal ejects, the second changes nothing")
	}
	for _, e := range p.Endpoints() {
		if e.Ejected(time.Millisecond) != e.SameServer(gone) {
			t.Errorf("%s: ejected %v", e.Name(), e.Ejected(time.Millisecond))
		}
	}
	// What one engine fails says nothing of the others.
	failing := p.Endpoints()[4]
	for range maxStrikes {
		failing.strike(0)
	}
	for _, e := range p.Endpoints()[3:] {
		if e.Ejected(time.Millisecond) != (e == failing) {
			t.Errorf("%s fails requests; %s: ejected %v", failing.Name(), e.Name(), e.Ejected(time.Millisecond))
		}
	}
}
