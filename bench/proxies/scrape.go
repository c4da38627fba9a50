package main

import (
	"fmt"
	"log"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// scraping measures what an idle picker takes for the metrics of so many engines, in
// cores, each asked 20 times a second.
func scraping(dir string, pods int, metrics []byte) error {
	var list strings.Builder
	for range pods {
		b, err := newBackend(metrics)
		if err != nil {
			return err
		}
		fmt.Fprintf(&list, "http://%s, ", b.address())
	}
	metricsAt := freeAddress()
	path, err := write(dir, "scrape.yaml", fmt.Sprintf("listen: {metrics: %q, admin: %q}\nscrape: {interval: 50ms}\npools:\n  - name: pool\n    endpoints: [%s]\n",
		metricsAt, freeAddress(), strings.TrimSuffix(list.String(), ", ")))
	if err != nil {
		return err
	}
	p := &proxy{name: "epp", cmd: exec.Command(*binary, "epp", "--config", path, "--listen", freeAddress(), "--secure-serving=false")}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	defer p.stop()
	time.Sleep(3 * time.Second) // connections are made
	for round := range *rounds {
		const long = 20 * time.Second
		before, pages := p.cpu(), scrapes.Load()
		time.Sleep(long)
		cores, rate := (p.cpu()-before).Seconds()/long.Seconds(), float64(scrapes.Load()-pages)/long.Seconds()
		if rate == 0 {
			return fmt.Errorf("nothing is scraped")
		}
		log.Printf("round %d: %d endpoints, %.0f pages of %d bytes a second: %.3f cores, %.0f µs a page", round+1, pods, rate, len(metrics), cores, 1e6*cores/rate)
	}
	return nil
}
