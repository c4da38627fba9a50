package picker

import (
	"math"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// A Metric is one number of a pod's metrics page that a picker can use. Names in comments are vLLM's.
type Metric uint8

const (
	Running        Metric = iota // vllm:num_requests_running
	Waiting                      // vllm:num_requests_waiting
	KVUsage                      // vllm:kv_cache_usage_perc, 0..1, without cached blocks that are free
	PromptComputed               // tokens new to the cache, counter: vllm:prompt_tokens_by_source_total of local_compute and external_kv_transfer, else prompt tokens − hits
	Generated                    // tokens, counter: vllm:generation_tokens_total
	PrefixQueries                // tokens, counter: vllm:prefix_cache_queries_total
	PrefixHits                   // tokens, counter: vllm:prefix_cache_hits_total
	Preemptions                  // counter: vllm:num_preemptions_total
	BlockSize                    // tokens: block_size of vllm:cache_config_info
	NumBlocks                    // num_gpu_blocks of vllm:cache_config_info; times BlockSize, the capacity
	MaxLoras                     // max_lora of vllm:lora_requests_info: how many adapters fit the GPU
	StartTime                    // process_start_time_seconds
	numMetrics
)

// A Sample is what one scrape has found. Its zero value knows nothing; what is not known is not used.
type Sample struct {
	has    uint16
	values [numMetrics]float64

	adapters  [adapterSlots]uint64 // hashes of the names of those in use
	nAdapters int
}

// AddAdapter notes that the pod runs requests of the LoRA adapter of that name. Beyond 32 it notes nothing.
func (s *Sample) AddAdapter(name []byte) {
	if s.nAdapters < len(s.adapters) {
		s.adapters[s.nAdapters] = prefix.ExtendSeed(0, name)
		s.nAdapters++
	}
}

// Set records a metric. A value that no such metric can have (not a number, infinite, negative) is as if it were absent.
func (s *Sample) Set(m Metric, v float64) {
	if m >= numMetrics || math.IsNaN(v) || v < 0 || v > limits[m] {
		return
	}
	s.has |= 1 << m
	s.values[m] = v
}

// Add adds to a metric that several series report, such as one for each data-parallel engine.
func (s *Sample) Add(m Metric, v float64) {
	if old, ok := s.Get(m); ok {
		v += old
	}
	s.Set(m, v)
}

// Get returns a metric and whether it is known.
func (s *Sample) Get(m Metric) (v float64, ok bool) {
	if m >= numMetrics || s.has&(1<<m) == 0 {
		return 0, false
	}
	return s.values[m], true
}

// Has says whether a metric is known.
func (s *Sample) Has(m Metric) bool {
	_, ok := s.Get(m)
	return ok
}

// limits are far beyond what any pod reports: a value above is a defect of the page.
var limits = [numMetrics]float64{
	Running:        1e6,
	Waiting:        1e6,
	KVUsage:        100, // sums over engines may exceed 1; it is clamped where it is used
	PromptComputed: 1 << 53,
	Generated:      1 << 53,
	PrefixQueries:  1 << 53,
	PrefixHits:     1 << 53,
	Preemptions:    1 << 53,
	BlockSize:      1 << 20,
	NumBlocks:      1 << 40,
	MaxLoras:       1 << 20,
	StartTime:      1 << 40,
}
