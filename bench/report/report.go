// Package report turns what loadtest run has written into a Markdown table and a page with plots.
//
// A series is all runs with one label (or, without labels, against one target). Its runs at one rate are a point; where there are
// several, the point is their median, and the spread goes from the lowest to the highest. A ramp counts as runs at several rates:
// one for each tenth of its time.
package report

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/url"
	"slices"
	"strings"
)

// Report is what the runs came to, by workload.
type Report struct {
	Sections []Section `json:"sections"`
}

// A Section is one workload's part of a report.
type Section struct {
	Workload string   `json:"workload"`
	Series   []Series `json:"series"`
}

// Series are the points of one label, by rate.
type Series struct {
	Name   string  `json:"name"`
	Target string  `json:"target"`
	Model  string  `json:"model"`
	Points []Point `json:"points"`
}

// A Point is what a series came to at one rate. Times are in seconds.
type Point struct {
	Rate     float64 `json:"rate"` // requests a second
	Runs     int     `json:"runs"`
	Requests int     `json:"requests"` // of all runs
	Failed   int     `json:"failed"`
	TTFTP50  Spread  `json:"ttft_p50_s"`
	TTFTP90  Spread  `json:"ttft_p90_s"`
	TTFTP99  Spread  `json:"ttft_p99_s"`
	TPOTP90  Spread  `json:"tpot_p90_s"`
	ITLP99   Spread  `json:"itl_p99_s"`
	E2EP90   Spread  `json:"e2e_p90_s"`
	HitRate  Spread  `json:"hit_rate"` // prompt tokens found cached
	Goodput  Spread  `json:"goodput"`  // requests a second that kept the SLO

	runs []figures
}

