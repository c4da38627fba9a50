// Package picker chooses the pod that will serve a request best: the one whose queue plus this prompt's uncached part is
// shortest, counting a tenth of the delay inflicted on each request already there, all of it dearer as the pod's KV cache
// fills.
//
//	         s · ( Q + u + 0.1·n·(u + 2000) )
//	score =  ────────────────────────────────        the lowest wins; within 5 %, the prompt's hash decides
//	                 1 − 0.8·kv
//
//	s   s/token   seconds a prompt token, learned from first tokens of 512 uncached tokens or more;
//	              prior: the pool's mean, worth 65,536 tokens
//	Q   tokens    uncached tokens sent to the pod whose first token has not come (answers that do not stream: until it was
//	              predicted to); plus those of others' requests that the last scrape saw waiting
//	u   tokens    of this prompt that the pod has to compute: tokens − hit, at least 1
//	hit tokens    in the longest prefix of the prompt that is alive in the pod's index (package prefix)
//	n   requests  on the pod: ours in flight, and others' as of the last scrape
//	kv  0..1      of the KV cache in use: scraped, plus uncached tokens sent since over the capacity;
//	              without metrics: our own uncached tokens in flight over the capacity
//
//	a chunk is alive  ⇔  a request in flight uses it, or V − stamp < capacity·(1 − kv)
//	V   tokens    allocation clock: prompt tokens computed and tokens generated, from the pod's counters, else from our own
//	              usage reports
//
// Replicas that share a pool tell each other nothing. What the others do is seen in the scrapes; and so that they build the
// same caches, each prompt has a home, by rendezvous hashing on the first chunk that no pod holds, which is forgiven 0.8 of
// the prompt's uncached part.
//
// What is believed is corrected by what comes back: bytes a token for each model, the capacity and the worth of the index
// by the cached tokens reported in answers, or else by the pod's hit counters. Without metrics, or with stale or absurd
// ones, our own counts stand alone; no scrape takes a pod out. Refused connections do, for 1 s, doubling to 30 s.
//
// # Path
//
//	Pool.SetEndpoints ─► immutable set ─┐            Endpoint.Observe(Sample) ─► immutable view of the last scrape
//	                                    ▼                                              │
//	Request ─► Pool.Pick:  weigh each endpoint ◄── atomics of our own work, index ◄────┘
//	                       Policy.Choose ─► reserve: Q, n, pins ─► Lease
//	Lease:   FirstToken (leaves Q, teaches s) ─► Usage ─► End (gives everything back, teaches the rest) exactly once
//
// # What guards what
//
// Weighing takes no lock: the set and the scrapes are immutable behind atomic pointers, our own work and everything learned
// are atomics, the index is read without waiting. The terms of one endpoint may therefore be microseconds apart. To reserve
// is to compare-and-swap the queue that was weighed: two picks at the same instant see each other, and after four lost
// races the choice stands as it is. Pins take the mutex of that endpoint's index, answers that do not stream that of the
// endpoint, both for microseconds.
//
// Nothing here reads a clock: now is monotonic time since any fixed origin, an argument, so that a proxy in real time and a
// simulation in virtual time run the same code. Picking and ending a lease allocate nothing.
package picker
