package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// What a page has around the tables that are made.
const (
	tablesBegin = "<!-- tables: begin; written by make bench-routing -->"
	tablesEnd   = "<!-- tables: end -->"
)

// tabled are the policies of the first table. Those that know nothing of caches are represented by least-request.
var tabled = []string{"fairway", "epp-default", "epp-affinity", "chwbl", "cache-tree", "least-request", "oracle"}

func newTables() *cobra.Command {
	var page string
	var seeds int
	cmd := &cobra.Command{
		Use:   "tables --page FILE",
		Short: "Measure every table of the page on routing in virtual time",
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if page == "" || seeds < 1 {
				return cli.Misuse(errors.New("--page is missing, or --seeds is below 1"))
			}
			old, err := os.ReadFile(page)
			if err != nil {
				return err
			}
			if _, err := replaceTables(page, old, ""); err != nil {
				return err
			}
			m := &measurer{cmd: cmd, seeds: seeds, start: time.Now()}
			tables := m.all()
			if m.err != nil {
				return m.err
			}
			text, err := replaceTables(page, old, tables)
			if err != nil {
				return err
			}
			return os.WriteFile(page, text, 0o644)
		},
	}
	cmd.Flags().StringVar(&page, "page", "", "file whose tables are replaced")
	cmd.Flags().IntVar(&seeds, "seeds", 3, "how often each figure is measured")
	return cmd
}

// replaceTables puts tables between their marks in the text of a page.
func replaceTables(page string, text []byte, tables string) ([]byte, error) {
	before, rest, ok := bytes.Cut(text, []byte(tablesBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(tablesEnd))
	if !ok || !ok2 {
		return nil, fmt.Errorf("%s: the lines %q and %q are not there: the tables go between them", page, tablesBegin, tablesEnd)
	}
	return slices.Concat(before, []byte(tablesBegin+"\n\n"+tables+tablesEnd), after), nil
}

// measurer writes tables. After the first error it measures nothing any more.
type measurer struct {
	cmd   *cobra.Command
	seeds int
	start time.Time
	err   error
}

// rows plays one comparison and returns its rows by policy.
func (m *measurer) rows(c sim.Comparison) map[string]sim.Row {
	c.Seeds = m.seeds
	found := map[string]sim.Row{}
	if m.err != nil {
		return found
	}
	rows, err := c.Run(m.cmd.Context())
	m.err = err
	for _, r := range rows {
		found[r.Policy] = r
	}
	fmt.Fprintf(m.cmd.ErrOrStderr(), "%4.0f s  %s at %.0f %%, %d replicas\n", time.Since(m.start).Seconds(), c.Workload, 100*c.Load, max(c.Replicas, 1))
	return found
}

func (m *measurer) all() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Every figure is the mean of %d seeds.\n\n", m.seeds)
	m.latencies(&b)
	m.saturations(&b)
	m.replicas(&b)
	m.handicaps(&b)
	return b.String()
}

// header writes a table's first two lines.
func header(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(cells, " | "), strings.Repeat("---|", len(cells)))
}

// latencies are the tables of what users see at 70 and 95 % load.
func (m *measurer) latencies(b *strings.Builder) {
	for _, load := range []float64{0.7, 0.95} {
		fmt.Fprintf(b, "### Time to first token at %.0f %% load\n\np90 in seconds ± standard deviation over the seeds, and the share of prompt tokens found cached.\n\n", 100*load)
		header(b, append([]string{"workload", "requests/s"}, tabled...)...)
		for _, w := range workload.Names() {
			c := sim.Comparison{Workload: w, Load: load, Policies: tabled}
			rate, err := c.RequestRate()
			if err != nil {
				m.err = err
				return
			}
			rows := m.rows(c)
			fmt.Fprintf(b, "| %s | %.1f |", w, rate)
			for _, p := range tabled {
				r := rows[p]
				fmt.Fprintf(b, " %s ± %s, %.0f %% |", seconds(r.TTFTP90), seconds(r.TTFTP90SD), 100*r.HitRate)
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
}

// seconds writes three digits at most.
func seconds(v float64) string {
	switch {
	case v < 1:
		return strings.TrimPrefix(fmt.Sprintf("%.3f", v), "0")
	case v < 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// saturations is the table of what was measured last by saturation.
func (m *measurer) saturations(b *strings.Builder) {
	b.WriteString("### Saturation\n\nThe highest rate at which 90 % of the first tokens come within 5 s, in requests a second, to 2 %.\n\n")
	header(b, append([]string{"workload"}, rivals...)...)
	for _, w := range workload.Names() {
		fmt.Fprintf(b, "| %s |", w)
		for _, p := range rivals {
			fmt.Fprintf(b, " %.1f |", sim.Saturation(w, p))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

// replicas is the table of routers that share nothing.
func (m *measurer) replicas(b *strings.Builder) {
	b.WriteString("### Replicas of the router\n\nThey share nothing; 80 % load; p90 of the time to first token in seconds, and the share found cached.\n\n")
	counts, names := []int{1, 3, 5}, []string{"fairway", "epp-default"}
	cells := []string{"workload"}
	for _, p := range names {
		for _, n := range counts {
			cells = append(cells, fmt.Sprintf("%s, %d", p, n))
		}
	}
	header(b, cells...)
	for _, w := range []string{"shared-prefix-short", "chat", "agents", "rag", "unshared"} {
		found := map[string]sim.Row{}
		for _, n := range counts {
			for p, r := range m.rows(sim.Comparison{Workload: w, Load: 0.8, Policies: names, Replicas: n}) {
				found[fmt.Sprintf("%s, %d", p, n)] = r
			}
		}
		fmt.Fprintf(b, "| %s |", w)
		for _, cell := range cells[1:] {
			fmt.Fprintf(b, " %s, %.0f %% |", seconds(found[cell].TTFTP90), 100*found[cell].HitRate)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

// handicaps is the table of what Fairway does when it is told less, or pods come and go.
func (m *measurer) handicaps(b *strings.Builder) {
	b.WriteString("### Told less\n\nFairway alone, 85 % load: p90 of the time to first token in seconds. The last two columns are the p90 of\n" +
		"whole answers: an answer that comes whole has no first token that anybody sees.\n\n")
	header(b, "workload", "all there is", "no metrics", "no cached tokens reported", "a pod replaced every 30 s", "bursts of 8", "whole answers: streamed", "whole answers: not streamed")
	for _, w := range []string{"shared-prefix-short", "chat", "unshared"} {
		base := sim.Comparison{Workload: w, Load: 0.85, Policies: []string{"fairway"}}
		fmt.Fprintf(b, "| %s |", w)
		var streamed sim.Row
		for i, change := range []func(*sim.Comparison){
			func(*sim.Comparison) {},
			func(c *sim.Comparison) { c.Scrape = -1 },
			func(c *sim.Comparison) { c.NoCacheReport = true },
			func(c *sim.Comparison) { c.Churn = 30 * time.Second },
			func(c *sim.Comparison) { c.Burst = 8 },
		} {
			c := base
			change(&c)
			r := m.rows(c)["fairway"]
			if i == 0 {
				streamed = r
			}
			fmt.Fprintf(b, " %s ± %s |", seconds(r.TTFTP90), seconds(r.TTFTP90SD))
		}
		base.NonStreaming = true
		fmt.Fprintf(b, " %s | %s |\n", seconds(streamed.E2EP90), seconds(m.rows(base)["fairway"].E2EP90))
	}
	b.WriteString("\n")
}
