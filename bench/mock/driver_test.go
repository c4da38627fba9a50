package mock

import (
	"go/build"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// The judge shares no code with what it judges.
func TestImports(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range pkg.Imports {
		if strings.HasPrefix(path, "github.com/fairway-proxy/fairway/") && path != "github.com/fairway-proxy/fairway/bench/engine" {
			t.Errorf("imports %s", path)
		}
	}
}

// arrival is a request of the workload that both clocks are given.
type arrival struct {
	at             time.Duration
	prompt, output int
	hashes         []engine.BlockHash
}

func arrivals() (all []arrival) {
	rng := rand.New(rand.NewPCG(3, 4))
	at := time.Duration(0)
	for i := range 60 {
		at += time.Duration(rng.Int64N(40_000_000)) + 1
		a := arrival{at: at, prompt: 200 + rng.IntN(3000), output: 1 + rng.IntN(80)}
		for b := range a.prompt / engine.BlockSize {
			h := engine.BlockHash(b + 1) // the first blocks are everybody's
			if b > 40 {
				h += engine.BlockHash(i+1) << 20
			}
			a.hashes = append(a.hashes, h)
		}
		all = append(all, a)
	}
	return all
}

// inVirtualTime drives an engine as a simulator does.
func inVirtualTime(cfg engine.Config, all []arrival) (seqs []*engine.Sequence) {
	e := engine.New(cfg)
	now := time.Duration(0)
	arrive := func(until time.Duration) {
		for len(seqs) < len(all) && all[len(seqs)].at <= until {
			a := all[len(seqs)]
			s := &engine.Sequence{PromptTokens: a.prompt, OutputTokens: a.output, Hashes: slices.Clone(a.hashes)}
			for len(s.Hashes) < (a.prompt+a.output)/engine.BlockSize {
				s.Hashes = append(s.Hashes, engine.BlockHash(len(seqs)+1)<<40+engine.BlockHash(len(s.Hashes)))
			}
			e.Submit(s, a.at)
			seqs = append(seqs, s)
		}
	}
	for {
		d, ok := e.Plan(now)
		switch {
		case ok:
			now += d
			arrive(now)
			e.Commit()
		case len(seqs) < len(all):
			now = all[len(seqs)].at
			arrive(now)
		default:
			return seqs
		}
	}
}

// One engine, two clocks: the wall clock's driver gives the times that virtual time gives.
func TestTwoClocksAgree(t *testing.T) {
	for _, blocks := range []int{28_500, 700} { // the latter preempts
		synctest.Test(t, func(t *testing.T) {
			cfg := engine.Profiles[0].Engine
			cfg.Blocks = blocks
			all := arrivals()
			want := inVirtualTime(cfg, all)

			d := newDriver(engine.New(cfg), 10_000)
			go d.run()
			var calls []*call
			for _, a := range all {
				time.Sleep(a.at - d.now())
				c := newCall()
				j := &job{call: c, siblings: &siblings{left: 1}, root: engine.BlockHash(len(calls)+1) << 50}
				j.seq = engine.Sequence{PromptTokens: a.prompt, OutputTokens: a.output, Hashes: slices.Clone(a.hashes), Owner: j}
				j.filled = a.prompt % engine.BlockSize
				c.jobs = []*job{j}
				if ok, err := d.submit(c, 0); !ok || err != nil {
					t.Fatal(ok, err)
				}
				calls = append(calls, c)
			}
			time.Sleep(time.Minute)
			d.stop()
			preempted := 0
			for i, c := range calls {
				got := &c.jobs[0].seq
				preempted += got.Preemptions
				if got.Arrived != want[i].Arrived || got.Scheduled != want[i].Scheduled || got.FirstToken != want[i].FirstToken ||
					got.Ended != want[i].Ended || got.Cached != want[i].Cached || got.Preemptions != want[i].Preemptions {
					t.Fatalf("request %d: by the wall clock %v %v %v %v, in virtual time %v %v %v %v", i, got.Arrived, got.Scheduled, got.FirstToken,
						got.Ended, want[i].Arrived, want[i].Scheduled, want[i].FirstToken, want[i].Ended)
				}
			}
			if blocks == 700 && preempted == 0 {
				t.Error("the workload is too easy: nobody was preempted")
			}
		})
	}
}
