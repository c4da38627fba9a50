//go:build e2e && linux

// Package observe_test looks at a running Fairway with what people look with: a real Prometheus, a real collector
// of OpenTelemetry, and a real browser. `make e2e-observe` installs them and runs it.
package observe_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// demo is a running `fairway demo`.
type demo struct{ origin, metrics, admin string }

func startDemo(t *testing.T) demo {
	t.Helper()
	d := demo{process.FreeAddress(), process.FreeAddress(), process.FreeAddress()}
	p := start(t, "demo", os.Getenv("E2E_FAIRWAY"), "demo", "--pods", "3", "--listen", d.origin, "--metrics", d.metrics, "--admin", d.admin)
	p.Await(t, patience, process.Answers("http://"+d.metrics+"/healthz/ready"))
	return d
}

// page is the demo's metrics.
func (d demo) page(t *testing.T) string {
	t.Helper()
	return page(t, "http://"+d.metrics+"/metrics")
}

// settle waits until the demo's traffic is over.
func (d demo) settle(t *testing.T) {
	t.Helper()
	process.Eventually(t, patience, func() error {
		page := d.page(t)
		if n := sum(t, page, "fairway_requests_total"); n < 200 || sum(t, page, "fairway_requests_live") > 0 {
			return fmt.Errorf("%v requests have ended, and some are under way", n)
		}
		return nil
	})
}

func TestObserve(t *testing.T) {
	d := startDemo(t)
	engine, lone := process.FreeAddress(), process.FreeAddress()
	mock := start(t, "engine", os.Getenv("E2E_MOCKVLLM"), "--listen", engine, "--model", "m")
	mock.Await(t, patience, process.Answers("http://"+engine+"/health"))
	config := filepath.Join(t.TempDir(), "fairway.yaml")
	good := "pools: [{name: default, endpoints: [http://" + engine + "]}]\n"
	writeFile(t, config, good)
	origin := process.FreeAddress()
	fairway := start(t, "fairway", os.Getenv("E2E_FAIRWAY"), "serve", "--config", config, "--listen", origin, "--metrics", lone, "--admin", process.FreeAddress())
	fairway.Await(t, patience, process.Answers("http://"+lone+"/healthz/ready"))
	ended := process.FreeAddress()
	another := start(t, "another", os.Getenv("E2E_FAIRWAY"), "serve", "--endpoint", "http://"+engine, "--listen", process.FreeAddress(), "--metrics", ended, "--admin", process.FreeAddress())
	another.Await(t, patience, process.Answers("http://"+ended+"/healthz/ready"))
	p := startPrometheus(t, d.metrics, lone, ended)
	process.Eventually(t, patience, func() error { // the engine is known, and no alert fires
		got, err := p.query(`fairway_pool_endpoints{pool="default"} == 1 and on (instance) fairway_config_rejected_total`)
		if err == nil && len(got) != 2 {
			err = fmt.Errorf("%v", got)
		}
		return err
	})
	if got, err := p.query(`ALERTS{alertstate="firing"}`); err != nil || len(got) > 0 {
		t.Errorf("alerts fire before there is a reason: %v, %v", got, err)
	}
	// The conditions of those that take no longer than the rest of these tests. promtool makes all of them.
	mock.Stop()
	another.Stop()
	writeFile(t, config, good+"nonsense: true\n")
	asking, failing := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(failing)
		keepAsking("http://"+origin+"/v1/models/m", asking)
	}()
	defer func() { close(asking); <-failing }()

	t.Run("rules", testRules)
	t.Run("browser", func(t *testing.T) { testBrowser(t, d) })
	t.Run("scrapes", func(t *testing.T) { testScrapes(t, d, p) })
	t.Run("alerts", func(t *testing.T) {
		for _, alert := range []string{
			fmt.Sprintf(`FairwayDown", instance=%q`, ended), `FairwayPoolEmpty", pool="default`, fmt.Sprintf(`FairwayEndpointEjected", endpoint=%q`, engine),
			fmt.Sprintf(`FairwayMetricsStale", endpoint=%q`, engine), `FairwayErrors`, fmt.Sprintf(`FairwayConfigRejected", instance=%q`, lone),
		} {
			alert = strings.TrimSuffix(alert, `"`)
			process.Eventually(t, patience, func() error {
				got, err := p.query(`ALERTS{alertstate="firing", alertname="` + alert + `"}`)
				if err == nil && len(got) != 1 {
					err = fmt.Errorf("%s does not fire: %v", alert, got)
				}
				return err
			})
		}
	})
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// keepAsking asks ten times a second until enough is closed.
func keepAsking(url string, enough <-chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-enough:
			return
		case <-tick.C:
			_, _ = process.Page(url) // that it fails is the point
		}
	}
}

