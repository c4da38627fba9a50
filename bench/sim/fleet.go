package sim

import (
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// fleetSize is the number of pods that workloads are compared on.
const fleetSize = 8

// A scene is what a named workload is played on, and for how long.
type scene struct {
	warmup, measure time.Duration
	fleet           []engine.Config
}

// sceneOf says how to play the workload of that name. Caches must have filled before anything is measured.
func sceneOf(workload string) scene {
	fast, slow := profile("llama3-8b-h100"), profile("llama3.1-8b-a100")
	s := scene{warmup: 60 * time.Second, measure: 120 * time.Second}
	for range fleetSize {
		s.fleet = append(s.fleet, fast)
	}
	switch workload {
	case "shared-prefix":
		s.warmup, s.measure = 120*time.Second, 180*time.Second
	case "chat":
		s.warmup, s.measure = 90*time.Second, 120*time.Second
	case "agents":
		s.warmup, s.measure = 180*time.Second, 300*time.Second
	case "unshared":
		s.warmup, s.measure = 30*time.Second, 120*time.Second // a backlog shows late where requests are small
	case "heterogeneous":
		for i := range s.fleet {
			if i%2 == 1 {
				s.fleet[i] = slow
			}
		}
	case "adapters":
		for i := range s.fleet {
			s.fleet[i].MaxLoras = 4
		}
	}
	return s
}

func profile(name string) engine.Config {
	p, err := engine.ProfileNamed(name)
	if err != nil {
		panic(err) // the names are this package's
	}
	return p.Engine
}
