package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/picker"
)

// section is a part of a page, between marks of its own.
type section struct {
	name  string
	write func(*measurer, *strings.Builder)
}

// sections are what the page on routing has of tables.
var sections = []section{
	{"latencies", (*measurer).latencies},
	{"saturation", (*measurer).saturations},
	{"small caches", (*measurer).smallCaches},
	{"replicas", (*measurer).replicas},
	{"told less", (*measurer).handicaps},
	{"ablations", (*measurer).ablations},
}

// marks are the lines that a page has around a section.
func marks(section string) (begin, end string) {
	by := "bench-routing"
	for _, o := range overloads {
		if o.name == section {
			by = "bench-overload"
		}
	}
	return "<!-- " + section + ": begin; written by make " + by + " -->", "<!-- " + section + ": end -->"
}

// tabled are the policies of the first tables. Those that know nothing of caches are represented by least-request.
var tabled = []string{"fairway", "epp-default", "epp-affinity", "chwbl", "cache-tree", "least-request", "oracle"}

func newTables() *cobra.Command {
	var page string
	var only []string
	m := &measurer{}
	cmd := &cobra.Command{
		Use:   "tables --page FILE",
		Short: "Measure the tables of the page on routing in virtual time",
		Long:  "tables measures and replaces one section of the page after the other. Whoever interrupts has the new ones of those that ended.",
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if page == "" || m.seeds < 1 {
				return cli.Misuse(errors.New("--page is missing, or --seeds is below 1"))
			}
			m.cmd, m.start = cmd, time.Now()
			return m.rewrite(page, sections, func(name string) bool { return len(only) == 0 || slices.Contains(only, name) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&page, "page", "", "file whose tables are replaced")
	f.StringSliceVar(&only, "only", nil, "sections to measure (default: all)")
	f.IntVar(&m.seeds, "seeds", 5, "how often each figure is measured")
	f.DurationVar(&m.warmup, "warmup", 0, "virtual time before anything is measured (default: as the workload needs)")
	f.DurationVar(&m.measure, "measure", 0, "virtual time to measure (default: as the workload needs)")
	return cmd
}

// replaceSection puts tables between a section's marks in the text of a page.
func replaceSection(page string, text []byte, section, tables string) ([]byte, error) {
	begin, end := marks(section)
	before, rest, ok := bytes.Cut(text, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return nil, fmt.Errorf("%s: the lines %q and %q are not there: the tables go between them", page, begin, end)
	}
	return slices.Concat(before, []byte(begin+"\n\n"+tables+end), after), nil
}

// measurer writes tables. After the first error it measures nothing any more.
type measurer struct {
	cmd             *cobra.Command
	seeds           int
	warmup, measure time.Duration
	start           time.Time
	err             error
}

// rows plays one comparison and returns its rows by policy. Nothing is held back or refused in the router: what that is worth is another
// page's.
func (m *measurer) rows(c sim.Comparison) map[string]sim.Row {
	c.NoQueue = true
	c.Seeds, c.Warmup, c.Measure = m.seeds, m.warmup, m.measure
	found := map[string]sim.Row{}
	if m.err != nil {
		return found
	}
	rows, err := c.Run(m.cmd.Context())
	m.err = err
	fmt.Fprintf(m.cmd.ErrOrStderr(), "%4.0f s  %s at %.0f %%, %d replicas", time.Since(m.start).Seconds(), c.Workload, 100*c.Load, max(c.Replicas, 1))
	for _, r := range rows {
		found[r.Policy] = r
		fmt.Fprintf(m.cmd.ErrOrStderr(), " | %s %s", r.Policy, spread(r))
	}
	fmt.Fprintln(m.cmd.ErrOrStderr())
	return found
}

// fairway plays a comparison of Fairway alone.
func (m *measurer) fairway(c sim.Comparison) sim.Row {
	c.Policies = []string{"fairway"}
	return m.rows(c)["fairway"]
}

// header writes a table's first two lines.
func header(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(cells, " | "), strings.Repeat("---|", len(cells)))
}

// median of the seeds' 90th percentiles of the time to first token; +Inf: most were given up.
func median(r sim.Row) float64 {
	if len(r.TTFTP90s) == 0 {
		return math.NaN()
	}
	return r.TTFTP90s[(len(r.TTFTP90s)-1)/2]
}

// spread writes the median over the seeds, and the lowest and the highest.
func spread(r sim.Row) string {
	if len(r.TTFTP90s) == 0 {
		return "–" // no request was due
	}
	low, high := r.TTFTP90s[0], r.TTFTP90s[len(r.TTFTP90s)-1]
	if math.IsInf(low, 1) {
		return "over"
	}
	return fmt.Sprintf("%s (%s–%s)", seconds(median(r)), seconds(low), seconds(high))
}

// times writes how much better a is than b, both in seconds.
func times(b, a float64) string {
	switch {
	case math.IsInf(a, 1) || math.IsNaN(a) || math.IsNaN(b):
		return "–"
	case math.IsInf(b, 1):
		return "over"
	}
	return fmt.Sprintf("%.2f", b/a)
}

// latencies are the tables of what users see at 70 and 95 % load, and what follows from them.
func (m *measurer) latencies(b *strings.Builder) {
	fmt.Fprintf(b, "Seeds: %d. A cell has the median over the seeds, the lowest and the highest, and the mean share of prompt tokens found cached. "+
		"*over*: more than a tenth of the first tokens came later than 5 s, and the run was given up.\n\n", m.seeds)
	loads := []float64{0.7, 0.95}
	var found [2]map[string]map[string]sim.Row
	for i, load := range loads {
		found[i] = map[string]map[string]sim.Row{}
		fmt.Fprintf(b, "### Time to first token at %.0f %% load, p90 in seconds\n\n", 100*load)
		header(b, append([]string{"workload", "requests/s"}, tabled...)...)
		for _, w := range workload.Names() {
			c := sim.Comparison{Workload: w, Load: load, Policies: tabled, GiveUp: true}
			rate, err := c.RequestRate()
			if err != nil {
				m.err = err
			}
			rows := m.rows(c)
			if m.err != nil {
				return
			}
			found[i][w] = rows
			fmt.Fprintf(b, "| %s | %.1f |", w, rate)
			for _, p := range tabled {
				fmt.Fprintf(b, " %s", spread(rows[p]))
				if rows[p].Seeds > 0 {
					fmt.Fprintf(b, ", %.0f %%", 100*rows[p].HitRate)
				}
				b.WriteString(" |")
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}

	b.WriteString("### The same as ratios of medians\n\nAbove 1, Fairway is sooner. *Best other*: the best of all but Fairway and the oracle.\n\n")
	header(b, "workload", "oracle, 70 %", "oracle, 95 %", "epp-default, 70 %", "epp-default, 95 %", "best other, 70 %", "best other, 95 %", "saturation: of the best other")
	for _, w := range workload.Names() {
		fmt.Fprintf(b, "| %s |", w)
		ours := [2]float64{median(found[0][w]["fairway"]), median(found[1][w]["fairway"])}
		for _, p := range []string{"oracle", "epp-default"} {
			for i := range loads {
				fmt.Fprintf(b, " %s |", times(median(found[i][w][p]), ours[i]))
			}
		}
		for i := range loads {
			best := math.Inf(1)
			for _, p := range tabled {
				if p != "fairway" && p != "oracle" {
					best = min(best, median(found[i][w][p]))
				}
			}
			fmt.Fprintf(b, " %s |", times(best, ours[i]))
		}
		best := 0.0
		for _, p := range rivals {
			if p != "fairway" && p != "oracle" {
				best = max(best, sim.Saturation(w, p))
			}
		}
		fmt.Fprintf(b, " %.2f |\n", sim.Saturation(w, "fairway")/best)
	}
	b.WriteString("\n")
}

// seconds writes three digits at most.
func seconds(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "over"
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

// smallCache is what smallCaches leaves of a pod's KV cache, in tokens: of the 900,000 of the shared prefixes, all pods together
// can hold 1,280,000, and one pod a sixth.
const smallCache = 160_000

// smallCaches is the table of pods that cannot all hold what is shared.
func (m *measurer) smallCaches(b *strings.Builder) {
	fmt.Fprintf(b, "### Caches without room for copies\n\n`shared-prefix-short`, each of the eight pods with a cache of %d tokens: together they can hold the shared prefixes, 900,000 tokens, once, and none can hold them all. "+
		"p90 of the time to first token in seconds, and the share found cached.\n\n", smallCache)
	header(b, append([]string{"requests/s"}, tabled...)...)
	for _, rate := range []float64{40, 50, 60} {
		rows := m.rows(sim.Comparison{Workload: "shared-prefix-short", Rate: rate, CacheTokens: smallCache, Policies: tabled})
		if m.err != nil {
			return
		}
		fmt.Fprintf(b, "| %.0f |", rate)
		for _, p := range tabled {
			fmt.Fprintf(b, " %s, %.0f %% |", spread(rows[p]), 100*rows[p].HitRate)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

// replicas is the table of routers that share nothing.
func (m *measurer) replicas(b *strings.Builder) {
	b.WriteString("### Replicas of the router\n\nThey share nothing; 80 % load; p90 of the time to first token in seconds, and the share found cached.\n\n")
	columns := []struct {
		policy string
		n      int
	}{{"fairway", 1}, {"fairway", 3}, {"fairway", 5}, {"epp-default", 1}, {"epp-default", 5}}
	cells := []string{"workload"}
	for _, c := range columns {
		cells = append(cells, fmt.Sprintf("%s, %d", c.policy, c.n))
	}
	header(b, cells...)
	for _, w := range []string{"shared-prefix-short", "chat", "agents", "rag", "unshared"} {
		fmt.Fprintf(b, "| %s |", w)
		for _, c := range columns {
			r := m.rows(sim.Comparison{Workload: w, Load: 0.8, Policies: []string{c.policy}, Replicas: c.n, GiveUp: true})[c.policy]
			if m.err != nil {
				return
			}
			fmt.Fprintf(b, " %s", spread(r))
			if r.Seeds > 0 {
				fmt.Fprintf(b, ", %.0f %%", 100*r.HitRate)
			}
			b.WriteString(" |")
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
		base := sim.Comparison{Workload: w, Load: 0.85}
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
			r := m.fairway(c)
			if m.err != nil {
				return
			}
			if i == 0 {
				streamed = r
			}
			fmt.Fprintf(b, " %s |", spread(r))
		}
		base.NonStreaming = true
		fmt.Fprintf(b, " %s | %s |\n", seconds(streamed.E2EP90), seconds(m.fairway(base).E2EP90))
	}
	b.WriteString("\n")
}

// An ablation is a scene, and the terms that are left out of it in turn.
type ablation struct {
	name  string
	scene sim.Comparison
	terms picker.Term
}

// ablations is the table of what each term of the score is worth.
func (m *measurer) ablations(b *strings.Builder) {
	const alone = picker.Interference | picker.DecodeShare | picker.KVBarrier | picker.EvictionClock | picker.LearnedSpeed | picker.NearTies | picker.Copies
	scenes := []ablation{
		{"shared-prefix", sim.Comparison{Workload: "shared-prefix", Load: 0.95}, alone},
		{"hot-prefix", sim.Comparison{Workload: "hot-prefix", Load: 0.95}, alone},
		{"heterogeneous", sim.Comparison{Workload: "heterogeneous", Load: 0.95}, alone},
		{"chat", sim.Comparison{Workload: "chat", Load: 0.9}, alone},
		{"agents", sim.Comparison{Workload: "agents", Load: 0.9}, picker.Copies | picker.EvictionClock},
		{"small caches", sim.Comparison{Workload: "shared-prefix-short", Rate: 50, CacheTokens: smallCache}, picker.Copies | picker.Interference},
		{"adapters", sim.Comparison{Workload: "adapters", Load: 0.7}, picker.AdapterCost},
		{"agents, 3 replicas", sim.Comparison{Workload: "agents", Load: 0.8, Replicas: 3}, picker.Homes | picker.HomeSpread | picker.Mirror},
		{"unshared, 3 replicas", sim.Comparison{Workload: "unshared", Load: 0.8, Replicas: 3}, picker.Homes | picker.HomeSpread | picker.Mirror},
	}
	b.WriteString("### What each term is worth\n\nFairway without one term of its score at a time: p90 of the time to first token in seconds. One replica where no other number is said; 95 % load, `chat` and `agents` 90 %, " +
		"`adapters` 70 %, with three replicas 80 %. Where a term has nothing to do with a scene, it was not left out.\n\n")
	cells := []string{"without"}
	for _, s := range scenes {
		cells = append(cells, s.name)
	}
	header(b, cells...)
	for _, t := range []struct {
		name string
		term picker.Term
	}{
		{"nothing", 0},
		{"interference: 0.1 of the delay inflicted on each request", picker.Interference},
		{"decode share: 2,000 tokens a request", picker.DecodeShare},
		{"KV barrier", picker.KVBarrier},
		{"eviction clock", picker.EvictionClock},
		{"learned speed", picker.LearnedSpeed},
		{"near ties by hash", picker.NearTies},
		{"room for copies", picker.Copies},
		{"adapters", picker.AdapterCost},
		{"homes of cold prompts", picker.Homes},
		{"fewer homes where the KV cache has been in use", picker.HomeSpread},
		{"mirroring of what was sent since the scrape", picker.Mirror},
	} {
		fmt.Fprintf(b, "| %s |", t.name)
		for _, s := range scenes {
			if t.term&^s.terms != 0 {
				b.WriteString(" |")
				continue
			}
			c := s.scene
			c.Without, c.GiveUp = t.term, true
			r := m.fairway(c)
			if m.err != nil {
				return
			}
			fmt.Fprintf(b, " %s |", spread(r))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}