// testRules has promtool look at the rules, and make their conditions.
func testRules(t *testing.T) {
	dir := "../../../deploy/grafana/"
	if out := run(t, "", os.Getenv("E2E_PROMTOOL"), "check", "rules", "--lint=all", "--lint-fatal", dir+"alerts.yaml"); !strings.Contains(out, "rules found") {
		t.Error(out)
	}
	run(t, "", os.Getenv("E2E_PROMTOOL"), "test", "rules", dir+"alerts_test.yaml")
}

// testScrapes holds Prometheus to the page that it read, and Grafana's expressions to Prometheus.
func testScrapes(t *testing.T, d demo, p prometheus) {
	d.settle(t)
	page := d.page(t)
	run(t, page, os.Getenv("E2E_PROMTOOL"), "check", "metrics")
	for _, name := range []string{"fairway_requests_total", "fairway_tokens_total", "fairway_time_to_first_token_seconds_count", "fairway_picks_total"} {
		want := sum(t, page, name)
		process.Eventually(t, patience, func() error {
			got, err := p.query(fmt.Sprintf("sum(%s{instance=%q})", name, d.metrics))
			if err == nil && (len(got) != 1 || got["map[]"] != want) {
				err = fmt.Errorf("%s: Prometheus has %v, the page %v", name, got, want)
			}
			return err
		})
	}
	text, err := os.ReadFile("../../../deploy/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$pool", ".*", "$__rate_interval", "5m")
	n := 0
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			n++
			got, err := p.query(variables.Replace(target.Expr))
			// Nothing failed, nobody left or was refused, and no second policy is asked.
			if quiet := strings.Contains(target.Expr, `code!=`) || strings.Contains(target.Expr, "clients_gone") || strings.Contains(target.Expr, "retries") || strings.Contains(target.Expr, "shed_total") || strings.Contains(target.Expr, "shadow"); err != nil || len(got) == 0 && !quiet {
				t.Errorf("Grafana's panel %q: %s: %v, %v", panel.Title, target.Expr, got, err)
			}
		}
	}
	if n < 20 {
		t.Errorf("%d expressions found: this test shows little", n)
	}
}

