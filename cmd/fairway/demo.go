package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy"
)

const (
	// demoModel is the name the demo's engines serve.
	demoModel = "llama-3-8b"
	// demoTraffic is how long the demo's conversations go on.
	demoTraffic = 20 * time.Second
)

// demoWorkload is multi-turn chat: assistants with long instructions that many
// conversations share, and answers that become part of the next prompt. At this
// rate engines that see every conversation's prompts anew are busy most of the
// time.
var demoWorkload = workload.Params{
	Seed: 1, Rate: 24,
	Groups: 20, SystemTokens: 5000, TurnTokens: 200, AnswerTokens: 60, Turns: 5, Think: time.Second,
}

func newDemo() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start mock engines, the proxy and a workload in one process",
		Long: `Demo starts mock vLLM engines, which behave like the real one on an H100 but make
their text up, puts the proxy in front, and plays multi-turn conversations. The
same conversations go to as many engines of their own by round robin, for
comparison. It keeps serving until Ctrl-C, or for as long as --for says.`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.IntVar(&o.pods, "pods", 4, "how many engines")
	f.DurationVar(&o.life, "for", 0, "how long to run in all; 0: until Ctrl-C")
	f.StringVar(&o.listen, "listen", ":8080", "where to take requests")
	f.StringVar(&o.metrics, "metrics", ":15020", "where to serve metrics and health; empty: nowhere")
	f.StringVar(&o.admin, "admin", "127.0.0.1:15000", "where to serve the operator; empty: nowhere")
	return cmd
}

type demoOptions struct {
	pods                   int
	life                   time.Duration
	listen, metrics, admin string
}

func (o *demoOptions) run(cmd *cobra.Command) error {
	if o.pods < 1 || o.pods > 64 {
		return cli.Misuse(fmt.Errorf("--pods %d: want 1 to 64", o.pods))
	}
	ctx := cmd.Context()
	if o.life > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.life)
		defer cancel()
	}
	log := newLog(cmd.ErrOrStderr(), cli.JSON(cmd), slog.LevelWarn)

	ours, err := startStack(ctx, o.pods, file.Listen{HTTP: o.listen, Metrics: o.metrics, Admin: o.admin}, picker.Config{}, log)
	if err != nil {
		return err
	}
	defer ours.stop()
	rival, err := startStack(ctx, o.pods, file.Listen{HTTP: "127.0.0.1:0"}, picker.Config{Policy: &picker.RoundRobin{}}, log)
	if err != nil {
		return err
	}
	defer rival.stop()

	out := cmd.OutOrStdout()
	quiet := cli.JSON(cmd)
	if !quiet {
		o.greet(out, ours)
	}
	report, err := o.compare(ctx, cmd.ErrOrStderr(), ours, rival, quiet)
	if err != nil {
		return err
	}
	if quiet {
		err = cli.WriteJSON(out, report)
	} else {
		err = report.print(out)
	}
	if err != nil {
		return err
	}
	rival.stop()
	select {
	case <-ours.ended:
		return ours.err
	case <-ctx.Done():
	}
	if !quiet {
		fmt.Fprintln(out, "stopping")
	}
	return ours.stop()
}

// greet says what runs where, with a line that works.
func (o *demoOptions) greet(out io.Writer, s *stack) {
	url := "http://" + dialable(s.app.plain.Addr())
	fmt.Fprintf(out, "%d mock engines serve %s behind Fairway at %s. Try:\n\n", o.pods, demoModel, url)
	fmt.Fprintf(out, "  curl -N %s/v1/chat/completions -H 'Content-Type: application/json' -H 'X-Fairway-Explain: 1' -i \\\n", url)
	fmt.Fprintf(out, "    -d '{\"model\":\"%s\",\"stream\":true,\"max_tokens\":20,\"messages\":[{\"role\":\"user\",\"content\":\"Where did this go?\"}]}'\n\n", demoModel)
	if s.app.admin != nil {
		fmt.Fprintf(out, "Dashboard: http://%s/\n", s.app.admin.Addr)
		at := ""
		if s.app.admin.Addr != "127.0.0.1:15000" {
			at = " --admin http://" + s.app.admin.Addr
		}
		fmt.Fprintf(out, "Why a request went where it went: %s explain ID%s, with the x-request-id of its answer\n", os.Args[0], at)
	}
	if s.app.metrics != nil {
		_, port, _ := net.SplitHostPort(s.app.metrics.Addr)
		fmt.Fprintf(out, "Metrics: curl http://127.0.0.1:%s/metrics\n", port)
	}
	fmt.Fprintln(out)
}

// dialable is where a listener can be reached from this machine.
func dialable(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	return fmt.Sprintf("127.0.0.1:%d", tcp.Port)
}

