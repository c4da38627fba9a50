package picker

import (
	"math"
	"time"
)

const (
	// othersHorizon is how many requests, each counted once a scrape, the share of others remembers: some seconds of a busy pool.
	othersHorizon = 1 << 14
	// othersPrior is what the belief that there are none counts for.
	othersPrior = 32
	// maxOthers bounds how many requests others are taken to have for each of ours.
	maxOthers = 31

	// overMirror is how many times what others are taken to have sent since the scrape counts. At 1 replicas fill a gap that all of them
	// see a little too far, within one step of the engine; where answers are of one length these requests end in one step too, and leave
	// the gap anew, larger each time.
	overMirror = 3
	// coldPrior: how many tokens the prior (nothing is cached) counts for in the share of the tokens sent that had to be computed, and
	// coldHorizon how many the memory holds.
	coldPrior   = 1 << 12
	coldHorizon = 1 << 20

	// homeShare is the most that a prompt's home is forgiven of what no endpoint is known to hold.
	homeShare = 0.9
	// copyPlaces: what so many endpoints hold is common, such as a system prompt. What fewer hold is one's own, in at most two copies
	// as a rule: at home, and where a request went while home was busy.
	copyPlaces = 3
	// idleKV is the KV usage that an idle endpoint counts for in its share of homes; 0.1 does as well.
	idleKV = 0.02
	// usageMemory is how long the mean of an endpoint's KV usage remembers. It has to cover the pauses of the conversations that an
	// endpoint keeps, and to change little until other replicas have seen a new one: at 10 s agents lose some of their hits.
	usageMemory = 30 * time.Second
	// foundWorth: a home is forgiven all that it can be once an eighth of what was sent there was found. At 2 conversations lose
	// their homes, and where nothing is shared 8 costs nothing.
	foundWorth = 8
	// homeSlots is how many beginnings of prompts are told apart in what is found at homes. Two that meet in one share what they learn.
	homeSlots = 1024
	// homePrior and homeHorizon: how many requests the pool's mean counts for against a beginning's own, and how many it remembers.
	homePrior, homeHorizon = 4, 64
	// homePoolPrior and homePoolHorizon: the same of the belief that all is found, against the pool's mean.
	homePoolPrior, homePoolHorizon = 8, 256
)

// others is what is known of the replicas that share the pool's endpoints and tell us nothing.
type others struct {
	told  int              // replicas, ours included; 0: to be learned
	share ratio            // of the requests that scrapes see, those that are not ours
	cold  ratio            // of the tokens that we send, those that have to be computed
	found ratio            // of the prompts sent to their homes, those that another replica had sent there
	homes [homeSlots]ratio // the same by what was known of the prompt
}

// learn counts what a scrape has seen, and how many of these requests are ours: more of them than it has seen if they are on their
// way, so that one scrape may say less than nothing of others.
func (o *others) learn(seen, own float64) {
	if seen > 0 {
		o.share.add(max(seen-own, -seen), seen, othersHorizon)
	}
}

// perOwn is how many requests others have on the pool for each of ours.
func (o *others) perOwn() float64 {
	if o.told > 0 {
		return float64(min(o.told-1, maxOthers))
	}
	share := max(o.share.mean(0, othersPrior), 0)
	return min(share/max(1-share, 1e-9), maxOthers)
}

// mirrored is how many times what we have sent to an endpoint since its last scrape others are taken to have sent there. They do as we do
// where load decides; where a cache does, it decides otherwise for their prompts.
func (o *others) mirrored() float64 {
	return overMirror * o.perOwn() * o.cold.mean(1, coldPrior)
}

// forgive finds the prompt's home, and forgives it what it is taken to hold though we do not know of it: what any endpoint is known to
// hold, since whoever was sent elsewhere comes back, and a share of the rest, which others may have sent there. A home that is known to
// hold as much as any needs nothing forgiven.
//
// A prompt's home is drawn by the first chunk that is not common, whatever else we have seen of it, so that all replicas find the same
// one for all of a conversation.
func (o *others) forgive(c []Candidate, r *Request, deepest, common int) {
	worth := o.homeWorth(frontier(r.Chain, common))
	if worth <= 0 {
		return
	}
	home := &c[homeOf(c, nextChunk(r, common))]
	if home.Depth == deepest && deepest > common {
		return
	}
	most := 0.0
	for i := range c {
		most = max(most, c[i].Hit)
	}
	unknown := home.Hit + home.Uncached - most
	home.Home = true
	home.Forgiven = min(worth*(home.Uncached-(1-homeShare)*unknown), home.Uncached-1)
}

// homeOf returns the candidate that is a key's home: the nearest, by a distance drawn by lot that is the larger the more of its KV cache
// an endpoint has had in use. So conversations that are too few to be spread evenly by lot alone are spread by what they take. All
// replicas scrape the same gauges: they disagree about few homes, as few as move when an endpoint's usage changes a little.
func homeOf(c []Candidate, key uint64) int {
	home, least := 0, math.Inf(1)
	for i := range c {
		e := c[i].Endpoint
		if d := float64(^e.Rank(key)) * e.view.Load().remoteness; d < least {
			home, least = i, d
		}
	}
	return home
}

// learnHome counts a prompt that was sent to its home: whether more than half of what we took to be cold was there. known is the last
// chunk that is common.
func (o *others) learnHome(known uint64, found bool) {
	n := 0.0
	if found {
		n = 1
	}
	o.found.add(n, 1, homePoolHorizon)
	o.homes[known%homeSlots].add(n, 1, homeHorizon)
}

// homeWorth is how far a home is believed in, 0 to 1: what others have sent there is a hit that we cannot see. Nothing is
// found by who comes first, nor where a home was too busy for it; so little found is reason enough.
func (o *others) homeWorth(known uint64) float64 {
	found := o.homes[known%homeSlots].mean(o.found.mean(1, homePoolPrior), homePrior)
	return min(1, foundWorth*found, o.perOwn())
}
