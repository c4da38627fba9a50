package picker

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// adapterSlots is how many LoRA adapters an endpoint remembers: vLLM's max_loras is seldom above 16.
	adapterSlots = 32
	// maxAdapters bounds how many adapters a pool knows by name.
	maxAdapters = 4096

	// adapterTokens is what bringing an adapter to the GPU costs, in prompt tokens: 100 ms of an H100 with an 8B model, all of the
	// pod's requests waiting. No solid figure is published.
	adapterTokens = 4000
	// adapterWait is what a request costs whose adapter has to wait until the pod is done with another: 0.8 s of the same GPU. Half
	// and twice as much do as well.
	adapterWait = 32000
)

// adapters are the LoRA adapters that an endpoint was seen to use, or was sent requests for. vLLM keeps max_loras of them on the
// GPU, drops the one used longest ago, and lets requests for yet another wait while all are in use
// (vllm/lora/worker_manager.py, vllm/v1/core/sched/scheduler.py).
//
// Readers take no lock; who changes which adapter a slot is of holds mu.
type adapters struct {
	mu    sync.Mutex
	slots [adapterSlots]adapterSlot
}

type adapterSlot struct {
	key   atomic.Uint64 // hash of the adapter's name; 0: free
	users atomic.Int32  // our own requests in flight
	seen  atomic.Int64  // time of the last scrape that saw it running
	used  atomic.Int64  // time of our last request, or of the last scrape that saw it running
}

// cost is what a request for an adapter costs the endpoint beyond its prompt, in prompt tokens. max is how many adapters fit the
// GPU; scraped is the time of the last scrape.
func (a *adapters) cost(key uint64, max int, scraped int64) float64 {
	own, ownUsed, ownBusy := -1, int64(math.MinInt64), false
	for i := range a.slots {
		if s := &a.slots[i]; s.key.Load() == key {
			own, ownUsed, ownBusy = i, s.used.Load(), s.busy(scraped)
			break
		}
	}
	busy, later := 0, 0
	for i := range a.slots {
		s := &a.slots[i]
		if i == own || s.key.Load() == 0 {
			continue
		}
		switch {
		case s.busy(scraped):
			busy++
			later++
		case s.used.Load() > ownUsed:
			later++
		}
	}
	switch {
	case ownBusy:
		return 0
	case busy >= max:
		return adapterWait
	case own >= 0 && later < max:
		return 0
	}
	return adapterTokens
}

// busy says that the adapter is in use: by us, or by others when last scraped.
func (s *adapterSlot) busy(scraped int64) bool {
	return s.users.Load() > 0 || s.seen.Load() == scraped && scraped != 0
}

// acquire counts a request of ours, and returns its slot; −1: there is none to spare.
func (a *adapters) acquire(key uint64, now time.Duration) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := a.slot(key)
	if i >= 0 {
		a.slots[i].users.Add(1)
		a.slots[i].used.Store(int64(now))
	}
	return i
}

func (a *adapters) release(slot int) {
	if slot >= 0 {
		a.slots[slot].users.Add(-1)
	}
}

// reset forgets what a new process does not have: only what is in flight is taken to be there.
func (a *adapters) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.slots {
		if s := &a.slots[i]; s.users.Load() == 0 {
			s.key.Store(0)
		}
	}
}

// observe notes which adapters a scrape saw running.
func (a *adapters) observe(keys []uint64, now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range keys {
		if i := a.slot(key); i >= 0 {
			a.slots[i].seen.Store(int64(now))
			a.slots[i].used.Store(max(a.slots[i].used.Load(), int64(now)))
		}
	}
}

// slot finds an adapter's slot, or makes one of that used longest ago. The caller holds mu.
func (a *adapters) slot(key uint64) int {
	oldest := -1
	for i := range a.slots {
		s := &a.slots[i]
		if s.key.Load() == key {
			return i
		}
		if s.users.Load() == 0 && (oldest < 0 || s.used.Load() < a.slots[oldest].used.Load()) {
			oldest = i
		}
	}
	if oldest >= 0 {
		s := &a.slots[oldest]
		s.key.Store(0)
		s.used.Store(math.MinInt64)
		s.seen.Store(0)
		s.key.Store(key)
	}
	return oldest
}