// compare plays the same traffic to both at once.
func (o *demoOptions) compare(ctx context.Context, progress io.Writer, ours, rival *stack, quiet bool) (*demoReport, error) {
	traffic := demoTraffic
	if o.life > 0 {
		traffic = min(traffic, o.life*2/3)
	}
	w, err := workload.New("chat", demoWorkload)
	if err != nil {
		return nil, err
	}
	var seen load.Progress
	type outcome struct {
		result *load.Result
		err    error
	}
	play := func(s *stack, p *load.Progress) chan outcome {
		done := make(chan outcome, 1)
		go func() {
			r, err := load.Run(ctx, load.Config{
				URL: "http://" + dialable(s.app.plain.Addr()), Model: demoModel, Workload: w,
				Duration: traffic, OmitUsage: true, Explain: true, Progress: p,
			})
			done <- outcome{r, err}
		}()
		return done
	}
	theirs := play(rival, nil)
	mine := play(ours, &seen)

	var a, b outcome
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	onTerminal := cli.IsTerminal(progress)
	if !quiet && !onTerminal {
		fmt.Fprintf(progress, "playing %s of conversations\n", traffic)
	}
	bar := progressbar.NewOptions64(traffic.Milliseconds(), progressbar.OptionSetWriter(progress), progressbar.OptionSetWidth(30),
		progressbar.OptionSetVisibility(!quiet && onTerminal), progressbar.OptionSetPredictTime(false), progressbar.OptionClearOnFinish())
	for start := time.Now(); a.result == nil && a.err == nil; {
		select {
		case a = <-mine:
		case <-tick.C:
			bar.Describe(fmt.Sprintf("conversations go on: %d answers", seen.Done.Load()))
			bar.Set64(min(time.Since(start), traffic).Milliseconds())
		}
	}
	b = <-theirs
	bar.Finish()
	if err := errors.Join(a.err, b.err); err != nil {
		return nil, err
	}
	return newDemoReport(ours, a.result, rival, b.result), nil
}

// stack is a proxy with engines of its own behind it.
type stack struct {
	pods   []*mock.Server
	names  []string // their addresses
	app    *app
	cancel context.CancelFunc
	ended  chan struct{} // closed when app.run has returned
	err    error         // what it returned
}

// startStack starts n engines on free loopback ports and a proxy in front.
func startStack(ctx context.Context, n int, l file.Listen, pick picker.Config, log *slog.Logger) (*stack, error) {
	s := &stack{ended: make(chan struct{})}
	c := file.Default()
	c.Listen = l
	c.World.Timeouts.Drain = 5 * time.Second
	pool := proxy.Pool{Name: "demo"}
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.stop()
			return nil, err
		}
		pod := mock.New(mock.Config{Model: demoModel})
		go pod.Serve(listener)
		s.pods = append(s.pods, pod)
		s.names = append(s.names, listener.Addr().String())
		pool.Endpoints = append(pool.Endpoints, proxy.Endpoint{Address: listener.Addr().String()})
	}
	c.World.Pools = []proxy.Pool{pool}
	var err error
	if s.app, err = newApp(c, logs{Logger: log}, proxy.Config{Picker: pick}); err != nil {
		s.stop()
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		s.err = s.app.run(ctx)
		close(s.ended)
	}()
	return s, nil
}

// stop drains the proxy, then ends the engines. It may be called again.
func (s *stack) stop() error {
	if s.app != nil {
		s.cancel()
		<-s.ended
	}
	for _, p := range s.pods {
		p.Close()
	}
	return s.err
}

// demoReport is the outcome of the demo's traffic, for both routings.
type demoReport struct {
	Fairway    demoSide `json:"fairway"`
	RoundRobin demoSide `json:"round_robin"`
}

type demoSide struct {
	Requests int              `json:"requests"`
	Failed   int              `json:"failed"`
	HitRate  float64          `json:"hit_rate"` // of prompt tokens, by the engines' own count
	TTFTp50  float64          `json:"ttft_p50_s"`
	TTFTp90  float64          `json:"ttft_p90_s"`
	Pods     []demoPodTraffic `json:"pods"`
}

type demoPodTraffic struct {
	Address  string  `json:"address"`
	Requests int     `json:"requests"`
	HitRate  float64 `json:"hit_rate"`
}

func newDemoReport(ours *stack, a *load.Result, rival *stack, b *load.Result) *demoReport {
	return &demoReport{Fairway: newDemoSide(ours, a), RoundRobin: newDemoSide(rival, b)}
}

func newDemoSide(s *stack, r *load.Result) demoSide {
	side := demoSide{Requests: r.Requests, Failed: r.Failed, TTFTp50: r.TTFT.P50.Seconds(), TTFTp90: r.TTFT.P90.Seconds()}
	var hits, queries uint64
	for i, p := range s.pods {
		e := p.Stats().Engine
		hits, queries = hits+e.PrefixHits, queries+e.PrefixQueries
		side.Pods = append(side.Pods, demoPodTraffic{s.names[i], r.Endpoints[s.names[i]], ratio(e.PrefixHits, e.PrefixQueries)})
	}
	side.HitRate = ratio(hits, queries)
	sort.Slice(side.Pods, func(i, j int) bool { return side.Pods[i].Address < side.Pods[j].Address })
	return side
}

func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

func (r *demoReport) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tFAIRWAY\tROUND ROBIN")
	row := func(name, format string, value func(demoSide) any) {
		fmt.Fprintf(w, "%s\t"+format+"\t"+format+"\n", name, value(r.Fairway), value(r.RoundRobin))
	}
	row("requests", "%d", func(s demoSide) any { return s.Requests })
	row("failed", "%d", func(s demoSide) any { return s.Failed })
	row("prompt tokens found in cache", "%.0f%%", func(s demoSide) any { return 100 * s.HitRate })
	row("time to first token, median", "%.0f ms", func(s demoSide) any { return 1000 * s.TTFTp50 })
	row("time to first token, 90th percentile", "%.0f ms", func(s demoSide) any { return 1000 * s.TTFTp90 })
	row("requests by engine", "%s", func(s demoSide) any {
		var parts []string
		for _, p := range s.Pods {
			parts = append(parts, fmt.Sprint(p.Requests))
		}
		return strings.Join(parts, " ")
	})
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "\nStill serving; Ctrl-C ends it.")
	return err
}
