package scrape

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"

	"github.com/fairway-proxy/fairway/picker"
)

// A slot is where the series of one name are summed: over data-parallel
// engines and models, each of which has a series of its own.
type slot uint8

const (
	running slot = iota
	waiting
	kvUsage
	oldKVUsage // what older vLLM calls kvUsage
	prompt
	promptBySource // only what is new to the cache
	queries
	hits
	generated
	preemptions
	blockSize // never named itself: a label of an info series, as is numBlocks
	numBlocks
	startTime
	vllmCache   // an info series with block_size and num_gpu_blocks
	sglangCache // an info series with page_size and num_pages
	loras       // an info series with max_lora and running_lora_adapters, whose value is a time
	numSlots
)

// A series is a name after its family's prefix, and where its value goes.
type series struct {
	name string
	slot slot
}

// A family is all the names with one prefix, by the letter that follows it.
type family struct {
	prefix    string
	byInitial ['z' - 'a' + 1][]series
}

func newFamily(prefix string, all ...series) *family {
	f := &family{prefix: prefix}
	for _, s := range all {
		i := s.name[0] - 'a'
		f.byInitial[i] = append(f.byInitial[i], s)
	}
	return f
}

// What engines call it. vLLM: vllm/v1/metrics/loggers.py; counters carry the
// suffix that the Prometheus client adds. SGLang: its "Production Metrics"
// page. TensorRT-LLM: trtllm-serve's /prometheus/metrics.
var (
	vllm = newFamily("vllm:",
		series{"num_requests_running", running},
		series{"num_requests_waiting", waiting},
		series{"kv_cache_usage_perc", kvUsage},
		series{"gpu_cache_usage_perc", oldKVUsage},
		series{"prompt_tokens_total", prompt},
		series{"prompt_tokens_by_source_total", promptBySource},
		series{"prefix_cache_queries_total", queries},
		series{"prefix_cache_hits_total", hits},
		series{"gpu_prefix_cache_queries_total", queries}, // until vLLM 0.9
		series{"gpu_prefix_cache_hits_total", hits},
		series{"generation_tokens_total", generated},
		series{"num_preemptions_total", preemptions},
		series{"cache_config_info", vllmCache},
		series{"lora_requests_info", loras},
	)
	sglang = newFamily("sglang:",
		series{"num_running_reqs", running},
		series{"num_queue_reqs", waiting},
		series{"token_usage", kvUsage},
		series{"generation_tokens_total", generated},
		series{"cache_config_info", sglangCache},
	)
	trtllm = newFamily("trtllm_",
		series{"num_requests_running", running},
		series{"num_requests_waiting", waiting},
		series{"kv_cache_utilization", kvUsage},
	)
	process = newFamily("process_", // of every Prometheus client
		series{"start_time_seconds", startTime},
	)
)

// totals are the sums of one page.
type totals struct {
	slots [numSlots]struct {
		sum float64
		n   int
	}
	// Of the newest series of loras, as on the page: those of other sets of
	// adapters stay with the time at which they were last in use.
	maxLoras, running []byte
}

// Scan reads a page of metrics in the Prometheus text format or OpenMetrics
// into s, whatever s held, and reports whether an engine's metrics were on it.
// Several series of one name are summed, KV cache usage is their mean. A last
// line that does not end is taken to be cut, and dropped; a line that is not
// in the format counts as absent. It allocates nothing and keeps nothing of
// page.
func Scan(page []byte, s *picker.Sample) (engine bool) {
	var t totals
	scan(page, func(p point) { t.take(&p) })
	return t.sample(s)
}

// maxEngines bounds how many engines are told apart on a page.
const maxEngines = 256

