package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/bench/workload"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// rivals are the policies whose saturation rates are measured. The others' are lower: they know neither caches nor, some, load.
var rivals = []string{"fairway", "epp-default", "epp-affinity", "chwbl", "cache-tree", "least-request", "oracle"}

func newSaturation() *cobra.Command {
	var out string
	var names, against []string
	cmd := &cobra.Command{
		Use:   "saturation --out FILE",
		Short: "Search the highest rates that policies sustain in virtual time",
		Long: "saturation searches, for each workload and policy, the highest rate at which 90 % of the first tokens come within 5 s, to 2 %,\n" +
			"and writes a table of them: loads of compare are fractions of the best policy's.",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			table, err := saturate(cmd, names, against)
			if err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			b, merr := json.MarshalIndent(table, "", "  ")
			if merr != nil {
				return merr
			}
			b = append(b, '\n')
			if out == "" {
				_, merr = cmd.OutOrStdout().Write(b)
				return merr
			}
			return errors.Join(err, os.WriteFile(out, b, 0o644))
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "file to write (default: print it)")
	f.StringSliceVar(&names, "workloads", workload.Names(), "which to measure; the others keep what was measured last")
	f.StringSliceVar(&against, "policies", rivals, "which to measure; the others keep what was measured last")
	return cmd
}

// saturate measures, and returns the table with what was measured last where nothing new is.
func saturate(cmd *cobra.Command, names, against []string) (map[string]map[string]float64, error) {
	table := map[string]map[string]float64{}
	for _, w := range workload.Names() {
		table[w] = map[string]float64{}
		for _, p := range rivals {
			if rate := sim.Saturation(w, p); rate > 0 {
				table[w][p] = rate
			}
		}
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards table, first and the command's output
		first error
		gate  = make(chan struct{}, runtime.GOMAXPROCS(0))
	)
	for _, w := range names {
		if table[w] == nil {
			return nil, cli.Misuse(fmt.Errorf("there is no workload %q; there are %s", w, strings.Join(workload.Names(), ", ")))
		}
		for _, p := range against {
			start := sim.Saturation(w, p)
			if start == 0 {
				start, _ = sim.SaturationRate(w)
			}
			if start == 0 {
				start = 50
			}
			gate <- struct{}{}
			wg.Go(func() {
				defer func() { <-gate }()
				rate, err := sim.Saturate(cmd.Context(), w, p, start)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					first = err
					return
				}
				table[w][p] = math.Round(rate*100) / 100
				fmt.Fprintf(cmd.ErrOrStderr(), "%-20s %-14s %8.2f requests/s\n", w, p, rate)
			})
		}
	}
	wg.Wait()
	return table, first
}
