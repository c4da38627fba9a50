package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// lease is a Lease in memory; each replica has a lock on it.
type lease struct {
	mu     sync.Mutex
	record *resourcelock.LeaderElectionRecord
	cut    map[string]bool // replicas that cannot reach it
}

type lock struct {
	*lease
	id string
}

func (l lock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.cut[l.id]:
		return nil, nil, errors.New("connection refused")
	case l.record == nil:
		return nil, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "leases"}, "fairway")
	}
	r := *l.record
	return &r, fmt.Append(nil, r), nil
}

func (l lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.Update(ctx, r)
}

func (l lock) Update(_ context.Context, r resourcelock.LeaderElectionRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut[l.id] {
		return errors.New("connection refused")
	}
	l.record = &r
	return nil
}

func (l lock) RecordEvent(string) {}
func (l lock) Identity() string   { return l.id }
func (l lock) Describe() string   { return "fairway" }

func (l *lease) holder() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.record == nil {
		return ""
	}
	return l.record.HolderIdentity
}

// versioned has an API server in memory refuse what was made of an older version of
// an object, as a real one does, and counts the writes.
func versioned(client *fake.FakeDynamicClient) (writes *atomic.Int64) {
	writes = new(atomic.Int64)
	var mu sync.Mutex
	client.PrependReactor("update", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		o := a.(clienttesting.UpdateAction).GetObject().(*unstructured.Unstructured).DeepCopy()
		was, err := client.Tracker().Get(a.GetResource(), a.GetNamespace(), o.GetName())
		if err != nil {
			return true, nil, err
		}
		m, err := meta.Accessor(was)
		if err != nil {
			return true, nil, err
		}
		if m.GetResourceVersion() != o.GetResourceVersion() {
			return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), o.GetName(), errors.New("changed meanwhile"))
		}
		n, _ := strconv.Atoi(m.GetResourceVersion())
		o.SetResourceVersion(strconv.Itoa(n + 1))
		writes.Add(1)
		return true, o, client.Tracker().Update(a.GetResource(), o, a.GetNamespace())
	})
	return writes
}

// replica runs a Watcher and its Reporter until stop is called.
func replica(t *testing.T, client *fake.FakeDynamicClient, l resourcelock.Interface) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	r := Reporter{Client: client, Log: log, Lock: l}
	w := Watcher{Client: client, Log: log, Report: r.Report}
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx, func(*Translation) {}); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); running.Wait() }) }
	t.Cleanup(stop)
	return stop
}

func statusOf(t *testing.T, client *fake.FakeDynamicClient, r schema.GroupVersionResource, ns, name string) map[string]any {
	t.Helper()
	o, err := client.Resource(r).Namespace(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status, _ := o.Object["status"].(map[string]any)
	return status
}

// address is the first of a Gateway's, "" for none.
func address(status map[string]any) string {
	list, _ := status["addresses"].([]any)
	if len(list) == 0 {
		return ""
	}
	return fmt.Sprint(list[0].(map[string]any)["value"])
}

func countParents(status map[string]any, resource schema.GroupVersionResource, by string) (n int) {
	for _, e := range entriesOf(status, resource) {
		if e.(map[string]any)["controllerName"] == by {
			n++
		}
	}
	return n
}

// What is to be reported is written once, and what changes then, whatever the API
// server refuses at first.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := cluster(t, "testdata/status.yaml")
		writes := versioned(client)
		var refused atomic.Int64
		client.PrependReactor("update", "httproutes", func(clienttesting.Action) (bool, runtime.Object, error) {
			if n := refused.Add(1); n < 3 {
				return true, nil, apierrors.NewConflict(routeResource.GroupResource(), "", errors.New("changed meanwhile"))
			} else if n < 5 {
				return true, nil, errors.New("connection reset")
			}
			return false, nil, nil
		})
		replica(t, client, nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := address(statusOf(t, client, gatewayResource, "ai", "w")); got != "w.ai.svc.cluster.local" {
			t.Errorf("address %q", got)
		}
		if got := address(statusOf(t, client, gatewayResource, "ai", "bereft")); got != "bereft.ai.svc.cluster.local" {
			t.Errorf("address %q", got)
		}
		if n := countParents(statusOf(t, client, routeResource, "ai", "many"), routeResource, ControllerName); n != 4 {
			t.Errorf("%d parents", n)
		}
		if s := statusOf(t, client, gatewayResource, "ai", "theirs"); s != nil {
			t.Errorf("another controller's Gateway has %v", s)
		}
		before := writes.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := writes.Load(); n != before || n > 15 {
			t.Errorf("%d writes, and %d in the hour after", before, n-before)
		}

		// The pool's entry goes with the last route that refers to it, the address of
		// a Gateway stays without its Service.
		if err := client.Resource(routeResource).Namespace("ai").Delete(t.Context(), "good", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).Namespace("ai").Delete(t.Context(), "w", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pause()
		pool := statusOf(t, client, poolResource, "ai", "llama")
		if ours, theirs := countParents(pool, poolResource, ControllerName), countParents(pool, poolResource, "example.com/theirs"); ours != 0 || theirs != 1 {
			t.Errorf("%d entries of ours, %d of others", ours, theirs)
		}
		if got := address(statusOf(t, client, gatewayResource, "ai", "w")); got != "w.ai.svc.cluster.local" {
			t.Errorf("address %q without the Service", got)
		}
	})
}

