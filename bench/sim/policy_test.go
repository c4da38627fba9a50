package sim

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/picker/prefix"
)

// bench is a router and what it is asked.
type bench struct {
	t *testing.T
	router
	n uint64
}

func newBench(t *testing.T, name string, pods ...int) *bench {
	t.Helper()
	p, err := policyNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &simulation{cfg: Config{Replicas: 1, NoQueue: true}}
	for range 8 {
		s.pods = append(s.pods, &pod{engine: engine.New(profile("llama3-8b-h100"))})
	}
	r := p.new(s, rand.New(rand.NewPCG(1, 1)))
	r.setPods(pods)
	return &bench{t: t, router: r}
}

// ask sends a prompt of 20 chunks, the first of which are those of a group.
func (b *bench) ask(session, group uint64, shared int) *request {
	b.n++
	r := &request{session: session, bytes: 20 * 256, stream: true, limit: 10, digest: b.n}
	for i := range uint64(20) {
		h := group<<32 | i + 1
		if int(i) >= shared {
			h = b.n<<16 | i + 1<<60
		}
		r.chain = append(r.chain, prefix.Link(h, 0))
	}
	r.pod = int32(b.pick(r, time.Duration(b.n)*time.Second))
	return r
}

func (b *bench) finish(r *request) {
	b.first(r, time.Duration(b.n)*time.Second)
	b.end(r, time.Duration(b.n)*time.Second)
}

// Each policy uses every pod for traffic that has nothing in common, and only pods in service.
func TestPoliciesSpread(t *testing.T) {
	for _, name := range Policies() {
		b := newBench(t, name, 0, 1, 2, 3)
		count := map[int32]int{}
		for i := range uint64(400) {
			count[b.ask(i, i, 0).pod]++
		}
		for pod := range int32(4) {
			if count[pod] < 40 {
				t.Errorf("%s: pod %d got %d of 400 requests: %v", name, pod, count[pod], count)
			}
		}
		b.setPods([]int{1, 3})
		for i := range uint64(50) {
			if r := b.ask(i, i, 0); r.pod != 1 && r.pod != 3 {
				t.Fatalf("%s: sent to pod %d, which is not in service", name, r.pod)
			}
		}
	}
}

// Those that know prefixes send a prompt to where its prefix is, while there is little load.
func TestPoliciesThatKnowPrefixes(t *testing.T) {
	for _, name := range []string{"fairway", "epp-default", "epp-affinity", "chwbl", "cache-tree"} {
		b := newBench(t, name, 0, 1, 2, 3, 4, 5, 6, 7)
		home := map[uint64]int32{}
		for i := range uint64(200) {
			group := i % 20
			r := b.ask(i, group, 18)
			if pod, ok := home[group]; ok && pod != r.pod {
				t.Errorf("%s: group %d went to pod %d and %d", name, group, pod, r.pod)
			}
			home[group] = r.pod
			b.finish(r)
		}
	}
}

func TestSessionHashMovesOnlySessionsOfPodsThatLeave(t *testing.T) {
	b := newBench(t, "session-hash", 0, 1, 2, 3)
	was := map[uint64]int32{}
	for i := range uint64(200) {
		was[i] = b.ask(i, 0, 0).pod
	}
	b.setPods([]int{0, 1, 3})
	for i := range uint64(200) {
		if r := b.ask(i, 0, 0); r.pod != was[i] && was[i] != 2 {
			t.Fatalf("session %d went from pod %d to %d although only 2 left", i, was[i], r.pod)
		}
	}
}

// The bound: no pod has more than 125 % of the mean, counting the new request.
func TestCHWBLBoundsLoad(t *testing.T) {
	b := newBench(t, "chwbl", 0, 1, 2, 3, 4)
	count := [5]int{}
	for i := range 400 {
		count[b.ask(0, 7, 20).pod]++ // one prefix only
		if most := slices.Max(count[:]); i > 20 && float64(most) > 1.25*float64(i+1)/5+1e-9 {
			t.Fatalf("after %d requests a pod has %d", i+1, most)
		}
	}
}

