package picker

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

func TestOthersPerOwn(t *testing.T) {
	for _, tt := range []struct {
		name      string
		seen, own []float64
		want      float64
	}{
		{"nothing seen", nil, nil, 0},
		{"alone, some on their way and some not yet noticed", []float64{9, 12}, []float64{11, 10}, 0},
		{"two others", []float64{30}, []float64{10}, 2},
		{"no requests of ours", []float64{100}, []float64{0}, maxOthers},
		{"only ours on their way", []float64{0, 1}, []float64{5, 50}, 0},
	} {
		var o others
		for range 10_000 {
			for i := range tt.seen {
				o.learn(tt.seen[i], tt.own[i])
			}
		}
		if got := o.perOwn(); math.Abs(got-tt.want) > .02*tt.want+.01 {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestOthersTold(t *testing.T) {
	for replicas, want := range map[int]float64{1: 0, 3: 2, 1000: maxOthers} {
		p := NewPool(Config{Replicas: replicas})
		p.others.learn(100, 50)
		if got := p.others.perOwn(); got != want {
			t.Errorf("%d replicas: %v others for each, want %v", replicas, got, want)
		}
	}
}

// Others are taken to do as we do, as far as it is load that decides what we do.
func TestMirroredAsFarAsNothingIsCached(t *testing.T) {
	var o others
	for range 10_000 {
		o.learn(30, 10)
	}
	if got := o.mirrored(); math.Abs(got-2*overMirror) > .1 {
		t.Errorf("at first: %v, want %v", got, 2*overMirror)
	}
	for range 10_000 {
		o.cold.add(500, 5000, coldHorizon)
	}
	if got := o.mirrored(); math.Abs(got-.2*overMirror) > .1 {
		t.Errorf("with a tenth to be computed: %v, want %v", got, .2*overMirror)
	}
	o.told = 1
	if got := o.mirrored(); got != 0 {
		t.Errorf("alone: %v", got)
	}
}

// Homes are believed in until they prove to be empty, each beginning of prompts for itself; and there are none without others.
func TestHomesAreLearned(t *testing.T) {
	p := NewPool(Config{})
	o := &p.others
	if got := o.homeWorth(1); got != 0 {
		t.Errorf("alone: %v forgiven", got)
	}
	withOthers(p, 2)
	if got := o.homeWorth(1); got < .8 {
		t.Errorf("at first: %v forgiven", got)
	}
	for range 500 {
		o.learnHome(1, false)
		o.learnHome(2, true)
	}
	if a, b := o.homeWorth(1), o.homeWorth(2); a > .3 || b < .8 {
		t.Errorf("%v forgiven where nothing is found, %v where all is", a, b)
	}
	for range 500 {
		o.learnHome(1, true)
	}
	if got := o.homeWorth(1); got < .8 {
		t.Errorf("%v forgiven where all has come to be found", got)
	}
}

// conversation is the request of a turn whose prompt has n chunks, of which the first 20 are the same in all conversations.
func conversation(id uint64, n int) *Request {
	r := &Request{Hash: id, Bytes: n * prefix.ChunkSize, Stream: true, Chain: make([]uint64, n)}
	for i := range r.Chain {
		r.Chain[i] = uint64(i + 1)
		if i >= 20 {
			r.Chain[i] |= id << 32
		}
	}
	return r
}

// sent has the endpoint know a request as one that was served there.
func sent(e *Endpoint, r *Request) {
	l := e.pool.Reserve(e, r, 0)
	l.FirstToken(0)
	l.End(0, Done)
}

// A replica that knows of a conversation where it went while its home was busy, and one that has not seen it, both send it home.
func TestConversationsComeHome(t *testing.T) {
	knows, stranger := withOthers(newTestPool(8, Config{}), 2), withOthers(newTestPool(8, Config{}), 2)
	for _, p := range []*Pool{knows, stranger} {
		for _, e := range p.Endpoints() {
			sent(e, conversation(0, 20))
		}
	}
	away := 0
	for id := range uint64(100) {
		first, later := conversation(id+1, 50), conversation(id+1, 60)
		l := pick(t, stranger, later, 0)
		home := l.Endpoint().Address()
		l.End(0, NeverSent)
		was := knows.Endpoints()[id%8]
		sent(was, first)
		if was.Address() != home {
			away++
		}
		l = pick(t, knows, later, 0)
		if got := l.Endpoint().Address(); got != home {
			t.Errorf("conversation %d was sent to %s once: now it is sent to %s, by others to %s", id, was.Address(), got, home)
		}
		l.End(0, NeverSent)
	}
	if away < 50 {
		t.Errorf("only %d conversations were away", away)
	}
}

// Endpoints whose caches have been in use get fewer homes, those that say nothing do not get more, and replicas whose scrapes are not of
// the same moments agree about nearly all.
func TestHomesSpreadByUsage(t *testing.T) {
	homes := func(usage ...float64) (count []int, of []int) {
		p := newTestPool(len(usage), Config{})
		var c []Candidate
		for i, e := range p.Endpoints() {
			c = append(c, Candidate{Endpoint: e})
			for s := range 300 {
				var sample Sample
				if usage[i] >= 0 {
					sample.Set(KVUsage, usage[i])
				}
				e.Observe(sample, time.Duration(s)*time.Second)
			}
		}
		count = make([]int, len(usage))
		for key := range uint64(8000) {
			h := homeOf(c, prefix.Link(key, 1))
			count[h]++
			of = append(of, h)
		}
		return count, of
	}
	even, first := homes(.4, .4, .4, .4, .4, .4, .4, .4)
	for i, n := range even {
		if n < 800 || n > 1200 {
			t.Errorf("endpoint %d of eight that are alike is home to %d of 8000", i, n)
		}
	}
	full, _ := homes(.9, .4, .4, .4, .4, .4, .4, .4)
	if n := full[0]; n < 500 || n > 750 {
		t.Errorf("one that is fuller is home to %d of 8000, want some two thirds of the others' 1000", n)
	}
	mute, _ := homes(-1, .4, .4, .4, .4, .4, .4, .4)
	if n := mute[0]; n > 750 {
		t.Errorf("one that does not tell its usage is home to %d of 8000", n)
	}
	if blind, _ := homes(-1, -1, -1, -1); slices.Min(blind) < 1800 || slices.Max(blind) > 2200 {
		t.Errorf("four that tell nothing are home to %v of 8000", blind)
	}
	_, other := homes(.42, .38, .41, .4, .39, .4, .42, .38)
	moved := 0
	for i := range first {
		if first[i] != other[i] {
			moved++
		}
	}
	if moved > 300 {
		t.Errorf("usage that differs by a twentieth moves %d homes of 8000", moved)
	}
}