// ScanEngines is Scan for a page on which vLLM shows several engines, its
// data-parallel ranks, by the label engine: a sample for each, by its rank there,
// which is its number less the lowest on the page. What has no such label,
// such as the process's start time, is said of all. It returns how many there
// are, which may be more or fewer than there is room for; samples of engines
// that are not there know nothing.
func ScanEngines(page []byte, samples []picker.Sample) (engines int) {
	type numbered struct {
		number int
		totals
	}
	var all []numbered
	var shared totals
	scan(page, func(p point) {
		n, err := strconv.Atoi(string(p.engine))
		if err != nil {
			shared.take(&p)
			return
		}
		i := 0
		for i < len(all) && all[i].number != n {
			i++
		}
		if i == maxEngines {
			return
		}
		if i == len(all) {
			all = append(all, numbered{number: n})
		}
		all[i].take(&p)
	})
	clear(samples)
	if len(all) == 0 {
		return 0
	}
	first := slices.MinFunc(all, func(a, b numbered) int { return cmp.Compare(a.number, b.number) }).number
	for i := range all {
		rank := uint(all[i].number) - uint(first)
		if rank >= uint(len(samples)) {
			continue
		}
		t := &all[i].totals
		for from := range shared.slots {
			if t.slots[from].n == 0 {
				t.slots[from] = shared.slots[from]
			}
		}
		t.maxLoras, t.running = shared.maxLoras, shared.running
		t.sample(&samples[rank])
	}
	return len(all)
}

// scan calls take with every point of a page that is of use.
func scan(page []byte, take func(point)) {
	for {
		end := bytes.IndexByte(page, '\n')
		if end < 0 {
			return
		}
		line := page[:end]
		page = page[end+1:]
		if f := familyOf(line); f != nil {
			if p, ok := f.parse(line); ok {
				take(p)
			}
		}
	}
}

// familyOf returns the family that a line may belong to, by its first byte.
func familyOf(line []byte) *family {
	if len(line) == 0 {
		return nil
	}
	switch line[0] {
	case 'v':
		return vllm
	case 'p':
		return process
	case 's':
		return sglang
	case 't':
		return trtllm
	case ' ', '\t': // the format allows blanks before a name; nobody writes them
		return familyOf(bytes.TrimLeft(line, " \t"))
	}
	return nil
}

// A point is a value of a series, and those of its labels that matter; what it
// has not is nil.
type point struct {
	slot   slot
	value  float64
	fresh  bool   // of a source that is new to the cache: source="local_compute", or what another engine has computed
	engine []byte // which of the server's engines it is about

	block, blocks     []byte // of an info series
	maxLoras, running []byte // of another
}

// parse reads a line if it is of a series of the family.
func (f *family) parse(line []byte) (p point, ok bool) {
	line = bytes.TrimLeft(line, " \t")
	if len(line) <= len(f.prefix) || string(line[:len(f.prefix)]) != f.prefix {
		return p, false
	}
	line = line[len(f.prefix):]
	initial := line[0] - 'a'
	if int(initial) >= len(f.byInitial) {
		return p, false
	}
	for _, s := range f.byInitial[initial] {
		n := len(s.name)
		// The name ends here, or it is another's beginning.
		if len(line) > n && string(line[:n]) == s.name && (line[n] == '{' || line[n] == ' ' || line[n] == '\t') {
			p.slot = s.slot
			return p, p.parse(line[n:])
		}
	}
	return p, false
}

// parse reads what follows a name: labels, value, perhaps a timestamp and an
// exemplar.
func (p *point) parse(rest []byte) (ok bool) {
	rest = bytes.TrimLeft(rest, " \t")
	if len(rest) > 0 && rest[0] == '{' {
		for rest = rest[1:]; ; {
			name, value, after, ok := label(rest)
			if !ok {
				return false
			}
			rest = after
			if name == nil {
				break
			}
			switch string(name) {
			case "engine":
				p.engine = value
			case "source":
				p.fresh = string(value) == "local_compute" || string(value) == "external_kv_transfer"
			case "block_size", "page_size":
				p.block = value
			case "num_gpu_blocks", "num_pages":
				p.blocks = value
			case "max_lora":
				p.maxLoras = value
			case "running_lora_adapters":
				p.running = value
			}
		}
	}
	p.value, ok = number(firstField(rest))
	return ok
}

