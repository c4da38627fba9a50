package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startMock starts a mock vLLM and returns its URL.
func startMock(t *testing.T, cfg mock.Config) (*mock.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := mock.New(cfg)
	served := make(chan error)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return srv, "http://" + ln.Addr().String()
}

// loadtest runs a command line.
func loadtest(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = cli.Execute(ctx, newRoot(), args, &out, &err)
	return code, out.String(), err.String()
}

func TestMisuse(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"run", "--target"},
		{"run --target 127.0.0.1:1", "127.0.0.1:1"},
		{"run --target http://a --workload chatter", "shared-prefix"},
		{"run --target http://a --rate 0", "--rate"},
		{"run --target http://a --duration 0s", "--duration"},
		{"run --target http://a --warmup 1m", "--warmup"},
		{"run --target http://a --sweep 1,0", "--sweep"},
		{"run --target http://a --sweep 1,2 --ramp 3", "choose one"},
		{"run --target http://a --ramp -1", "--ramp"},
		{"run --target http://a --seeds 0", "--seeds"},
		{"run --target http://a --timeout -1s", "--timeout"},
		{"run --target http://a --turns -1", "below zero"},
		{"run --target http://a --slo tps=1", "ttft"},
		{"run --target http://a --slo ttft=fast", "500ms"},
		{"run --target http://a --header x", "--header"},
		{"run --target http://a --objective Urgent=x", "Sheddable"},
		{"run --target http://a --objective Critical=", "Critical=NAME"},
		{"run --target http://a --rat 1", "unknown flag"},
		{"run --target http://a extra", "extra"},
		{"walk", "walk"},
		{"version x", "x"},
	} {
		code, stdout, stderr := loadtest(t.Context(), strings.Fields(c.args)...)
		if code != cli.Misused || !strings.Contains(stderr, c.want) || stdout != "" {
			t.Errorf("%s: exit %d, %q, %q", c.args, code, stdout, stderr)
		}
	}
}

func TestHelpNamesTheWorkloads(t *testing.T) {
	code, stdout, _ := loadtest(t.Context(), "run", "--help")
	if code != 0 || !strings.Contains(stdout, "shared-prefix-short") || !strings.Contains(stdout, "--seed") {
		t.Errorf("exit %d: %s", code, stdout)
	}
	if code, stdout, _ = loadtest(t.Context()); code != 0 || !strings.Contains(stdout, "run") {
		t.Errorf("exit %d: %s", code, stdout)
	}
	if code, stdout, _ = loadtest(t.Context(), "version", "--json"); code != 0 || !strings.Contains(stdout, `"version"`) {
		t.Errorf("exit %d: %s", code, stdout)
	}
}

func TestFailures(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	full := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "full up", http.StatusServiceUnavailable) }))
	defer full.Close()
	for _, c := range []struct {
		name, args, want string
	}{
		{"nobody there", "--target " + closed.URL, "is the server up?"},
		{"nobody there, model named", "--model m --duration 100ms --rate 100 --target " + closed.URL, "refused"},
		{"all refused", "--model m --duration 100ms --rate 100 --target " + full.URL, "full up"},
		{"nothing due", "--model m --duration 1ms --rate 0.001 --workload unshared --target " + full.URL, "no request was due"},
		{"no such folder", "--out /nonexistent/x --target " + full.URL, "/nonexistent/x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := loadtest(t.Context(), append([]string{"run"}, strings.Fields(c.args)...)...)
			if code != cli.Failed || !strings.Contains(stderr, c.want) {
				t.Errorf("exit %d, %q", code, stderr)
			}
		})
	}
}

// summary is what is looked at of a result.
type summary struct {
	Requests  int      `json:"requests"`
	OK        int      `json:"ok"`
	Cancelled int      `json:"cancelled"`
	Workload  string   `json:"workload"`
	TTFT      *float64 `json:"ttft_p90_s"`
	HitRate   *float64 `json:"hit_rate"`
	Stopped   bool     `json:"interrupted"`
}

// readLines reads a file of JSON lines: the number of requests, and the summary.
func readLines(t *testing.T, path string) (requests int, s summary) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var last struct {
		Summary *summary `json:"summary"`
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if last.Summary != nil {
			t.Error("the summary is not the last line")
		}
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			t.Fatalf("%v in %s", err, lines.Bytes())
		}
		if last.Summary == nil {
			requests++
		}
	}
	if last.Summary == nil {
		t.Fatal("there is no summary")
	}
	return requests, *last.Summary
}

