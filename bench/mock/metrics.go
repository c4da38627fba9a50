package mock

import (
	"math"
	"net/http"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// metrics is GET /metrics: vLLM's page, family by family in its order.
func (x *exchange) metrics() {
	x.answer(http.StatusOK, "text/plain; version=1.0.0; charset=utf-8", x.s.page())
}

// page writes Prometheus text as Python's client does: labels sorted by name, floats with a point, a _created gauge after every
// counter and histogram.
type page struct {
	b       []byte
	created float64
	model   string // a label
	ranks   []rank // a series of each in every family of the engine's
}

// rank is what the page says of one engine.
type rank struct {
	label string
	model string // as in page
	engine.Stats
	*histograms
}

func (p *page) raw(parts ...string) {
	for _, s := range parts {
		p.b = append(p.b, s...)
	}
}

func (p *page) family(name, help, kind string) {
	p.raw("# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n")
}

func (p *page) sample(name, labels string, v float64) {
	p.raw(name)
	if labels != "" {
		p.raw("{", labels, "}")
	}
	p.raw(" ")
	p.b = appendFloat(p.b, v)
	p.raw("\n")
}

// appendFloat writes v as prometheus_client's floatToGoString does.
func appendFloat(b []byte, v float64) []byte {
	if math.IsInf(v, 1) {
		return append(b, "+Inf"...)
	}
	s := strconv.FormatFloat(v, 'f', -1, 64)
	if v != 0 && math.Abs(v) < 1e-4 {
		s = strconv.FormatFloat(v, 'e', -1, 64)
	} else if !strings.Contains(s, ".") {
		s += ".0"
	}
	if dot := strings.IndexByte(s, '.'); v > 0 && dot > 6 {
		mantissa := strings.TrimRight(s[:1]+"."+s[1:dot]+s[dot+1:], "0.")
		return append(b, mantissa+"e+0"+strconv.Itoa(dot-1)...)
	}
	return append(b, s...)
}

// escapeLabel escapes a label's value.
func escapeLabel(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}

// series is a sample of a family that has several.
type series struct {
	labels string
	value  float64
}

// plain is the labels of the engine's families.
func (r *rank) plain() string { return r.label + "," + r.model }

// of is the same with name="value" put where it sorts.
func (r *rank) of(name, value string) string {
	pair := name + `="` + value + `"`
	if name < "model_name" {
		return r.label + "," + pair + "," + r.model
	}
	return r.label + "," + r.model + "," + pair
}

func (p *page) gauge(name, help string, v func(*rank) float64) {
	p.family("vllm:"+name, help, "gauge")
	for i := range p.ranks {
		p.sample("vllm:"+name, p.ranks[i].plain(), v(&p.ranks[i]))
	}
}

func (p *page) counter(name, help string, v func(*rank) float64) {
	p.counters(name, help, func(r *rank) []series { return []series{{r.plain(), v(r)}} })
}

// counters writes a counter's family and that of when its series began.
func (p *page) counters(name, help string, of func(*rank) []series) {
	var all []series
	for i := range p.ranks {
		all = append(all, of(&p.ranks[i])...)
	}
	p.counted(name, help, all)
}

// counted writes both families of a counter that has these series.
func (p *page) counted(name, help string, all []series) {
	name = "vllm:" + name
	p.family(name+"_total", help, "counter")
	for _, s := range all {
		p.sample(name+"_total", s.labels, s.value)
	}
	p.family(name+"_created", help, "gauge")
	for _, s := range all {
		p.sample(name+"_created", s.labels, p.created)
	}
}

func (p *page) histogram(name, help string, of func(*histograms) *histogram) {
	name = "vllm:" + name
	p.family(name, help, "histogram")
	for i := range p.ranks {
		r := &p.ranks[i]
		p.buckets(name, of(r.histograms), func(le string) string { return r.of("le", le) }, r.plain())
	}
	p.family(name+"_created", help, "gauge")
	for i := range p.ranks {
		p.sample(name+"_created", p.ranks[i].plain(), p.created)
	}
}

func (p *page) buckets(name string, h *histogram, withLE func(le string) string, labels string) {
	var sum uint64
	for i, n := range h.counts {
		sum += n
		bound := math.Inf(1)
		if i < len(h.bounds) {
			bound = h.bounds[i]
		}
		p.sample(name+"_bucket", withLE(string(appendFloat(nil, bound))), float64(sum))
	}
	p.sample(name+"_count", labels, float64(sum))
	p.sample(name+"_sum", labels, h.sum)
}

// page renders the whole metrics page.
func (s *Server) page() []byte {
	created := float64(s.started.UnixNano()) / 1e9
	p := &page{b: make([]byte, 0, 80<<10), created: created, model: `model_name="` + escapeLabel(s.cfg.Model) + `"`}
	p.process(created)
	if s.cfg.NoEngineMetrics {
		return p.b
	}
	for i, d := range s.drivers {
		d.mu.Lock()
		defer d.mu.Unlock()
		p.ranks = append(p.ranks, rank{label: `engine="` + strconv.Itoa(i) + `"`, model: p.model, Stats: d.eng.Stats(), histograms: &d.page})
	}
	p.engineState()
	p.cache()
	p.requests()
	p.latencies()
	s.writeLoras(p)
	p.cacheConfig(s.drivers[0].eng.Config(), s.cfg.MaxModelLen)
	s.mu.Lock()
	s.http.write(p)
	s.mu.Unlock()
	return p.b
}

// process is what every Python server says of itself.
func (p *page) process(started float64) {
	generations := func(values ...float64) (all []series) {
		for i, v := range values {
			all = append(all, series{`generation="` + strconv.Itoa(i) + `"`, v})
		}
		return all
	}
	plain := func(name, help, kind string, all ...series) {
		p.family(name, help, kind)
		for _, s := range all {
			p.sample(name, s.labels, s.value)
		}
	}
	usage := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/cpu/classes/user:cpu-seconds"}}
	metrics.Read(usage)
	bytes, cpu := float64(usage[0].Value.Uint64()), usage[1].Value.Float64()
	plain("python_gc_objects_collected_total", "Objects collected during gc", "counter", generations(13996, 2751, 1660)...)
	plain("python_gc_objects_uncollectable_total", "Uncollectable objects found during GC", "counter", generations(0, 0, 0)...)
	plain("python_gc_collections_total", "Number of times this generation was collected", "counter", generations(1787, 162, 11)...)
	plain("python_info", "Python platform information", "gauge",
		series{`implementation="CPython",major="3",minor="11",patchlevel="7",version="3.11.7"`, 1})
	plain("process_virtual_memory_bytes", "Virtual memory size in bytes.", "gauge", series{"", 4 * bytes})
	plain("process_resident_memory_bytes", "Resident memory size in bytes.", "gauge", series{"", bytes})
	plain("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", "gauge", series{"", math.Round(started*100) / 100})
	plain("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", "counter", series{"", cpu})
	plain("process_open_fds", "Number of open file descriptors.", "gauge", series{"", 34})
	plain("process_max_fds", "Maximum number of open file descriptors.", "gauge", series{"", 20000})
}

func (p *page) engineState() {
	const flops = " (for Model Flops Utilization calculations)."
	p.counter("estimated_flops_per_gpu", "Estimated number of floating point operations per GPU"+flops, none)
	p.counter("estimated_read_bytes_per_gpu", "Estimated number of bytes read from memory per GPU"+flops, none)
	p.counter("estimated_write_bytes_per_gpu", "Estimated number of bytes written to memory per GPU"+flops, none)
	p.gauge("num_requests_running", "Number of requests in model execution batches.", func(r *rank) float64 { return float64(r.Running) })
	p.gauge("num_requests_waiting", "Number of requests waiting to be processed.", func(r *rank) float64 { return float64(r.Waiting) })
	p.family("vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for "+
		"scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all "+
		"reasons equals vllm:num_requests_waiting.", "gauge")
	for i := range p.ranks {
		r := &p.ranks[i]
		p.sample("vllm:num_requests_waiting_by_reason", r.of("reason", "capacity"), float64(r.Waiting-r.Deferred))
		p.sample("vllm:num_requests_waiting_by_reason", r.of("reason", "deferred"), float64(r.Deferred))
	}
	p.family("vllm:engine_sleep_state", "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "+
		"weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.", "gauge")
	for i := range p.ranks {
		r := &p.ranks[i]
		p.sample("vllm:engine_sleep_state", r.of("sleep_state", "awake"), 1)
		p.sample("vllm:engine_sleep_state", r.of("sleep_state", "weights_offloaded"), 0)
		p.sample("vllm:engine_sleep_state", r.of("sleep_state", "discard_all"), 0)
	}
}

// none is the value of what never happens here.
func none(*rank) float64 { return 0 }

func (p *page) cache() {
	p.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", func(r *rank) float64 { return r.KVUsage })
	p.counter("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", func(r *rank) float64 { return float64(r.PrefixQueries) })
	p.counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", func(r *rank) float64 { return float64(r.PrefixHits) })
	const external = " from KV connector cross-instance cache sharing, in terms of number of "
	p.counter("external_prefix_cache_queries", "External prefix cache queries"+external+"queried tokens.", none)
	p.counter("external_prefix_cache_hits", "External prefix cache hits"+external+"cached tokens.", none)
	p.counter("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", none)
	p.counter("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", none)
	p.counter("num_preemptions", "Cumulative number of preemption from the engine.", func(r *rank) float64 { return float64(r.Preemptions) })
	p.counter("prompt_tokens", "Number of prefill tokens processed.", func(r *rank) float64 { return float64(r.PromptTokens) })
	p.counters("prompt_tokens_by_source", "Number of prompt tokens by source.", func(r *rank) []series {
		return []series{
			{r.of("source", "local_compute"), float64(r.PromptTokens - r.PromptTokensCached - r.PromptTokensReceived)},
			{r.of("source", "local_cache_hit"), float64(r.PromptTokensCached)},
			{r.of("source", "external_kv_transfer"), float64(r.PromptTokensReceived)},
		}
	})
	p.counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", func(r *rank) float64 { return float64(r.PromptTokensCached) })
	p.counters("prompt_tokens_cached_by_source", "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), "+
		"host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; "+
		"sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.", func(r *rank) []series {
		return []series{
			{r.of("source", "device"), float64(r.PrefixHits)}, {r.of("source", "host"), 0}, {r.of("source", "p2p"), 0},
			{r.of("source", "disk"), 0}, {r.of("source", "external_unspecified"), 0},
		}
	})
	p.counter("generation_tokens", "Number of generation tokens processed.", func(r *rank) float64 { return float64(r.GenerationTokens) })
}

func (p *page) requests() {
	p.counters("request_success", "Count of successfully processed requests.", func(r *rank) (all []series) {
		for i, reason := range finishReasons {
			all = append(all, series{r.of("finished_reason", reason), float64(r.success[i])})
		}
		return all
	})
	p.admissions()
	p.histogram("request_prompt_tokens", "Number of prefill tokens processed.", func(h *histograms) *histogram { return h.promptTokens })
	p.histogram("request_generation_tokens", "Number of generation tokens processed.", func(h *histograms) *histogram { return h.generationTokens })
	p.histogram("iteration_tokens_total", "Histogram of number of tokens per engine_step.", func(h *histograms) *histogram { return h.iterationTokens })
	p.histogram("request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.", func(h *histograms) *histogram { return h.mostGenerated })
	p.histogram("request_params_n", "Histogram of the n request parameter.", func(h *histograms) *histogram { return h.choices })
	p.histogram("request_params_max_tokens", "Histogram of the max_tokens request parameter.", func(h *histograms) *histogram { return h.maxTokens })
}

// admissions says how many requests were turned away, which no engine has seen.
func (p *page) admissions() {
	rejected := uint64(0)
	for i := range p.ranks {
		rejected += p.ranks[i].rejected
	}
	p.counted("admission_rejections", "Number of admission attempts rejected by a queue limit, by reason.",
		[]series{{p.model + `,reason="max_num_queued_reqs"`, float64(rejected)}, {p.model + `,reason="max_num_queued_tokens"`, 0}})
}

func (p *page) latencies() {
	p.histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", func(h *histograms) *histogram { return h.firstToken })
	p.histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", func(h *histograms) *histogram { return h.interToken })
	p.histogram("request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.", func(h *histograms) *histogram { return h.perOutputToken })
	p.histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", func(h *histograms) *histogram { return h.endToEnd })
	p.histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", func(h *histograms) *histogram { return h.queue })
	p.histogram("request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", func(h *histograms) *histogram { return h.inference })
	p.histogram("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", func(h *histograms) *histogram { return h.prefill })
	p.histogram("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", func(h *histograms) *histogram { return h.decode })
	p.histogram("request_num_preemptions", "Histogram of the number of times a request was preempted.", func(h *histograms) *histogram { return h.preemptions })
	p.histogram("request_prefill_kv_computed_tokens", "Histogram of new KV tokens computed during prefill (excluding cached tokens).", func(h *histograms) *histogram { return h.computedTokens })
}

// cacheConfig is one series whose labels are the engine's configuration.
func (p *page) cacheConfig(cfg engine.Config, maxModelLen int) {
	tokens := cfg.Blocks * engine.BlockSize
	caching := "True"
	if cfg.NoPrefixCaching {
		caching = "False"
	}
	labels := []string{"_block_size_resolved", "True", "block_size", strconv.Itoa(engine.BlockSize), "cache_dtype", "auto",
		"cache_hit_alignment_tokens", "None", "effective_attention_block_size", strconv.Itoa(engine.BlockSize),
		"enable_mamba_shared_prefix_checkpoint", "False", "enable_prefix_caching", caching, "engine", "", "gpu_memory_utilization", "0.92",
		"hash_block_size", "None", "is_attention_free", "False", "kv_cache_dtype_skip_layers", "[]", "kv_cache_layout", "None",
		"kv_cache_max_concurrency", string(appendFloat(nil, float64(tokens)/float64(maxModelLen))), "kv_cache_memory_bytes", "None",
		"kv_cache_size_tokens", strconv.Itoa(tokens), "kv_offloading_backend", "native", "kv_offloading_size", "None",
		"kv_sharing_fast_prefill", "False", "mamba_block_size", "None", "mamba_cache_dtype", "auto", "mamba_cache_mode", "none",
		"mamba_page_size_padded", "None", "mamba_ssm_cache_dtype", "float32", "num_cpu_blocks", "None",
		"num_gpu_blocks", strconv.Itoa(cfg.Blocks), "num_gpu_blocks_override", "None", "prefix_cache_retention_interval", "0",
		"prefix_caching_hash_algo", "sha256", "prefix_match_unit", "None", "replayssm_buffer_len", "16", "skip_page_size_padded", "None",
		"sliding_window", "None", "swa_bounded_replay", "True", "use_kda_recoverssm", "False", "use_replayssm", "False",
		"user_specified_block_size", "True"}
	p.family("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
	for k := range p.ranks {
		var pairs []string
		for i := 0; i < len(labels); i += 2 {
			if labels[i] == "engine" {
				pairs = append(pairs, p.ranks[k].label)
			} else {
				pairs = append(pairs, labels[i]+`="`+labels[i+1]+`"`)
			}
		}
		p.sample("vllm:cache_config_info", strings.Join(pairs, ","), 1)
	}
}

// loraInfo is vLLM's gauge of adapters, which misleads: its value is the time it was set, series of the past stay, and the waiting
// adapters it lists are the running ones.
type loraInfo struct {
	enabled bool
	names   []string // in the order they appeared
	at      map[string]float64
}

// maxLoraSeries bounds how many sets of adapters are remembered.
const maxLoraSeries = 1000

func (l *loraInfo) observe(e *engine.Engine, now time.Time) {
	if !l.enabled {
		return
	}
	var running []string
	for name := range e.RunningAdapters {
		running = append(running, name)
	}
	key := strings.Join(running, ",")
	if _, known := l.at[key]; !known {
		if len(l.names) == maxLoraSeries {
			return
		}
		if l.at == nil {
			l.at = map[string]float64{}
		}
		l.names = append(l.names, key)
	}
	l.at[key] = float64(now.UnixNano()) / 1e9
}

// writeLoras writes the gauge, which does not say of which engine it is.
func (s *Server) writeLoras(p *page) {
	if !s.drivers[0].loras.enabled {
		return
	}
	p.family("vllm:lora_requests_info", "Running stats on lora requests.", "gauge")
	written := map[string]bool{}
	for _, d := range s.drivers {
		for _, names := range d.loras.names {
			if written[names] {
				continue
			}
			written[names] = true
			at := 0.0
			for _, o := range s.drivers {
				at = max(at, o.loras.at[names])
			}
			p.sample("vllm:lora_requests_info", `max_lora="`+strconv.Itoa(d.eng.Config().MaxLoras)+`",running_lora_adapters="`+escapeLabel(names)+
				`",waiting_lora_adapters="`+escapeLabel(names)+`"`, at)
		}
	}
}
