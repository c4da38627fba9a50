package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"regexp"
	"strings"
	"testing"
)

// request is a line of one request that was answered.
func request(intended, ttft float64) string {
	return fmt.Sprintf(`{"session":1,"turn":0,"intended_s":%g,"ttft_s":%g,"tpot_s":0.01,"e2e_s":%g,"prompt_tokens":100,"cached_tokens":25,"completion_tokens":9}`,
		intended, ttft, ttft+1) + "\n"
}

func summary(more string) string {
	return `{"summary":{"workload":"chat","target":"http://10.0.0.1:8080","model":"m","slo_ttft_s":0.35,"slo_tpot_s":0.1,` + more + "}}\n"
}

// run reads a file's text.
func read(t *testing.T, text string) []Run {
	t.Helper()
	runs, err := Read("f", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

// sweep is three runs at each of two rates; first tokens come later at the higher one.
func sweep() string {
	var b strings.Builder
	for seed := range 3 {
		for _, rate := range []int{4, 8} {
			for i := range 10 {
				b.WriteString(request(float64(i), 0.01*float64(rate*(i+1))+0.001*float64(seed)))
			}
			b.WriteString(`{"session":2,"turn":0,"intended_s":1,"e2e_s":2,"error":"cut","completion_tokens":0}` + "\n")
			b.WriteString(`{"session":2,"turn":0,"intended_s":1,"e2e_s":2,"error":"cancelled","completion_tokens":0}` + "\n")
			b.WriteString(summary(fmt.Sprintf(`"seed":%d,"rate":%d,"duration_s":10,"elapsed_s":5,"label":"ours","itl_p99_s":0.02`, seed, rate)))
		}
	}
	return b.String()
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestPoints(t *testing.T) {
	r := New(read(t, sweep()))
	if len(r.Sections) != 1 || len(r.Sections[0].Series) != 1 {
		t.Fatalf("%+v", r)
	}
	s := r.Sections[0].Series[0]
	if s.Name != "ours" || len(s.Points) != 2 || s.Points[0].Rate != 4 || s.Points[1].Rate != 8 {
		t.Fatalf("%+v", s)
	}
	p := s.Points[0]
	if p.Runs != 3 || p.Requests != 36 || p.Failed != 3 {
		t.Errorf("%+v", p)
	}
	for _, x := range []struct {
		name           string
		got            Spread
		mid, low, high float64
	}{
		{"TTFT p50", p.TTFTP50, 0.201, 0.200, 0.202},
		{"TTFT p90", p.TTFTP90, 0.361, 0.360, 0.362},
		{"per token", p.TPOTP90, 0.01, 0.01, 0.01},
		{"between tokens", p.ITLP99, 0.02, 0.02, 0.02},
		{"whole answer", p.E2EP90, 1.361, 1.360, 1.362},
		{"cached", p.HitRate, 0.25, 0.25, 0.25},
		{"goodput", p.Goodput, 1.6, 1.6, 1.6}, // eight in five seconds
	} {
		if x.got.N != 3 || !near(x.got.Median, x.mid) || !near(x.got.Low, x.low) || !near(x.got.High, x.high) {
			t.Errorf("%s is %+v, want %v (%v–%v)", x.name, x.got, x.mid, x.low, x.high)
		}
	}
}

// A ramp is a point for each tenth of it, at the rate it has there.
func TestRampIsCutIntoStretches(t *testing.T) {
	var b strings.Builder
	for i := range 100 { // one a second
		b.WriteString(request(float64(i), 0.1*float64(i/10+1)))
	}
	b.WriteString(summary(`"rate":10,"ramp_to":110,"duration_s":100,"elapsed_s":100`))
	s := New(read(t, b.String())).Sections[0].Series[0]
	if s.Name != "10.0.0.1:8080" || len(s.Points) != 10 {
		t.Fatalf("%+v", s)
	}
	for i, p := range s.Points {
		if !near(p.Rate, float64(15+10*i)) || p.Requests != 10 || !near(p.TTFTP50.Median, 0.1*float64(i+1)) || p.ITLP99.N != 0 {
			t.Errorf("stretch %d: %+v", i, p)
		}
		if want := []float64{1, 1, 1, 0, 0, 0, 0, 0, 0, 0}[i]; !near(p.Goodput.Median, want) {
			t.Errorf("stretch %d: goodput %v", i, p.Goodput)
		}
	}
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	if err := New(read(t, sweep()+request(1, 2)+summary(`"rate":4,"label":"a|b","duration_s":1,"elapsed_s":1`))).Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"### chat\n\n|  | requests/s | runs |", "| ours | 4 | 3 | 36 | 3 | 201 (200–202) ms |", "| 1.36 (1.36–1.36) s | 25 (25–25) % |",
		`| a\|b | 4 | 1 | 1 | 0 | 2 s |`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// The page is whole in itself and says what the files say, whatever names are in them.
func TestPage(t *testing.T) {
	evil := `"label":"<script>alert(1)</script>","rate":4,"duration_s":1,"elapsed_s":1,"send_lag_p99_s":1`
	for name, text := range map[string]string{
		"several rates":        sweep() + request(1, 2) + summary(evil),
		"one rate":             request(0, 0.1) + request(1, 0.2) + summary(evil),
		"one value":            request(0, 0.1) + summary(evil),
		"nothing was answered": `{"session":2,"intended_s":1,"e2e_s":2,"error":"cut"}` + "\n" + summary(evil),
		"at once":              request(0, 0) + summary(evil),
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := New(read(t, text)).HTML(&b); err != nil {
				t.Fatal(err)
			}
			page := b.String()
			if strings.Contains(page, "<script") || !strings.Contains(page, "&lt;script&gt;") {
				t.Error("a name is not escaped")
			}
			if found := regexp.MustCompile(`(src|href)=|url\(|@import`).FindString(page); found != "" {
				t.Errorf("the page has %q: it needs something besides itself", found)
			}
			if strings.Contains(page, "NaN") || strings.Contains(page, "Inf") {
				t.Error("something is not a number")
			}
			if !strings.Contains(page, "the player itself was late") {
				t.Error("the page does not say that the player was late")
			}
			svgs := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(page, -1)
			if want := map[bool]int{true: 6, false: 1}[name == "several rates"]; len(svgs) != want {
				t.Errorf("%d plots, want %d", len(svgs), want)
			}
			for _, svg := range svgs {
				for d := xml.NewDecoder(strings.NewReader(svg)); ; {
					if _, err := d.Token(); err == io.EOF {
						break
					} else if err != nil {
						t.Fatalf("%v in %s", err, svg)
					}
				}
				if left := regexp.MustCompile(`#0[12][0-9A-F]{4}`).FindString(svg); left != "" {
					t.Errorf("colour %s stands for none of the style sheet's", left)
				}
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "no run",
		"hello\n":                      "f:1",
		"{}\n":                         "neither",
		`[{"workload":"chat"}]` + "\n": "f:1",
		request(1, 1):                  "no summary",
		summary(`"rate":0`):            "no rate",
		request(1, 1) + summary(`"rate":1,"ramp_to":2`): "f:2",
	} {
		if _, err := Read("f", strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
