package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

const (
	barInterval  = 200 * time.Millisecond
	lineInterval = 5 * time.Second
)

// showProgress keeps w told of a run that has just begun: a bar on a terminal, else a line now and then, with the run's name before it.
// It ends with stop, which returns when nothing will be written any more.
func showProgress(w io.Writer, name string, p *load.Progress, duration time.Duration) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if cli.IsTerminal(w) {
			drawBar(w, name, p, duration, quit)
		} else {
			writeLines(w, name, p, quit)
		}
	})
	return func() {
		close(quit)
		wg.Wait()
	}
}

// drawBar draws how much of the duration has passed, until quit, and then takes the bar away.
func drawBar(w io.Writer, name string, p *load.Progress, duration time.Duration, quit <-chan struct{}) {
	bar := progressbar.NewOptions64(duration.Milliseconds(),
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(20),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionUseANSICodes(true),
		progressbar.OptionShowDescriptionAtLineEnd(),
	)
	start := time.Now()
	tick := time.NewTicker(barInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			elapsed := time.Since(start)
			bar.Describe(name + status(p, elapsed))
			// The bar must not be full before the end, for then it would draw no more.
			bar.Set64(min(elapsed, duration-time.Millisecond).Milliseconds())
		case <-quit:
			bar.Clear()
			return
		}
	}
}

// writeLines writes a line now and then, until quit.
func writeLines(w io.Writer, name string, p *load.Progress, quit <-chan struct{}) {
	start := time.Now()
	tick := time.NewTicker(lineInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			elapsed := time.Since(start)
			fmt.Fprintf(w, "%s%4.0fs  %s\n", name, elapsed.Seconds(), status(p, elapsed))
		case <-quit:
			return
		}
	}
}

// status is how a run stands.
func status(p *load.Progress, elapsed time.Duration) string {
	done := p.Done.Load() // first, so that what is under way is not below zero
	s := fmt.Sprintf("%d done, %d under way, %.0f tokens/s", done, p.Sent.Load()-done, float64(p.Tokens.Load())/elapsed.Seconds())
	if cached, prompt := p.CachedTokens.Load(), p.PromptTokens.Load(); cached > 0 {
		s += fmt.Sprintf(", %.0f %% cached", 100*float64(cached)/float64(prompt))
	}
	if failed := p.Failed.Load(); failed > 0 {
		s += fmt.Sprintf(", %d failed", failed)
	}
	return s
}
