//go:build e2e

package kube_test

import (
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// The announcement's objects, as they are in deploy/kubernetes, split conversations that share a system prompt 80 to 20,
// and the engines of one pool serve both models.
func TestAnnouncement(t *testing.T) {
	manifest, err := os.ReadFile("../../../deploy/kubernetes/announcement.yaml")
	if err != nil {
		t.Fatal(err)
	}
	theCluster.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: ai-workloads}}")
	theCluster.apply(t, string(manifest))
	const v1, v2 = "llama-3-8b-customer-v1", "llama-3-8b-customer-v2"
	var witnesses []*witness
	for i := range 3 {
		p := &pod{namespace: "ai-workloads", name: fmt.Sprint("llama-", i), labels: "{app: llama-server, version: v1}",
			args: []string{"--model", "llama-3-8b", "--lora", v1, "--lora", v2, "--max-loras", "2", "--speed", "200"}}
		witnesses = append(witnesses, startWitness(t, p))
		startPod(t, p)
	}
	// One that the pool does not select.
	startPod(t, &pod{namespace: "ai-workloads", name: "other", labels: "{app: llama-server, version: v2}", args: []string{"--model", "other"}})

	f := startFairway(t, "")
	process.Await(t, patience, "three endpoints", func() bool { return f.endpoints() == 3 })
	client, url := plainClient(t), "http://"+f.http+"/v1/chat/completions"
	system := strings.Repeat("You help the customers of a company with their orders. ", 40)

	const conversations = 10_000
	var next, failed atomic.Int64
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for {
				i := next.Add(1)
				if i > conversations {
					return
				}
				a, err := post(client, url, chat("customer-support", system, fmt.Sprint("Where is order ", i, "?")), "x-gateway-inference-fairness-id", fmt.Sprint("customer-", i))
				if err != nil || a.status != 200 {
					if failed.Add(1) < 5 {
						t.Errorf("conversation %d: %v, %d %s", i, err, a.status, a.body)
					}
				}
			}
		})
	}
	workers.Wait()
	if failed.Load() > 0 {
		t.Fatalf("%d requests failed", failed.Load())
	}
	asked := make(map[string]int)
	for i, w := range witnesses {
		served := 0
		for model, n := range w.counts() {
			asked[model] += n
			served += n
		}
		t.Logf("pod %d served %d", i, served)
		if served < conversations/20 {
			t.Errorf("pod %d served %d requests of %d", i, served, conversations)
		}
	}
	chi := 0.0
	for model, share := range map[string]float64{v1: 0.8, v2: 0.2} {
		want := share * conversations
		chi += math.Pow(float64(asked[model])-want, 2) / want
	}
	t.Logf("80 to 20 over %d conversations: %v, χ² = %.2f (1 degree of freedom)", conversations, asked, chi)
	if chi > 23.9 { // p = 10⁻⁶
		t.Errorf("%v is not a split of 80 to 20: χ² = %.1f", asked, chi)
	}
	if a, err := post(client, url, chat("unknown", "s", "u")); err != nil || a.status != 404 {
		t.Errorf("a model that nobody declared: %v, %d", err, a.status)
	}
}
