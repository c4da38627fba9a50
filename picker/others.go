package picker

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

	// homeShare is the most that a cold prompt's home is forgiven of what it would compute.
	homeShare = 0.9
	// homeWorth: a home is forgiven all that it can be once an eighth of what was sent there was found. At 2 conversations lose
	// their homes, and where nothing is shared 8 costs nothing.
	homeWorth = 8
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

// learnHome counts a prompt that was sent to its home: whether more than half of what we took to be cold was there. known is the last
// chunk of which we knew.
func (o *others) learnHome(known uint64, found bool) {
	n := 0.0
	if found {
		n = 1
	}
	o.found.add(n, 1, homePoolHorizon)
	o.homes[known%homeSlots].add(n, 1, homeHorizon)
}

// forgiven is the share of a cold prompt that its home is forgiven: what others have sent there is a hit that we cannot see. Nothing is
// found by who comes first, nor where a home was too busy for it; so little found is reason enough.
func (o *others) forgiven(known uint64) float64 {
	found := o.homes[known%homeSlots].mean(o.found.mean(1, homePoolPrior), homePrior)
	return homeShare * min(1, homeWorth*found, o.perOwn())
}
