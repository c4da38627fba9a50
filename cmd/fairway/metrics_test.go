package main

import (
	"cmp"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/account"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// metric is one that the proxy may serve.
type metric struct{ name, kind, labels, help string }

var descText = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: ("(?:[^"\\]|\\.)*"), constLabels: \{[^}]*\}, variableLabels: \{([^}]*)\}`)

// allMetrics asks every collector of a proxy what it has.
func allMetrics(t *testing.T) []metric {
	t.Helper()
	c := file.Default()
	c.Listen = file.Listen{}
	a, err := newApp(c, logs{Logger: slog.New(slog.DiscardHandler)}, proxy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	rec := account.Record{Pool: "p", Model: "m", Operation: "chat", Status: 200, TTFT: 1, CompletionTokens: 2, CachedTokens: 1, Service: "s"} // so that histograms show
	rec.Pick.At, rec.Pick.PredictedTTFT = 1, 1
	a.account.Done(&rec)
	kinds := make(map[string]string)
	families, err := a.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		kinds[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	var all []metric
	for _, collector := range []prometheus.Collector{a.registry, identityMetrics{}} {
		descs := make(chan *prometheus.Desc, 1000)
		collector.Describe(descs)
		close(descs)
		for d := range descs {
			m := descText.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("what is %s?", d)
			}
			name, labels := m[1], m[3]
			if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
				continue
			}
			kind := "gauge"
			if strings.HasSuffix(name, "_total") {
				kind = "counter"
			}
			var help string
			if _, err := fmt.Sscanf(m[2], "%q", &help); err != nil {
				t.Fatal(err)
			}
			all = append(all, metric{name, cmp.Or(kinds[name], kind), labels, help})
		}
	}
	slices.SortFunc(all, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	return all
}

// metricSections are the parts of docs/metrics.md: the first whose prefix fits has a metric.
var metricSections = []struct{ title, prefix, text string }{
	{"Endpoints", "fairway_endpoint_", "Of each engine, as the picker uses it. Those that an engine does not tell are absent."},
	{"Pools", "fairway_pool_", "To scale a pool's engines by, see [install.md](install.md#scale-engines)."},
	{"Endpoint pickers of pools", "fairway_own_picker_", "Absent without them; see [endpoint-picker.md](endpoint-picker.md#a-picker-of-your-own)."},
	{"The mesh", "fairway_hbone_", "Tunnels that are accepted (`inbound`) and made (`outbound`); absent without them."},
	{"The mesh", "fairway_certificate_", ""},
	{"Istio", "istio_", "What a waypoint of Istio's own counts, for requests that come through a tunnel, with `reporter=\"waypoint\"`. What an address belongs to is known in a cluster, by the pods there; `unknown` is what is not. The two ends, the code and the flags make 1024 combinations at most. Once there are so many, those in which nothing was counted for an hour are dropped; while there are none, both ends of requests beyond are `unknown`. `response_flags` are Envoy's: UH, UF, URX, UC, UT, UO, DC, SI, NR, NC, RL, OM, UAEX, or `-`."},
	{"OpenTelemetry", "gen_ai_", "The names that OpenTelemetry's conventions for generative AI give to servers' metrics."},
	{"What is passed on unread", "fairway_tcp_", ""},
	{"The proxy", "fairway_build_", ""}, {"The proxy", "fairway_requests_live", ""}, {"The proxy", "fairway_queue_length", ""}, {"The proxy", "fairway_request_bodies_", ""}, {"The proxy", "fairway_uptime_", ""},
	{"The proxy", "fairway_world_", ""}, {"The proxy", "fairway_config_", ""}, {"The proxy", "fairway_client_connections", ""}, {"The proxy", "fairway_limits_", ""}, {"The proxy", "fairway_findings", ""}, {"The proxy", "fairway_api_server_", ""},
	{"Requests", "fairway_", "Counted when a request has ended."},
}

const metricsHead = `# Metrics

Served at ` + "`:15020/metrics`" + ` (` + "`listen.metrics`" + `; ` + "`/stats/prometheus`" + ` is the same page) for Prometheus, in its text format or OpenMetrics. This page is made from the code; ` + "`go test ./cmd/fairway -run TestDocumentedMetrics -update`" + ` writes it anew.

Values of labels are bounded: ` + "`pool`" + ` and ` + "`endpoint`" + ` by the configuration, ` + "`code`" + ` and ` + "`reason`" + ` ([errors](errors.md)) by their kind. ` + "`model`" + ` is the name that the client said if an engine has answered to it, up to 256 of them;
any other name is ` + "`other`" + `. What was counted of a pool is dropped an hour after the pool is gone. Beside these there are ` + "`go_*` and `process_*`" + ` of the process.
`

// metricsPage lays docs/metrics.md out.
func metricsPage(all []metric) string {
	rows, texts := make(map[string]string), make(map[string]string)
	var titles []string
	for _, m := range all {
		i := slices.IndexFunc(metricSections, func(s struct{ title, prefix, text string }) bool { return strings.HasPrefix(m.name, s.prefix) })
		title := metricSections[i].title
		texts[title] += metricSections[i].text
		if len(rows[title]) > 0 {
			texts[title] = strings.TrimSuffix(texts[title], metricSections[i].text)
		} else {
			titles = append(titles, title)
		}
		labels := ""
		if m.labels != "" {
			labels = "`" + strings.ReplaceAll(m.labels, ",", "`, `") + "`"
		}
		rows[title] += fmt.Sprintf("| `%s` | %s | %s | %s |\n", m.name, m.kind, labels, m.help)
	}
	slices.SortStableFunc(titles, func(a, b string) int {
		order := []string{"Requests", "Pools", "Endpoints", "Endpoint pickers of pools", "The proxy", "The mesh", "Istio", "OpenTelemetry"}
		at := func(s string) int { return (slices.Index(order, s) + len(order) + 1) % (len(order) + 1) }
		return cmp.Compare(at(a), at(b))
	})
	var page strings.Builder
	page.WriteString(metricsHead)
	for _, title := range titles {
		fmt.Fprintf(&page, "\n## %s\n\n", title)
		if texts[title] != "" {
			fmt.Fprintf(&page, "%s\n\n", texts[title])
		}
		fmt.Fprintf(&page, "| metric | kind | labels | what it says |\n|---|---|---|---|\n%s", rows[title])
	}
	return page.String()
}

// docs/metrics.md says which metrics there are.
func TestDocumentedMetrics(t *testing.T) {
	all := allMetrics(t)
	if len(all) < 40 {
		t.Fatalf("%d metrics found: this test shows little", len(all))
	}
	want := metricsPage(all)
	const name = "../../docs/metrics.md"
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil || string(got) != want {
		t.Errorf("docs/metrics.md is stale (%v): go test ./cmd/fairway -run TestDocumentedMetrics -update", err)
	}
}

// Every metric of a running proxy is one that the page has, and what promtool asks of names holds.
func TestDocumentedMetricsAreAll(t *testing.T) {
	f := startFleet(t, startPod(t, "", mock.Config{Speed: 20}))
	f.mustAsk(t, request{MaxTokens: 2, Messages: []message{{"user", prose(1, 100)}}})
	waitFor(t, "the request's count", func() bool { return f.counted(t, "fairway_requests_total") == 1 })
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		name := family.GetName()
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		if !strings.Contains(string(page), "| `"+name+"` | "+strings.ToLower(family.GetType().String())+" |") {
			t.Errorf("%s (%v) is not documented", name, family.GetType())
		}
		if !strings.HasSuffix(family.GetHelp(), ".") {
			t.Errorf("%s: its help is no sentence: %q", name, family.GetHelp())
		}
	}
}

// counted is the sum of a metric's series: of a histogram, how much it has observed.
func (f *fleet) counted(t testing.TB, name string) (sum float64) {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.Metric {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// A proxy tells which World it serves from, and of configurations that it could not take.
func TestWorldMetrics(t *testing.T) {
	before := time.Now()
	f := startFleet(t, startPod(t, "", mock.Config{Speed: 20}))
	if v := f.counted(t, "fairway_world_version"); v != 1 {
		t.Errorf("version %v at the start", v)
	}
	f.apply(f.config)
	f.reload(nil, fmt.Errorf("line 3: no"), &serveOptions{})
	if v, no := f.counted(t, "fairway_world_version"), f.counted(t, "fairway_config_rejected_total"); v != 2 || no != 1 {
		t.Errorf("version %v, %v rejected, want 2 and 1", v, no)
	}
	if since := f.counted(t, "fairway_world_changed_timestamp_seconds"); since < float64(before.Unix()) || since > float64(time.Now().Unix()+1) {
		t.Errorf("in force since %v", since)
	}
}