// take adds up a point.
func (t *totals) take(p *point) {
	switch p.slot {
	case promptBySource:
		if p.fresh {
			t.add(p.slot, p.value)
		}
	case vllmCache, sglangCache:
		t.add(p.slot, p.value)
		if v, ok := number(p.block); ok {
			t.slots[blockSize].sum, t.slots[blockSize].n = v, 1
		}
		if v, ok := number(p.blocks); ok {
			t.add(numBlocks, v)
		}
	case startTime:
		t.slots[p.slot].sum, t.slots[p.slot].n = p.value, 1
	case loras:
		if newest := &t.slots[loras]; newest.n == 0 || p.value >= newest.sum {
			newest.sum, newest.n = p.value, 1
			t.maxLoras, t.running = p.maxLoras, p.running
		}
	default:
		t.add(p.slot, p.value)
	}
}

func (t *totals) add(into slot, v float64) {
	t.slots[into].sum += v
	t.slots[into].n++
}

// label reads the next name="value" of a set of labels. At the set's end name
// is nil; after is what follows. The value is as written, escapes and all.
func label(b []byte) (name, value, after []byte, ok bool) {
	b = bytes.TrimLeft(b, " \t,")
	if len(b) > 0 && b[0] == '}' {
		return nil, nil, b[1:], true
	}
	eq := bytes.IndexByte(b, '=')
	if eq <= 0 {
		return nil, nil, nil, false
	}
	name, b = bytes.TrimRight(b[:eq], " \t"), bytes.TrimLeft(b[eq+1:], " \t")
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, nil, false
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return name, b[1:i], b[i+1:], true
		}
	}
	return nil, nil, nil, false
}

// firstField returns what stands before the next blank.
func firstField(b []byte) []byte {
	b = bytes.TrimLeft(b, " \t")
	for i, c := range b {
		if c == ' ' || c == '\t' || c == '\r' {
			return b[:i]
		}
	}
	return b
}

// number reads a float as engines write them.
func number(b []byte) (float64, bool) {
	// Longer than any float that was printed to be read back. A string of at
	// most 32 bytes that does not escape is not allocated.
	if len(b) == 0 || len(b) > 32 || bytes.ContainsAny(b, "_xXpP") {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(b), 64)
	return v, err == nil
}

// sample writes what was summed, and reports whether it came from an engine.
func (t *totals) sample(s *picker.Sample) (engine bool) {
	*s = picker.Sample{}
	set := func(m picker.Metric, from slot) {
		if t.slots[from].n > 0 {
			s.Set(m, t.slots[from].sum)
		}
	}
	set(picker.Running, running)
	set(picker.Waiting, waiting)
	for _, from := range [...]slot{kvUsage, oldKVUsage} {
		if t.slots[from].n > 0 {
			s.Set(picker.KVUsage, t.slots[from].sum/float64(t.slots[from].n))
			break
		}
	}
	set(picker.Generated, generated)
	set(picker.PrefixQueries, queries)
	set(picker.PrefixHits, hits)
	set(picker.Preemptions, preemptions)
	set(picker.BlockSize, blockSize)
	set(picker.NumBlocks, numBlocks)
	set(picker.StartTime, startTime)
	t.adapters(s)
	switch {
	case t.slots[promptBySource].n > 0:
		set(picker.PromptComputed, promptBySource)
	case t.slots[queries].sum > 0 && t.slots[hits].n > 0:
		// Older vLLM. The two are counted in one step, so that their
		// difference never falls, unlike that of prompt tokens and hits.
		s.Set(picker.PromptComputed, t.slots[queries].sum-t.slots[hits].sum)
	default: // no prefix cache
		set(picker.PromptComputed, prompt)
	}
	for from := range t.slots {
		engine = engine || slot(from) != startTime && t.slots[from].n > 0
	}
	return engine
}

// adapters writes which LoRA adapters are in use: what the newest series says,
// unless nothing runs any more.
func (t *totals) adapters(s *picker.Sample) {
	n, ok := number(t.maxLoras)
	if !ok {
		return
	}
	s.Set(picker.MaxLoras, n)
	if t.slots[running].sum == 0 {
		return
	}
	for names := t.running; len(names) > 0; {
		var name []byte
		name, names, _ = bytes.Cut(names, []byte(","))
		s.AddAdapter(name)
	}
}
