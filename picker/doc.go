// Package picker chooses the pod that will serve a request best: the one whose queue plus this prompt's uncached part is
// shortest, counting a tenth of the delay inflicted on each request already there, all of it dearer as the pod's KV cache
// fills.
//
//	         s · ( Q + w + c·u + 0.1·n·(w + 2000) )
//	score =  ──────────────────────────────────────        w = u + a        the lowest wins; of scores within 0.1·s·u of it,
//	                       1 − 0.8·kv                                       the prompt's hash decides
//
//	s   s/token   seconds a prompt token, learned from first tokens of 512 uncached tokens or more, and
//	              not from those that come while more than 0.9 of the KV cache is in use;
//	              prior: the pool's mean, worth 65,536 tokens; forgotten when first tokens keep coming at other
//	              times than predicted
//	Q   tokens    uncached tokens sent to the pod whose first token has not come (answers that do not stream: until it was
//	              predicted to); plus those of others' requests that the last scrape saw waiting
//	u   tokens    of this prompt that the pod has to compute: tokens − hit, at least 1
//	hit tokens    in the longest prefix of the prompt that is alive in the pod's index (package prefix)
//	a   tokens    that bringing the request's LoRA adapter to the GPU costs: 0 if it is there, 4,000 if there is room or one that
//	              nobody uses, 32,000 if it has to wait until one is not in use any more
//	c             200 times the share of tokens that pods compute though they held them once, or though another pod holds them and
//	              no request uses them there, at most 16: where caches have no room for copies, each pushes out what is needed
//	n   requests  on the pod: ours in flight, and others' as of the last scrape
//	kv  0..1      of the KV cache in use: scraped, plus what our uncached tokens in flight have grown by since, over the
//	              capacity; without metrics: our own uncached tokens in flight over the capacity
//
//	a chunk is alive  ⇔  a request in flight uses it, or V − stamp < capacity·(1 − kv)
//	V   tokens    allocation clock: prompt tokens computed and tokens generated, from the pod's counters, else from our own
//	              usage reports
//
// Replicas that share a pool tell each other nothing, and nobody has to say how many there are: the requests that scrapes see and
// that are not ours tell how many others have for each of ours. Between scrapes they are taken to do as we do: what we have
// sent since the last one enters Q, n and kv three times more for each of theirs, without which all replicas send everything to
// the pod that looked best in the same scrape, or fill a gap there too far. Only load is seen by all alike: of that counts the share
// of our prompts' tokens that had to be computed, since where a cache decides, it decides otherwise for others' prompts.
//
// So that they build the same caches, each prompt has a home, by rendezvous hashing on the first chunk that fewer than three pods hold:
// the same for all of a conversation, whatever a replica has seen of it. Pods are the farther from each key, by the square root, the
// more of their KV cache has been in use in the last half minute. A home is taken to hold what any pod is known to hold, so that what
// was sent elsewhere comes back, and 0.9 of the rest; less if fewer than one in eight of the prompts sent to their homes proved to be
// there, learned for each beginning of prompts. Where nobody sends a prompt again there are soon no homes.
//
// Which LoRA adapters a pod has on its GPU follows from our own requests, and from the newest series of
// vllm:lora_requests_info, which lists those in use; it also tells which models are adapters at all.
//
// Endpoints may have roles, as llm-d gives them: some compute prompts for others (prefill) and are never picked themselves. For a
// request that leaves RemotePrefill tokens or more to compute, the endpoint of that kind that would have the prompt computed
// soonest, by s·(Q + u), is chosen first, and each candidate's score is the lower of the one above and
//
//	        s'·(Q' + u') + s·(a + 0.1·n·2000)
//	score =  ─────────────────────────────────        ' of the endpoint that computes the prompt
//	                  1 − 0.8·kv
//
// so that a prompt is computed elsewhere where the delay it would inflict on the requests decoding there is more than what it
// takes longer. What a transfer of the cache takes is learned as part of s'.
//
// For each endpoint the time to the first token and that of each token after it are predicted, in forecast.go, by what the terms say when
// it is chosen; of Q counts there what has not been computed since the last first token. If a request has an SLO, the endpoints that are predicted to keep it are in the running; where they differ in what a
// second of them costs, of these the cheapest for the request, by cost·s·(m + 0.3·(u − m) + a + 2000) / (1 − 0.8·kv), m the least u of all, and those within a
// tenth of it. The lowest score decides among those. If none
// is, a priority below 0 is refused, and all are in the running for others. A request without an SLO finds the score multiplied by the
// cost. Without SLOs and costs, predictions decide nothing.
//
// What is believed is corrected by what comes back: bytes a token for each model, the capacity and the worth of the index
// by the cached tokens reported in answers, or else by the pod's hit counters. Without metrics, or with stale or absurd
// ones, our own counts stand alone; no scrape takes a pod out. Refused connections do, for 1 s, doubling to 30 s. A pod that for a
// second has answered nothing at all, neither a scrape, nor a question for its health, nor a request, is passed over until it
// answers anything, unless all are so; likewise one that for ten seconds says that it computes and has computed nothing.
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
