//go:build e2e

package kube_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

var fight = flag.Duration("fight", 15*time.Second, "how long TestStatusFight lasts")

const (
	ourController = "fairway-proxy.github.io/waypoint-controller"
	foreign       = "example.com/other"
)

// parentsBy gives what a controller says in status.parents, as JSON; empty if it says nothing.
func parentsBy(o *unstructured.Unstructured, controller string) string {
	parents, _, _ := unstructured.NestedSlice(o.Object, "status", "parents")
	var those []any
	for _, p := range parents {
		if p.(map[string]any)["controllerName"] == controller {
			those = append(those, p)
		}
	}
	if len(those) == 0 {
		return ""
	}
	raw, err := json.Marshal(those)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// addressOf is the first address in a Gateway's status.
func addressOf(o *unstructured.Unstructured) string {
	addresses, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
	if len(addresses) == 0 {
		return ""
	}
	value, _ := addresses[0].(map[string]any)["value"].(string)
	return value
}

// Two replicas and a foreign controller write to the same objects: what ours say does not flap, nothing of the other's is
// lost, and a Gateway is never without its address, whichever replica ends and comes back.
func TestStatusFight(t *testing.T) {
	c := theCluster
	c.apply(t, `
{apiVersion: v1, kind: Namespace, metadata: {name: status}}
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: status}
spec: {ports: [{name: hbone, port: 15008}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: waypoint-1, namespace: status, labels: {kubernetes.io/service-name: waypoint}}
addressType: IPv4
ports: [{name: hbone, port: 15008}]
endpoints: [{addresses: [10.244.255.1]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: status}
spec: {gatewayClassName: fairway-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: llm, namespace: status, labels: {istio.io/use-waypoint: waypoint}}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: picker, namespace: status}
spec: {ports: [{name: grpc, port: 9002}]}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool, namespace: status}
spec: {selector: {matchLabels: {app: status}}, targetPorts: [{number: 8000}], endpointPickerRef: {name: picker, port: {number: 9002}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route, namespace: status}
spec:
  parentRefs: [{group: "", kind: Service, name: llm}]
  rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: pool}]}]
`)
	const gateways, inference = "gateway.networking.k8s.io/v1", "inference.networking.k8s.io/v1"
	one, two := startFairway(t, ""), startFairway(t, "")
	process.Await(t, patience, "an address", func() bool { return addressOf(c.object(t, gateways, "Gateway", "status", "waypoint")) != "" })
	if got := addressOf(c.object(t, gateways, "Gateway", "status", "waypoint")); got != "waypoint.status.svc.cluster.local" {
		t.Errorf("the address is %q", got)
	}
	process.Await(t, patience, "the route's status", func() bool {
		return parentsBy(c.object(t, gateways, "HTTPRoute", "status", "route"), ourController) != ""
	})
	process.Await(t, patience, "the pool's status", func() bool {
		return parentsBy(c.object(t, inference, "InferencePool", "status", "pool"), ourController) != ""
	})
	for apiVersion, kind := range map[string]string{gateways: "HTTPRoute", inference: "InferencePool"} {
		name := map[string]string{"HTTPRoute": "route", "InferencePool": "pool"}[kind]
		o := c.object(t, apiVersion, kind, "status", name)
		t.Logf("%s: %s", kind, parentsBy(o, ourController))
	}

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var foreignWrites, changes, missing, lost, bare atomic.Int64
	// observe calls seen for each version that an object has.
	observe := func(apiVersion, kind, name string, seen func(*unstructured.Unstructured)) {
		o := mustParse(t, fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: status, name: %s}}", apiVersion, kind, name))
		w, err := c.resource(o).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			for e := range w.ResultChan() {
				if o, ok := e.Object.(*unstructured.Unstructured); ok && e.Type != "DELETED" {
					seen(o)
				}
			}
		})
	}
	observe(gateways, "Gateway", "waypoint", func(o *unstructured.Unstructured) {
		if addressOf(o) == "" {
			bare.Add(1)
		}
	})
	for kind, id := range map[string][2]string{"HTTPRoute": {gateways, "route"}, "InferencePool": {inference, "pool"}} {
		last, theirs := "", false
		observe(id[0], kind, id[1], func(o *unstructured.Unstructured) {
			ours := parentsBy(o, ourController)
			if ours == "" {
				missing.Add(1)
			} else if last != "" && ours != last {
				changes.Add(1)
				t.Logf("%s: ours changed from %s to %s", kind, last, ours)
			}
			last = ours
			if parentsBy(o, foreign) != "" {
				theirs = true
			} else if theirs {
				lost.Add(1)
			}
		})
		// The foreign controller has an entry that changes all the time.
		running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := c.writeForeign(ctx, id[0], kind, id[1], n); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) {
					t.Error(err)
				} else if err == nil {
					foreignWrites.Add(1)
				}
				select {
				case <-time.After(50 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	time.Sleep(*fight / 3)
	one.End(syscall.SIGTERM)
	time.Sleep(*fight / 6)
	one = startFairway(t, "")
	time.Sleep(*fight / 6)
	two.End(syscall.SIGKILL)
	time.Sleep(*fight / 3)
	cancel()
	running.Wait()
	t.Logf("%v of %d foreign writes: ours was changed %d times and missing %d times, the other's lost %d times, the address missing %d times",
		*fight, foreignWrites.Load(), changes.Load(), missing.Load(), lost.Load(), bare.Load())
	if changes.Load()+missing.Load()+lost.Load()+bare.Load() > 0 || foreignWrites.Load() < 10 {
		t.Error("that is not as it should be")
	}
	one.End(syscall.SIGKILL)
	if addressOf(c.object(t, gateways, "Gateway", "status", "waypoint")) == "" {
		t.Error("without a process the Gateway has no address")
	}
}

// writeForeign writes the n-th version of a foreign controller's entry, beside what is there.
func (c *cluster) writeForeign(ctx context.Context, apiVersion, kind, name string, n int) error {
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"namespace": "status", "name": name}}}
	r := c.resource(o)
	o, err := r.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	entry := map[string]any{"controllerName": foreign, "parentRef": map[string]any{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "other"},
		"conditions": []any{map[string]any{"type": "Accepted", "status": "True", "reason": "Accepted", "message": fmt.Sprint("version ", n), "lastTransitionTime": metav1.Now().UTC().Format(time.RFC3339)}}}
	parents, _, _ := unstructured.NestedSlice(o.Object, "status", "parents")
	replaced := false
	for i, p := range parents {
		if p.(map[string]any)["controllerName"] == foreign {
			parents[i], replaced = entry, true
		}
	}
	if !replaced {
		parents = append(parents, entry)
	}
	if err := unstructured.SetNestedSlice(o.Object, parents, "status", "parents"); err != nil {
		return err
	}
	_, err = r.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}
