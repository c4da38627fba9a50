package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/picker"
)

// compareOptions are the flags of compare.
type compareOptions struct {
	sim.Comparison
	slo    map[string]string
	always bool // what is long enough is computed by a prefill pod, whatever that costs
	quiet  bool
}

func newCompare() *cobra.Command {
	o := &compareOptions{}
	cmd := &cobra.Command{
		Use:   "compare --workload NAME",
		Short: "Play one workload through several routing policies in virtual time",
		Long: "compare simulates a fleet of engines and routes the same traffic to them by each policy. The policy called fairway is the\n" +
			"picker as it ships; those of other routers are our own readings of what their authors publish. Ctrl-C ends it early; what was\n" +
			"measured until then is still written.\n\nWorkloads (or a file of JSON lines in the format of the Mooncake traces):\n" + workloads() +
			"\n\nPolicies:\n" + policies(),
		Example: "  loadtest compare --workload chat --load 0.7 --seeds 5\n" +
			"  loadtest compare --workload agents --load 0.95 --policies fairway,epp-default --replicas 3 --json",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.Workload, "workload", "chat", "what to play")
	f.Float64Var(&o.Load, "load", 0.7, "requests a second, as a fraction of what the best policy sustains; for a trace, of its own rate")
	f.Float64Var(&o.Rate, "rate", 0, "requests a second, instead of --load")
	f.IntVar(&o.Seeds, "seeds", 3, "how often to play it, each time with other traffic")
	f.IntVar(&o.Replicas, "replicas", 1, "replicas of the router, which share nothing")
	f.StringSliceVar(&o.Policies, "policies", nil, "which to play, in this order (default: all)")
	f.StringToStringVar(&o.slo, "slo", nil, "what counts for goodput (default ttft=1s,tpot=100ms)")
	f.BoolVar(&o.ByCriticality, "by-criticality", false, "a row for each criticality")
	f.DurationVar(&o.Scrape, "scrape", 0, "between scrapes of a pod; below 0: no metrics (default: as each policy's authors do)")
	f.DurationVar(&o.Warmup, "warmup", 0, "virtual time before anything is measured (default: as the workload needs)")
	f.DurationVar(&o.Measure, "measure", 0, "virtual time to measure (default: as the workload needs)")
	f.DurationVar(&o.Churn, "churn", 0, "so often a pod leaves, and half of that later a new one joins; 0: never")
	f.IntVar(&o.Burst, "burst", 0, "conversations that begin at the same moment, in the mean; 0: each by itself")
	f.IntVar(&o.Groups, "groups", 0, "system prompts, of \"adapters\" adapters (default: as the workload has)")
	f.Float64SliceVar(&o.Costs, "costs", nil, "what a second of each pod costs, in turn, as 2.5,1; Fairway is told of that and of --slo")
	f.BoolVar(&o.NonStreaming, "non-streaming", false, "answers come whole, and their first token counts when they do")
	f.IntVar(&o.CacheTokens, "cache-tokens", 0, "tokens that the KV cache of each pod holds (default: as its GPU has room for)")
	f.BoolVar(&o.NoCacheReport, "no-cache-report", false, "engines do not report cached tokens in their answers")
	f.BoolVar(&o.NoQueue, "no-queue", false, "Fairway sends every request at once, whatever the engines have to do")
	f.IntVar(&o.Prefill, "prefill-pods", 0, "of the pods, those that compute prompts for the others and nothing else; Fairway alone knows such")
	f.IntVar(&o.RemotePrefill, "remote-prefill", picker.DefaultRemotePrefill, "from how many uncached tokens on one of --prefill-pods computes a prompt, if that pays")
	f.BoolVar(&o.always, "prefill-always", false, "or whether or not that pays, as llm-d's prefix-based-pd-decider has it")
	f.DurationVar(&o.Transfer, "transfer", 0, "what moving a token's KV to another pod takes (default: 131,072 bytes at 200 Gbit/s)")
	f.BoolVar(&o.quiet, "quiet", false, "show no progress")
	return cmd
}

