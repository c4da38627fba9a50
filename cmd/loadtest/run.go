package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// runOptions are the flags of run.
type runOptions struct {
	workload string
	params   workload.Params
	sweep    []float64
	seeds    int
	headers  []string
	slo      map[string]string
	out      string
	quiet    bool
	cfg      load.Config // of every run, but for its workload
}

func newRun() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run --target URL",
		Short: "Play a workload over real sockets: at one rate, at several (--sweep), or while the rate changes (--ramp)",
		Long: "run sends streaming chat completions when the workload says so, however slow the server is, and counts every latency\n" +
			"from when its request was due. Ctrl-C ends it early; what was measured until then is still written.\n\n" +
			"With --sweep or --seeds there are several runs, one after another. Each has a seed of its own, so that none finds in the\n" +
			"server's caches what one before it has left there. --json then tells an array of results instead of one.\n\n" +
			"A third each of the requests of mix is Critical, Standard and Sheddable. The server hears of it by --objective, which names\n" +
			"one of its objectives (fairway.yaml) or InferenceObjectives; the results of a run, --json and --out tell of each.\n\n" +
			"Workloads (or a file of JSON lines in the format of the Mooncake traces):\n" + workloads(),
		Example: "  loadtest run --target http://127.0.0.1:8080 --workload chat --rate 5 --duration 1m --out chat.jsonl\n" +
			"  loadtest run --target http://127.0.0.1:8080 --sweep 2,4,8,16 --seeds 3 --warmup 20s --out sweep.jsonl\n" +
			"  loadtest run --target http://127.0.0.1:8080 --rate 1 --ramp 40 --duration 5m --out ramp.jsonl\n" +
			"  loadtest run --target http://127.0.0.1:8080 --workload mix --objective Critical=urgent,Sheddable=batch\n" +
			"  loadtest report sweep.jsonl ramp.jsonl",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.cfg.URL, "target", "", "URL of the server, as http://127.0.0.1:8080")
	f.StringVar(&o.workload, "workload", "chat", "what to play")
	f.Float64Var(&o.params.Rate, "rate", 1, "requests a second (of a trace: its own, unless given)")
	f.Float64SliceVar(&o.sweep, "sweep", nil, "several rates, a run for each, instead of --rate; as 2,4,8")
	f.Float64Var(&o.cfg.RampTo, "ramp", 0, "requests a second at the end of a run: from --rate it goes there in a straight line")
	f.DurationVar(&o.cfg.Duration, "duration", time.Minute, "how long to send in a run; answers under way are awaited")
	f.DurationVar(&o.cfg.Warmup, "warmup", 0, "of the duration: requests due before then are sent and not measured")
	f.Uint64Var(&o.params.Seed, "seed", 1, "of everything random; two seeds share no text")
	f.IntVar(&o.seeds, "seeds", 1, "runs at each rate, the first with --seed")
	f.StringVar(&o.cfg.Label, "label", "", "what loadtest report calls these runs, as 'fairway, 4 engines'")
	f.StringVar(&o.cfg.Model, "model", "", "model to ask for (default: the first the server lists)")
	f.StringVar(&o.out, "out", "", "file for JSON lines: one a request, then a summary")
	f.DurationVar(&o.cfg.Timeout, "timeout", 5*time.Minute, "a request fails that takes longer; 0: none does")
	f.StringToStringVar(&o.slo, "slo", nil, "what counts for goodput (default ttft=1s,tpot=100ms)")
	f.BoolVar(&o.cfg.Explain, "explain", false, "ask the proxy which endpoint served")
	f.BoolVar(&o.cfg.OmitUsage, "no-usage", false, "do not ask for usage in streams; hit rates are unknown then")
	f.BoolVar(&o.cfg.IgnoreEOS, "ignore-eos", false, "ask for answers of exactly the workload's length (vLLM)")
	f.StringToStringVar(&o.cfg.Objectives, "objective", nil, "InferenceObjective that requests of a criticality ask for (of mix), as Critical=NAME; may be repeated")
	f.StringArrayVar(&o.headers, "header", nil, "header for every request, as 'Authorization: Bearer KEY'; may be repeated")
	f.BoolVar(&o.quiet, "quiet", false, "show no progress")
	f.IntVar(&o.params.Groups, "groups", 0, "distinct system prompts (0, here and below: the workload's own)")
	f.IntVar(&o.params.Users, "users", 0, "fixed users in a group, each with one opening message")
	f.IntVar(&o.params.SystemTokens, "system-tokens", 0, "length of a system prompt")
	f.IntVar(&o.params.TurnTokens, "turn-tokens", 0, "length of a user's message")
	f.IntVar(&o.params.AnswerTokens, "answer-tokens", 0, "length of an answer")
	f.IntVar(&o.params.Turns, "turns", 0, "questions in a conversation")
	f.DurationVar(&o.params.Think, "think", 0, "pause between an answer and the next question")
	f.IntVar(&o.params.Burst, "burst", 0, "conversations that begin at the same moment, in the mean")
	return cmd
}

