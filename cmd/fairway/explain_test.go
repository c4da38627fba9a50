package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/account"
)

// withAdmin has a fleet's admin listener on, and gives its URL.
func withAdmin(c *file.Config) { c.Listen.Admin = "127.0.0.1:0" }

func (f *fleet) adminURL() string { return "http://" + f.app.admin.Addr }

// getJSON reads what the admin listener says at a path.
func (f *fleet) getJSON(t testing.TB, path string, into any) {
	t.Helper()
	resp, err := f.client.Get(f.adminURL() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
	}
}

// From an answer's header to why it came from there, as an operator goes.
func TestExplain(t *testing.T) {
	pods := startPods(t, 3, mock.Config{Speed: 20})
	f := startFleetWith(t, withAdmin, pods...)
	turn := request{MaxTokens: 4, Messages: []message{{"user", prose(1, 3000)}}}
	first := f.mustAsk(t, turn)
	turn.Messages = append(turn.Messages, message{"assistant", first.text}, message{"user", "and then?"})
	second := f.mustAsk(t, turn)
	if first.endpoint != second.endpoint || second.receipt.Receipt == "" || second.receipt.DecidedBy != "cache" {
		t.Fatalf("went to %s, then to %s: %+v", first.endpoint, second.endpoint, second.receipt)
	}
	waitFor(t, "both receipts", func() bool { return len(f.app.account.Receipts(account.Query{})) == 2 })

	code, out, says := call(t, "explain", second.receipt.Receipt, "--admin", f.adminURL())
	if code != 0 {
		t.Fatal(says)
	}
	for _, want := range []string{"It went to " + second.endpoint + " rather than ", "it has more of the prompt in its cache", "→ " + second.endpoint, "/v1/chat/completions", "pool pool"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}

	code, out, says = call(t, "explain", "--json", second.receipt.ID, "--admin", strings.TrimPrefix(f.adminURL(), "http://"))
	var r account.Receipt
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
		t.Fatal(code, err, says)
	}
	if r.Endpoint != second.endpoint || !r.Candidates[0].Chosen || len(r.Candidates) != 3 || r.Weighed != 3 || r.Code != 200 ||
		r.Actual.TTFT == nil || r.Predicted.TTFT == nil || *r.Actual.CompletionTokens != 4 || *r.Actual.CachedTokens < 2000 || *r.Predicted.CachedTokens < 2000 {
		t.Errorf("%s", out)
	}
	sum := func(c account.CandidateReceipt) float64 {
		return (c.Queue + c.Prompt + c.Adapter + c.Inflicted) * c.Pressure * c.Price
	}
	for _, c := range r.Candidates {
		if d := sum(c) - c.Score; math.Abs(d) > 1e-6*c.Score+1e-9 {
			t.Errorf("the terms of %s add up to %v, its score is %v", c.Endpoint, sum(c), c.Score)
		}
	}

	var list struct{ Receipts []account.Receipt }
	f.getJSON(t, "/receipts?limit=1&endpoint="+second.endpoint, &list)
	if len(list.Receipts) != 1 || list.Receipts[0].ID != second.receipt.ID {
		t.Errorf("%+v", list)
	}
}

// Each word for what decided has its sentence, in the terminal and on the operator's page, and its place in the docs.
func TestDecisionsDocumented(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	page := read("../../proxy/dashboard/assets/app.js")
	_, documented, ok := strings.Cut(read("../../docs/configuration.md"), "`decided_by` is what")
	if !ok {
		t.Fatal("docs/configuration.md does not say what decided_by is")
	}
	documented, _, _ = strings.Cut(documented, "\n##")
	words := []string{account.ByEndpointPicker}
	for f := picker.Nothing; f.String() != "unknown"; f++ {
		words = append(words, f.String())
	}
	if len(words) != len(decisions) {
		t.Errorf("%d sentences for the words %v", len(decisions), words)
	}
	for _, word := range words {
		said := decisions[word]
		if said == "" {
			t.Errorf("decided_by may be %s, for which fairway explain has no words", word)
			continue
		}
		if !strings.Contains(documented, "`"+word+"`") {
			t.Errorf("decided_by may be %s, of which docs/configuration.md knows nothing", word)
		}
		line := fmt.Sprintf("\n  %s: ['", word)
		if _, rest, ok := strings.Cut(page, line); !ok || !strings.Contains(strings.SplitN(rest, "\n", 2)[0], strings.ReplaceAll(said, "'", "’")) {
			t.Errorf("decided_by may be %s, of which proxy/dashboard/assets/app.js does not say that %s", word, said)
		}
	}
}

func TestExplainSaysWhyNot(t *testing.T) {
	f := startFleetWith(t, withAdmin, startPod(t, "", mock.Config{Speed: 20}))
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"explain"}, 2, "which request?"},
		{[]string{"explain", "a", "b"}, 2, "which request?"},
		{[]string{"explain", "a", "--admin", "http://"}, 2, "want a URL"},
		{[]string{"explain", "a", "--admin", "http://127.0.0.1:1"}, 1, "no proxy answers at http://127.0.0.1:1"},
		{[]string{"explain", "a", "--admin", f.adminURL()}, 1, `there is no receipt of "a" here`},
		{[]string{"explain", "a@elsewhere", "--admin", f.adminURL()}, 1, "replica elsewhere has served that request"},
		{[]string{"explain", "a", "--admin", f.url}, 1, "404"},
	} {
		if code, _, says := call(t, tt.args...); code != tt.code || !strings.Contains(says, tt.want) {
			t.Errorf("%v: exit code %d, want %d; %q is not in: %s", tt.args, code, tt.code, tt.want, says)
		}
	}
}

// What failed before is told with what was picked in its place.
func TestExplainRetries(t *testing.T) {
	pods := startPods(t, 2, mock.Config{Speed: 20})
	f := startFleetWith(t, func(c *file.Config) {
		c.World.Scrape.Interval = time.Hour // only requests find out
	}, pods...)
	pods[0].stop()
	var tried []account.Receipt
	for i := 0; len(tried) == 0; i++ {
		if i == 64 {
			t.Fatal("no receipt tells of the pod that is gone")
		}
		if _, err := f.ask(context.Background(), request{MaxTokens: 1, Messages: []message{{"user", prose(i, 400)}}}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the receipt", func() bool { return len(f.app.account.Receipts(account.Query{})) == i+1 })
		tried = f.app.account.Receipts(account.Query{Endpoint: pods[0].address})
	}
	for _, r := range tried {
		if r.Retries == 0 || len(r.Tried) != r.Retries || r.Endpoint != pods[1].address || !strings.Contains(r.Tried[0].Why, "refused") {
			t.Errorf("%+v", r)
		}
	}
}
