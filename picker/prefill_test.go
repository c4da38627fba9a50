package picker

import (
	"fmt"
	"testing"
	"time"
)

// rolePool has so many endpoints that serve, and so many that compute prompts for them.
func rolePool(serve, prefill int) *Pool {
	all := specs(serve + prefill)
	for i := serve; i < len(all); i++ {
		all[i].Role = Prefill
	}
	p := NewPool(Config{})
	p.SetEndpoints(all)
	return p
}

// long is a request that may be computed elsewhere.
func long(id int) *Request {
	r := prompt(prose(id, 20_000))
	r.RemotePrefill = 512
	return r
}

// decoding puts n requests on each endpoint that serves, past their first tokens.
func decoding(t *testing.T, p *Pool, n int) (all []Lease) {
	for i := range n * len(p.Endpoints()) {
		l := pick(t, p, prompt(fmt.Sprint(i)), 0)
		l.FirstToken(0)
		all = append(all, l)
	}
	return all
}

func TestPromptIsComputedElsewhereWhereOthersDecode(t *testing.T) {
	p := rolePool(2, 1)
	if l := pick(t, p, long(1), 0); l.Prefill() != nil {
		t.Errorf("nobody decodes: computed by %s", l.Prefill().Name())
	} else {
		l.End(0, NeverSent)
	}
	others := decoding(t, p, 8)
	l := pick(t, p, long(1), 0)
	elsewhere := p.All()[2]
	if l.Prefill() != elsewhere {
		t.Fatalf("eight decode on each: computed by %v", l.Prefill())
	}
	if q := l.Endpoint().Load(0).Queued; q > 1 {
		t.Errorf("%d tokens are queued where nothing of it is computed", q)
	}
	if load := elsewhere.Load(0); load.Queued < 4000 || load.InFlight != 1 {
		t.Errorf("it is not queued where it is computed: %+v", load)
	}
	short := prompt(prose(2, 1000))
	short.RemotePrefill = 512
	if s := pick(t, p, short, 0); s.Prefill() != nil {
		t.Error("a prompt of 250 tokens is computed elsewhere")
	} else {
		s.End(0, NeverSent)
	}
	never := prompt(prose(3, 20_000))
	if s := pick(t, p, never, 0); s.Prefill() != nil {
		t.Error("a request is computed elsewhere that is not to be")
	} else {
		s.End(0, NeverSent)
	}
	l.FirstToken(time.Second)
	if load := elsewhere.Load(0); load.Queued != 0 || load.InFlight != 0 {
		t.Errorf("after the first token there is left where it was computed: %+v", load)
	}
	if s := elsewhere.Load(0).Speed; s <= defaultSpeed {
		t.Errorf("one second for its prompt taught nothing: %v s a token", s)
	}
	l.Usage(5000, 4999, 10) // what a decode pod may say of what came to it
	l.End(2*time.Second, Done)
	if c := l.Endpoint().Load(0).CachedTokens; c != 0 {
		t.Errorf("%d tokens count as cached on an endpoint that was sent them", c)
	}
	for i := range others {
		others[i].End(0, Done)
	}
	idle(t, p.All(), 0, l.chain)

	// Both have it now: its next turn is computed where it decodes.
	next := prompt(prose(1, 20_000), "and then?")
	next.RemotePrefill = 512
	if s := pick(t, p, next, 3*time.Second); s.Endpoint() != l.Endpoint() || s.Prefill() != nil || s.HitTokens() < 4000 {
		t.Errorf("the next turn: %s, computed by %v, %d tokens cached", s.Endpoint().Name(), s.Prefill(), s.HitTokens())
	}
}

// Whatever is asked, excluded, ejected or full, an endpoint that only computes prompts is never picked.
func TestPrefillEndpointsAreNeverPicked(t *testing.T) {
	p := rolePool(3, 3)
	serving := p.Endpoints()
	check := func(l Lease, err error) {
		t.Helper()
		if err == nil && l.Endpoint().Role() == Prefill {
			t.Fatalf("%s was picked", l.Endpoint().Name())
		}
	}
	var prompts []*Request
	for i := range 50 {
		prompts = append(prompts, long(i))
	}
	for i := range 10_000 {
		now := time.Duration(i) * time.Millisecond
		again := *prompts[i%len(prompts)]
		r := &again
		r.Stream = i%3 > 0
		switch i % 7 {
		case 1:
			r.Exclude = serving[:1+i%3]
		case 2:
			serving[i%3].Eject(now)
		case 3:
			r.Room = Room{Queued: 1, Anywhere: i%2 == 0}
		case 4:
			for _, e := range serving {
				e.Eject(now)
			}
		}
		l, err := p.Pick(r, now)
		check(l, err)
		if i%5 == 0 {
			l.FirstToken(now)
		}
		l.End(now, Outcome(i%5))
		for _, c := range p.Explain(nil, r, now) {
			if c.Endpoint.Role() == Prefill {
				t.Fatalf("%s is a candidate", c.Endpoint.Name())
			}
		}
	}
	p.SetEndpoints(func() []Spec { all := specs(1); all[0].Role = Prefill; return all }())
	if _, err := p.Pick(long(1), 0); err != ErrNoEndpoints {
		t.Errorf("a pool of none but those: %v", err)
	}
}