// workloads lists what can be played.
func workloads() string {
	var b strings.Builder
	for _, name := range workload.Names() {
		w, err := workload.New(name, workload.Params{})
		if err != nil {
			panic(err) // Names are those New knows
		}
		fmt.Fprintf(&b, "  %-20s %s\n", name, w.About())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// complete checks the flags and completes o.cfg.
func (o *runOptions) complete() (err error) {
	switch {
	case o.cfg.URL == "":
		return errors.New("--target is missing: the server's URL, as http://127.0.0.1:8080")
	case o.params.Rate <= 0:
		return fmt.Errorf("--rate %v: it must be above zero", o.params.Rate)
	case slices.ContainsFunc(o.sweep, func(r float64) bool { return r <= 0 }):
		return fmt.Errorf("--sweep %v: every rate must be above zero", o.sweep)
	case o.cfg.RampTo < 0:
		return fmt.Errorf("--ramp %v: it must not be below zero", o.cfg.RampTo)
	case o.cfg.RampTo > 0 && len(o.sweep) > 0:
		return errors.New("--ramp and --sweep: choose one")
	case o.seeds < 1:
		return fmt.Errorf("--seeds %d: there must be at least one run", o.seeds)
	case o.cfg.Duration <= 0:
		return fmt.Errorf("--duration %v: it must be above zero", o.cfg.Duration)
	case o.cfg.Warmup < 0 || o.cfg.Warmup >= o.cfg.Duration:
		return fmt.Errorf("--warmup %v: it must be shorter than the duration, which is %v", o.cfg.Warmup, o.cfg.Duration)
	case o.cfg.Timeout < 0:
		return fmt.Errorf("--timeout %v: it must not be below zero", o.cfg.Timeout)
	}
	if err := load.CheckURL(o.cfg.URL); err != nil {
		return err
	}
	if o.cfg.SLO, err = parseSLO(o.slo); err != nil {
		return err
	}
	for class, name := range o.cfg.Objectives {
		if !slices.Contains(workload.Criticalities[:], class) || name == "" {
			return fmt.Errorf("--objective %s=%s: it must be of the form Critical=NAME; there are %s", class, name, strings.Join(workload.Criticalities[:], ", "))
		}
	}
	o.cfg.Header = http.Header{}
	for _, h := range o.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return fmt.Errorf("--header %q: it must be of the form 'Name: value'", h)
		}
		o.cfg.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return nil
}

// plan is what each run plays. The seeds are the outer loop: whoever interrupts has something of every rate.
func (o *runOptions) plan(ownRate bool) ([]*workload.Workload, error) {
	rates := o.sweep
	if len(rates) == 0 {
		rates = []float64{o.params.Rate}
	}
	var trace *workload.Workload
	if !slices.Contains(workload.Names(), o.workload) {
		var err error
		if trace, err = readTrace(o.workload); err != nil {
			return nil, err
		}
		if ownRate && len(o.sweep) == 0 {
			rates = []float64{trace.Params().Rate}
		}
	}
	runs := make([]*workload.Workload, 0, o.seeds*len(rates))
	for range o.seeds {
		for _, rate := range rates {
			if trace != nil {
				runs = append(runs, trace.At(rate))
				continue
			}
			p := o.params
			p.Rate = rate
			p.Seed += uint64(len(runs))
			w, err := workload.New(o.workload, p)
			if err != nil {
				return nil, err
			}
			runs = append(runs, w)
		}
	}
	return runs, nil
}

// parseSLO reads --slo; what it leaves out is the default.
func parseSLO(flags map[string]string) (load.SLO, error) {
	slo := load.DefaultSLO
	for name, value := range flags {
		field, ok := map[string]*time.Duration{"ttft": &slo.TTFT, "tpot": &slo.TPOT}[name]
		if !ok {
			return slo, fmt.Errorf("--slo %s=%s: it may set ttft and tpot", name, value)
		}
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return slo, fmt.Errorf("--slo %s=%s: %q is no duration above zero, as 500ms", name, value, value)
		}
		*field = d
	}
	return slo, nil
}

