// Command proxies measures what a proxy costs: CPU time for each request and for
// each event of a stream, added latency, and memory for each connection, of Fairway
// beside others, in one run, taking turns. Run it as `make bench-proxy`.
//
// Clients and backends are this process, the proxies are processes of their own,
// whose CPU time the kernel tells. Figures depend on the machine; ratios within one
// run less so.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var (
	binary   = flag.String("fairway", "bin/fairway", "the `program` under test")
	rounds   = flag.Int("rounds", 5, "how often everything is measured")
	seconds  = flag.Float64("seconds", 2, "how long one measurement takes")
	names    = flag.String("proxies", "direct,haproxy,nginx,envoy,net/http,fairway,fairway-tls,fairway-hbone", "what is measured, in another order each round; each with =PROGRAM another build of it; epp an Envoy that asks Fairway where to, of which the picker alone is measured")
	page     = flag.String("metrics", "discovery/scrape/testdata/vllm-0.32.txt", "the engines' metrics `page`")
	only     = flag.String("only", "", "the one `load` whose CPU time is measured, and nothing else: 1k, 16k, 16k code, 220k or events")
	asJSON   = flag.Bool("json", false, "print one JSON object in the place of tables")
	rate     = flag.Int("rate", 1000, "requests a second while latency is measured")
	scraped  = flag.Int("scrape", 0, "measure instead what Fairway as an idle picker takes for the metrics of so many `endpoints`, 20 times a second each")
	crowded  = flag.Int("crowd", 0, "measure instead how late events are while so many `streams` are under way at once")
	reversed = flag.String("reverse-proxy", "", "be net/http's ReverseProxy at this `address`")
)

