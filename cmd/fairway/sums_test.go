package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// sums are what one witness says of all requests together.
type sums struct {
	Requests, Good, ClientsGone, Retries int
	Prompt, Cached, Completion           int
	PredictedPrompt, PredictedCached     int
	FirstTokens, Picks                   int
}

// Of a thousand requests metrics, access log and receipts say the same, and so does each engine of those that it had: also when clients
// leave in the middle of their answers, and a pod is killed. Of the killed one nobody knows what became of its last words.
func TestSumsAgree(t *testing.T) {
	t.Run("in peace", func(t *testing.T) { sumsAgree(t, false) })
	t.Run("disturbed", func(t *testing.T) { sumsAgree(t, true) })
}

// endless is an answer, in tokens, of more bytes than all sockets on its way to its client take (each token is an event of some 200 bytes): an engine cannot have
// said all of it to one who reads no more.
const endless = 300_000

func sumsAgree(t *testing.T, disturbed bool) {
	const requests, workers = 1000, 16
	pods := startPods(t, 3, mock.Config{Speed: 100, MaxModelLen: endless + 1000})
	f := startFleet(t, pods...)
	work := make(chan int)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range work {
				f.play(t, i, disturbed && i%20 == 7)
			}
		})
	}
	for i := range requests {
		if disturbed && i == requests/2 {
			pods[0].stop()
		}
		work <- i
	}
	close(work)
	all.Wait()
	waitFor(t, "the last receipt", func() bool { return len(f.account.Receipts(account.Query{})) == requests })

	receipts := f.account.Receipts(account.Query{})
	byReceipts := sumReceipts(receipts)
	if byLog := f.sumLog(t); byLog != byReceipts {
		t.Errorf("access log %+v\nreceipts   %+v", byLog, byReceipts)
	}
	if byMetrics := f.sumMetrics(t); byMetrics != byReceipts {
		t.Errorf("metrics  %+v\nreceipts %+v", byMetrics, byReceipts)
	}
	if byReceipts.Requests != requests || !disturbed && byReceipts.Good != requests || disturbed && byReceipts.ClientsGone == 0 {
		t.Errorf("%+v", byReceipts)
	}
	for i, p := range pods {
		var here sums // by the receipts of those that it was the last to have
		for _, r := range receipts {
			if r.Endpoint == p.address {
				here.add(&r)
			}
		}
		if disturbed && i == 0 {
			// Of what it was saying when it was killed, the kernel may have thrown away what it takes to be said.
			if s := p.Stats(); uint64(here.Good) > s.Answered || s.Answered > s.Received {
				t.Errorf("the engine that was killed has received %d and answered %d; receipts: %+v", s.Received, s.Answered, here)
			}
			continue
		}
		var s mock.Stats
		waitFor(t, "the engine's count", func() bool {
			s = p.Stats()
			return s.Received == s.Answered+s.Aborted && s.Engine.Running+s.Engine.Waiting == 0
		})
		if s.Received != uint64(here.Requests) || s.Answered != uint64(here.Good) || s.Aborted != uint64(here.ClientsGone) {
			t.Errorf("the engine has received %d, answered %d and aborted %d; receipts: %+v", s.Received, s.Answered, s.Aborted, here)
		}
		if s.PromptTokens != here.Prompt || s.CachedTokens != here.Cached || s.CompletionTokens != here.Completion {
			t.Errorf("the engine has told of %d, %d and %d tokens; receipts: %+v", s.PromptTokens, s.CachedTokens, s.CompletionTokens, here)
		}
		if e := s.Engine; !disturbed && (int(e.PromptTokens) != here.Prompt || int(e.PrefixHits) != here.Cached || int(e.GenerationTokens) != here.Completion) {
			t.Errorf("the engine has computed %d, %d and %d tokens; receipts: %+v", e.PromptTokens, e.PrefixHits, e.GenerationTokens, here)
		}
	}
}