// run plays, shows progress and tells the results.
func (o *runOptions) run(cmd *cobra.Command) error {
	if err := o.complete(); err != nil {
		return cli.Misuse(err)
	}
	plan, err := o.plan(!cmd.Flags().Changed("rate"))
	if err != nil {
		return cli.Misuse(err)
	}
	out, err := createLines(o.out)
	if err != nil {
		return err
	}
	defer out.close()
	results, err := o.play(cmd, plan, out)
	if err != nil {
		return err
	}
	switch {
	case cli.JSON(cmd) && len(plan) == 1:
		err = cli.WriteJSON(cmd.OutOrStdout(), results[0])
	case cli.JSON(cmd):
		err = cli.WriteJSON(cmd.OutOrStdout(), results)
	case len(plan) == 1:
		err = writeTable(cmd.OutOrStdout(), results[0], o.cfg.SLO)
	default:
		err = writeRuns(cmd.OutOrStdout(), results, len(plan))
	}
	return errors.Join(err, out.close(), verdict(results))
}

// play plays one run after another until all are over or one is interrupted.
func (o *runOptions) play(cmd *cobra.Command, plan []*workload.Workload, out *lines) ([]*load.Result, error) {
	var results []*load.Result
	for i, w := range plan {
		cfg := o.cfg
		cfg.Workload, cfg.Progress, cfg.OnRecord = w, new(load.Progress), func(r load.Record) { out.write(r) }
		stop := func() {}
		if !o.quiet {
			name := ""
			if len(plan) > 1 {
				name = fmt.Sprintf("run %d of %d, %g/s: ", i+1, len(plan), w.Params().Rate)
			}
			stop = showProgress(cmd.ErrOrStderr(), name, cfg.Progress, cfg.Duration)
		}
		result, err := load.Run(cmd.Context(), cfg)
		stop()
		if err != nil {
			return nil, err
		}
		out.write(map[string]*load.Result{"summary": result})
		results = append(results, result)
		if result.Interrupted {
			break
		}
	}
	return results, nil
}

// lines is a file of JSON lines; nil: nothing is kept.
type lines struct {
	file *os.File
	to   *json.Encoder
	err  error // the first
}

func createLines(name string) (*lines, error) {
	if name == "" {
		return nil, nil
	}
	file, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("--out: %w", err)
	}
	return &lines{file: file, to: json.NewEncoder(file)}, nil
}

func (l *lines) write(v any) {
	if l != nil && l.err == nil {
		l.err = l.to.Encode(v)
	}
}

// close ends the file and tells the first error there was. It may be called again.
func (l *lines) close() error {
	if l == nil || l.file == nil {
		return nil
	}
	err := errors.Join(l.err, l.file.Close())
	l.file = nil
	return err
}

// writeRuns tells a person of several runs, planned of them in all.
func writeRuns(w io.Writer, results []*load.Result, planned int) error {
	first := results[0]
	fmt.Fprintf(w, "%s on %s, model %s: %d of %d runs", first.Workload, first.Target, first.Model, len(results), planned)
	if results[len(results)-1].Interrupted {
		fmt.Fprint(w, ", the last interrupted")
	}
	fmt.Fprint(w, "\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "rate\tseed\trequests\tfailed\tTTFT p50 ms\tp90 ms\tp99 ms\tbetween tokens p99 ms\tE2E p90 s\thits %\tgoodput/s\ttokens/s\t")
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	for _, r := range results {
		hits := "–"
		if r.HitRate != nil {
			hits = fmt.Sprintf("%.1f", 100**r.HitRate)
		}
		fmt.Fprintf(t, "%g\t%d\t%d\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\t%s\t%.2f\t%.0f\t\n", r.Rate, r.Seed, r.Requests, r.Failed,
			ms(r.TTFT.P50), ms(r.TTFT.P90), ms(r.TTFT.P99), ms(r.InterToken.P99), r.E2E.P90.Seconds(), hits, r.Goodput, r.TokensPerSecond)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if r.Failed > 0 || r.SendLag.P99 > lateness {
			fmt.Fprintf(w, "\n%g/s, seed %d:\n", r.Rate, r.Seed)
			writeTrouble(w, r)
		}
	}
	return nil
}

// verdict is why the runs as a whole failed, if they did.
func verdict(results []*load.Result) error {
	for _, r := range results {
		if r.OK > 0 || r.Interrupted {
			return nil
		}
	}
	r := results[0]
	if r.Requests == 0 {
		return errors.New("no request was due in that time: raise --rate or --duration")
	}
	first := r.Records[0]
	return fmt.Errorf("all %d requests to %s failed; the first with %s: %s", r.Requests, r.Target, first.Error, first.Detail)
}