func TestRun(t *testing.T) {
	_, url := startMock(t, mock.Config{Speed: 20})
	file := filepath.Join(t.TempDir(), "out.jsonl")
	args := []string{"run", "--target", url, "--rate", "40", "--duration", "1s", "--system-tokens", "200", "--answer-tokens", "20",
		"--think", "100ms", "--seed", "3", "--out", file}

	code, stdout, stderr := loadtest(t.Context(), args...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{"chat on http://", "first token", "between tokens", "goodput", "cache", "seed 3"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	requests, s := readLines(t, file)
	if requests == 0 || s.Requests != requests || s.OK != requests || s.TTFT == nil || s.HitRate == nil || s.Workload != "chat" {
		t.Errorf("%d lines, %+v", requests, s)
	}

	code, stdout, stderr = loadtest(t.Context(), append(args, "--json", "--no-usage", "--quiet")...)
	var result summary
	if err := json.Unmarshal([]byte(stdout), &result); code != 0 || err != nil || result.OK == 0 || result.HitRate != nil {
		t.Errorf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
}

// What requests are worth is said to the server, and told of in every output.
func TestRunByCriticality(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Gateway-Inference-Objective") != "urgent" {
			http.Error(w, "full up", http.StatusTooManyRequests)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: {\"choices\":[{\"delta\":{\"content\":\"yes\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "out.jsonl")
	args := []string{"run", "--quiet", "--target", srv.URL, "--model", "m", "--workload", "mix", "--rate", "200", "--duration", "300ms", "--objective", "Critical=urgent", "--out", file}
	code, stdout, stderr := loadtest(t.Context(), args...)
	for _, want := range []string{`(?m)^ +sent +ok +refused +failed `, `(?m)^ +Critical +(\d+) +\d+ +0 +0 +\d`, `(?m)^ +Sheddable +(\d+) +0 +\d+ +0 +–`} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("exit %d: no %s in\n%s%s", code, want, stdout, stderr)
		}
	}
	text, err := os.ReadFile(file)
	for _, want := range []string{`"criticality":"Standard","intended_s"`, `"by_criticality":[{"criticality":"Critical",`} {
		if err != nil || !bytes.Contains(text, []byte(want)) {
			t.Errorf("%v: no %s in %s", err, want, text)
		}
	}
}

// A sweep is a run for each rate and seed, and no run has the text of another.
func TestSweep(t *testing.T) {
	srv, url := startMock(t, mock.Config{Speed: 50})
	file := filepath.Join(t.TempDir(), "out.jsonl")
	args := []string{"run", "--target", url, "--workload", "shared-prefix", "--groups", "1", "--system-tokens", "500", "--turn-tokens", "20", "--answer-tokens", "5",
		"--sweep", "20,40", "--seeds", "2", "--seed", "7", "--warmup", "200ms", "--duration", "700ms", "--label", "mock", "--out", file}
	code, stdout, stderr := loadtest(t.Context(), append(args, "--json")...)
	var results []struct {
		summary
		Seed  int     `json:"seed"`
		Rate  float64 `json:"rate"`
		Label string  `json:"label"`
	}
	if err := json.Unmarshal([]byte(stdout), &results); code != 0 || err != nil || len(results) != 4 {
		t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	for i, r := range results {
		if r.Seed != 7+i || r.Rate != []float64{20, 40}[i%2] || r.Label != "mock" || r.OK == 0 || r.HitRate == nil || *r.HitRate == 0 {
			t.Errorf("run %d: %+v", i, r)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || bytes.Count(text, []byte(`{"summary":`)) != 4 {
		t.Errorf("%v: %s", err, text)
	}
	if s := srv.Stats().Engine; s.PrefixQueries-s.PrefixHits < 4*500 {
		t.Errorf("%d of %d tokens were found: one run left its text to another", s.PrefixHits, s.PrefixQueries)
	}

	code, stdout, stderr = loadtest(t.Context(), append(args, "--quiet")...)
	// A busy machine adds what it says of its own lag.
	if rows := regexp.MustCompile(`(?m)^ +(20|40) +\d+ `).FindAllString(stdout, -1); code != 0 || len(rows) != 4 || !strings.Contains(stdout, "4 of 4 runs") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

// What run writes is what report reads.
func TestReport(t *testing.T) {
	_, url := startMock(t, mock.Config{Speed: 50})
	dir := t.TempDir()
	file, page := filepath.Join(dir, "out.jsonl"), filepath.Join(dir, "page.html")
	code, _, stderr := loadtest(t.Context(), "run", "--quiet", "--target", url, "--workload", "unshared", "--answer-tokens", "3", "--sweep", "20,40", "--duration", "500ms",
		"--label", "the mock", "--out", file)
	if code != 0 {
		t.Fatal(stderr)
	}
	code, stdout, stderr := loadtest(t.Context(), "report", file, "--html", page)
	if code != 0 || !strings.Contains(stdout, "| the mock | 20 | 1 |") || !strings.Contains(stderr, page) {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	if text, err := os.ReadFile(page); err != nil || bytes.Count(text, []byte("<svg")) < 5 {
		t.Errorf("%v: %s", err, text)
	}
	var sums struct {
		Sections []struct {
			Series []struct {
				Points []struct {
					Rate float64                  `json:"rate"`
					TTFT struct{ Median float64 } `json:"ttft_p50_s"`
				} `json:"points"`
			} `json:"series"`
		} `json:"sections"`
	}
	code, stdout, stderr = loadtest(t.Context(), "report", "--json", "--html", "", file)
	if err := json.Unmarshal([]byte(stdout), &sums); code != 0 || err != nil || sums.Sections[0].Series[0].Points[1].Rate != 40 || sums.Sections[0].Series[0].Points[1].TTFT.Median <= 0 {
		t.Errorf("exit %d: %v: %s%s", code, err, stdout, stderr)
	}
	for _, c := range []struct {
		args, want string
		code       int
	}{
		{"", "which files", cli.Misused},
		{dir + "/none", "none", cli.Failed},
		{page, "page.html:1", cli.Failed},
		{file + " --html /nonexistent/x", "/nonexistent/x", cli.Failed},
	} {
		if code, _, stderr := loadtest(t.Context(), append([]string{"report"}, strings.Fields(c.args)...)...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("report %s: exit %d: %s", c.args, code, stderr)
		}
	}
}

// A trace is played at its own rate unless another is asked for.
func TestRunTrace(t *testing.T) {
	_, url := startMock(t, mock.Config{Speed: 50})
	file := filepath.Join(t.TempDir(), "trace.jsonl")
	var text strings.Builder
	for i := range 11 {
		fmt.Fprintf(&text, `{"timestamp": %d, "input_length": 40, "output_length": 3, "hash_ids": [1]}`+"\n", 50*i)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := loadtest(t.Context(), "run", "--target", url, "--workload", file, "--json")
	var result struct {
		summary
		Rate float64 `json:"rate"`
	}
	if err := json.Unmarshal([]byte(stdout), &result); code != 0 || err != nil || result.OK != 11 || result.Rate != 22 {
		t.Errorf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
}

// Of several runs only those that began are told of.
func TestInterruptedSweep(t *testing.T) {
	_, url := startMock(t, mock.Config{Speed: 50})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, stdout, stderr := loadtest(ctx, "run", "--target", url, "--model", "mock", "--seeds", "5")
	if code != 0 || !strings.Contains(stdout, "1 of 5 runs, the last interrupted") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

// Ctrl-C ends the run early, and what was measured is told.
func TestInterrupt(t *testing.T) {
	srv, url := startMock(t, mock.Config{})
	file := filepath.Join(t.TempDir(), "out.jsonl")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for tick := time.Tick(time.Millisecond); srv.Stats().Answered < 10; {
			<-tick
		}
		cancel() // the last of them may be cut on their way
	}()
	code, stdout, stderr := loadtest(ctx, "run", "--target", url, "--workload", "unshared", "--answer-tokens", "20", "--rate", "40",
		"--duration", "1h", "--out", file)
	requests, s := readLines(t, file)
	if code != 0 || !strings.Contains(stdout, "interrupted") || !s.Stopped || requests < 3 || s.OK < 3 {
		t.Errorf("exit %d, %d lines, %+v\n%s%s", code, requests, s, stdout, stderr)
	}
}

func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p load.Progress
		var b bytes.Buffer
		stop := showProgress(&b, "", &p, time.Minute)
		p.Sent.Add(7)
		p.Done.Add(5)
		p.Failed.Add(1)
		p.Tokens.Add(500)
		p.PromptTokens.Add(200)
		p.CachedTokens.Add(50)
		<-time.After(11 * time.Second)
		stop()
		want := "   5s  5 done, 2 under way, 100 tokens/s, 25 % cached, 1 failed\n  10s  5 done, 2 under way, 50 tokens/s, 25 % cached, 1 failed\n"
		if b.String() != want {
			t.Errorf("got\n%swant\n%s", b.String(), want)
		}
	})
}

func TestBar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p load.Progress
		var b bytes.Buffer
		quit := make(chan struct{})
		time.AfterFunc(3*time.Second, func() { close(quit) })
		drawBar(&b, "run 1: ", &p, 2*time.Second, quit) // the last second is for answers under way
		if s := b.String(); !strings.Contains(s, "50%") || !strings.Contains(s, "run 1: 0 done, 0 under way") || strings.Contains(s, "100%") {
			t.Errorf("%q", s)
		}
	})
}

func TestTableTellsTrouble(t *testing.T) {
	cancelled := load.Record{Error: load.ErrCancelled}
	r := &load.Result{
		Requests: 10, OK: 4, Failed: 5, Cancelled: 1, Skipped: 2, Good: 3, Interrupted: true,
		Errors:    map[load.ErrorClass]int{load.ErrCut: 3, load.Err5xx: 2, load.ErrCancelled: 1},
		Endpoints: map[string]int{"b:1": 3, "a:1": 6},
		Records:   []load.Record{cancelled, {Error: load.ErrCut, Detail: "gone"}, {Error: load.Err5xx, Detail: "full"}},
		SendLag:   load.Distribution{N: 10, P99: time.Second},
		Rate:      2, RampTo: 8,
	}
	var b strings.Builder
	if err := writeTable(&b, r, load.DefaultSLO); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"errors      cut 3: gone\n            status_5xx 2: full\n", "endpoints   a:1  6, 60.0 %\n            b:1  3, 30.0 %\n",
		"10 sent, 4 ok, 5 failed, 1 under way at the end, 2 not sent", "33.3 % had", "late", "interrupted", "2 to 8 requests/s",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "cancelled") {
		t.Errorf("an interrupted request is told as an error:\n%s", b.String())
	}
}