// Spread is a figure over several runs. The zero value is that of none.
type Spread struct {
	N      int     `json:"n"` // runs that have the figure; the others are of these
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// figures are one run's, or one stretch of a ramp's. What is not known is NaN.
type figures struct {
	requests, failed              int
	ttft                          []float64 // sorted
	tpotP90, itlP99, e2eP90, hits float64
	goodput, lag                  float64
}

// stretches is how many points a ramp is cut into.
const stretches = 10

// New sorts runs into a report.
func New(runs []Run) *Report {
	r := new(Report)
	for i := range runs {
		run := &runs[i]
		series := r.section(run.Workload).series(run)
		for rate, f := range run.figures() {
			p := series.point(rate)
			p.runs = append(p.runs, f)
		}
	}
	for _, sec := range r.Sections {
		for _, s := range sec.Series {
			slices.SortFunc(s.Points, func(a, b Point) int { return cmp.Compare(a.Rate, b.Rate) })
			for i := range s.Points {
				s.Points[i].sum()
			}
		}
	}
	return r
}

func (r *Report) section(workload string) *Section {
	i := slices.IndexFunc(r.Sections, func(s Section) bool { return s.Workload == workload })
	if i < 0 {
		i = len(r.Sections)
		r.Sections = append(r.Sections, Section{Workload: workload})
	}
	return &r.Sections[i]
}

func (s *Section) series(run *Run) *Series {
	name := run.Label
	if name == "" {
		name = run.Target
		if u, err := url.Parse(run.Target); err == nil && u.Host != "" {
			name = u.Host
		}
	}
	i := slices.IndexFunc(s.Series, func(s Series) bool { return s.Name == name })
	if i < 0 {
		i = len(s.Series)
		s.Series = append(s.Series, Series{Name: name, Target: run.Target, Model: run.Model})
	}
	return &s.Series[i]
}

func (s *Series) point(rate float64) *Point {
	i := slices.IndexFunc(s.Points, func(p Point) bool { return p.Rate == rate })
	if i < 0 {
		i = len(s.Points)
		s.Points = append(s.Points, Point{Rate: rate})
	}
	return &s.Points[i]
}

// figures yields the run's by rate.
func (r *Run) figures() func(yield func(float64, figures) bool) {
	return func(yield func(float64, figures) bool) {
		if r.RampTo == 0 {
			f := r.stretch(r.Requests, r.Elapsed)
			if f.itlP99 = math.NaN(); r.ITLP99 != nil {
				f.itlP99 = *r.ITLP99
			}
			yield(r.Rate, f)
			return
		}
		// Warm-up included, so that stretches of runs with other warm-ups have the same rates.
		length := r.Duration / stretches
		for i := range stretches {
			var part []Request
			for _, q := range r.Requests {
				if int(q.Intended/length) == i {
					part = append(part, q)
				}
			}
			if len(part) == 0 {
				continue
			}
			f := r.stretch(part, length)
			f.itlP99 = math.NaN()
			if !yield(r.Rate+(r.RampTo-r.Rate)*(float64(i)+0.5)/stretches, f) {
				return
			}
		}
	}
}

// stretch sums up requests that came in so many seconds.
func (r *Run) stretch(requests []Request, seconds float64) figures {
	f := figures{requests: len(requests), hits: math.NaN(), lag: r.LagP99}
	var tpot, e2e []float64
	prompt, cached, good, told := 0, 0, 0, false
	for _, q := range requests {
		if q.TTFT != nil {
			f.ttft = append(f.ttft, *q.TTFT)
		}
		prompt += q.Prompt
		if q.Cached != nil {
			cached, told = cached+*q.Cached, true
		}
		if q.Error != "" {
			if q.Error != "cancelled" {
				f.failed++
			}
			continue
		}
		e2e = append(e2e, q.E2E)
		if q.TPOT != nil {
			tpot = append(tpot, *q.TPOT)
		}
		if q.TTFT != nil && *q.TTFT <= r.SLOTTFT && (q.TPOT == nil || *q.TPOT <= r.SLOTPOT) {
			good++
		}
	}
	slices.Sort(f.ttft)
	slices.Sort(tpot)
	slices.Sort(e2e)
	f.tpotP90, f.e2eP90 = quantile(tpot, 0.9), quantile(e2e, 0.9)
	if told && prompt > 0 {
		f.hits = float64(cached) / float64(prompt)
	}
	if f.goodput = math.NaN(); seconds > 0 {
		f.goodput = float64(good) / seconds
	}
	return f
}

// quantile is the smallest of sorted values that at least the share q do not exceed; NaN if there are none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// sum fills in the point from its runs.
func (p *Point) sum() {
	p.Runs = len(p.runs)
	for _, f := range p.runs {
		p.Requests += f.requests
		p.Failed += f.failed
	}
	for _, m := range []struct {
		to *Spread
		of func(figures) float64
	}{
		{&p.TTFTP50, func(f figures) float64 { return quantile(f.ttft, 0.5) }},
		{&p.TTFTP90, func(f figures) float64 { return quantile(f.ttft, 0.9) }},
		{&p.TTFTP99, func(f figures) float64 { return quantile(f.ttft, 0.99) }},
		{&p.TPOTP90, func(f figures) float64 { return f.tpotP90 }},
		{&p.ITLP99, func(f figures) float64 { return f.itlP99 }},
		{&p.E2EP90, func(f figures) float64 { return f.e2eP90 }},
		{&p.HitRate, func(f figures) float64 { return f.hits }},
		{&p.Goodput, func(f figures) float64 { return f.goodput }},
	} {
		*m.to = p.spread(m.of)
	}
}

// spread is a figure over the point's runs.
func (p *Point) spread(of func(figures) float64) Spread {
	var values []float64
	for _, f := range p.runs {
		if v := of(f); !math.IsNaN(v) {
			values = append(values, v)
		}
	}
	n := len(values)
	if n == 0 {
		return Spread{}
	}
	slices.Sort(values)
	return Spread{N: n, Median: (values[(n-1)/2] + values[n/2]) / 2, Low: values[0], High: values[n-1]}
}

// columns are those of the tables after the series' name.
var columns = []struct {
	name string
	cell func(*Point) string
}{
	{"requests/s", func(p *Point) string { return digits(p.Rate) }},
	{"runs", func(p *Point) string { return fmt.Sprint(p.Runs) }},
	{"requests", func(p *Point) string { return fmt.Sprint(p.Requests) }},
	{"failed", func(p *Point) string { return fmt.Sprint(p.Failed) }},
	{"TTFT p50", func(p *Point) string { return p.TTFTP50.write(seconds) }},
	{"TTFT p90", func(p *Point) string { return p.TTFTP90.write(seconds) }},
	{"TTFT p99", func(p *Point) string { return p.TTFTP99.write(seconds) }},
	{"between tokens p99", func(p *Point) string { return p.ITLP99.write(seconds) }},
	{"per token p90", func(p *Point) string { return p.TPOTP90.write(seconds) }},
	{"whole answer p90", func(p *Point) string { return p.E2EP90.write(seconds) }},
	{"cached", func(p *Point) string { return p.HitRate.write(percent) }},
	{"goodput/s", func(p *Point) string { return p.Goodput.write(number) }},
}

// Markdown writes the report as tables.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	for i, sec := range r.Sections {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "### %s\n\n|  |", sec.Workload)
		for _, c := range columns {
			fmt.Fprintf(&b, " %s |", c.name)
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
		for _, s := range sec.Series {
			for i := range s.Points {
				fmt.Fprintf(&b, "| %s |", strings.ReplaceAll(s.Name, "|", `\|`))
				for _, c := range columns {
					fmt.Fprintf(&b, " %s |", c.cell(&s.Points[i]))
				}
				b.WriteString("\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// A unit is how values near v are written: by which factor, and with what after them.
type unit func(v float64) (factor float64, after string)

func seconds(v float64) (float64, string) {
	switch {
	case v < 1e-3:
		return 1e6, " µs"
	case v < 1:
		return 1e3, " ms"
	}
	return 1, " s"
}

func percent(float64) (float64, string) { return 100, " %" }
func number(float64) (float64, string)  { return 1, "" }

// write writes a value alone.
func (u unit) write(v float64) string {
	factor, after := u(v)
	return digits(v*factor) + after
}

// digits writes three digits, or all there are before the point.
func digits(v float64) string {
	if v >= 99.95 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// write writes the median and, of several runs, the lowest and the highest.
func (s Spread) write(u unit) string {
	switch {
	case s.N == 0:
		return "–"
	case s.N == 1:
		return u.write(s.Median)
	}
	factor, after := u(s.Median)
	return fmt.Sprintf("%s (%s–%s)%s", digits(s.Median*factor), digits(s.Low*factor), digits(s.High*factor), after)
}
