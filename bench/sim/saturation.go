package sim

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	// sustainedTTFT is the 90th percentile of the time to first token up to which a fleet keeps up. Beyond, the backlog grows by
	// the minute, so the figure hardly matters.
	sustainedTTFT = 5 * time.Second

	// precision is how close a saturation rate is found.
	precision = 1.02
)

//go:embed saturation.json
var saturationFile []byte

// saturations are the measured saturation rates in requests a second: workload → policy → rate. Loads are fractions of the highest of a
// workload. `make bench-routing` measures them anew.
var saturations = func() (table map[string]map[string]float64) {
	if err := json.Unmarshal(saturationFile, &table); err != nil {
		panic(fmt.Sprintf("saturation.json: %v", err))
	}
	return table
}()

// SaturationRate is the highest rate of the workload of that name, in requests a second, that any policy but the oracle sustains, as
// it was measured last.
func SaturationRate(workload string) (rate float64, ok bool) {
	for policy, r := range saturations[workload] {
		if policy != "oracle" {
			rate = max(rate, r)
		}
	}
	return rate, rate > 0
}

// Saturation is what a policy was found to sustain of a workload, in requests a second; 0: it was not measured.
func Saturation(workload, policy string) float64 { return saturations[workload][policy] }

// Saturate searches the highest rate of a workload that a policy sustains, to 2 %, beginning at start: in steps of 2 % that double, since
// what was measured last is seldom far off. A rate is sustained if 90 % of the first tokens come within 5 s, for most of three seeds.
func Saturate(ctx context.Context, name, policy string, start float64) (float64, error) {
	low, high := 0.0, 0.0
	step := precision
	for rate := start; high == 0 || low == 0 || high/low > precision+1e-9; {
		ok, err := sustained(ctx, name, policy, rate)
		if err != nil {
			return 0, err
		}
		if ok {
			low = rate
		} else {
			high = rate
		}
		switch {
		case high == 0:
			rate *= step
			step *= step
		case low == 0:
			rate /= step
			step *= step
		default:
			rate = low + (high-low)/2
		}
		if rate < start/1e3 || rate > start*1e3 {
			return 0, fmt.Errorf("sim: no saturation rate of %s under %s within a thousandth and a thousand times %g/s", name, policy, start)
		}
	}
	return low, nil
}

// tolerate gives a run up once a tenth of the requests that are due at the rate were late.
func (c *Config) tolerate(rate float64) { c.tolerated = max(1, int(0.1*rate*c.Measure.Seconds())) }

// sustained plays up to three seeds.
func sustained(ctx context.Context, name, policy string, rate float64) (bool, error) {
	c := Comparison{Workload: name, Rate: rate, NoQueue: true} // who refuses the rest sustains any rate
	votes := 0                                                 // for less those against
	for seed := uint64(1); seed <= 3 && max(votes, -votes) < 2; seed++ {
		cfg, err := c.config(policy, seed)
		if err != nil {
			return false, err
		}
		cfg.tolerate(rate)
		switch _, err := Run(ctx, cfg); {
		case err == nil:
			votes++
		case errors.Is(err, errUnsustained):
			votes--
		default:
			return false, err
		}
	}
	return votes > 0, nil
}