// Two replicas and a foreign controller write the same objects for a minute: nothing
// of the other's is lost, ours is written no more often than it has to be, and the
// Gateway has its address all the time.
func TestReporterBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := cluster(t, "testdata/status.yaml")
		versioned(client)
		var ours atomic.Int64
		client.PrependReactor("update", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			ours.Add(1)
			return false, nil, nil
		})
		l := &lease{}
		replica(t, client, lock{l, "a"})
		replica(t, client, lock{l, "b"})
		time.Sleep(10 * time.Second)
		ours.Store(0)
		var theirs int64
		const other = "example.com/other"
		write := func(i int) {
			routes := client.Resource(routeResource).Namespace("ai")
			for {
				o, err := routes.Get(t.Context(), "good", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				status := o.Object["status"].(map[string]any)
				kept := []any{}
				for _, e := range entriesOf(status, routeResource) {
					if e.(map[string]any)["controllerName"] != other {
						kept = append(kept, e)
					}
				}
				status["parents"] = append(kept, map[string]any{"controllerName": other, "parentRef": map[string]any{"name": "x"}, "round": int64(i)})
				theirs++
				if _, err := routes.UpdateStatus(t.Context(), o, metav1.UpdateOptions{}); err == nil {
					return
				}
			}
		}
		for i := range 60 {
			write(i)
			pause()
			status := statusOf(t, client, routeResource, "ai", "good")
			if countParents(status, routeResource, ControllerName) != 1 || countParents(status, routeResource, other) != 1 || countParents(status, routeResource, "istio.io/gateway-controller") != 1 {
				t.Fatalf("after %d: %v", i, status)
			}
			if address(statusOf(t, client, gatewayResource, "ai", "w")) == "" {
				t.Fatalf("no address after %d", i)
			}
		}
		if n := ours.Load() - theirs; n != 0 {
			t.Errorf("%d writes of ours, with nothing of ours to write", n)
		}

		// A foreign controller that takes ours away again and again is answered ever
		// more rarely.
		ours.Store(0)
		wipes := int64(0)
		for range 600 {
			o, err := client.Resource(routeResource).Namespace("ai").Get(t.Context(), "good", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if o.Object["status"].(map[string]any)["parents"] = []any{}; countParents(statusOf(t, client, routeResource, "ai", "good"), routeResource, ControllerName) > 0 {
				if _, err := client.Resource(routeResource).Namespace("ai").UpdateStatus(t.Context(), o, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				wipes++
			}
			pause()
		}
		if n := ours.Load() - wipes; n < 8 || n > 20 {
			t.Errorf("answered %d of %d times in ten minutes", n, wipes)
		}
	})
}

// One replica reports; when it stops, or cannot reach the API server, another does.
func TestReporterLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := cluster(t, "testdata/status.yaml")
		versioned(client)
		l := &lease{cut: make(map[string]bool)}
		stops := map[string]func(){"a": replica(t, client, lock{l, "a"}), "b": replica(t, client, lock{l, "b"})}
		time.Sleep(10 * time.Second)
		first := l.holder()
		second := map[string]string{"a": "b", "b": "a"}[first]
		if second == "" {
			t.Fatalf("held by %q", first)
		}
		stops[first]()
		if address(statusOf(t, client, gatewayResource, "ai", "w")) == "" {
			t.Error("the address went with its writer")
		}
		time.Sleep(10 * time.Second)
		if got := l.holder(); got != second {
			t.Fatalf("held by %q after %q stopped", got, first)
		}
		generation := []byte(`{"metadata":{"generation":8}}`)
		if _, err := client.Resource(routeResource).Namespace("ai").Patch(t.Context(), "good", types.MergePatchType, generation, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		pause()
		observed := func() (n any) {
			for _, e := range entriesOf(statusOf(t, client, routeResource, "ai", "good"), routeResource) {
				if e := e.(map[string]any); e["controllerName"] == ControllerName {
					n = e["conditions"].([]any)[0].(map[string]any)["observedGeneration"]
				}
			}
			return n
		}
		if got := observed(); got != int64(8) {
			t.Errorf("generation %v is reported of", got)
		}

		l.mu.Lock()
		l.cut[second] = true
		l.mu.Unlock()
		replica(t, client, lock{l, "c"})
		time.Sleep(time.Hour)
		if got := l.holder(); got != "c" {
			t.Errorf("held by %q", got)
		}
		l.mu.Lock()
		l.cut[second] = false
		l.mu.Unlock()
		time.Sleep(time.Minute)
		if got := l.holder(); got != "c" {
			t.Errorf("held by %q", got)
		}
	})
}