// An endpoint of both kinds serves requests, and computes prompts for others but not for itself.
func TestEndpointsOfBothKinds(t *testing.T) {
	all := specs(2)
	all[0].Role, all[1].Role = Both, Both
	p := NewPool(Config{})
	p.SetEndpoints(all)
	others := decoding(t, p, 8)
	for i := range 50 {
		l := pick(t, p, long(i), 0)
		if l.Prefill() == l.Endpoint() {
			t.Error("it has itself compute the prompt")
		}
		l.End(0, ClientGone)
	}
	for i := range others {
		others[i].End(0, Done)
	}
	idle(t, p.All(), 0)
}

// With another endpoint gone, prompts are computed where they decode.
func TestEjectedPrefillEndpointComputesNothing(t *testing.T) {
	p := rolePool(1, 1)
	decoding(t, p, 16)
	p.All()[1].Eject(0)
	if l := pick(t, p, long(1), 0); l.Prefill() != nil {
		t.Error("an endpoint that takes no connections is to compute a prompt")
	}
}

// The parts of a score tell what it is made of, by whoever computes the prompt.
func TestCostsOfAPromptComputedElsewhere(t *testing.T) {
	p := rolePool(2, 1)
	decoding(t, p, 8)
	var weighed []Candidate
	r := long(1)
	r.Candidates = &weighed
	l := pick(t, p, r, 0)
	if l.Prefill() == nil {
		t.Fatal("computed where it decodes: this test shows nothing")
	}
	for i := range weighed {
		c := p.Costs(&weighed[i])
		if sum := (c.Queue + c.Prompt + c.Adapter + c.Inflicted) * c.Pressure; sum != weighed[i].Score {
			t.Errorf("the parts add up to %v, the score is %v", sum, weighed[i].Score)
		}
	}
	if _, _, f := p.Why(weighed, l.Endpoint()); f == Nothing || f == ByPolicy {
		t.Errorf("decided by %v", f)
	}
}

// One that computes prompts for others and fails them all is ejected: those that it fails them for are not, whose other requests succeed.
func TestPrefillEndpointThatFailsIsEjected(t *testing.T) {
	p := rolePool(3, 1)
	broken := p.All()[3]
	others := decoding(t, p, 16)
	for i := range 3 * maxStrikes {
		now := time.Duration(i) * time.Millisecond
		l := pick(t, p, long(i), now)
		if l.Prefill() == nil {
			l.End(now, Done)
		} else {
			l.End(now, Failed)
		}
		short := pick(t, p, prompt(fmt.Sprint("short", i)), now)
		short.End(now, Done)
	}
	now := 3 * maxStrikes * time.Millisecond
	if !broken.Ejected(now) {
		t.Error("it computes prompts still")
	}
	for _, e := range p.Endpoints() {
		if e.Ejected(now) {
			t.Errorf("%s is ejected", e.Name())
		}
	}
	for i := range others {
		others[i].End(now, Done)
	}
	idle(t, p.All(), now)
}

// The sidecar that asks for a prompt passes on which engine is meant where it decodes: another would be asked for one that it has not.
func TestPromptIsComputedByTheLikeEngine(t *testing.T) {
	for _, c := range []struct {
		serve, prefill []string
		remote         bool
	}{
		{[]string{"0", "1"}, []string{"0", "1"}, true},
		{[]string{"0", "1"}, []string{"2", "3"}, false},
		{[]string{"0", "1"}, []string{""}, false},
		{[]string{""}, []string{"0", "1"}, false},
	} {
		var all []Spec
		for _, e := range c.serve {
			all = append(all, Spec{Address: "10.0.0.1:8000", Engine: e})
		}
		for _, e := range c.prefill {
			all = append(all, Spec{Address: "10.0.0.2:8000", Engine: e, Role: Prefill})
		}
		p := NewPool(Config{})
		p.SetEndpoints(all)
		decoding(t, p, 16)
		remote := false
		for i := range 20 {
			l := pick(t, p, long(i), 0)
			if l.Prefill() == nil {
				continue
			}
			remote = true
			if l.Prefill().Engine() != l.Endpoint().Engine() {
				t.Errorf("%q of %q: the prompt of %s is computed by %s", c.serve, c.prefill, l.Endpoint().Name(), l.Prefill().Name())
			}
		}
		if remote != c.remote {
			t.Errorf("%q, %q: computed elsewhere: %v", c.serve, c.prefill, remote)
		}
	}
}
