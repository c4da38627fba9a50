package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fairway-proxy/fairway/discovery/scrape"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

const (
	// maxSkew is how far a pod's clock may be off: its answers tell it to the second.
	maxSkew = 5 * time.Second
	// largeBlock is the block size from which much of a hit is lost to rounding.
	largeBlock = 64
	// promptWords make a prompt that takes measurably longer than a short one: some
	// 2000 tokens.
	promptWords = 800
	// measurements of each speed are taken, and the best counts: others may be served
	// meanwhile.
	measurements = 3
)

// examination is that of one pod.
type examination struct {
	pod Pod
	o   Options
	d   *Diagnosis
}

// run asks one thing after the other, and ends early when there is nobody to ask.
func (e *examination) run(ctx context.Context) {
	if !e.health(ctx) {
		return
	}
	e.version(ctx)
	e.metrics(ctx)
	if e.models(ctx) && !e.o.NoRequests {
		e.requests(ctx)
	}
	e.keepAlive(ctx)
}

// page is an answer.
type page struct {
	status int
	body   []byte
	date   string
	load   string // the field of an ORCA report
	took   time.Duration
}

// ask sends a request by the way that requests take. A body makes it a POST.
func (e *examination) ask(ctx context.Context, path string, body []byte) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, e.o.Timeout)
	defer cancel()
	r := &message.Request{
		Method: []byte("GET"), Target: []byte(path), Authority: []byte(e.pod.Transport.Address), ContentLength: int64(len(body)),
		Fields: []message.Field{{Name: []byte("user-agent"), Value: []byte("fairway-doctor")}},
	}
	add := func(name, value string) {
		r.Fields = append(r.Fields, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	if body != nil {
		r.Method = []byte("POST")
		add("content-type", "application/json")
		add("endpoint-load-metrics-format", "TEXT")
	}
	if e.o.APIKey != "" && strings.HasPrefix(path, "/v1/") {
		add("authorization", "Bearer "+e.o.APIKey)
	}
	var p page
	begin := time.Now()
	var err error
	p.status, p.body, err = e.pod.Transport.Ask(ctx, r, body, nil, func(head *message.Response) {
		p.date = string(message.Get(head.Fields, "date"))
		p.load = string(message.Get(head.Fields, "endpoint-load-metrics"))
	})
	p.took = time.Since(begin)
	if err != nil && p.took >= e.o.Timeout {
		err = fmt.Errorf("no answer to %s in %v", path, e.o.Timeout)
	}
	return p, err
}

// health reaches the pod at all, and reads its clock.
func (e *examination) health(ctx context.Context) bool {
	e.o.Progress(e.d.Address, "health")
	p, err := e.ask(ctx, "/health", nil)
	if err != nil {
		cure := "is the engine up, is this its address and port, and does no network policy stand between?"
		if e.pod.Transport.Tunnel != nil {
			cure = "is the pod in the mesh (label istio.io/dataplane-mode=ambient), does its ztunnel run, and does the identity that is configured for it fit?"
		} else if e.pod.Transport.TLS != nil {
			cure = "does the engine speak TLS here, with a certificate for this name from an authority that is trusted (roots)?"
		}
		what := err.Error()
		if dial, ok := errors.AsType[*upstream.DialError](err); ok {
			what = "it takes no connection: " + dial.Error()
		}
		e.d.find(Problem, "reachable", what, cure)
		return false
	}
	e.d.Reachable = true
	if p.status != http.StatusOK {
		e.d.find(Problem, "health", fmt.Sprintf("GET /health answers %d", p.status), "wait until the engine has loaded its model, or see its log: it says of itself that it cannot serve")
	}
	if date, err := http.ParseTime(p.date); err == nil {
		// The field is cut to the second, and up to a second old.
		skew := time.Until(date).Round(time.Second)
		seconds := skew.Seconds()
		e.d.ClockSkew = &seconds
		if skew.Abs() > maxSkew {
			e.d.find(Problem, "clock", fmt.Sprintf("its clock is %v away from ours", skew.Abs()),
				"let NTP set the clocks of both machines: certificates and tokens are judged by them, and logs are joined by them")
		}
	}
	return true
}

func (e *examination) version(ctx context.Context) {
	var v struct{ Version string }
	if p, err := e.ask(ctx, "/version", nil); err == nil && p.status == http.StatusOK && json.Unmarshal(p.body, &v) == nil {
		e.d.Version = v.Version
	}
}

// wanted are the metrics that the picker uses, and what for.
var wanted = []struct {
	metric   picker.Metric
	name     string
	severity Severity
	loss     string
}{
	{picker.Running, "vllm:num_requests_running", Problem, "the load of others is not seen"},
	{picker.Waiting, "vllm:num_requests_waiting", Problem, "the queue of others is not seen"},
	{picker.KVUsage, "vllm:kv_cache_usage_perc", Problem, "a full KV cache is not seen"},
	{picker.PromptComputed, "vllm:prompt_tokens_by_source_total", Problem, "the age of what is cached is guessed"},
	{picker.Generated, "vllm:generation_tokens_total", Problem, "the age of what is cached is guessed"},
	{picker.PrefixHits, "vllm:prefix_cache_hits_total", Problem, "whether prompts are found in the cache is not seen"},
	{picker.NumBlocks, "vllm:cache_config_info", Problem, "the size of the KV cache is guessed"},
	{picker.StartTime, "process_start_time_seconds", Note, "a restart is seen by counters that fall, not at once"},
}

// cachingOn finds what vLLM says of its prefix cache.
var cachingOn = regexp.MustCompile(`(?m)^vllm:cache_config_info\{.*enable_prefix_caching="(\w+)"`)

// metrics reads the page as a scrape does.
func (e *examination) metrics(ctx context.Context) {
	e.o.Progress(e.d.Address, "metrics")
	path := e.o.MetricsPath
	p, err := e.ask(ctx, path, nil)
	if err != nil || p.status != http.StatusOK {
		what := fmt.Sprintf("GET %s answers %d", path, p.status)
		if err != nil {
			what = err.Error()
		}
		e.d.find(Problem, "metrics", what+": the picker goes by its own counts alone", "serve the engine's metrics there, or name their path as scrape.path")
		return
	}
	var s picker.Sample
	if !scrape.Scan(p.body, &s) {
		e.d.find(Problem, "metrics", "GET "+path+" has no metrics of an engine: the picker goes by its own counts alone",
			"start vLLM without --disable-log-stats; if this is another engine, Fairway knows the names of vLLM, SGLang and TensorRT-LLM")
		return
	}
	e.ranks(scrape.ScanEngines(p.body, nil))
	for name, prefix := range map[string]string{"vllm": "vllm:", "sglang": "sglang:", "trtllm": "trtllm_"} {
		if strings.HasPrefix(string(p.body), prefix) || strings.Contains(string(p.body), "\n"+prefix) {
			e.d.Engine = name
		}
	}
	if e.d.Engine == "vllm" {
		for _, w := range wanted {
			if !s.Has(w.metric) {
				e.d.find(w.severity, "metrics", w.name+" is not on its page: "+w.loss, "use a version of vLLM whose metrics have this name, or leave its metrics unfiltered")
			}
		}
	}
	size, _ := s.Get(picker.BlockSize)
	blocks, _ := s.Get(picker.NumBlocks)
	e.d.BlockSize, e.d.CacheTokens = int(size), int(size*blocks)
	if size > largeBlock {
		e.d.find(Note, "block-size", fmt.Sprintf("it caches in blocks of %.0f tokens, and of a block that is not full nothing is found again", size),
			"start vLLM with --block-size 16 or 32, unless its model needs more (hybrid ones do)")
	}
	if m := cachingOn.FindSubmatch(p.body); m != nil {
		on := string(m[1]) == "True"
		e.d.PrefixCaching = &on
		if !on {
			e.d.find(Problem, "prefix-caching", "prefix caching is off: every prompt is computed from its first token on",
				"start vLLM with --enable-prefix-caching, which is its default for text models, and without --no-enable-prefix-caching")
		}
	}
}

// ranks holds how many engines the page tells of to how many are configured.
func (e *examination) ranks(engines int) {
	switch ranks := max(e.pod.Ranks, 1); {
	case ranks == 1 && engines > 1:
		e.d.find(Note, "ranks", fmt.Sprintf("it has %d data-parallel engines and shares requests out among them by their load alone, so that a conversation does not find its cache", engines),
			fmt.Sprintf("say so: {url: …, ranks: %d}, or on its pod the annotation fairway-proxy.github.io/ranks", engines))
	case ranks > 1 && engines != ranks:
		e.d.find(Problem, "ranks", fmt.Sprintf("it is said to have %d data-parallel engines, and its metrics tell of %d: requests for others are refused", ranks, engines),
			fmt.Sprintf("make ranks %d, or start vLLM with --data-parallel-size %d", max(engines, 1), ranks))
	}
}

// models holds what is served to what will be asked for. It reports whether there
// is a model to ask.
func (e *examination) models(ctx context.Context) bool {
	e.o.Progress(e.d.Address, "models")
	p, err := e.ask(ctx, "/v1/models", nil)
	if err == nil && p.status == http.StatusUnauthorized {
		e.d.find(Problem, "api-key", "it wants an API key",
			"set OPENAI_API_KEY for the doctor to look further; requests are served only if clients send the engine's key, so let Fairway guard the engines (auth) and start vLLM without --api-key")
		return false
	}
	var list struct {
		Data []struct {
			ID          string
			MaxModelLen int `json:"max_model_len"`
		}
	}
	if err == nil && p.status != http.StatusOK {
		err = fmt.Errorf("GET /v1/models answers %d", p.status)
	}
	if err == nil {
		err = json.Unmarshal(p.body, &list)
	}
	if err != nil {
		e.d.find(Problem, "models", "what it serves cannot be read: "+err.Error(), "is this an OpenAI-compatible server?")
		return false
	}
	for _, m := range list.Data {
		e.d.Models = append(e.d.Models, m.ID)
		e.d.MaxModelLen = max(e.d.MaxModelLen, m.MaxModelLen)
	}
	for _, name := range e.pod.Models {
		if !slices.Contains(e.d.Models, name) {
			e.d.find(Problem, "models", fmt.Sprintf("it does not serve %s, which is configured; it serves %s", name, strings.Join(e.d.Models, ", ")),
				fmt.Sprintf("start vLLM with --served-model-name %s, or for an adapter --lora-modules %s=PATH; or configure a name that it serves", name, name))
		}
	}
	return len(e.d.Models) > 0
}

// answer is what a completion says of itself.
type answer struct {
	Usage struct {
		PromptTokens int `json:"prompt_tokens"`
		Details      *struct {
			CachedTokens *int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
}

// cached is how many tokens were cached; ok: it was told.
func (a *answer) cached() (n int, ok bool) {
	if d := a.Usage.Details; d != nil && d.CachedTokens != nil {
		return *d.CachedTokens, true
	}
	return 0, false
}

// complete has one token generated.
func (e *examination) complete(ctx context.Context, prompt string) (answer, page, error) {
	body, err := json.Marshal(map[string]any{"model": e.d.Models[0], "prompt": prompt, "max_tokens": 1, "temperature": 0})
	if err != nil {
		return answer{}, page{}, err
	}
	p, err := e.ask(ctx, "/v1/completions", body)
	if err == nil && p.status != http.StatusOK {
		err = fmt.Errorf("POST /v1/completions answers %d: %.200s", p.status, p.body)
	}
	var a answer
	if err == nil {
		err = json.Unmarshal(p.body, &a)
	}
	return a, p, err
}

// words are random, so that no cache has them.
func words(n int) string {
	b := make([]byte, 0, 6*n)
	for range n {
		for range 3 + rand.IntN(4) {
			b = append(b, byte('a'+rand.IntN(26)))
		}
		b = append(b, ' ')
	}
	return string(b)
}

// requests measures the speed, and finds out whether what was computed is found
// again and told.
func (e *examination) requests(ctx context.Context) {
	long := promptWords
	if e.d.MaxModelLen > 0 {
		long = min(long, e.d.MaxModelLen/8) // a word is some 2 to 4 tokens
	}
	var fast, slow time.Duration
	var few, many answer
	var prompt string
	for i := range measurements {
		e.o.Progress(e.d.Address, fmt.Sprintf("speed (%d of %d)", i+1, measurements))
		a, p, err := e.complete(ctx, words(4))
		if err != nil {
			e.cannotAsk(err)
			return
		}
		if fast == 0 || p.took < fast {
			fast, few = p.took, a
		}
		reports := p.load != ""
		e.d.ORCA = &reports
		last := words(long)
		if a, p, err = e.complete(ctx, last); err != nil {
			e.cannotAsk(err)
			return
		}
		if slow == 0 || p.took < slow {
			slow, many = p.took, a
		}
		prompt = last
	}
	e.d.FirstToken, e.d.PromptTokens = fast.Seconds(), many.Usage.PromptTokens
	if tokens := many.Usage.PromptTokens - few.Usage.PromptTokens; tokens > 0 && slow > fast {
		e.d.SecondsPerToken = (slow - fast).Seconds() / float64(tokens)
	}
	if !*e.d.ORCA {
		e.d.find(Note, "orca", "its answers do not tell its load (endpoint-load-metrics)", "nothing: scrapes tell it, a little later")
	}
	e.o.Progress(e.d.Address, "prefix cache")
	before := e.hits(ctx)
	again, _, err := e.complete(ctx, prompt)
	if err != nil {
		e.cannotAsk(err)
		return
	}
	e.judgeCache(again, before, e.hits(ctx))
}

// cannotAsk notes that the engine completes no text, as one for embeddings does.
func (e *examination) cannotAsk(err error) {
	e.d.find(Note, "requests", "whether it tells cached tokens, and how fast it is, could not be found out: "+err.Error(),
		"nothing, if its model is none for text completions; else see its log")
}

// hits is the counter of prompt tokens found in the cache, −1 when there is none.
func (e *examination) hits(ctx context.Context) float64 {
	var s picker.Sample
	if p, err := e.ask(ctx, e.o.MetricsPath, nil); err != nil || p.status != http.StatusOK || !scrape.Scan(p.body, &s) {
		return -1
	}
	if n, ok := s.Get(picker.PrefixHits); ok {
		return n
	}
	return -1
}

// judgeCache goes by the usage of a prompt that was sent before, and by the
// counters before and after it.
func (e *examination) judgeCache(again answer, before, after float64) {
	n, told := again.cached()
	e.d.CachedTokens = &told
	found, known := n, told
	if !told && before >= 0 && after >= before {
		found, known = int(after-before), true
	}
	// Some may have been evicted, and the last block is never full.
	missed := known && again.Usage.PromptTokens > 2*max(e.d.BlockSize, largeBlock) && found < again.Usage.PromptTokens/2
	if known {
		e.d.CachedOnRepeat, e.d.PromptTokens = &found, again.Usage.PromptTokens
	}
	if missed && (e.d.PrefixCaching == nil || *e.d.PrefixCaching) {
		e.d.find(Problem, "prefix-caching", fmt.Sprintf("of a prompt of %d tokens that was sent twice, %d were found in the cache", again.Usage.PromptTokens, found),
			"start vLLM with --enable-prefix-caching; if it is on, the KV cache is too small for what is asked of it (--gpu-memory-utilization)")
	}
	if !told {
		e.d.find(Problem, "cached-tokens", "its usage does not tell how much of a prompt was cached, so what is believed of its cache is corrected by counters only",
			"start vLLM with --enable-prompt-tokens-details")
	}
}

// keepAlive leaves a connection idle for as long as the proxy would.
func (e *examination) keepAlive(ctx context.Context) {
	t := e.pod.Transport
	if t.HTTP2 || ctx.Err() != nil {
		return
	}
	e.o.Progress(e.d.Address, "keep-alive")
	if _, err := e.ask(ctx, "/health", nil); err != nil {
		return
	}
	begin := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for t.Idle() > 0 && time.Since(begin) < upstream.KeepIdle {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	lived := min(time.Since(begin), upstream.KeepIdle).Seconds()
	e.d.KeepAlive = &lived
	if t.Idle() == 0 {
		e.d.find(Problem, "keep-alive", fmt.Sprintf("it closes an idle connection after %.1f s, while Fairway keeps one for %v: requests may meet a connection that is being closed", lived, upstream.KeepIdle),
			"start vLLM with VLLM_HTTP_TIMEOUT_KEEP_ALIVE at its default of 5 (seconds) or above; of a proxy before the engine, raise its idle time-out")
	}
}
