package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestAgentsHaveLongContexts(t *testing.T) {
	var first, longest []int
	for _, s := range take(t, "agents", Params{}, 500) {
		first = append(first, s.PromptTokens(0))
		if len(s.Turns) > 32 {
			longest = append(longest, s.PromptTokens(len(s.Turns)-1))
		}
	}
	if a, b := mean(first), mean(longest); math.Abs(a-20_000) > 1000 || b < 45_000 || b > 65_000 {
		t.Errorf("they begin with %.0f and end with %.0f tokens", a, b)
	}
}

func TestRAGSharesLittle(t *testing.T) {
	seen, shared, all := map[uint64]bool{}, 0, 0
	for i, s := range take(t, "rag", Params{}, 3000) {
		if n := Tokens(s.Turns[0].User); n < 5000 || n > 5200 {
			t.Fatalf("a question of %d tokens", n)
		}
		blocks := AppendBlocks(nil, s.AppendPrompt(nil, 0), 16)
		for _, b := range blocks {
			if i > 1000 {
				if all++; seen[b] {
					shared++
				}
			}
			seen[b] = true
		}
	}
	// The system prompt is everybody's; the first document often somebody's.
	if share := float64(shared) / float64(all); share < 0.12 || share > 0.3 {
		t.Errorf("%.2f of the tokens were there before", share)
	}
}

func TestMixIsOneJobToFourQuestions(t *testing.T) {
	var questions, jobs []int
	classes, sheddableJobs := map[string]int{}, 0
	for _, s := range take(t, "mix", Params{}, 5000) {
		classes[s.Criticality]++
		if len(s.System) > 0 {
			questions = append(questions, s.PromptTokens(0))
			continue
		}
		jobs = append(jobs, s.PromptTokens(0))
		if s.Criticality == "Sheddable" {
			sheddableJobs++
		}
	}
	if share := float64(len(jobs)) / 5000; math.Abs(share-batchShare) > 0.02 {
		t.Errorf("%.2f are jobs", share)
	}
	for _, c := range []string{"Critical", "Standard", "Sheddable"} {
		if share := float64(classes[c]) / 5000; math.Abs(share-1.0/3) > 0.02 {
			t.Errorf("%.2f are %s", share, c)
		}
	}
	if share := float64(sheddableJobs) / float64(len(jobs)); math.Abs(share-1.0/3) > 0.05 {
		t.Errorf("%.2f of the jobs are sheddable", share)
	}
	if a, b := mean(questions), mean(jobs); math.Abs(a-2300) > 50 || math.Abs(b-batchPrompt) > 200 {
		t.Errorf("prompts of %.0f and %.0f tokens", a, b)
	}
}

func TestHotPrefixComesSuddenly(t *testing.T) {
	var before, after, hotBefore, hotAfter float64
	p := Params{Seed: 4, Rate: 50}
	hottest := identity(4, systemPrompt, 0)
	for _, s := range take(t, "hot-prefix", p, 5000) {
		n, hot := &before, &hotBefore
		if s.Start >= hotFrom {
			n, hot = &after, &hotAfter
		}
		*n++
		if s.System[0].ID == hottest {
			*hot++
		}
	}
	if a, b := hotBefore/before, hotAfter/after; a > 0.02 || math.Abs(b-hotShare) > 0.03 {
		t.Errorf("%.3f of the requests, then %.3f", a, b)
	}
}

func TestAdaptersArePopularByRank(t *testing.T) {
	count := map[string]int{}
	systems := map[string]uint64{}
	for _, s := range take(t, "adapters", Params{}, 10_000) {
		count[s.Adapter]++
		if id, ok := systems[s.Adapter]; ok && id != s.System[0].ID {
			t.Fatal("an adapter has two system prompts")
		}
		systems[s.Adapter] = s.System[0].ID
	}
	if len(count) != 32 || count["adapter-0"] < 2*count["adapter-3"] || count["adapter-31"] == 0 {
		t.Errorf("%d adapters: %v", len(count), count)
	}
}

func TestZipf(t *testing.T) {
	for _, skew := range []float64{0.8, 1} {
		rng := rand.New(rand.NewPCG(1, 1))
		var count [100]int
		for range 100_000 {
			count[zipf(rng, 100, skew)]++ // panics beyond
		}
		if got, want := float64(count[9])/float64(count[79]), math.Pow(8, skew); math.Abs(got/want-1) > 0.2 {
			t.Errorf("skew %v: the 10th is %.1f times as popular as the 80th, want %.1f", skew, got, want)
		}
	}
}

func mean(list []int) float64 {
	sum := 0
	for _, n := range list {
		sum += n
	}
	return float64(sum) / float64(len(list))
}

const trace = `{"timestamp": 0, "input_length": 1200, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 500, "input_length": 1100, "output_length": 26, "hash_ids": [46, 47, 99]}

{"timestamp": 2000, "input_length": 700, "output_length": 1, "hash_ids": [46]}
`

func TestReadTrace(t *testing.T) {
	w, err := ReadTrace("t.jsonl", strings.NewReader(trace))
	if err != nil {
		t.Fatal(err)
	}
	if w.Name() != "t.jsonl" || w.Params().Rate != 1.5 {
		t.Errorf("%s at %v/s", w.Name(), w.Params().Rate)
	}
	var all []Session
	for s := range w.At(3).Sessions() {
		all = append(all, s)
	}
	if len(all) != 3 || all[1].Start != 250*time.Millisecond || all[2].Start != time.Second {
		t.Fatalf("at twice its rate: %+v", all)
	}
	if a, b, c := all[0].PromptTokens(0), all[1].PromptTokens(0), all[2].PromptTokens(0); a != 1200 || b != 1100 || c != 700 || all[0].Turns[0].Answer.Tokens != 52 {
		t.Errorf("%d, %d, %d tokens", a, b, c)
	}
	shared := 0
	a, b := AppendBlocks(nil, all[0].AppendPrompt(nil, 0), 16), AppendBlocks(nil, all[1].AppendPrompt(nil, 0), 16)
	for shared < len(b) && a[shared] == b[shared] {
		shared++
	}
	if shared != 64 {
		t.Errorf("%d blocks in common, want those of two hash_ids", shared)
	}
}

func TestReadTraceRefuses(t *testing.T) {
	good := `{"timestamp": 5, "input_length": 10, "output_length": 5, "hash_ids": [1]}` + "\n"
	for _, c := range []struct{ text, want string }{
		{"", "no request"},
		{good + "timestamp,input_length", "t:2:"},
		{good + `{"timestamp": 6, "input_length": 0, "output_length": 5}`, "input_length"},
		{good + `{"timestamp": 6, "input_length": 10, "output_length": 5, "hash_ids": [1, 2]}`, "hash_ids"},
		{good + `{"timestamp": 4, "input_length": 10, "output_length": 5}`, "before"},
		{good + `{"timestamp": -1, "input_length": 10, "output_length": 5}`, "timestamp"},
		{`{"timestamp": 0, "input_length": 10, "output_length": 5}`, "rate"},
	} {
		if _, err := ReadTrace("t", strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add(trace)
	f.Fuzz(func(t *testing.T, text string) {
		w, err := ReadTrace("t", strings.NewReader(text))
		if err != nil {
			return
		}
		for s := range w.Sessions() {
			if s.PromptTokens(0) < 1 || s.Turns[0].Answer.Tokens < 1 || s.Start < 0 {
				t.Fatal(fmt.Sprint(s))
			}
		}
	})
}
