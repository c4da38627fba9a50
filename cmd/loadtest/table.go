package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fairway-proxy/fairway/bench/load"
)

// lateness is how late, at the 99th percentile, the player may send before the table says that its figures are doubtful.
const lateness = 50 * time.Millisecond

// writeTable tells a result to a person.
func writeTable(w io.Writer, r *load.Result, slo load.SLO) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s, model %s: %s requests/s offered, seed %d, %.1f s", r.Workload, r.Target, r.Model, offered(r), r.Seed, r.Elapsed)
	if r.Interrupted {
		b.WriteString(", interrupted")
	}
	b.WriteString("\n\n")
	writeLatencies(&b, r)
	fmt.Fprintf(&b, "\nrequests    %d sent, %d ok, %d failed", r.Requests, r.OK, r.Failed)
	if r.Cancelled > 0 {
		fmt.Fprintf(&b, ", %d under way at the end", r.Cancelled)
	}
	if r.Skipped > 0 {
		fmt.Fprintf(&b, ", %d not sent because the turn before failed", r.Skipped)
	}
	fmt.Fprintf(&b, "\nthroughput  %.2f requests/s, %.0f tokens/s\n", r.RequestsPerS, r.TokensPerSecond)
	fmt.Fprintf(&b, "goodput     %.2f requests/s: %s had the first token within %v and %v a token after it\n",
		r.Goodput, percent(r.Good, r.Requests-r.Cancelled), slo.TTFT, slo.TPOT)
	if r.HitRate != nil {
		fmt.Fprintf(&b, "cache       %s of %d prompt tokens\n", percent(r.CachedTokens, r.PromptTokens), r.PromptTokens)
	}
	for i, name := range slices.Sorted(maps.Keys(r.Endpoints)) {
		fmt.Fprintf(&b, "%-11s %s  %d, %s\n", heading("endpoints", i), name, r.Endpoints[name], percent(r.Endpoints[name], r.Requests))
	}
	writeClasses(&b, r)
	writeTrouble(&b, r)
	_, err := io.WriteString(w, b.String())
	return err
}

// offered is the rate, or where it began and ended.
func offered(r *load.Result) string {
	if r.RampTo > 0 {
		return fmt.Sprintf("%g to %g", r.Rate, r.RampTo)
	}
	return fmt.Sprintf("%g", r.Rate)
}

// writeTrouble writes what failed, and whether the figures are to be trusted.
func writeTrouble(w io.Writer, r *load.Result) {
	writeErrors(w, r)
	if r.SendLag.P99 > lateness {
		fmt.Fprintf(w, "\nThe player itself was late: 1 %% of the requests left %v or more after they were due. It has too little CPU for this rate.\n",
			r.SendLag.P99.Round(time.Millisecond))
	}
}

// writeLatencies writes the quantiles.
func writeLatencies(w io.Writer, r *load.Result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "ms\tmean\tp50\tp90\tp99\tmax\t")
	for _, row := range []struct {
		name string
		d    load.Distribution
	}{{"first token", r.TTFT}, {"between tokens", r.InterToken}, {"per token", r.TPOT}, {"whole answer", r.E2E}} {
		if row.d.N == 0 {
			continue
		}
		fmt.Fprintf(t, "%s\t", row.name)
		for _, v := range []time.Duration{row.d.Mean, row.d.P50, row.d.P90, row.d.P99, row.d.Max} {
			fmt.Fprintf(t, "%.1f\t", float64(v)/float64(time.Millisecond))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

// writeClasses writes what became of each criticality, if the workload has any.
func writeClasses(w io.Writer, r *load.Result) {
	if len(r.Classes) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\n\tsent\tok\trefused\tfailed\tfirst token p50 ms\tp90\tp99\tgoodput/s\t")
	for _, c := range r.Classes {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t", c.Criticality, c.Requests, c.OK, c.Refused, c.Failed)
		for _, d := range []time.Duration{c.TTFT.P50, c.TTFT.P90, c.TTFT.P99} {
			if c.TTFT.N > 0 {
				fmt.Fprintf(t, "%.1f\t", float64(d)/float64(time.Millisecond))
			} else {
				fmt.Fprint(t, "–\t")
			}
		}
		fmt.Fprintf(t, "%.2f\t\n", c.Goodput)
	}
	t.Flush()
	fmt.Fprintln(w)
}

// writeErrors writes what failed, how often, and one example of each.
func writeErrors(w io.Writer, r *load.Result) {
	example := map[load.ErrorClass]string{}
	for _, rec := range r.Records {
		if _, ok := example[rec.Error]; !ok {
			example[rec.Error] = rec.Detail
		}
	}
	i := 0
	for _, class := range slices.Sorted(maps.Keys(r.Errors)) {
		if class == load.ErrCancelled {
			continue
		}
		fmt.Fprintf(w, "%-11s %s %d: %.120s\n", heading("errors", i), class, r.Errors[class], example[class])
		i++
	}
}

// heading names the first row of several.
func heading(name string, row int) string {
	if row > 0 {
		return ""
	}
	return name
}

func percent(part, whole int) string {
	if whole <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}
