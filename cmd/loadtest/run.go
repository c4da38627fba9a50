package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
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
	headers  []string
	slo      map[string]string
	out      string
	quiet    bool
	cfg      load.Config
}

func newRun() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run --target URL",
		Short: "Play one workload at one rate over real sockets",
		Long: "run sends streaming chat completions when the workload says so, however slow the server is, and counts every latency\n" +
			"from when its request was due. Ctrl-C ends it early; what was measured until then is still written.\n\nWorkloads:\n" + workloads(),
		Example: "  loadtest run --target http://127.0.0.1:8080 --workload chat --rate 5 --duration 1m --out chat.jsonl\n" +
			"  loadtest run --target http://127.0.0.1:8080 --workload shared-prefix-short --groups 8 --system-tokens 2000 --explain",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.cfg.URL, "target", "", "URL of the server, as http://127.0.0.1:8080")
	f.StringVar(&o.workload, "workload", "chat", "what to play")
	f.Float64Var(&o.params.Rate, "rate", 1, "requests a second")
	f.DurationVar(&o.cfg.Duration, "duration", time.Minute, "how long to send; answers under way are awaited")
	f.Uint64Var(&o.params.Seed, "seed", 1, "of everything random; two seeds share no text")
	f.StringVar(&o.cfg.Model, "model", "", "model to ask for (default: the first the server lists)")
	f.StringVar(&o.out, "out", "", "file for JSON lines: one a request, then a summary")
	f.DurationVar(&o.cfg.Timeout, "timeout", 5*time.Minute, "a request fails that takes longer; 0: none does")
	f.StringToStringVar(&o.slo, "slo", nil, "what counts for goodput (default ttft=1s,tpot=100ms)")
	f.BoolVar(&o.cfg.Explain, "explain", false, "ask the proxy which endpoint served")
	f.BoolVar(&o.cfg.OmitUsage, "no-usage", false, "do not ask for usage in streams; hit rates are unknown then")
	f.BoolVar(&o.cfg.IgnoreEOS, "ignore-eos", false, "ask for answers of exactly the workload's length (vLLM)")
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

// config checks the flags and completes o.cfg.
func (o *runOptions) config() (err error) {
	switch {
	case o.cfg.URL == "":
		return errors.New("--target is missing: the server's URL, as http://127.0.0.1:8080")
	case o.params.Rate <= 0:
		return fmt.Errorf("--rate %v: it must be above zero", o.params.Rate)
	case o.cfg.Duration <= 0:
		return fmt.Errorf("--duration %v: it must be above zero", o.cfg.Duration)
	case o.cfg.Timeout < 0:
		return fmt.Errorf("--timeout %v: it must not be below zero", o.cfg.Timeout)
	}
	if err := load.CheckURL(o.cfg.URL); err != nil {
		return err
	}
	if o.cfg.Workload, err = workload.New(o.workload, o.params); err != nil {
		return err
	}
	if o.cfg.SLO, err = parseSLO(o.slo); err != nil {
		return err
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

// run plays, shows progress and tells the result.
func (o *runOptions) run(cmd *cobra.Command) error {
	if err := o.config(); err != nil {
		return cli.Misuse(err)
	}
	var file *os.File
	var lines *json.Encoder
	var writeErr error // the first
	if o.out != "" {
		var err error
		if file, err = os.Create(o.out); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		defer file.Close()
		lines = json.NewEncoder(file)
		o.cfg.OnRecord = func(r load.Record) {
			if writeErr == nil {
				writeErr = lines.Encode(r)
			}
		}
	}
	o.cfg.Progress = new(load.Progress)
	stop := func() {}
	if !o.quiet {
		stop = showProgress(cmd.ErrOrStderr(), o.cfg.Progress, o.cfg.Duration)
	}
	result, err := load.Run(cmd.Context(), o.cfg)
	stop()
	if err != nil {
		return err
	}
	if file != nil {
		if writeErr == nil {
			writeErr = lines.Encode(map[string]*load.Result{"summary": result})
		}
		writeErr = errors.Join(writeErr, file.Close())
	}
	if cli.JSON(cmd) {
		err = cli.WriteJSON(cmd.OutOrStdout(), result)
	} else {
		err = writeTable(cmd.OutOrStdout(), result, o.cfg.SLO)
	}
	return errors.Join(err, writeErr, verdict(result))
}

// verdict is why the run as a whole failed, if it did.
func verdict(r *load.Result) error {
	switch {
	case r.OK > 0 || r.Interrupted:
		return nil
	case r.Requests == 0:
		return errors.New("no request was due in that time: raise --rate or --duration")
	}
	first := r.Records[0]
	return fmt.Errorf("all %d requests to %s failed; the first with %s: %s", r.Requests, r.Target, first.Error, first.Detail)
}