// policies lists what can be compared.
func policies() string {
	var b strings.Builder
	for _, name := range sim.Policies() {
		fmt.Fprintf(&b, "  %-20s %s\n", name, sim.AboutPolicy(name))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// complete checks the flags and completes o.Comparison.
func (o *compareOptions) complete() error {
	switch {
	case o.Load <= 0 || o.Rate < 0:
		return errors.New("--load and --rate must be above zero")
	case o.Seeds < 1 || o.Replicas < 1:
		return errors.New("--seeds and --replicas must be at least 1")
	case min(o.Warmup, o.Measure, o.Churn, time.Duration(o.Burst), time.Duration(o.Groups)) < 0:
		return errors.New("--warmup, --measure, --churn, --burst and --groups must not be below zero")
	}
	if o.Prefill > 0 && !slices.Equal(o.Policies, []string{"fairway"}) {
		return errors.New("--prefill-pods: other policies know no such pods: want --policies fairway")
	}
	if o.Prefill < 0 || o.RemotePrefill < 1 || o.Transfer < 0 {
		return errors.New("--prefill-pods and --transfer must not be below zero, and --remote-prefill must be at least 1")
	}
	if o.always {
		o.Without |= picker.PrefillWorth
	}
	for _, c := range o.Costs {
		if !(c > 0) {
			return errors.New("--costs must be above zero")
		}
	}
	for _, p := range o.Policies {
		if sim.AboutPolicy(p) == "" {
			return fmt.Errorf("there is no policy %q; there are %s", p, strings.Join(sim.Policies(), ", "))
		}
	}
	slo, err := parseSLO(o.slo)
	if err != nil {
		return err
	}
	o.SLO = sim.SLO{TTFT: slo.TTFT, TPOT: slo.TPOT}
	if !slices.Contains(workload.Names(), o.Workload) {
		if o.Trace, err = readTrace(o.Workload); err != nil {
			return err
		}
	}
	_, err = o.RequestRate()
	return err
}

// run plays, shows progress and tells the rows.
func (o *compareOptions) run(cmd *cobra.Command) error {
	if err := o.complete(); err != nil {
		return cli.Misuse(err)
	}
	if !o.quiet {
		stop := o.showProgress(cmd.ErrOrStderr())
		defer stop()
	}
	rows, err := o.Run(cmd.Context())
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if cli.JSON(cmd) {
		return cli.WriteJSON(cmd.OutOrStdout(), rows)
	}
	return o.writeRows(cmd.OutOrStdout(), rows, err != nil)
}

// showProgress tells w how many runs have ended. Nothing is written after stop.
func (o *compareOptions) showProgress(w io.Writer) (stop func()) {
	start, last := time.Now(), time.Now()
	terminal := cli.IsTerminal(w)
	var mu sync.Mutex // guards last, quiet and w
	quiet := false
	o.Done = func(done, total int) {
		mu.Lock()
		defer mu.Unlock()
		if quiet || !terminal && time.Since(last) < lineInterval {
			return
		}
		last = time.Now()
		before, after := "", "\n"
		if terminal {
			before, after = "\r", "\033[K"
		}
		fmt.Fprintf(w, "%s%d of %d runs, %.0f s%s", before, done, total, time.Since(start).Seconds(), after)
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		quiet = true
		if terminal {
			fmt.Fprint(w, "\r\033[K")
		}
	}
}

// writeRows tells the rows to a person.
func (o *compareOptions) writeRows(w io.Writer, rows []sim.Row, interrupted bool) error {
	rate, err := o.RequestRate()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s: %.1f requests/s", o.Workload, rate)
	switch {
	case o.Rate > 0:
	case o.Trace != nil:
		fmt.Fprintf(w, " (%.0f %% of the trace's own rate)", 100*o.Load)
	default:
		fmt.Fprintf(w, " (%.0f %% of what the best policy sustains)", 100*o.Load)
	}
	fmt.Fprintf(w, ", %d seeds, replicas of the router: %d", o.Seeds, o.Replicas)
	if interrupted {
		fmt.Fprint(w, ", interrupted")
	}
	fmt.Fprint(w, "\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "policy\tcriticality\tseeds\trequests\trefused\tTTFT p50 ms\tp90 ms\t± sd\tTPOT p90 ms\tgap p90 ms\tE2E p90 s\thits %\tremote %\tgoodput/s\ttokens/s\tSLO met %\tcost ms\tTTFT off %\tTPOT off %\t")
	for _, r := range rows {
		class := r.Criticality
		if class == "" {
			class = "all"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.1f\t%.0f\t%.2f\t%.1f\t%.0f\t%.1f\t%.0f\t%.1f\t%.1f\t%s\t%s\t\n", r.Policy, class, r.Seeds, r.Requests, r.Refused,
			1e3*r.TTFTP50, 1e3*r.TTFTP90, 1e3*r.TTFTP90SD, 1e3*r.TPOTP90, 1e3*r.GapP90, r.E2EP90, 100*r.HitRate, 100*r.Remote, r.Goodput, r.TokensPerS, 100*r.Met, 1e3*r.Cost, share(r.TTFTError), share(r.TPOTError))
	}
	return t.Flush()
}

// share is one in percent, if there is one.
func share(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f", 100*v)
}

// readTrace reads a workload from a file.
func readTrace(name string) (*workload.Workload, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("there is no workload %q (there are %s), and no trace of that name: %w", name, strings.Join(workload.Names(), ", "), err)
	}
	defer f.Close()
	return workload.ReadTrace(name, f)
}
