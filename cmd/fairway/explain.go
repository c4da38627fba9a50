package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/proxy/account"
)

func newExplain() *cobra.Command {
	var admin string
	cmd := &cobra.Command{
		Use:   "explain ID [--admin URL]",
		Short: "Say why a request went where it went",
		Long: `Explain asks a running proxy for the receipt of one of its last requests: the
endpoints that were weighed with each term of their scores, which came next and
what decided between the two, what was predicted, and what happened.

ID is the request's x-request-id, which every answer carries and the access log
says. Followed by @ and the name of a replica, as x-fairway-receipt and the list
at /receipts have it, it tells which replica to ask.`,
		Example: `  fairway explain 5f0c3a9d2b7e4c61a8f0d3b25e6c7a94
  fairway explain 5f0c3a9d2b7e4c61a8f0d3b25e6c7a94@fairway-7d9f6 --admin http://127.0.0.1:15000`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return cli.Misuse(errors.New("which request? give its id, the answer's x-request-id"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := fetchReceipt(cmd.Context(), admin, args[0])
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return cli.WriteJSON(cmd.OutOrStdout(), r)
			}
			return writeReceipt(cmd.OutOrStdout(), r)
		},
	}
	cmd.Flags().StringVar(&admin, "admin", "http://127.0.0.1:15000", "the `URL` of the proxy's admin listener")
	return cmd
}

// fetchTimeout bounds how long a running proxy may take to answer a command.
const fetchTimeout = 10 * time.Second

// fetchReceipt asks the proxy whose admin listener is at base.
func fetchReceipt(ctx context.Context, base, id string) (*account.Receipt, error) {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		return nil, cli.Misuse(fmt.Errorf("--admin %s: want a URL such as http://127.0.0.1:15000", base))
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", u.JoinPath("receipts").String()+"/"+url.PathEscape(id), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no proxy answers at %s (--admin says where; in a cluster, kubectl port-forward the replica's port 15000): %w", u, err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		var said struct{ Error string }
		json.Unmarshal(body, &said)
		return nil, errors.New(cmp.Or(said.Error, fmt.Sprintf("%s answered with %s", u, resp.Status)))
	}
	r := new(account.Receipt)
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("%s gives no receipt: %w", u, err)
	}
	return r, nil
}

// decisions are the words of a receipt's decided_by, in sentences.
var decisions = map[string]string{
	"nothing":  "there was no other endpoint to choose",
	"cache":    "it has more of the prompt in its cache",
	"queue":    "less is queued there before the prompt",
	"requests": "fewer requests there would be delayed",
	"kv":       "its KV cache is less full",
	"speed":    "it computes faster",
	"adapter":  "it has the LoRA adapter on its GPU",
	"home":     "replicas agree to send this prompt there while nobody has it cached",
	"cost":     "it costs less",
	"slo":      "it is predicted to be in time for what the request asks for",
	"hash":     "the scores are as good as equal; the prompt's hash decides",
	"policy":   "the configured policy says so",

	account.ByEndpointPicker: "the pool's own endpoint picker named it",
}

// writeReceipt prints a receipt for people.
func writeReceipt(out io.Writer, r *account.Receipt) error {
	fmt.Fprintf(out, "%s %s  %s\n", r.Method, r.Path, r.Receipt)
	fmt.Fprintf(out, "%s, model %s, pool %s\n\n", r.Time.Local().Format(time.DateTime), cmp.Or(r.Model, "(none)"), cmp.Or(r.Pool, "(none)"))
	if r.Endpoint == "" {
		fmt.Fprintf(out, "It went to no endpoint: %d %s\n", r.Code, r.Reason)
		if r.Shed != "" {
			fmt.Fprintf(out, "It could have been served at another time: %s, for what is worth %s.\n", r.Shed, r.Criticality)
		}
		return nil
	}
	writeChoice(out, r)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	writeOutcome(w, r)
	if len(r.Candidates) > 0 {
		writeCandidates(w, r)
	}
	return w.Flush()
}

