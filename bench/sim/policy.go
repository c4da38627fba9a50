package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// maxPods bounds how many pods a run may ever have, so that a set of them is a word of bits.
const maxPods = 64

// A router is one replica of a proxy under one policy. Pods are known by the order in which they came.
type router interface {
	setPods(live []int)                                        // these are in service from now on; the slice is to be kept as it is
	pick(r *request, now time.Duration) int                    // the pod to send r to, which is then sent; or waits, or refused
	first(r *request, now time.Duration)                       // r's first token has come; streams only
	end(r *request, now time.Duration)                         // r's answer is complete
	observe(pod int, scraped *engine.Stats, now time.Duration) // what a scrape has found; nothing of it may be kept by reference
}

// What a router may say instead of a pod.
const (
	waits   = -1 // the router sends it later, or refuses it
	refused = -2
)

// policy is a named way to route.
type policy struct {
	name, about string
	scrape      time.Duration // between scrapes of a pod; 0: it needs none
	new         func(*simulation, *rand.Rand) router
}

// policies are all there are.
var policies = []policy{
	{"fairway", "package picker as it ships", 100 * time.Millisecond, newFairway},
	{"epp-default", "our reading of the llm-d endpoint picker's default: queue 2, KV cache 2, prefix 3", 50 * time.Millisecond, newEPPDefault},
	{"epp-affinity", "our reading of the llm-d endpoint picker's newer guides: stick to a warm pod until it is saturated", 50 * time.Millisecond, newEPPAffinity},
	{"chwbl", "our reading of KubeAI's consistent hashing with bounded loads over the prompt's first characters", 0, newCHWBL},
	{"cache-tree", "our reading of cache_aware of the SGLang and vLLM routers", 0, newCacheTree},
	{"session-hash", "rendezvous hashing of the session", 0, newSessionHash},
	{"least-request", "package picker with the fewest requests in flight", 100 * time.Millisecond, newLeastRequest},
	{"p2c", "of two pods drawn by lot the one with fewer requests in flight", 0, newP2C},
	{"round-robin", "package picker taking pods in turn", 0, newRoundRobin},
	{"random", "by lot", 0, newRandom},
	{"cheapest", "of the pods that meet the SLO by the engines' true state, the cheapest", 0, newCheapest},
	{"oracle", "Fairway's score on the engines' true state", 0, newOracle},
}

// Policies are the names of the policies there are.
func Policies() []string {
	names := make([]string, len(policies))
	for i, p := range policies {
		names[i] = p.name
	}
	return names
}

// AboutPolicy says in a few words what a policy is.
func AboutPolicy(name string) string {
	p, err := policyNamed(name)
	if err != nil {
		return ""
	}
	return p.about
}

func policyNamed(name string) (policy, error) {
	i := slices.IndexFunc(policies, func(p policy) bool { return p.name == name })
	if i < 0 {
		return policy{}, fmt.Errorf("there is no policy %q; there are %s", name, strings.Join(Policies(), ", "))
	}
	return policies[i], nil
}

// ledger is what a router without metrics knows: which pods are in service, and its own requests on each. Policies embed it.
type ledger struct {
	live     []int
	inflight [maxPods]int
	total    int
}

func (l *ledger) setPods(live []int)                        { l.live = live }
func (l *ledger) first(*request, time.Duration)             {}
func (l *ledger) observe(int, *engine.Stats, time.Duration) {}
func (l *ledger) end(r *request, _ time.Duration)           { l.inflight[r.pod]--; l.total-- }
func (l *ledger) send(pod int) int                          { l.inflight[pod]++; l.total++; return pod }

// lowest is the pod in service with the lowest value; among equals the lot decides.
func (l *ledger) lowest(rng *rand.Rand, value func(pod int) float64) int {
	best, least, equals := -1, 0.0, 0
	for _, p := range l.live {
		switch v := value(p); {
		case best < 0 || v < least:
			best, least, equals = p, v, 1
		case v == least:
			if equals++; rng.IntN(equals) == 0 {
				best = p
			}
		}
	}
	return best
}

// load is the number of the router's own requests on a pod.
func (l *ledger) load(pod int) float64 { return float64(l.inflight[pod]) }
