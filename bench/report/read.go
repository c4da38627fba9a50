package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A Run is one run of the load harness as its JSON lines tell it: a line for each request, then a summary.
type Run struct {
	Summary
	Requests []Request
}

// Summary is what is read of a run's last line. Times are in seconds.
type Summary struct {
	Label    string   `json:"label"`
	Workload string   `json:"workload"`
	Target   string   `json:"target"`
	Model    string   `json:"model"`
	Seed     uint64   `json:"seed"`
	Rate     float64  `json:"rate"`
	RampTo   float64  `json:"ramp_to"`
	Warmup   float64  `json:"warmup_s"`
	Duration float64  `json:"duration_s"`
	Elapsed  float64  `json:"elapsed_s"`
	SLOTTFT  float64  `json:"slo_ttft_s"`
	SLOTPOT  float64  `json:"slo_tpot_s"`
	ITLP99   *float64 `json:"itl_p99_s"`
	LagP99   float64  `json:"send_lag_p99_s"`
}

// Request is what is read of a request's line. Times are in seconds; nil: there was none.
type Request struct {
	Intended float64  `json:"intended_s"`
	TTFT     *float64 `json:"ttft_s"`
	TPOT     *float64 `json:"tpot_s"`
	E2E      float64  `json:"e2e_s"`
	Error    string   `json:"error"`
	Prompt   int      `json:"prompt_tokens"`
	Cached   *int     `json:"cached_tokens"`
}

// maxLine is how long a line may be; errors' details are cut far below it.
const maxLine = 1 << 20

// Read reads what loadtest run has written; name is the file's, for errors. Requests after the last summary, of a run that did not
// get to write it, are an error.
func Read(name string, r io.Reader) ([]Run, error) {
	var runs []Run
	var run Run
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var line struct {
			Request
			Session *uint64  `json:"session"`
			Summary *Summary `json:"summary"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w; a report is made of what loadtest run --out writes", name, n, err)
		}
		switch {
		case line.Summary != nil:
			run.Summary = *line.Summary
			if err := run.check(); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", name, n, err)
			}
			runs, run = append(runs, run), Run{}
		case line.Session != nil:
			run.Requests = append(run.Requests, line.Request)
		default:
			return nil, fmt.Errorf("%s:%d: the line is neither a request nor a summary; a report is made of what loadtest run --out writes", name, n)
		}
	}
	switch err := lines.Err(); {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case len(run.Requests) > 0:
		return nil, fmt.Errorf("%s: the last run has no summary: it was not ended in good order", name)
	case len(runs) == 0:
		return nil, fmt.Errorf("%s: there is no run in it", name)
	}
	return runs, nil
}

func (r *Run) check() error {
	switch {
	case r.Workload == "" || r.Rate <= 0:
		return errors.New("the summary names no workload or no rate")
	case r.RampTo > 0 && r.Duration <= r.Warmup:
		return errors.New("a ramp's summary has a duration that is not above its warm-up")
	}
	return nil
}
