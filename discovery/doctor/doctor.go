// Package doctor asks engines what a router needs to know of them, and says what
// is off and how to mend it.
//
// It asks by the transports that requests take, so what it can reach the proxy
// can. Apart from pages it sends each engine a few small requests for one token,
// of random words, so that nothing is cached but what it sent itself. It changes
// nothing and keeps nothing; an Examination belongs to one goroutine.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// Pod is an engine to be examined.
type Pod struct {
	Pool string
	// Transport is the way to it; nobody else uses it meanwhile.
	Transport *upstream.Transport
	// Ranks is how many data-parallel engines it is said to have; 0: 1.
	Ranks int
	// Models are the names that requests will ask it for; none: whatever it serves.
	Models []string
}

// Options say how pods are examined. The zero value works.
type Options struct {
	// MetricsPath is where pods have their metrics; empty: /metrics.
	MetricsPath string
	// APIKey is sent where an engine asks for one; empty: none.
	APIKey string
	// NoRequests leaves out what takes requests to a model: cached tokens and speed.
	NoRequests bool
	// Timeout of each question; zero: 30 s.
	Timeout time.Duration
	// Progress is told what is done next; nil: nobody is. It is called by several
	// goroutines.
	Progress func(pod, what string)
	// Examined is told of each pod whose examination has ended; likewise.
	Examined func(*Diagnosis)
}

// Severity says what a finding is worth.
type Severity string

const (
	// Problem has to be mended: requests fail, or are routed worse than they could be.
	Problem Severity = "problem"
	// Note is worth knowing; it may be meant.
	Note Severity = "note"
)

// Finding is something that is off.
type Finding struct {
	Check    string   `json:"check"` // one of the names in docs/doctor.md
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Cure     string   `json:"cure"`
}

// Diagnosis is what was found out of one pod. What could not be found out is
// absent.
type Diagnosis struct {
	Pool            string    `json:"pool"`
	Address         string    `json:"address"`
	Reachable       bool      `json:"reachable"`
	Engine          string    `json:"engine,omitempty"` // vllm, sglang or trtllm, by its metrics
	Version         string    `json:"version,omitempty"`
	Models          []string  `json:"models,omitempty"`
	MaxModelLen     int       `json:"max_model_len,omitempty"` // tokens
	PrefixCaching   *bool     `json:"prefix_caching,omitempty"`
	BlockSize       int       `json:"block_size,omitempty"`    // tokens
	CacheTokens     int       `json:"cache_tokens,omitempty"`  // that its KV cache holds
	CachedTokens    *bool     `json:"cached_tokens,omitempty"` // its usage tells them
	KeepAlive       *float64  `json:"keep_alive_s,omitempty"`  // how long an idle connection lived; no longer than the proxy would keep it
	ClockSkew       *float64  `json:"clock_skew_s,omitempty"`  // its clock minus ours; to the second
	ORCA            *bool     `json:"orca,omitempty"`          // answers tell the load
	FirstToken      float64   `json:"first_token_s,omitempty"` // of a prompt of a few words
	SecondsPerToken float64   `json:"s_per_token,omitempty"`   // of a prompt that is not cached
	PromptTokens    int       `json:"prompt_tokens,omitempty"` // of the prompt that was sent twice
	CachedOnRepeat  *int      `json:"cached_repeat,omitempty"` // of that prompt, sent again, as usage or metrics tell
	Findings        []Finding `json:"findings"`
}

// Healthy tells whether there are no problems, whatever the notes.
func (d *Diagnosis) Healthy() bool { return !HasProblem(d.Findings) }

// HasProblem tells whether one of the findings is a problem.
func HasProblem(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.Severity == Problem })
}

func (d *Diagnosis) find(s Severity, check, what, cure string) {
	d.Findings = append(d.Findings, Finding{check, s, what, cure})
}

// PoolFinding is a finding of pods that are not alike, but have to be.
type PoolFinding struct {
	Pool string `json:"pool"`
	Finding
}

// atOnce is how many pods are examined at the same time.
const atOnce = 16

