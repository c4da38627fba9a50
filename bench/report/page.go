package report

import (
	_ "embed"
	"html/template"
	"io"
	"math"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// HTML writes the report as one page that needs nothing but itself.
func (r *Report) HTML(w io.Writer) error {
	type figure struct {
		Title string
		SVG   template.HTML
	}
	type series struct {
		Name string
		Hue  int
		Rows [][]string
	}
	type section struct {
		Workload string
		Legend   bool
		Figures  []figure
		Series   []series
	}
	var data struct {
		Columns  []string
		Hues     []int
		Sections []section
		Spread   bool // some point has several runs
		Late     bool // some player was late
	}
	for i := range hues {
		data.Hues = append(data.Hues, i)
	}
	for _, c := range columns {
		data.Columns = append(data.Columns, c.name)
	}
	for _, sec := range r.Sections {
		s := section{Workload: sec.Workload, Legend: len(sec.Series) > 1}
		for _, c := range sec.charts() {
			svg, err := c.svg()
			if err != nil {
				return err
			}
			s.Figures = append(s.Figures, figure{c.title, svg})
		}
		for i, one := range sec.Series {
			row := series{Name: one.Name, Hue: i % hues}
			for j := range one.Points {
				p := &one.Points[j]
				cells := make([]string, len(columns))
				for k, c := range columns {
					cells[k] = c.cell(p)
				}
				row.Rows = append(row.Rows, cells)
				data.Spread = data.Spread || p.Runs > 1
				for _, f := range p.runs {
					data.Late = data.Late || f.lag > late
				}
			}
			s.Series = append(s.Series, row)
		}
		data.Sections = append(data.Sections, s)
	}
	return page.Execute(w, data)
}

// late is how late the player may send, at the 99th percentile and in seconds, before the page says so.
const late = 0.05

// charts are the section's: against the rate where there are several rates, else the distribution at the one there is.
func (s *Section) charts() []chart {
	for _, series := range s.Series {
		if len(series.Points) > 1 {
			return s.byRate()
		}
	}
	return []chart{s.cumulated()}
}

func (s *Section) byRate() []chart {
	rate := axis{name: "requests/s offered", unit: number}
	latency := axis{unit: seconds, log: true}
	charts := []chart{
		{title: "Time to first token, median", x: rate, y: latency},
		{title: "Time to first token, 90th percentile", x: rate, y: latency},
		{title: "Time per token after the first, 90th percentile", x: rate, y: latency},
		{title: "Whole answer, 90th percentile", x: rate, y: latency},
		{title: "Goodput: requests/s that kept the SLO", x: rate, y: axis{unit: number}, keepsUpAlong: true},
		{title: "Prompt tokens found cached", x: rate, y: axis{unit: percent}, top: 1},
	}
	of := []func(*Point) Spread{
		func(p *Point) Spread { return p.TTFTP50 },
		func(p *Point) Spread { return p.TTFTP90 },
		func(p *Point) Spread { return p.TPOTP90 },
		func(p *Point) Spread { return p.E2EP90 },
		func(p *Point) Spread { return p.Goodput },
		func(p *Point) Spread { return p.HitRate },
	}
	filled := charts[:0]
	for i, c := range charts {
		for j, series := range s.Series {
			l := line{series: j}
			for k := range series.Points {
				p := &series.Points[k]
				if v := of[i](p); v.N > 0 && (!c.y.log || v.Low > 0) {
					l.at, l.mid = append(l.at, p.Rate), append(l.mid, v.Median)
					l.low, l.high = append(l.low, v.Low), append(l.high, v.High)
				}
			}
			if len(l.at) > 0 {
				c.lines = append(c.lines, l)
			}
		}
		if len(c.lines) > 0 {
			filled = append(filled, c)
		}
	}
	return filled
}

// cumulated shows which share of the first tokens came within which time.
func (s *Section) cumulated() chart {
	c := chart{
		title: "Share of first tokens that came within a time", x: axis{unit: seconds, log: true}, y: axis{unit: percent}, top: 1,
	}
	for i, series := range s.Series {
		l := line{series: i, horizontal: true}
		for percentile := 1; percentile < 100; percentile++ {
			q := float64(percentile) / 100
			v := series.Points[0].spread(func(f figures) float64 { return quantile(f.ttft, q) })
			if v.N == 0 || math.IsNaN(v.Median) || v.Low <= 0 {
				continue
			}
			l.at, l.mid = append(l.at, q), append(l.mid, v.Median)
			l.low, l.high = append(l.low, v.Low), append(l.high, v.High)
		}
		if len(l.at) > 0 {
			c.lines = append(c.lines, l)
		}
	}
	return c
}
