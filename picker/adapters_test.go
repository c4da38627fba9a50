package picker

import (
	"fmt"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

func key(name string) uint64 { return prefix.Seed(name) }

func running(max float64, names ...string) Sample {
	s := sample(known{MaxLoras: max, Running: float64(len(names))})
	for _, n := range names {
		s.AddAdapter([]byte(n))
	}
	return s
}

// An endpoint has the adapters that it runs, and those it ran last while they fit; another one waits while all are in use.
func TestAdapterCost(t *testing.T) {
	var a adapters
	want := func(name string, cost float64) {
		t.Helper()
		if got := a.cost(key(name), 2, 0); got != cost {
			t.Errorf("%s costs %v, want %v", name, got, cost)
		}
	}
	want("a", adapterTokens)
	s := a.acquire(key("a"), 1)
	want("a", 0)
	want("b", adapterTokens)
	b := a.acquire(key("b"), 2)
	want("a", 0)
	want("c", adapterWait)
	a.release(s)
	want("a", 0)
	want("c", adapterTokens)
	a.release(a.acquire(key("c"), 3))
	want("a", adapterTokens) // b and c have the two slots
	want("b", 0)
	want("c", 0)
	a.release(b)
	want("d", adapterTokens)
}

// What others run counts as of the last scrape; which models are adapters is learned from it.
func TestAdaptersOfOthers(t *testing.T) {
	p := newTestPool(2, Config{})
	e := p.Endpoints()
	ask := func(model string) [2]float64 {
		c := p.Explain(nil, &Request{Model: model, Bytes: 4000, Stream: true}, time.Second)
		return [2]float64{c[0].Adapter, c[1].Adapter}
	}
	if got := ask("a"); got != [2]float64{} {
		t.Errorf("before any scrape: %v", got)
	}
	e[0].Observe(running(1, "a"), time.Second)
	e[1].Observe(running(1, "b"), time.Second)
	if got := ask("a"); got != [2]float64{0, adapterWait} {
		t.Errorf("a: %v", got)
	}
	if got := ask("base"); got != [2]float64{} {
		t.Errorf("the base model: %v", got)
	}
	e[1].Observe(running(1), time.Second+time.Millisecond)
	if got := ask("a"); got != [2]float64{0, adapterTokens} {
		t.Errorf("a, once b has ended: %v", got)
	}
	e[0].restarted(defaultCapacity)
	e[0].Observe(running(1), time.Second+2*time.Millisecond)
	if got := ask("a"); got != [2]float64{adapterTokens, adapterTokens} {
		t.Errorf("a, after a restart: %v", got)
	}
	var without Sample
	e[0].Observe(without, 10*time.Second)
	l, err := p.Pick(&Request{Model: "a", Bytes: 4000, Stream: true}, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	l.End(11*time.Second, Done)
	idle(t, e, 11*time.Second)
}

// Names that strangers send do not make the tables grow.
func TestAdaptersAreBounded(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	var held []int
	for i := range maxAdapters + 100 {
		s := running(4, fmt.Sprint(i))
		e.Observe(s, time.Duration(i))
		if i < 2*adapterSlots {
			held = append(held, e.adapters.acquire(key(fmt.Sprint(i)), time.Duration(i)))
		}
	}
	if n := len(*p.adapters.Load()); n != maxAdapters {
		t.Errorf("%d adapters known, want %d", n, maxAdapters)
	}
	for _, s := range held {
		e.adapters.release(s)
	}
	for i := range e.adapters.slots {
		if n := e.adapters.slots[i].users.Load(); n != 0 {
			t.Errorf("slot %d has %d users", i, n)
		}
	}
}