func TestCacheTreeTakesTheShortestQueueWhenUnbalanced(t *testing.T) {
	b := newBench(t, "cache-tree", 0, 1)
	home := b.ask(0, 1, 20).pod
	for range 64 {
		if pod := b.ask(0, 1, 20).pod; pod != home {
			t.Fatalf("left its prefix while the loads differ by no more than %d", treeBalanceAbs)
		}
	}
	if pod := b.ask(0, 1, 20).pod; pod == home {
		t.Errorf("stayed where %d more requests are", treeBalanceAbs+1)
	}
}

// What 3 for the prefix is worth against 2 for the queue and 2 for the KV cache.
func TestEPPDefaultWeighs(t *testing.T) {
	for _, c := range []struct {
		name    string
		waiting int
		kv      float64
		stays   bool
	}{
		{"idle", 0, 0, true}, {"longest queue", 9, 0, true}, {"full cache", 0, 1, true}, {"both", 9, 0.6, false},
	} {
		b := newBench(t, "epp-default", 0, 1)
		home := b.ask(0, 1, 20).pod
		b.observe(int(home), &engine.Stats{Waiting: c.waiting, KVUsage: c.kv}, 0)
		if pod := b.ask(0, 1, 20).pod; (pod == home) != c.stays {
			t.Errorf("%s: stays %t", c.name, !c.stays)
		}
	}
}

// A pod matches the blocks it has, also without those before them; a block that no pod has ends it.
func TestEPPIndexForgetsHeadsFirst(t *testing.T) {
	x := eppIndex{remembers{most: 4}}
	x.sent(0, []uint64{1, 2, 3, 4})
	x.sent(0, []uint64{9}) // 1 is forgotten, the head
	x.sent(1, []uint64{1})
	var blocks [maxPods]int
	x.match([]int{0, 1}, []uint64{1, 2, 3, 5, 4}, &blocks)
	if blocks[0] != 2 || blocks[1] != 1 {
		t.Errorf("matches %v", blocks[:2])
	}
	x.match([]int{0}, []uint64{1, 2, 3}, &blocks)
	if blocks[0] != 0 {
		t.Errorf("without the head: %d", blocks[0])
	}
}

func TestEPPAffinityLeavesASaturatedPod(t *testing.T) {
	for _, c := range []struct {
		stats engine.Stats
		stays bool
	}{{engine.Stats{Waiting: 5, KVUsage: 0.8}, true}, {engine.Stats{Waiting: 6}, false}, {engine.Stats{KVUsage: 0.9}, false}} {
		b := newBench(t, "epp-affinity", 0, 1)
		home := b.ask(0, 1, 20).pod
		b.observe(int(home), &c.stats, 0)
		if pod := b.ask(0, 1, 20).pod; (pod == home) != c.stays {
			t.Errorf("%+v: stays %t", c.stats, !c.stays)
		}
	}
}

// The oracle knows what nobody told it.
func TestOracleSeesCaches(t *testing.T) {
	b := newBench(t, "oracle", 0, 1, 2, 3)
	o := b.router.(*oracle)
	hashes := []engine.BlockHash{1, 2, 3, 4}
	e := o.sim.pods[2].engine
	if err := e.Submit(&engine.Sequence{PromptTokens: 64, OutputTokens: 1, Hashes: hashes}, 0); err != nil {
		t.Fatal(err)
	}
	for {
		if _, ok := e.Plan(0); !ok {
			break
		}
		e.Commit()
	}
	for range 20 {
		r := &request{seq: engine.Sequence{PromptTokens: 65, Hashes: hashes}}
		if pod := b.pick(r, 0); pod != 2 {
			t.Fatalf("picked pod %d, the prompt is on 2", pod)
		}
	}
}

func TestAgenda(t *testing.T) {
	var a agenda
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		a.add(event{at: time.Duration(rng.IntN(50))})
	}
	last := event{at: -1}
	for range 1000 {
		e := a.next()
		if !last.before(&e) {
			t.Fatalf("%v %d after %v %d", e.at, e.order, last.at, last.order)
		}
		last = e
	}
}
