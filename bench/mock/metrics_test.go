package mock

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

var (
	value  = regexp.MustCompile(`(?m)^([^#].*) (\S+)$`)
	config = regexp.MustCompile(`(block_size|num_gpu_blocks|kv_cache_size_tokens|kv_cache_max_concurrency|kv_cache_memory_bytes)="[^"]*"`)
)

// shape is a metrics page without its values.
func shape(page string) []string {
	page = config.ReplaceAllString(value.ReplaceAllString(page, "$1 V"), `$1="C"`)
	return strings.Split(page, "\n")
}

// The page has vLLM's families, HELP and TYPE lines, labels and series, in its order.
func TestMetricsPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		// The endpoints that are here, in the order the capture knows them.
		c.ask(post("/v1/chat/completions", userSays("hi", `,"max_tokens":2`)))
		c.ask(get("/v1/models"))
		c.ask(get("/nothing"))
		c.ask(post("/v1/completions", `{"prompt":"hi"}`))
		c.ask(post("/v1/chat/completions", `{}`))
		resp, page := c.ask(get("/metrics"))
		if ct := resp.Header.Get("Content-Type"); ct != "text/plain; version=1.0.0; charset=utf-8" {
			t.Errorf("content type %q", ct)
		}
		_, capture, _ := strings.Cut(testdata(t, "metrics.txt"), "\r\n\r\n")
		want := shape(capture)
		handlers := []string{`handler="/v1/chat/completions"`, `handler="/v1/models"`, `handler="none"`, `handler="/v1/completions"`}
		want = slices.DeleteFunc(want, func(line string) bool {
			return strings.Contains(line, `handler="`) &&
				!slices.ContainsFunc(handlers, func(h string) bool { return strings.Contains(line, h+",") || strings.Contains(line, h+"}") })
		})
		got := shape(page)
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) || got[i] != want[i] {
				t.Fatalf("line %d:\ngot  %q\nwant %q", i, got[min(i, len(got)-1)], want[min(i, len(want)-1)])
			}
		}
	})
}

// metric returns the value of a series.
func metric(t *testing.T, page, series string) float64 {
	t.Helper()
	for _, line := range strings.Split(page, "\n") {
		if v, ok := strings.CutPrefix(line, series+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("no series %s", series)
	return 0
}

// What the page says is what happened.
func TestMetricsAreTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		begun := time.Now()
		prompt := strings.Repeat("words ", 200)
		a := c.chat(userSays(prompt, `,"max_tokens":10,"n":2`))
		took := time.Since(begun).Seconds()
		gone := connect(t, ln)
		gone.send(post("/v1/chat/completions", userSays("hi", `,"max_tokens":5000`)))
		time.Sleep(100 * time.Millisecond)
		const labels = `{engine="0",model_name="tiny"}`
		_, page := c.ask(get("/metrics"))
		if n := metric(t, page, "vllm:num_requests_running"+labels); n != 1 {
			t.Errorf("%v running", n)
		}
		if use := metric(t, page, "vllm:kv_cache_usage_perc"+labels); use <= 0 {
			t.Errorf("usage %v", use)
		}
		gone.nc.Close()
		synctest.Wait()
		_, page = c.ask(get("/metrics"))
		p := a.Usage.PromptTokens
		cached := (p - 1) / 16 * 16 // the second answer finds the first one's prompt
		for series, want := range map[string]float64{
			"vllm:num_requests_running" + labels:                                                        0,
			"vllm:kv_cache_usage_perc" + labels:                                                         0,
			"vllm:prefix_cache_hits_total" + labels:                                                     float64(cached),
			`vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_cache_hit"}`: float64(cached),
			"vllm:request_generation_tokens_sum" + labels:                                               20,
			"vllm:request_params_n_sum" + labels:                                                        2,
			"vllm:request_params_n_count" + labels:                                                      1,
			"vllm:request_params_max_tokens_sum" + labels:                                               20,
			"vllm:request_max_num_generation_tokens_sum" + labels:                                       10,
			"vllm:request_prompt_tokens_sum" + labels:                                                   2 * float64(p),
			"vllm:request_prefill_kv_computed_tokens_sum" + labels:                                      2*float64(p) - float64(cached),
			"vllm:time_to_first_token_seconds_count" + labels:                                           3, // the one that left had its first
			`vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"}`:         2,
			`vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"}`:          0, // as in vLLM
			`http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}`:            1,
		} {
			if got := metric(t, page, series); got != want {
				t.Errorf("%s is %v, want %v", series, got, want)
			}
		}
		if got := metric(t, page, "vllm:e2e_request_latency_seconds_sum"+labels); got < 2*took-1e-9 || got > 2*took+1e-9 {
			t.Errorf("two answers took %v s each, the page says %v together", took, got)
		}
		parts := metric(t, page, "vllm:request_queue_time_seconds_sum"+labels) + metric(t, page, "vllm:request_prefill_time_seconds_sum"+labels) +
			metric(t, page, "vllm:request_decode_time_seconds_sum"+labels)
		if parts < 2*took-1e-9 || parts > 2*took+1e-9 {
			t.Errorf("queue, prefill and decode add up to %v of %v s", parts, 2*took)
		}
	})
}

func TestLoraMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.Loras = []string{"ad1", "ad2"}
		_, ln := start(t, cfg)
		var clients []*client
		for _, model := range []string{"ad1", "ad2"} {
			c := connect(t, ln)
			c.send(post("/v1/chat/completions", fmt.Sprintf(`{"model":%q,"messages":[],"max_tokens":20}`, model)))
			synctest.Wait()
			clients = append(clients, c)
		}
		time.Sleep(20 * time.Millisecond)
		_, page := connect(t, ln).ask(get("/metrics"))
		const info = `vllm:lora_requests_info{max_lora="1",running_lora_adapters="%[1]s",waiting_lora_adapters="%[1]s"}`
		at := metric(t, page, fmt.Sprintf(info, "ad1"))
		if n := metric(t, page, `vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"}`); n != 1 {
			t.Errorf("%v deferred", n)
		}
		if strings.Contains(page, fmt.Sprintf(info, "ad2")) {
			t.Error("an adapter that only waits appears")
		}
		for _, c := range clients {
			if _, text := c.read(); !strings.Contains(text, `"finish_reason":"length"`) {
				t.Error(text)
			}
		}
		_, page = connect(t, ln).ask(get("/metrics"))
		if stale := metric(t, page, fmt.Sprintf(info, "ad1")); stale < at {
			t.Errorf("the old series went from %v to %v", at, stale)
		}
		if now := metric(t, page, fmt.Sprintf(info, "ad2")); now <= metric(t, page, fmt.Sprintf(info, "ad1")) {
			t.Error("the newest series is not the newest")
		}
	})
}

func TestFloats(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0.0", 1: "1.0", 5887: "5887.0", 151113: "151113.0", 1234567: "1.234567e+06", 4811603968: "4.811603968e+09", .001: "0.001",
		1.5e-5: "1.5e-05", 1795388359.0491722: "1.7953883590491722e+09", 0.17948717948717952: "0.17948717948717952",
	} {
		if got := string(appendFloat(nil, v)); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

func TestStrangersCannotGrowThePage(t *testing.T) {
	m := newHTTPMetrics()
	for i := range 1000 {
		m.observe("none", fmt.Sprint("METHOD", i), 405, 0, 0, 0)
	}
	if len(m.requests) != 1 || len(m.durations) != 1 {
		t.Errorf("%d series", len(m.requests))
	}
}

func BenchmarkPage(b *testing.B) {
	s := New(tiny())
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		s.page()
	}
}

func TestHistogramBoundsAreInclusive(t *testing.T) {
	h := newHistogram([]float64{1, 2})
	for _, v := range []float64{1, 1.5, 2, 3} {
		h.observe(v)
	}
	if !slices.Equal(h.counts, []uint64{1, 2, 1}) || h.sum != 7.5 {
		t.Errorf("counts %v, sum %v", h.counts, h.sum)
	}
}

// A token costs no allocation on its way from the engine to the wire.
func TestTokenAllocatesNothing(t *testing.T) {
	g := &generation{id: "chatcmpl-x", model: "tiny", params: params{n: 1}, prompts: [][]uint32{{1}}, call: newCall()}
	g.x = &exchange{c: &conn{}}
	j := &job{call: g.call, gen: newGenerator(1)}
	j.seq.Hashes = make([]engine.BlockHash, 0, 10_000)
	w, d := &events{g: g}, &chatDialect{newChunks(g, true)}
	var buf []delta
	token := func() {
		j.produce(false)
		buf = g.call.take(buf)
		g.x.c.out = g.x.c.out[:0]
		d.delta(w, &buf[0])
	}
	for range 100 {
		token()
	}
	if n := testing.AllocsPerRun(1000, token); n != 0 {
		t.Errorf("%v allocations a token", n)
	}
}