// Examine examines pods, and says in their order what was found, then what they
// differ in within a pool.
func Examine(ctx context.Context, pods []Pod, o Options) ([]*Diagnosis, []PoolFinding) {
	o.MetricsPath = cmp.Or(o.MetricsPath, "/metrics")
	o.Timeout = cmp.Or(o.Timeout, 30*time.Second)
	if o.Progress == nil {
		o.Progress = func(string, string) {}
	}
	all := make([]*Diagnosis, len(pods))
	places := make(chan struct{}, atOnce)
	var examinations sync.WaitGroup
	for i := range pods {
		examinations.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			e := examination{pod: pods[i], o: o, d: &Diagnosis{Pool: pods[i].Pool, Address: pods[i].Transport.Address, Findings: []Finding{}}}
			e.run(ctx)
			all[i] = e.d
			if o.Examined != nil {
				o.Examined(e.d)
			}
		})
	}
	examinations.Wait()
	return all, compare(all)
}

// slowPod is how many times a pod may be slower than the fastest of its pool
// before that is worth a note. What is measured is one request at a time, while
// others may come in between.
const slowPod = 3

// compare says what the pods of each pool differ in.
func compare(all []*Diagnosis) []PoolFinding {
	findings := []PoolFinding{}
	pools := make(map[string][]*Diagnosis)
	var names []string
	for _, d := range all {
		if pools[d.Pool] == nil {
			names = append(names, d.Pool)
		}
		pools[d.Pool] = append(pools[d.Pool], d)
	}
	for _, name := range names {
		pods := pools[name]
		find := func(s Severity, check, what, cure string) {
			findings = append(findings, PoolFinding{name, Finding{check, s, what, cure}})
		}
		differ := func(s Severity, check, what, cure string, of func(*Diagnosis) string) {
			if told, same := spread(pods, of); !same {
				find(s, check, what+": "+told, cure)
			}
		}
		differ(Problem, "pool-models", "the pods do not serve the same models",
			"give every pod of a pool the same --served-model-name and --lora-modules, or make pools of them",
			func(d *Diagnosis) string { return strings.Join(d.Models, ", ") })
		differ(Note, "pool-version", "the pods run different versions", "nothing, if an upgrade is under way",
			func(d *Diagnosis) string { return d.Version })
		differ(Problem, "pool-length", "the pods take prompts of different length, so whether a long one is refused depends on where it goes",
			"give every pod the same --max-model-len",
			func(d *Diagnosis) string { return positive(d.MaxModelLen) })
		differ(Note, "pool-block-size", "the pods cache in blocks of different size", "give every pod the same --block-size",
			func(d *Diagnosis) string { return positive(d.BlockSize) })
		fastest := 0.0
		for _, d := range pods {
			if s := d.SecondsPerToken; s > 0 && (fastest == 0 || s < fastest) {
				fastest = s
			}
		}
		for _, d := range pods {
			if d.SecondsPerToken > slowPod*fastest {
				find(Note, "pool-speed", fmt.Sprintf("%s takes %.0f µs for a prompt token, the fastest pod %.0f µs", d.Address, 1e6*d.SecondsPerToken, 1e6*fastest),
					"if it is meant to be as fast, see what else its GPU does; the picker learns each pod's speed and sends a slow one less")
			}
		}
	}
	return findings
}

// spread says which pods have which value, and whether all that have one have the
// same.
func spread(pods []*Diagnosis, of func(*Diagnosis) string) (told string, same bool) {
	by := make(map[string][]string)
	var values []string
	for _, d := range pods {
		v := of(d)
		if v == "" {
			continue
		}
		if by[v] == nil {
			values = append(values, v)
		}
		by[v] = append(by[v], d.Address)
	}
	var parts []string
	for _, v := range values {
		parts = append(parts, v+" at "+strings.Join(by[v], ", "))
	}
	return strings.Join(parts, "; "), len(values) <= 1
}

// positive is a count, "" for one that is not known.
func positive(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprint(n)
}
