package load

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A histogram counts samples in buckets of a microsecond, or a thousandth of the sample where that is more, up to a day: memory does not grow with
// their number.
type histogram struct{ hdr *hdrhistogram.Histogram }

const longest = 24 * time.Hour

func newHistogram() histogram {
	return histogram{hdrhistogram.New(1, longest.Microseconds(), 3)}
}

// record counts a sample. What is longer than a day counts as a day.
func (h histogram) record(d time.Duration) {
	if err := h.hdr.RecordValue(min(max(d, 0), longest).Microseconds()); err != nil {
		panic(err) // it is in the range
	}
}

// Distribution describes samples, to a thousandth. A quantile is the smallest sample that at least so many are not above.
type Distribution struct {
	N                        int
	Mean, P50, P90, P99, Max time.Duration
}

func (h histogram) distribution() Distribution {
	n := h.hdr.TotalCount()
	if n == 0 {
		return Distribution{}
	}
	at := func(percentile float64) time.Duration {
		return time.Duration(h.hdr.ValueAtPercentile(percentile)) * time.Microsecond
	}
	return Distribution{
		N: int(n), Mean: time.Duration(h.hdr.Mean() * float64(time.Microsecond)), P50: at(50), P90: at(90), P99: at(99), Max: at(100),
	}
}
