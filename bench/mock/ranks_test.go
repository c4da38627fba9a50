package mock

import (
	"strings"
	"testing"
	"testing/synctest"
)

// forRank is a request for an engine.
func forRank(rank string) string {
	return post("/v1/chat/completions", userSays("the same words for everybody, long enough for a block of the cache", `,"max_tokens":2`), "X-Data-Parallel-Rank: "+rank)
}

func TestDataParallelRanks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.DataParallel = 3
		s, ln := start(t, cfg)
		c := connect(t, ln)
		for _, rank := range []string{"1", "1", "2"} {
			if resp, body := c.ask(forRank(rank)); resp.StatusCode != 200 {
				t.Fatalf("rank %s: %d %s", rank, resp.StatusCode, body)
			}
		}
		for rank, want := range []uint64{0, 2, 1} {
			if st := s.EngineStats(rank); st.Finished != want {
				t.Errorf("rank %d has finished %d, want %d", rank, st.Finished, want)
			}
		}
		if a, b := s.EngineStats(1).PrefixHits, s.EngineStats(2).PrefixHits; a == 0 || b != 0 {
			t.Errorf("tokens found by the second request on a rank: %d, by the first on another: %d", a, b)
		}
		for _, rank := range []string{"3", "-1"} {
			if resp, body := c.ask(forRank(rank)); resp.StatusCode != 400 || !strings.Contains(body, "data_parallel_rank "+rank+" is out of range [0, 3).") {
				t.Errorf("rank %s: %d %s", rank, resp.StatusCode, body)
			}
		}
		_, page := c.ask(get("/metrics"))
		for rank, want := range []float64{0, 2, 1} {
			series := `vllm:request_success_total{engine="` + string(rune('0'+rank)) + `",finished_reason="length",model_name="tiny"}`
			if got := metric(t, page, series); got != want {
				t.Errorf("%s is %v, want %v", series, got, want)
			}
		}
		if n := strings.Count(page, "\n# TYPE vllm:num_requests_running "); n != 1 {
			t.Errorf("a family stands on the page %d times", n)
		}
		if n := strings.Count(page, "\nvllm:cache_config_info{"); n != 3 {
			t.Errorf("%d engines tell of their caches", n)
		}
		if sum := s.Stats().Engine; sum.Finished != 3 {
			t.Errorf("all together have finished %d", sum.Finished)
		}
	})
}

// Without the header the server shares requests out itself: to the engine with the fewest.
func TestRanksWithoutTheHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.DataParallel = 2
		s, ln := start(t, cfg)
		for range 6 {
			c := connect(t, ln)
			c.send(post("/v1/chat/completions", userSays("hi", `,"max_tokens":400,"stream":true`)))
			synctest.Wait()
		}
		if a, b := s.EngineStats(0), s.EngineStats(1); a.Running+a.Waiting != 3 || b.Running+b.Waiting != 3 {
			t.Errorf("the engines have %d and %d of 6", a.Running+a.Waiting, b.Running+b.Waiting)
		}
	})
}
