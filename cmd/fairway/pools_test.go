package main

import (
	"math"
	"testing"
)

func TestPoolLoad(t *testing.T) {
	var p poolLoad
	for _, e := range []endpointView{
		{QueuedTokens: 3000, SecondsPerToken: 1e-4, Running: 4, Waiting: 2, KVUsage: 0.9},
		{QueuedTokens: 500, SecondsPerToken: 2e-4, Running: 1, KVUsage: 0.3},
		{QueuedTokens: 0, SecondsPerToken: 1e-4, Running: 7, Waiting: 7, KVUsage: 1, Ejected: true},
	} {
		p.add(&e)
	}
	if p.endpoints != 2 || p.tokens != 3500 || p.running != 5 || p.waiting != 2 || math.Abs(p.kv-1.2) > 1e-9 || math.Abs(p.ttft-0.3) > 1e-9 {
		t.Errorf("%+v", p)
	}
}