// play sends the i-th request, and leaves after the first byte of its answer if it is to.
func (f *fleet) play(t *testing.T, i int, leave bool) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := request{Model: "mock", Stream: leave || i%3 != 0, MaxTokens: 2 + i%5, Messages: []message{{"user", prose(i%40, 200)}}}
	if leave {
		r.MaxTokens = endless
	}
	req, err := http.NewRequestWithContext(ctx, "POST", f.url+"/v1/chat/completions", r.body())
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if leave {
		resp.Body.Read(make([]byte, 1))
		cancel()
	}
	io.Copy(io.Discard, resp.Body)
}

func sumReceipts(all []account.Receipt) (s sums) {
	for i := range all {
		s.add(&all[i])
	}
	return s
}

// add counts one more request.
func (s *sums) add(r *account.Receipt) {
	add := func(to, n *int) {
		if n != nil {
			*to += *n
		}
	}
	s.Requests++
	s.Retries += r.Retries
	if r.Reason == "" {
		s.Good++
	}
	if r.Reason == account.ClientGone {
		s.ClientsGone++
	}
	add(&s.Prompt, r.Actual.PromptTokens)
	add(&s.Cached, r.Actual.CachedTokens)
	add(&s.Completion, r.Actual.CompletionTokens)
	add(&s.PredictedPrompt, r.Predicted.PromptTokens)
	add(&s.PredictedCached, r.Predicted.CachedTokens)
	if r.Actual.TTFT != nil {
		s.FirstTokens++
	}
	if r.DecidedBy != "" {
		s.Picks++
	}
}

func (f *fleet) sumLog(t *testing.T) (s sums) {
	if err := f.access.Close(); err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(&f.accessed); ; {
		var line struct {
			Reason          string  `json:"response_code_details"`
			Attempts        int     `json:"upstream_request_attempt_count"`
			Prompt          int     `json:"prompt_tokens"`
			Cached          int     `json:"cached_tokens"`
			Completion      int     `json:"completion_tokens"`
			PredictedPrompt int     `json:"predicted_prompt_tokens"`
			PredictedCached int     `json:"predicted_cached_tokens"`
			TTFT            float64 `json:"ttft_ms"`
			DecidedBy       string  `json:"decided_by"`
		}
		if err := d.Decode(&line); err == io.EOF {
			return s
		} else if err != nil {
			t.Fatal(err)
		}
		s.Requests++
		s.Retries += line.Attempts - 1
		if line.Reason == "" {
			s.Good++
		}
		if line.Reason == account.ClientGone {
			s.ClientsGone++
		}
		s.Prompt, s.Cached, s.Completion = s.Prompt+line.Prompt, s.Cached+line.Cached, s.Completion+line.Completion
		s.PredictedPrompt, s.PredictedCached = s.PredictedPrompt+line.PredictedPrompt, s.PredictedCached+line.PredictedCached
		if line.TTFT > 0 {
			s.FirstTokens++
		}
		if line.DecidedBy != "" {
			s.Picks++
		}
	}
}

func (f *fleet) sumMetrics(t *testing.T) (s sums) {
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			labels := make(map[string]string)
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			n := int(m.GetCounter().GetValue())
			switch family.GetName() {
			case "fairway_requests_total":
				s.Requests += n
				switch labels["reason"] {
				case "":
					s.Good += n
				case account.ClientGone:
					s.ClientsGone += n
				}
			case "fairway_retries_total":
				s.Retries += n
			case "fairway_picks_total":
				s.Picks += n
			case "fairway_time_to_first_token_seconds":
				s.FirstTokens += int(m.GetHistogram().GetSampleCount())
			case "fairway_tokens_total":
				*map[string]*int{"prompt": &s.Prompt, "cached": &s.Cached, "completion": &s.Completion}[labels["kind"]] += n
			case "fairway_predicted_tokens_total":
				*map[string]*int{"prompt": &s.PredictedPrompt, "cached": &s.PredictedCached}[labels["kind"]] += n
			}
		}
	}
	return s
}
