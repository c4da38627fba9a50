package scrape

import (
	"bytes"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/picker"
)

// page returns a page of metrics of a real vLLM.
func page(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var metrics = []picker.Metric{
	picker.Running, picker.Waiting, picker.KVUsage, picker.PromptComputed, picker.Generated, picker.PrefixQueries,
	picker.PrefixHits, picker.Preemptions, picker.BlockSize, picker.NumBlocks, picker.MaxLoras, picker.StartTime,
}

// sampleOf makes a sample of what is known.
func sampleOf(known map[picker.Metric]float64) (s picker.Sample) {
	for m, v := range known {
		s.Set(m, v)
	}
	return s
}

func show(s picker.Sample) string {
	var b strings.Builder
	for _, m := range metrics {
		if v, ok := s.Get(m); ok {
			b.WriteString(strconv.Itoa(int(m)) + "=" + strconv.FormatFloat(v, 'g', -1, 64) + " ")
		}
	}
	return b.String()
}

func TestScanRealPages(t *testing.T) {
	for name, want := range map[string]map[picker.Metric]float64{
		"vllm-0.32.txt": {
			picker.Running: 0, picker.Waiting: 0, picker.KVUsage: 0, picker.PromptComputed: 2527, picker.Generated: 122,
			picker.PrefixQueries: 5887, picker.PrefixHits: 3360, picker.Preemptions: 0, picker.BlockSize: 32, picker.NumBlocks: 32768,
			picker.StartTime: 1.79538831126e+09,
		},
		"vllm-lora-0.32.txt": {
			picker.Running: 0, picker.Waiting: 0, picker.KVUsage: 0, picker.PromptComputed: 134, picker.Generated: 84,
			picker.PrefixQueries: 134, picker.PrefixHits: 0, picker.Preemptions: 0, picker.BlockSize: 32, picker.NumBlocks: 40, picker.MaxLoras: 1,
			picker.StartTime: 1.79539015297e+09,
		},
	} {
		var got picker.Sample
		if !Scan(page(t, name), &got) {
			t.Errorf("%s: no engine found", name)
		}
		if got != sampleOf(want) {
			t.Errorf("%s: got %s, want %s", name, show(got), show(sampleOf(want)))
		}
	}
}

// Which adapters are in use, the newest series of vLLM's gauge says; the series of other sets stay on the page.
func TestScanAdapters(t *testing.T) {
	const old, now = `vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="a,b"} `,
		`vllm:lora_requests_info{max_lora="4",running_lora_adapters="b,c",waiting_lora_adapters="b,c"} `
	for name, tt := range map[string]struct {
		page string
		want []string
	}{
		"newest last":  {old + "1.5e9\n" + now + "1.6e9\nvllm:num_requests_running 2\n", []string{"b", "c"}},
		"newest first": {now + "1.6e9\n" + old + "1.5e9\nvllm:num_requests_running 2\n", []string{"b", "c"}},
		"nothing runs": {now + "1.6e9\nvllm:num_requests_running 0\n", nil},
		"none":         {`vllm:lora_requests_info{max_lora="4",running_lora_adapters=""} 1` + "\nvllm:num_requests_running 1\n", nil},
	} {
		var got, want picker.Sample
		Scan([]byte(tt.page), &got)
		running, _ := got.Get(picker.Running)
		want.Set(picker.Running, running)
		want.Set(picker.MaxLoras, 4)
		for _, a := range tt.want {
			want.AddAdapter([]byte(a))
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestScan(t *testing.T) {
	type known = map[picker.Metric]float64
	tests := map[string]struct {
		page string
		want known
	}{
		"empty":          {"", nil},
		"another page":   {"<html>\nvllm\nvllm:\nv\n\n \n", nil},
		"plain":          {"vllm:num_requests_running 3\n", known{picker.Running: 3}},
		"labels":         {"vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 4.0\n", known{picker.Waiting: 4}},
		"exponent":       {"vllm:generation_tokens_total{} 1.5e+09\n", known{picker.Generated: 1.5e9}},
		"timestamp":      {"vllm:num_requests_running{a=\"b\"} 3 1795388311260\n", known{picker.Running: 3}},
		"exemplar":       {"vllm:generation_tokens_total{a=\"b\"} 3 # {trace_id=\"x\"} 7 1.5\n", known{picker.Generated: 3}},
		"CRLF":           {"vllm:num_requests_running{a=\"b\"} 3\r\nvllm:num_requests_waiting 4\r\n", known{picker.Running: 3, picker.Waiting: 4}},
		"blanks":         {" \tvllm:num_requests_running \t{ a = \"b\" , c=\"d\", }\t 3 \t 4 \n", known{picker.Running: 3}},
		"no blank":       {"vllm:num_requests_running{a=\"b\"}3\n", known{picker.Running: 3}},
		"quoted labels":  {"vllm:num_requests_running{m=\"a } 7 \\\" 8 \\\\\"} 3\n", known{picker.Running: 3}},
		"comments":       {"# HELP vllm:num_requests_running 9\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\n# EOF\n", known{picker.Running: 3}},
		"cut":            {"vllm:num_requests_waiting 4\nvllm:num_requests_running 31", known{picker.Waiting: 4}},
		"not a number":   {"vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc -1\nvllm:generation_tokens_total 1e999\n", nil},
		"not numbers":    {"vllm:num_requests_running 0x10\nvllm:num_requests_waiting 1_0\nvllm:kv_cache_usage_perc\nvllm:generation_tokens_total \nvllm:prefix_cache_hits_total 1,0\n", nil},
		"broken labels":  {"vllm:num_requests_running{a=\"b} 3\nvllm:num_requests_running{a} 3\nvllm:num_requests_running{=\"b\"} 3\nvllm:num_requests_running{\nvllm:num_requests_running{a=\"b\\\n", nil},
		"shared prefix":  {"vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 9\nvllm:generation_tokens_created 9\nvllm:prompt_tokens_totals 9\nvllm:num_requests_runnin 9\nvllm:num_requests_running2 9\n", nil},
		"other prefix":   {"vllm_num_requests_running 9\nxvllm:num_requests_running 9\nVLLM:num_requests_running 9\nsglang:num_requests_running 9\n", nil},
		"other initial":  {"vllm:\xffx 9\nvllm:{} 9\nvllm:Z 9\n", nil},
		"start time":     {"process_start_time_seconds 1.79538831126e+09\n", known{picker.StartTime: 1795388311.26}},
		"old KV usage":   {"vllm:gpu_cache_usage_perc{} 0.25\n", known{picker.KVUsage: 0.25}},
		"both KV usages": {"vllm:gpu_cache_usage_perc{} 0.25\nvllm:kv_cache_usage_perc{} 0.5\n", known{picker.KVUsage: 0.5}},
		"cache config":   {"vllm:cache_config_info{block_size=\"16\",num_cpu_blocks=\"7\",num_gpu_blocks=\"28500\"} 1.0\n", known{picker.BlockSize: 16, picker.NumBlocks: 28500}},
		"no cache config": {"vllm:cache_config_info{block_size=\"None\",num_gpu_blocks=\"\"} 1.0\nvllm:num_requests_running{block_size=\"4\"} 3\n",
			known{picker.Running: 3}},
		"several engines": {`vllm:num_requests_running{engine="0",model_name="m"} 1
vllm:num_requests_running{engine="1",model_name="m"} 2
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:generation_tokens_total{engine="0",model_name="m"} 10
vllm:generation_tokens_total{engine="1",model_name="m"} 20
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 100
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 1000
vllm:prompt_tokens_by_source_total{engine="1",source="local_compute"} 200
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="50"} 1
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="60"} 1
`, known{picker.Running: 3, picker.KVUsage: 0.5, picker.Generated: 30, picker.PromptComputed: 300, picker.BlockSize: 16, picker.NumBlocks: 110}},
		"computed by the cache's counters": {"vllm:prompt_tokens_total 90\nvllm:prefix_cache_queries_total 100\nvllm:prefix_cache_hits_total 30\n",
			known{picker.PromptComputed: 70, picker.PrefixQueries: 100, picker.PrefixHits: 30}},
		"computed without a cache": {"vllm:prompt_tokens_total 90\nvllm:prefix_cache_queries_total 0\nvllm:prefix_cache_hits_total 0\n",
			known{picker.PromptComputed: 90, picker.PrefixQueries: 0, picker.PrefixHits: 0}},
		"SGLang": {`sglang:num_running_reqs{model_name="m"} 1.0
sglang:num_queue_reqs{model_name="m"} 2.0
sglang:token_usage{model_name="m"} 0.28
sglang:generation_tokens_total{model_name="m"} 5
sglang:cache_config_info{num_pages="1000",page_size="64"} 1.0
`, known{picker.Running: 1, picker.Waiting: 2, picker.KVUsage: 0.28, picker.Generated: 5, picker.BlockSize: 64, picker.NumBlocks: 1000}},
		"TensorRT-LLM": {"trtllm_num_requests_running 1\ntrtllm_num_requests_waiting 2\ntrtllm_kv_cache_utilization 0.5\ntrtllm_kv_cache_hit_rate 0.1\n",
			known{picker.Running: 1, picker.Waiting: 2, picker.KVUsage: 0.5}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := sampleOf(known{picker.Running: 77, picker.StartTime: 77}) // of an earlier page
			Scan([]byte(test.page), &got)
			if want := sampleOf(test.want); got != want {
				t.Errorf("got %s, want %s", show(got), show(want))
			}
		})
	}
}

func TestScanTellsWhetherAnEngineSpoke(t *testing.T) {
	for page, want := range map[string]bool{
		"":                               false,
		"process_start_time_seconds 1\n": false,
		"vllm:request_success_total 1\n": false,
		"vllm:num_requests_running 0\n":  true,
		"sglang:num_queue_reqs 0\n":      true,
	} {
		var s picker.Sample
		if got := Scan([]byte(page), &s); got != want {
			t.Errorf("%q: %v", page, got)
		}
	}
}

// essence returns the lines of a page that matter, and some like them.
func essence(page []byte) (lines []byte) {
	for _, l := range bytes.SplitAfter(page, []byte("\n")) {
		for _, word := range []string{"vllm:num_", "vllm:kv", "vllm:prompt_tokens", "vllm:prefix", "vllm:cache_config", "vllm:generation", "process_start"} {
			if bytes.HasPrefix(l, []byte(word)) {
				lines = append(lines, l...)
			}
		}
	}
	return lines
}

// A page cut anywhere says what its whole lines say, never a digit less.
func TestScanCutPage(t *testing.T) {
	whole := essence(page(t, "vllm-0.32.txt"))
	var full picker.Sample
	Scan(whole, &full)
	for cut := range len(whole) {
		var s picker.Sample
		Scan(whole[:cut], &s)
		for _, m := range metrics {
			got, ok := s.Get(m)
			want, _ := full.Get(m)
			// What is computed from other metrics may stand in until its own line comes.
			if ok && got != want && m != picker.PromptComputed {
				t.Fatalf("cut at %d: metric %d is %v, want %v", cut, m, got, want)
			}
		}
	}
}

func TestScanAllocatesNothing(t *testing.T) {
	p := page(t, "vllm-0.32.txt")
	var s picker.Sample
	if n := testing.AllocsPerRun(100, func() { Scan(p, &s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkScan(b *testing.B) {
	p := page(b, "vllm-0.32.txt")
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	var s picker.Sample
	for b.Loop() {
		Scan(p, &s)
	}
}

var (
	lineForm = regexp.MustCompile(`(?m)^[ \t]*([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*)\})?[ \t]*([^ \t\r\n}]+)([ \t\r][^\n]*)?\n`)
	pairForm = regexp.MustCompile(`([a-z_A-Z0-9]+)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"`)
)

// reference reads a page the slow and obvious way.
func reference(page []byte) (s picker.Sample) {
	sums, counts := map[string]float64{}, map[string]float64{}
	blockSize, blocks, startTime := -1.0, -1.0, -1.0
	maxLoras, adapters, newest := -1.0, "", 0.0
	for _, m := range lineForm.FindAllSubmatch(page, -1) {
		name := string(m[1])
		v, err := strconv.ParseFloat(string(m[3]), 64)
		if err != nil {
			continue
		}
		labels := map[string]string{}
		for _, p := range pairForm.FindAllSubmatch(m[2], -1) {
			labels[string(p[1])] = string(p[2])
		}
		if name == "vllm:prompt_tokens_by_source_total" {
			name += "/" + labels["source"]
		}
		if name == "process_start_time_seconds" {
			startTime = v
		}
		if name == "vllm:cache_config_info" {
			if n, err := strconv.ParseFloat(labels["block_size"], 64); err == nil {
				blockSize = n
			}
			if n, err := strconv.ParseFloat(labels["num_gpu_blocks"], 64); err == nil {
				blocks = max(blocks, 0) + n
			}
		}
		if n, err := strconv.ParseFloat(labels["max_lora"], 64); err == nil && v >= newest {
			maxLoras, adapters, newest = n, labels["running_lora_adapters"], v
		}
		sums[name] += v
		counts[name]++
	}
	for m, name := range map[picker.Metric]string{
		picker.Running: "num_requests_running", picker.Waiting: "num_requests_waiting", picker.Generated: "generation_tokens_total",
		picker.PrefixQueries: "prefix_cache_queries_total", picker.PrefixHits: "prefix_cache_hits_total",
		picker.Preemptions: "num_preemptions_total",
	} {
		if counts["vllm:"+name] > 0 {
			s.Set(m, sums["vllm:"+name])
		}
	}
	s.Set(picker.MaxLoras, maxLoras)
	if adapters != "" && sums["vllm:num_requests_running"] > 0 {
		for _, name := range strings.Split(adapters, ",") {
			s.AddAdapter([]byte(name))
		}
	}
	if n := counts["vllm:kv_cache_usage_perc"]; n > 0 {
		s.Set(picker.KVUsage, sums["vllm:kv_cache_usage_perc"]/n)
	}
	const bySource = "vllm:prompt_tokens_by_source_total/"
	if own, sent := bySource+"local_compute", bySource+"external_kv_transfer"; counts[own]+counts[sent] > 0 {
		s.Set(picker.PromptComputed, sums[own]+sums[sent])
	} else if sums["vllm:prefix_cache_queries_total"] > 0 && counts["vllm:prefix_cache_hits_total"] > 0 {
		s.Set(picker.PromptComputed, sums["vllm:prefix_cache_queries_total"]-sums["vllm:prefix_cache_hits_total"])
	} else if counts["vllm:prompt_tokens_total"] > 0 {
		s.Set(picker.PromptComputed, sums["vllm:prompt_tokens_total"])
	}
	s.Set(picker.BlockSize, blockSize)
	s.Set(picker.NumBlocks, blocks)
	s.Set(picker.StartTime, startTime)
	return s
}

// Pages of lines in any order, some left out, some twice, some made to count.
func TestScanAgreesWithReference(t *testing.T) {
	for _, name := range []string{"vllm-0.32.txt", "vllm-lora-0.32.txt"} {
		lines := bytes.SplitAfter(page(t, name), []byte("\n"))
		for seed := range uint64(5) {
			r := rand.New(rand.NewPCG(seed, 1))
			var shuffled []byte
			for range len(lines) {
				l := lines[r.IntN(len(lines))]
				if r.IntN(2) == 0 {
					l = bytes.Replace(l, []byte("} 0.0\n"), []byte("} "+strconv.Itoa(r.IntN(100))+".0\n"), 1)
				}
				if r.IntN(4) == 0 {
					l = bytes.Replace(l, []byte("\n"), []byte(" 1795388311260\r\n"), 1)
				}
				shuffled = append(shuffled, l...)
			}
			var got picker.Sample
			Scan(shuffled, &got)
			if want := reference(shuffled); got != want {
				t.Fatalf("%s, seed %d: got %s, want %s", name, seed, show(got), show(want))
			}
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, name := range []string{"vllm-0.32.txt", "vllm-lora-0.32.txt"} {
		whole := page(f, name)
		f.Add(whole)
		f.Add(essence(whole))
	}
	f.Fuzz(func(t *testing.T, page []byte) {
		var s picker.Sample
		engine := Scan(page, &s)
		for _, m := range metrics {
			if v, ok := s.Get(m); ok && !(v >= 0) {
				t.Errorf("metric %d is %v", m, v)
			}
			if ok := s.Has(m); ok && m != picker.StartTime && !engine {
				t.Errorf("metric %d is known, but no engine spoke", m)
			}
		}
		// What follows the last line's end says nothing.
		end := bytes.LastIndexByte(page, '\n') + 1
		var again picker.Sample
		Scan(page[:end], &again)
		if s != again {
			t.Errorf("got %s, without the last line %s", show(s), show(again))
		}
	})
}

// pageOf is a page of a real vLLM as it would be with these engines: each line of the one as often as there are, with its values
// times their places.
func pageOf(t testing.TB, engines ...int) []byte {
	var b bytes.Buffer
	line := regexp.MustCompile(`^(.*\{.*)engine="0"(.*\}) (\S+)$`)
	for _, l := range strings.Split(string(page(t, "vllm-0.32.txt")), "\n") {
		m := line.FindStringSubmatch(l)
		if m == nil {
			b.WriteString(l + "\n")
			continue
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range engines {
			b.WriteString(m[1] + `engine="` + strconv.Itoa(e) + `"` + m[2] + " " + strconv.FormatFloat(float64(i+1)*v, 'g', -1, 64) + "\n")
		}
	}
	return b.Bytes()
}

func TestScanEngines(t *testing.T) {
	one := func(times float64) map[picker.Metric]float64 {
		return map[picker.Metric]float64{
			picker.Running: 0, picker.Waiting: 0, picker.KVUsage: 0, picker.PromptComputed: 2527 * times, picker.Generated: 122 * times,
			picker.PrefixQueries: 5887 * times, picker.PrefixHits: 3360 * times, picker.Preemptions: 0, picker.BlockSize: 32,
			picker.NumBlocks: 32768, picker.StartTime: 1.79538831126e+09,
		}
	}
	for _, c := range []struct {
		engines []int
		room    int
		want    []float64 // of each sample: times the page; 0: it knows nothing
	}{
		{[]int{0}, 1, []float64{1}},
		{[]int{0, 1, 2, 3}, 4, []float64{1, 2, 3, 4}},
		{[]int{0, 1}, 3, []float64{1, 2, 0}},
		{[]int{0, 1, 2}, 2, []float64{1, 2}},
		{[]int{8, 9, 10}, 3, []float64{1, 2, 3}}, // of a server whose first rank is 8
		{[]int{11, 10, 9}, 3, []float64{3, 2, 1}},
		{[]int{4, 6, 7}, 4, []float64{1, 0, 2, 3}}, // one says nothing of itself
	} {
		samples := make([]picker.Sample, c.room)
		samples[0].Set(picker.Running, 7) // from before
		if n := ScanEngines(pageOf(t, c.engines...), samples); n != len(c.engines) {
			t.Errorf("%v: %d engines", c.engines, n)
		}
		for i, times := range c.want {
			want := sampleOf(one(times))
			if times == 0 {
				want = picker.Sample{}
			}
			if show(samples[i]) != show(want) {
				t.Errorf("engines %v, the %d.: %s, want %s", c.engines, i, show(samples[i]), show(want))
			}
		}
	}
	if n := ScanEngines([]byte("process_start_time_seconds 1\nvllm:num_requests_running 3\n"), nil); n != 0 {
		t.Errorf("%d engines on a page that tells none apart", n)
	}
}