const (
	connections = 32
	streams     = 64
	eventsEach  = 200
	pace        = 5 * time.Millisecond
	held        = 1000 // connections that memory is measured with
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench-proxy: ")
	flag.Parse()
	if *reversed != "" {
		log.Fatal(serveReverseProxy(*reversed, flag.Args()))
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	var err error
	if *binary, err = filepath.Abs(*binary); err != nil { // it is started in other folders
		return err
	}
	metrics, err := os.ReadFile(*page)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fairway-proxies")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // nginx's workers are another user
		return err
	}
	if *scraped > 0 {
		return scraping(dir, *scraped, metrics)
	}
	if *crowded > 0 {
		return crowding(dir, *crowded, metrics)
	}
	site, err := newSite(dir, metrics, 3)
	if err != nil {
		return err
	}
	loads := []*load{newLoad("1k", 1<<10, false), newLoad("16k", 16<<10, false), newLoad("16k code", 16<<10, true), newLoad("220k", 220<<10, false)}

	results := newResults()
	list := strings.Split(*names, ",")
	for round := range *rounds {
		order := slices.Clone(list) // another each time: what one leaves to do, such as pages of its log, the next may have to wait for
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, name := range order {
			if results.missing[name] {
				continue
			}
			p, err := start(name, site)
			if err != nil {
				log.Printf("%s is left out: %v", name, err)
				results.missing[name] = true
				continue
			}
			log.Printf("round %d of %d: %s", round+1, *rounds, name)
			err = measure(p, loads, results)
			p.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	if *asJSON {
		return json.NewEncoder(os.Stdout).Encode(results.object())
	}
	results.print(os.Stdout, list, loads)
	return nil
}

// measure takes every figure of one proxy once, or those that are asked for.
func measure(p *proxy, loads []*load, r *results) error {
	each := time.Duration(*seconds * float64(time.Second))
	if *only == "" {
		if err := measureMemory(p, r); err != nil {
			return err
		}
	}
	for _, l := range loads {
		if *only != "" && *only != l.name {
			continue
		}
		if err := measureRequests(p, l, each, r); err != nil {
			return err
		}
	}
	if *only == "" || *only == "events" {
		if err := measureEvents(p, each, r); err != nil {
			return err
		}
	}
	if *only == "" {
		return measureLatency(p, loads[0], each, r)
	}
	return nil
}

func measureMemory(p *proxy, r *results) error {
	idle := p.resident()
	r.add("idle_mb", p.name, float64(idle)/1e6)
	clients, err := connect(p.to, held)
	if err != nil {
		return err
	}
	for _, c := range clients { // each has asked once
		if err := c.do([]byte("GET /health HTTP/1.1\r\nhost: llm\r\n\r\n")); err != nil {
			return err
		}
	}
	r.add("idle_connection_kb", p.name, float64(p.resident()-idle)/1e3/held)
	hangUp(clients)

	idle = p.resident()
	return hold(p.to, newStreams("slow", 100, time.Second), held, func() {
		r.add("stream_kb", p.name, float64(p.resident()-idle)/1e3/held)
	})
}

func measureRequests(p *proxy, l *load, each time.Duration, r *results) error {
	if _, _, err := saturate(p.to, l, connections, each/4); err != nil { // warm
		return err
	}
	before, began := p.cpu(), time.Now()
	n, failed, err := saturate(p.to, l, connections, each)
	if err != nil {
		return err
	}
	r.failed[p.name] += failed
	r.add("requests_per_s/"+l.name, p.name, float64(n)/time.Since(began).Seconds())
	r.add("cpu_us/"+l.name, p.name, float64((p.cpu()-before).Microseconds())/float64(n))
	return nil
}

func measureEvents(p *proxy, each time.Duration, r *results) error {
	before := p.cpu()
	n, failed, err := saturate(p.to, newStreams("events", eventsEach, pace), streams, each)
	if err != nil {
		return err
	}
	r.failed[p.name] += failed
	r.add("sse_us", p.name, float64((p.cpu()-before).Microseconds())/float64(n*(eventsEach+1)))
	return nil
}

func measureLatency(p *proxy, l *load, each time.Duration, r *results) error {
	before := p.cpu()
	took, err := latencies(p.to, l, *rate, each)
	if err != nil {
		return err
	}
	r.add("paced_cpu_us", p.name, float64((p.cpu()-before).Microseconds())/float64(len(took)))
	for _, q := range []float64{.5, .99, .999} {
		r.add(fmt.Sprintf("ms_p%g", q*100), p.name, float64(quantile(took, q).Microseconds())/1e3)
	}
	return nil
}

// results are all figures: by what was measured, by proxy, in the order of rounds.
type results struct {
	figures map[string]map[string][]float64
	missing map[string]bool
	failed  map[string]int64 // requests, by proxy
}

func newResults() *results {
	return &results{make(map[string]map[string][]float64), make(map[string]bool), make(map[string]int64)}
}

func (r *results) add(what, name string, v float64) {
	if r.figures[what] == nil {
		r.figures[what] = make(map[string][]float64)
	}
	r.figures[what][name] = append(r.figures[what][name], v)
}

// median is that over the rounds; NaN without any.
func (r *results) median(what, name string) float64 { return median(r.figures[what][name]) }

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(v))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// ratio is the figure over haproxy's of the same round: median, least and most.
func (r *results) ratio(what, name string) (mid, low, high float64) {
	var all []float64
	for i, v := range r.figures[what][name] {
		if base := r.figures[what]["haproxy"]; i < len(base) && base[i] > 0 {
			all = append(all, v/base[i])
		}
	}
	if len(all) == 0 {
		return math.NaN(), math.NaN(), math.NaN()
	}
	return median(all), slices.Min(all), slices.Max(all)
}

// added is the figure less that of the direct way.
func (r *results) added(what, name string) float64 {
	return r.median(what, name) - r.median(what, "direct")
}

// object is what --json prints.
func (r *results) object() map[string]any {
	cpu := make(map[string]map[string]float64)
	events, added := make(map[string]float64), make(map[string]float64)
	for what, by := range r.figures {
		for name := range by {
			if name == "direct" {
				continue
			}
			size, ok := strings.CutPrefix(what, "cpu_us/")
			switch {
			case ok:
				if cpu[name] == nil {
					cpu[name] = make(map[string]float64)
				}
				cpu[name][size] = r.median(what, name)
			case what == "sse_us":
				events[name] = r.median(what, name)
			case what == "ms_p99":
				added[name] = r.added(what, name)
			}
		}
	}
	return map[string]any{"cpu_us_per_request": cpu, "sse_us_per_event": events, "added_ms_p99": added}
}

// print writes the tables.
func (r *results) print(w *os.File, list []string, loads []*load) {
	fmt.Fprintf(w, "Medians of %d rounds of %g s, %d connections; in brackets the ratio to haproxy in the same round: median (least to most).\n\n", *rounds, *seconds, connections)
	row := func(cells ...string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	head := []string{"CPU µs"}
	for _, l := range loads {
		head = append(head, l.name)
	}
	row(append(head, "an event")...)
	row(slices.Repeat([]string{"---"}, len(head)+1)...)
	cell := func(what, name string) string {
		if len(r.figures[what][name]) == 0 {
			return "–"
		}
		mid, low, high := r.ratio(what, name)
		return fmt.Sprintf("%.1f (%.2f; %.2f to %.2f)", r.median(what, name), mid, low, high)
	}
	for _, name := range list {
		if r.missing[name] || name == "direct" {
			continue
		}
		cells := []string{name}
		for _, l := range loads {
			cells = append(cells, cell("cpu_us/"+l.name, name))
		}
		row(append(cells, cell("sse_us", name))...)
	}
	if *only != "" {
		return
	}
	fmt.Fprintln(w)
	row("", "requests/s at 1k", "16k", "220k", fmt.Sprintf("added p50 at %d/s, ms", *rate), "p99", "p99.9", fmt.Sprintf("CPU µs at %d/s", *rate), "idle, MB", "an idle connection, KB", "a stream, KB")
	row(slices.Repeat([]string{"---"}, 11)...)
	for _, name := range list {
		if r.missing[name] {
			continue
		}
		cells := []string{name}
		for _, size := range []string{"1k", "16k", "220k"} {
			cells = append(cells, fmt.Sprintf("%.0f", r.median("requests_per_s/"+size, name)))
		}
		for _, q := range []string{"ms_p50", "ms_p99", "ms_p99.9"} {
			cells = append(cells, fmt.Sprintf("%.2f", r.added(q, name)))
		}
		for _, what := range []string{"paced_cpu_us", "idle_mb", "idle_connection_kb", "stream_kb"} {
			cells = append(cells, fmt.Sprintf("%.1f", r.median(what, name)))
		}
		if name == "direct" {
			copy(cells[4:], slices.Repeat([]string{"–"}, 7))
		}
		row(cells...)
	}
	for _, name := range list {
		if n := r.failed[name]; n > 0 {
			fmt.Fprintf(w, "\n%s failed %d requests, which are not among these.\n", name, n)
		}
	}
}