// writeChoice says where the request went, and why.
func writeChoice(out io.Writer, r *account.Receipt) {
	switch {
	case r.DecidedBy == "":
		fmt.Fprintf(out, "It went to %s.\n", r.Endpoint)
	case r.Next == "":
		fmt.Fprintf(out, "It went to %s: %s.\n", r.Endpoint, decisions[r.DecidedBy])
	default:
		fmt.Fprintf(out, "It went to %s rather than %s: %s", r.Endpoint, r.Next, decisions[r.DecidedBy])
		if r.Margin != nil && *r.Margin > 0 && r.DecidedBy != "policy" {
			fmt.Fprintf(out, " (by %s)", milliseconds(*r.Margin))
		}
		fmt.Fprintln(out, ".")
	}
	if s := r.Shadow; s != nil && s.Endpoint == r.Endpoint {
		fmt.Fprintf(out, "The shadow policy, %s, agrees.\n", s.Policy)
	} else if s != nil {
		when := "later"
		if s.Regret < 0 {
			when = "sooner"
		}
		fmt.Fprintf(out, "The shadow policy, %s, would have sent it to %s: the first token was expected %s %s there.\n", s.Policy, s.Endpoint, milliseconds(math.Abs(s.Regret)), when)
	}
	for _, a := range r.Tried {
		fmt.Fprintf(out, "Before, after %s, %s failed it: %s\n", milliseconds(a.At), a.Endpoint, a.Why)
	}
}

// writeOutcome sets what was predicted beside what happened.
func writeOutcome(w io.Writer, r *account.Receipt) {
	fmt.Fprintln(w, "\n\tPREDICTED\tHAPPENED")
	fmt.Fprintf(w, "first token after\t%s\t%s\n", optional(r.Predicted.TTFT, milliseconds), optional(r.Actual.TTFT, milliseconds))
	count := func(n int) string { return fmt.Sprint(n) }
	if r.Predicted.TPOT != nil {
		fmt.Fprintf(w, "each further token\t%s\t%s\n", optional(r.Predicted.TPOT, milliseconds), optional(r.Actual.TPOT, milliseconds))
	}
	fmt.Fprintf(w, "prompt tokens\t%s\t%s\n", optional(r.Predicted.PromptTokens, count), optional(r.Actual.PromptTokens, count))
	fmt.Fprintf(w, "of these cached\t%s\t%s\n", optional(r.Predicted.CachedTokens, count), optional(r.Actual.CachedTokens, count))
	fmt.Fprintf(w, "completion tokens\t\t%s\n", optional(r.Actual.CompletionTokens, count))
	fmt.Fprintf(w, "status\t\t%d %s\n", r.Code, r.Reason)
	for _, word := range [...][2]string{{"worth", r.Criticality}, {"trace", r.TraceID}} {
		if word[1] != "" {
			fmt.Fprintf(w, "%s\t\t%s\n", word[0], word[1])
		}
	}
	fmt.Fprintf(w, "retries\t\t%d\n", r.Retries)
	fmt.Fprintf(w, "queued for\t\t%s\n", milliseconds(r.Queued))
	fmt.Fprintf(w, "in all\t\t%s\n", milliseconds(r.Duration))
}

// writeCandidates lists what was weighed, with the terms of each score.
func writeCandidates(w io.Writer, r *account.Receipt) {
	fmt.Fprintln(w, "\nENDPOINT\tSCORE\t= (QUEUE\t+ PROMPT\t+ ADAPTER\t+ INFLICTED)\t× KV\t× COST\tCACHED\tUNCACHED\tREQUESTS")
	for _, c := range r.Candidates {
		mark := " "
		switch {
		case c.Chosen:
			mark = "→"
		case c.Home:
			mark = "⌂"
		}
		fmt.Fprintf(w, "%s %s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\n", mark, c.Endpoint, milliseconds(c.Score),
			milliseconds(c.Queue), milliseconds(c.Prompt), milliseconds(c.Adapter), milliseconds(c.Inflicted), c.Pressure, c.Price,
			c.HitTokens, c.UncachedTokens, c.Requests)
	}
	if more := r.Weighed - len(r.Candidates); more > 0 {
		fmt.Fprintf(w, "and %d more with higher scores\n", more)
	}
}

func milliseconds(s float64) string { return fmt.Sprintf("%.1f ms", 1000*s) }

// optional is what there may be to tell.
func optional[T any](v *T, text func(T) string) string {
	if v == nil {
		return "–"
	}
	return text(*v)
}