// testBrowser opens the dashboard, reads it in both themes, and opens receipts.
func testBrowser(t *testing.T, d demo) {
	shots := os.Getenv("E2E_SHOTS")
	if shots == "" {
		shots = t.TempDir()
	}
	admin := "http://" + d.admin
	b := openBrowser(t, os.Getenv("E2E_CHROMIUM"))
	b.look("light", 1440, 1000)
	b.open(admin + "/")
	b.until("document.querySelectorAll('#receipts .open').length > 5 && document.getElementById('f-p50').textContent != '–'")
	b.screenshot(filepath.Join(shots, "live.png"))

	d.settle(t)
	// What strangers say is text, and asks the page to do nothing.
	const stranger = `<img src=x onerror="document.title='taken'">`
	body, _ := json.Marshal(map[string]any{"model": stranger, "messages": []map[string]string{{"role": "user", "content": "hi"}}})
	req, _ := http.NewRequest("POST", "http://"+d.origin+"/v1/chat/completions", strings.NewReader(string(body)))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", `../../"><script>x`)
	if resp, err := http.DefaultClient.Do(req); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	d.settle(t)
	b.until("document.getElementById('f-live').textContent === '0'")

	// Its values are those of the metrics.
	page := d.page(t)
	number := func(v float64) string {
		s := fmt.Sprintf("%.0f", v)
		if len(s) > 3 {
			s = s[:len(s)-3] + "," + s[len(s)-3:]
		}
		return s
	}
	total := sum(t, page, "fairway_requests_total")
	b.until(fmt.Sprintf("document.getElementById('f-total').textContent === %q", number(total)))
	failed := total - sum(t, page, "fairway_requests_total", `code="200"`, `reason=""`)
	hit := sum(t, page, "fairway_tokens_total", `kind="cached"`) / sum(t, page, "fairway_tokens_total", `kind="prompt"`)
	for id, want := range map[string]string{"f-failed": number(failed), "f-hit-all": fmt.Sprintf("%.0f%%", math.Round(100*hit)), "f-retries": "0", "f-shed": "0"} {
		if got := b.text("document.getElementById('" + id + "').textContent"); got != want {
			t.Errorf("%s is %q, want %q", id, got, want)
		}
	}
	if got, want := b.text("document.querySelector('#models tbody').rows[0].cells[4].textContent"), number(sum(t, page, "fairway_requests_total", `model="llama-3-8b"`)); got != want {
		t.Errorf("the model's requests are %q, want %q", got, want)
	}
	for i := range 3 {
		row := fmt.Sprintf("document.querySelector('#pods tbody').rows[%d].cells", i)
		endpoint := `endpoint="` + b.text(row+"[0].textContent") + `"`
		if got, want := b.text(row+"[10].textContent"), number(sum(t, page, "fairway_endpoint_index_entries", endpoint)); got != want {
			t.Errorf("the chunks at %s are %q, want %q", endpoint, got, want)
		}
	}
	if got := b.text("document.title + document.images.length"); got != "Fairway0" {
		t.Errorf("a stranger's words made the page %q", got)
	}
	b.until("[...document.querySelectorAll('#receipts td')].some((c) => c.textContent.startsWith('<img src=x'))")

	testReceipts(t, b, admin)
	testAccess(t, b)
	for _, theme := range []string{"light", "dark"} {
		b.look(theme, 1440, 1000)
		testContrast(t, b, theme)
		b.screenshot(filepath.Join(shots, theme+".png"))
		b.click("#receipts tbody tr:last-child .open")
		b.until("document.querySelector('#receipt .why')")
		testContrast(t, b, theme+", a receipt")
		b.screenshot(filepath.Join(shots, theme+"-receipt.png"))
		b.press("Escape")
	}
	b.look("light", 420, 900)
	if got := b.text("document.documentElement.scrollWidth <= innerWidth"); got != "true" {
		t.Error("a narrow page scrolls sideways")
	}
	b.screenshot(filepath.Join(shots, "narrow.png"))
	testPanels(t, b, shots)
	if c := b.complaints(); len(c) > 0 {
		t.Errorf("the page complains:\n%s", strings.Join(c, "\n"))
	}
	t.Logf("screenshots are in %s", shots)
}

// testPanels has a second policy asked and requests refused, and compares what the page says of them with the metrics.
func testPanels(t *testing.T, b *browser, shots string) {
	engines := []string{process.FreeAddress(), process.FreeAddress()}
	for _, e := range engines {
		start(t, "engine", os.Getenv("E2E_MOCKVLLM"), "--listen", e, "--model", "m").
			Await(t, patience, process.Answers("http://"+e+"/health"))
	}
	config := filepath.Join(t.TempDir(), "fairway.yaml")
	writeFile(t, config, fmt.Sprintf("pools: [{name: p, endpoints: [http://%s, http://%s]}]\nmodels: [{name: batch, pool: p, criticality: Sheddable, targets: [{name: m, weight: 1}]}, {name: m, pool: p}]\nshadow: round-robin\n", engines[0], engines[1]))
	origin, metrics, admin := process.FreeAddress(), process.FreeAddress(), process.FreeAddress()
	start(t, "fairway", os.Getenv("E2E_FAIRWAY"), "serve", "--config", config, "--listen", origin, "--metrics", metrics, "--admin", admin).
		Await(t, patience, process.Answers("http://"+metrics+"/healthz/ready"))
	codes := make(map[int]int)
	for i := range 12 {
		model := []string{"m", "batch"}[i%2]
		body, _ := json.Marshal(map[string]any{"model": model, "max_tokens": 2, "messages": []map[string]string{{"role": "user", "content": strings.Repeat(fmt.Sprint("Question ", i/4, ". "), 2000)}}})
		req, _ := http.NewRequest("POST", "http://"+origin+"/v1/chat/completions", strings.NewReader(string(body)))
		req.Header.Set("Content-Type", "application/json")
		if i%4 == 3 {
			req.Header.Set("X-Slo-Ttft-Ms", "1") // no engine is that quick with a prompt of this length
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		codes[resp.StatusCode]++
	}
	if codes[200] != 9 || codes[429] != 3 {
		t.Fatalf("answers %v, want 9 of 200 and 3 of 429", codes)
	}
	b.open("http://" + admin + "/")
	b.until("document.getElementById('f-total').textContent === '12' && !document.getElementById('shadow').hidden")
	page := page(t, "http://"+metrics+"/metrics")
	cell := func(table, key string, i int) string {
		return b.text(fmt.Sprintf("document.querySelector('#%s tr[data-key=%q]').cells[%d].textContent", table, key, i))
	}
	for i, reason := range []string{"saturated", "queue_full", "queue_timeout", "deadline", "over_budget"} {
		for _, worth := range []string{"critical", "standard", "sheddable"} {
			want := fmt.Sprint(sum(t, page, "fairway_shed_total", `criticality="`+worth+`"`, `reason="`+reason+`"`))
			if got := cell("queues", "p "+worth, 4+i); got != want {
				t.Errorf("of %s requests %s were shed for %s, by the metrics %s", worth, got, reason, want)
			}
		}
	}
	if got, want := cell("shadows", "p round-robin", 2), fmt.Sprint(sum(t, page, "fairway_shadow_picks_total")); got != want || want == "0" {
		t.Errorf("%s choices, by the metrics %s", got, want)
	}
	if got, want := cell("shadows", "p round-robin", 3), fmt.Sprintf("%.0f%%", 100*sum(t, page, "fairway_shadow_picks_total", `agrees="true"`)/sum(t, page, "fairway_shadow_picks_total")); got != want {
		t.Errorf("it agrees in %s, by the metrics %s", got, want)
	}
	b.until("document.querySelector('#c-shadow .plot').getAttribute('aria-label').includes('ours')")
	testAccess(t, b)
	for _, theme := range []string{"light", "dark"} {
		b.look(theme, 1440, 1000)
		testContrast(t, b, theme+", panels")
		b.screenshot(filepath.Join(shots, theme+"-panels.png"))
	}
}

// testReceipts opens one by click and one by keyboard; it says what `fairway explain` says.
func testReceipts(t *testing.T, b *browser, admin string) {
	b.click("#receipts tbody tr:last-child .open")
	b.until("document.getElementById('receipt').open && document.querySelector('#receipt .why')")
	id := strings.TrimPrefix(b.text("document.getElementById('receipt-title').textContent"), "Request ")
	why := b.text("document.querySelector('#receipt .why').textContent")
	explained := run(t, "", os.Getenv("E2E_FAIRWAY"), "explain", id, "--admin", admin)
	chosen := regexp.MustCompile(`It went to ([0-9.:]+)`).FindStringSubmatch(why)
	if chosen == nil || !strings.Contains(explained, chosen[0]) {
		t.Errorf("the page says %q, fairway explain\n%s", why, explained)
	}
	if got := b.text("document.querySelector('#receipt tr.chosen th').textContent"); chosen != nil && !strings.HasPrefix(got, chosen[1]) {
		t.Errorf("chosen is %q", got)
	}
	b.click("#receipt-close")
	b.until("!document.getElementById('receipt').open")

	b.eval("document.querySelector('.skip').focus()", nil)
	for range 60 {
		b.press("Tab")
		if b.text("document.activeElement.className") == "open" {
			break
		}
	}
	name := b.text("document.activeElement.getAttribute('aria-label')")
	b.press("Enter")
	b.until("document.getElementById('receipt').open && document.querySelector('#receipt .why, #receipt .failed, #receipt p:not(.fine)')")
	if got := b.text("document.activeElement.id"); got != "receipt-title" {
		t.Errorf("the focus is on %q", got)
	}
	b.press("Escape")
	b.until("!document.getElementById('receipt').open")
	if got := b.text("document.activeElement.getAttribute('aria-label')"); got != name || !strings.Contains(name, "open the receipt") {
		t.Errorf("the focus came back to %q, not to %q", got, name)
	}
	b.eval("document.activeElement.blur()", nil)
}

// testAccess looks at what screen readers go by.
func testAccess(t *testing.T, b *browser) {
	for what, expression := range map[string]string{
		"a language":                   "document.documentElement.lang === 'en'",
		"one heading of the page":      "document.querySelectorAll('h1').length === 1",
		"its landmarks":                "document.querySelectorAll('body > header, body > main, nav[aria-label]').length === 3",
		"one live region, in no table": "document.querySelectorAll('[aria-live]').length === 1 && !document.querySelector('[aria-live] table')",
		"names for all buttons":        "[...document.querySelectorAll('button, a')].every((e) => (e.getAttribute('aria-label') || e.textContent).trim())",
		"headers in all tables":        "[...document.querySelectorAll('main table')].every((t) => [...t.tHead.rows[0].cells].every((c) => c.scope === 'col') && [...t.tBodies[0].rows].every((r) => r.querySelector('th[scope=row]') || r.querySelector('.none')))",
		"labels for sections":          "[...document.querySelectorAll('section, [role=region]')].every((e) => e.getAttribute('aria-label') || document.getElementById(e.getAttribute('aria-labelledby')))",
		"words for curves":             "[...document.querySelectorAll('.plot')].filter((p) => p.checkVisibility()).every((p) => p.getAttribute('role') === 'img' && p.getAttribute('aria-label').includes('now:'))",
	} {
		if b.text(expression) != "true" {
			t.Errorf("the page lacks %s", what)
		}
	}
	b.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-reduced-motion", "value": "reduce"}}})
	if got := b.text("getComputedStyle(document.querySelector('.fill')).transitionDuration"); got != "0s" {
		t.Errorf("bars move for %s although motion is unwanted", got)
	}
}

// testContrast computes the contrast of all texts (WCAG 2.2, success criterion 1.4.3).
func testContrast(t *testing.T, b *browser, where string) {
	var low []string
	b.eval(`(() => {
		const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
		const lum = ([r, g, b]) => { const f = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
		const low = new Set();
		const root = document.getElementById('receipt').open ? document.getElementById('receipt') : document.body;
		const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
		for (let n = walk.nextNode(); n; n = walk.nextNode()) {
			const e = n.parentElement;
			if (!n.textContent.trim() || !e.checkVisibility() || e.closest('script, noscript, .hidden, .skip')) continue;
			const style = getComputedStyle(e);
			const ink = parse(e.closest('svg') ? style.fill : style.color);
			let paper = [255, 255, 255, 1];
			for (let p = e; p; p = p.parentElement) { const c = parse(getComputedStyle(p).backgroundColor); if (c[3] === 1) { paper = c; break; } }
			const [a, z] = [lum(ink), lum(paper)].sort((x, y) => y - x);
			const ratio = (a + 0.05) / (z + 0.05);
			if (ratio < 4.5) low.add(e.className + ' "' + n.textContent.trim().slice(0, 20) + '" ' + ratio.toFixed(2));
		}
		return [...low];
	})()`, &low)
	if len(low) > 0 {
		t.Errorf("%s: too little contrast: %s", where, strings.Join(low, "; "))
	}
}
