package engine

import "time"

// Stats are an engine's gauges, as they are now, and its counters since New. The names in brackets are vLLM's.
type Stats struct {
	Running  int     // [num_requests_running]
	Waiting  int     // [num_requests_waiting]
	Deferred int     // the part of Waiting that waits for an adapter slot [num_requests_waiting_by_reason{deferred}]
	KVUsage  float64 // share of KV blocks in use, 0 to 1; cached blocks nobody uses count as free [kv_cache_usage_perc]

	PrefixQueries        uint64        // tokens looked up in the prefix cache [prefix_cache_queries]
	PrefixHits           uint64        // of them found [prefix_cache_hits]
	PromptTokens         uint64        // prompts prefilled, in tokens, cached ones included [prompt_tokens]
	PromptTokensCached   uint64        // of them cached [prompt_tokens_by_source{local_cache_hit}]
	PromptTokensReceived uint64        // of them from another engine [prompt_tokens_by_source{external_kv_transfer}]
	GenerationTokens     uint64        // tokens produced [generation_tokens]
	Preemptions          uint64        // [num_preemptions]
	Finished             uint64        // sequences that ended by themselves or by Stop
	Aborted              uint64        // sequences that ended by Abort
	Steps                uint64        // steps committed
	BusyTime             time.Duration // their durations' sum
}

// Stats returns the present figures.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.Running, s.Waiting, s.Deferred = len(e.running), e.waiting.len(), min(e.deferred, e.waiting.len())
	s.KVUsage = e.kv.usage()
	return s
}

// Add adds another engine's figures to s, the shares of its KV blocks too.
func (s *Stats) Add(o Stats) {
	s.Running += o.Running
	s.Waiting += o.Waiting
	s.Deferred += o.Deferred
	s.KVUsage += o.KVUsage
	s.PrefixQueries += o.PrefixQueries
	s.PrefixHits += o.PrefixHits
	s.PromptTokens += o.PromptTokens
	s.PromptTokensCached += o.PromptTokensCached
	s.PromptTokensReceived += o.PromptTokensReceived
	s.GenerationTokens += o.GenerationTokens
	s.Preemptions += o.Preemptions
	s.Finished += o.Finished
	s.Aborted += o.Aborted
	s.Steps += o.Steps
	s.BusyTime += o.BusyTime
}

// RunningAdapters calls yield with each adapter that running sequences use, the least recently started first.
func (e *Engine) RunningAdapters(yield func(name string) bool) {
	for _, a := range e.adapters.loaded {
		if a.users > 0 && !yield(a.name) {
			return
		}
	}
}
