//go:build e2e

package kube_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// While the API server is away, what was last known serves; when it is back, changes come through again.
func TestAPIServerGoesAway(t *testing.T) {
	c := theCluster
	c.apply(t, `
{apiVersion: v1, kind: Namespace, metadata: {name: outage}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool, namespace: outage}
spec: {selector: {matchLabels: {app: outage}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: none, port: {number: 9002}}}
`)
	one := startPod(t, &pod{namespace: "outage", name: "one", labels: "{app: outage}", args: []string{"--speed", "200"}})
	two := startPod(t, &pod{namespace: "outage", name: "two", labels: "{app: outage}", args: []string{"--speed", "200"}})
	f := startFairway(t, "")
	process.Await(t, patience, "two endpoints", func() bool { return f.endpoints() == 2 })
	client, url := plainClient(t), "http://"+f.http+"/v1/chat/completions"

	var asked, failed atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				asked.Add(1)
				if a, err := post(client, url, chat("mock", "system", "hello")); err != nil || a.status != 200 {
					if failed.Add(1) < 5 {
						t.Errorf("%v, %d %s", err, a.status, a.body)
					}
				}
			}
		})
	}
	up := func() float64 { return process.Metric(t, "http://"+f.metrics+"/metrics", "fairway_api_server_up") }
	if up() != 1 {
		t.Error("the API server is taken to be away")
	}
	before := f.inForce()
	c.stopServer()
	away := time.Now()
	time.Sleep(15 * time.Second)
	if status, why := get("http://" + f.metrics + "/healthz/ready"); status != 200 {
		t.Errorf("not ready without the API server: %d %s", status, why)
	}
	if n := f.inForce(); n != before {
		t.Errorf("%d changes in force while the API server was away", n-before)
	}
	if up() != 0 {
		t.Error("the metrics do not tell that the API server is away")
	}
	if err := c.startServer(); err != nil {
		t.Fatal(err)
	}
	if err := c.untilReady(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the API server was away for %.1f s", time.Since(away).Seconds())
	back := time.Now()
	c.apply(t, two.yaml("False"))
	f.awaitEndpoints(t, before, 1)
	t.Logf("a change was in force %.1f s after it was back", time.Since(back).Seconds())
	process.Await(t, patience, "the metrics to tell that it is back", func() bool { return up() == 1 })
	close(stop)
	load.Wait()
	if asked.Load() < 100 || failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), asked.Load())
	}
	if one.metric(t, "vllm:request_success_total") == 0 {
		t.Error("the pod that stayed served nothing")
	}
}
