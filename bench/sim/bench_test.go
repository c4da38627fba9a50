package sim

import (
	"context"
	"testing"
	"time"
)

// BenchmarkSharedPrefix is a run of shared-prefix at 70 % load, on one core.
func BenchmarkSharedPrefix(b *testing.B) {
	virtual := time.Duration(0)
	for seed := range b.N {
		c := Comparison{Workload: "shared-prefix", Load: 0.7}
		cfg, err := c.config("fairway", uint64(seed+1))
		if err != nil {
			b.Fatal(err)
		}
		r, err := Run(context.Background(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		virtual += r.End
	}
	b.ReportMetric(virtual.Seconds()/b.Elapsed().Seconds(), "x-realtime")
}
