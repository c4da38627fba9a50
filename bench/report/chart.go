package report

import (
	"bytes"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A chart shows a line for each series, with a band around it.
type chart struct {
	title        string
	x, y         axis
	lines        []line
	top          float64 // the y axis goes up to here at least
	keepsUpAlong bool    // draws y = x
}

// An axis says how values are written, and whether its steps are factors.
type axis struct {
	name string
	unit unit
	log  bool
}

// A line is one series' points in the order of x. low and high are the band's edges.
type line struct {
	series         int // sets the colour
	at             []float64
	mid, low, high []float64
	horizontal     bool // the band spans x instead of y: mid, low and high are x, at is y
}

// The colours that are drawn are none that anybody should see: they stand for the variables of the page's style sheet, which knows
// whether the page is light or dark.
var (
	ink  = color.RGBA{R: 2, G: 0, B: 0, A: 255}
	grid = color.RGBA{R: 2, G: 0, B: 1, A: 255}
)

// hues is how many colours of series there are.
const hues = 8

// hue is a series' colour, and band the same one seen through.
func hue(series int) color.Color  { return color.RGBA{R: 1, G: 0, B: uint8(series % hues), A: 255} }
func band(series int) color.Color { return color.RGBA{R: 1, G: 1, B: uint8(series % hues), A: 255} }

// styled replaces the colours by the style sheet's variables.
var styled = func() *strings.Replacer {
	pairs := []string{"#020000", "var(--ink)", "#020001", "var(--grid)"}
	for i := range hues {
		pairs = append(pairs, fmt.Sprintf("#0100%02X", i), fmt.Sprintf("var(--s%d)", i),
			fmt.Sprintf("#0101%02X", i), fmt.Sprintf("color-mix(in srgb, var(--s%d) 20%%, transparent)", i))
	}
	return strings.NewReplacer(pairs...)
}()

// svg draws the chart as an element to be put into a page.
func (c *chart) svg() (template.HTML, error) {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	c.x.dress(&p.X)
	c.y.dress(&p.Y)
	lines := plotter.NewGrid()
	lines.Vertical.Color, lines.Horizontal.Color = grid, grid
	p.Add(lines)
	for _, l := range c.lines {
		if err := l.draw(p); err != nil {
			return "", fmt.Errorf("plot %q: %w", c.title, err)
		}
	}
	if c.keepsUpAlong {
		f := plotter.NewFunction(func(x float64) float64 { return x })
		f.Color, f.Dashes = ink, []vg.Length{vg.Points(2), vg.Points(3)}
		p.Add(f)
	}
	c.x.fit(&p.X, 0)
	c.y.fit(&p.Y, c.top)

	canvas := vgsvg.New(vg.Points(400), vg.Points(240))
	p.Draw(draw.Crop(draw.New(canvas), 0, -vg.Points(12), 0, -vg.Points(6))) // room for half of the last ticks' labels
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", fmt.Errorf("plot %q: %w", c.title, err)
	}
	_, svg, _ := strings.Cut(b.String(), "<svg")
	_, svg, ok := strings.Cut(svg, "viewBox=") // before it are a size, which the style sheet gives, and after it nothing of a stranger's
	if !ok {
		return "", fmt.Errorf("plot %q: it is no SVG", c.title)
	}
	return template.HTML("<svg viewBox=" + styled.Replace(svg)), nil
}

// draw adds the band, the line and, where points are few, the points.
func (l *line) draw(p *plot.Plot) error {
	var mid, edge plotter.XYs
	for i := range l.at {
		mid = append(mid, l.xy(l.mid[i], i))
		edge = append(edge, l.xy(l.high[i], i))
	}
	for i := len(l.at) - 1; i >= 0; i-- {
		edge = append(edge, l.xy(l.low[i], i))
	}
	area, err := plotter.NewPolygon(edge)
	if err != nil {
		return err
	}
	area.Color, area.LineStyle.Width = band(l.series), 0
	stroke, err := plotter.NewLine(mid)
	if err != nil {
		return err
	}
	stroke.Color, stroke.Width = hue(l.series), vg.Points(1.6)
	p.Add(area, stroke)
	if len(l.at) <= 20 {
		dots, err := plotter.NewScatter(mid)
		if err != nil {
			return err
		}
		dots.Color, dots.Shape, dots.Radius = hue(l.series), draw.CircleGlyph{}, vg.Points(2.2)
		p.Add(dots)
	}
	return nil
}

func (l *line) xy(v float64, i int) plotter.XY {
	if l.horizontal {
		return plotter.XY{X: v, Y: l.at[i]}
	}
	return plotter.XY{X: l.at[i], Y: v}
}

// dress gives the axis its look.
func (a axis) dress(to *plot.Axis) {
	sans := font.Font{Typeface: "Liberation", Variant: "Sans", Size: 11}
	to.Label.Text = a.name
	to.Label.TextStyle.Font, to.Label.TextStyle.Color = sans, ink
	to.Tick.Label.Font, to.Tick.Label.Color = sans, ink
	to.LineStyle.Color, to.Tick.LineStyle.Color = grid, grid
	to.Tick.Marker = a
	to.Padding = 0
	if a.log {
		to.Scale = plot.LogScale{}
	}
}

// fit sets the axis's ends to round values; those that plot found are the data's.
func (a axis) fit(to *plot.Axis, top float64) {
	to.Max = max(to.Max, top)
	if !a.log {
		to.Min = 0
		return
	}
	to.Min = max(to.Min, 1e-6)
	to.Max = max(to.Max, to.Min)
	to.Min, to.Max = roundDown(to.Min/1.1), roundUp(to.Max*1.1)
}

// steps are the values of a decade that an axis marks.
var steps = []float64{1, 2, 5}

func roundDown(v float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)))
	for i := len(steps) - 1; i > 0; i-- {
		if steps[i]*decade <= v {
			return steps[i] * decade
		}
	}
	return decade
}

func roundUp(v float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)))
	for _, s := range steps {
		if s*decade >= v {
			return s * decade
		}
	}
	return 10 * decade
}

// Ticks implements plot.Ticker.
func (a axis) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	if !a.log {
		step := roundUp(max(high-low, 1e-6) / 6)
		for i := math.Ceil(low / step); i*step <= high*1.001; i++ {
			ticks = append(ticks, plot.Tick{Value: i * step, Label: a.unit.write(i * step)})
		}
		return ticks
	}
	marked := steps
	if high/low > 1000 {
		marked = steps[:1]
	}
	for decade := math.Pow(10, math.Floor(math.Log10(low))); decade <= high*1.001; decade *= 10 {
		for _, s := range marked {
			if v := s * decade; v >= low*0.999 && v <= high*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: a.unit.write(v)})
			}
		}
	}
	return ticks
}
