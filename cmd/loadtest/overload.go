package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// overloads are what the page on overload has of tables, each between marks of its own.
var overloads = []section{
	{"criticality", (*measurer).criticality},
	{"queue", (*measurer).queue},
}

func newOverload() *cobra.Command {
	var page string
	m := &measurer{}
	cmd := &cobra.Command{
		Use:   "overload --page FILE",
		Short: "Measure the tables of the page on overload in virtual time",
		Long:  "overload measures what the queue is worth: each criticality up to twice the load that can be served, and every workload with the queue and without it.",
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if page == "" || m.seeds < 1 {
				return cli.Misuse(errors.New("--page is missing, or --seeds is below 1"))
			}
			m.cmd, m.start = cmd, time.Now()
			return m.rewrite(page, overloads, nil)
		},
	}
	f := cmd.Flags()
	f.StringVar(&page, "page", "", "file whose tables are replaced")
	f.IntVar(&m.seeds, "seeds", 5, "how often each figure is measured")
	f.DurationVar(&m.warmup, "warmup", 0, "virtual time before anything is measured (default: as the workload needs)")
	f.DurationVar(&m.measure, "measure", 0, "virtual time to measure (default: as the workload needs)")
	return cmd
}

// rewrite measures sections and replaces each in the page as soon as it is there; only names those to be measured, nil all.
func (m *measurer) rewrite(page string, sections []section, only func(name string) bool) error {
	for _, s := range sections {
		if only != nil && !only(s.name) {
			continue
		}
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		if _, err := replaceSection(page, text, s.name, ""); err != nil {
			return err
		}
		var b strings.Builder
		s.write(m, &b)
		if m.err != nil {
			return m.err
		}
		if text, err = replaceSection(page, text, s.name, b.String()); err != nil {
			return err
		}
		if err := os.WriteFile(page, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// contenders are who serves an overload, by the names of the tables.
var contenders = []struct {
	name    string
	policy  string
	noQueue bool
}{{"fairway", "fairway", false}, {"fairway, no queue", "fairway", true}, {"epp-default", "epp-default", false}}

// all plays a comparison and returns its rows.
func (m *measurer) all(c sim.Comparison) []sim.Row {
	c.Seeds, c.Warmup, c.Measure = m.seeds, m.warmup, m.measure
	if m.err != nil {
		return nil
	}
	rows, err := c.Run(m.cmd.Context())
	m.err = err
	fmt.Fprintf(m.cmd.ErrOrStderr(), "%4.0f s  %s at %.0f %%\n", time.Since(m.start).Seconds(), c.Workload, 100*c.Load)
	return rows
}

// criticality is the table of what becomes of each class of the mix.
func (m *measurer) criticality(b *strings.Builder) {
	fmt.Fprintf(b, "Seeds: %d. TTFT: the 90th percentile in seconds, mean of the seeds ± standard deviation, of those that were served. Goodput: requests a second with a first token "+
		"within 1 s and 100 ms a token. Tokens: generated a second, all classes together, until the last answer.\n\n", m.seeds)
	header(b, "load", "router", "Critical TTFT", "refused", "Standard TTFT", "refused", "Sheddable TTFT", "refused", "goodput/s", "tokens/s")
	for _, load := range []float64{0.5, 0.95, 1.5, 2} {
		for _, who := range contenders {
			rows := m.all(sim.Comparison{Workload: "mix", Load: load, Policies: []string{who.policy}, NoQueue: who.noQueue, ByCriticality: true})
			if m.err != nil {
				return
			}
			fmt.Fprintf(b, "| %.0f %% | %s |", 100*load, who.name)
			goodput, tokens := 0.0, 0.0
			for _, class := range []string{"Critical", "Standard", "Sheddable"} {
				for _, r := range rows {
					if r.Criticality != class {
						continue
					}
					if r.Refused < r.Requests {
						fmt.Fprintf(b, " %s ± %s |", seconds(r.TTFTP90), seconds(r.TTFTP90SD))
					} else {
						b.WriteString(" – |")
					}
					fmt.Fprintf(b, " %.0f %% |", 100*float64(r.Refused)/float64(max(r.Requests, 1)))
					goodput, tokens = goodput+r.Goodput, tokens+r.TokensPerS
				}
			}
			fmt.Fprintf(b, " %.1f | %.0f |\n", goodput, tokens)
		}
	}
	b.WriteString("\n")
}

// queue is the table of workloads with the queue and without it.
func (m *measurer) queue(b *strings.Builder) {
	fmt.Fprintf(b, "Seeds: %d. The 90th percentile of the time to first token in seconds, median of the seeds (lowest–highest), and what was refused.\n\n", m.seeds)
	header(b, "workload", "load", "with the queue", "refused", "without it")
	for _, w := range []string{"mix", "hot-prefix", "chat", "unshared"} {
		for _, load := range []float64{0.7, 0.95} {
			var found [2]sim.Row
			for i := range found {
				rows := m.all(sim.Comparison{Workload: w, Load: load, Policies: []string{"fairway"}, NoQueue: i == 1})
				if m.err != nil {
					return
				}
				if len(rows) > 0 {
					found[i] = rows[0]
				}
			}
			fmt.Fprintf(b, "| %s | %.0f %% | %s | %.0f %% | %s |\n", w, 100*load, spread(found[0]),
				100*float64(found[0].Refused)/float64(max(found[0].Requests, 1)), spread(found[1]))
		}
	}
	b.WriteString("\n")
}
