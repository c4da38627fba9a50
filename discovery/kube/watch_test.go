package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
)

// cluster is an API server in memory that holds the objects of a file.
func cluster(t *testing.T, name string) *fake.FakeDynamicClient {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lists := make(map[schema.GroupVersionResource]string)
	for _, r := range resources {
		lists[r.GroupVersionResource] = r.Resource + "List"
	}
	var objects []runtime.Object
	for _, doc := range strings.Split(string(data), "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		u := new(unstructured.Unstructured)
		if err := u.UnmarshalJSON(raw); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, u)
	}
	return fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objects...)
}

var (
	podResource   = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	modelResource = schema.GroupVersionResource{Group: alphaGroup, Version: "v1alpha2", Resource: "inferencemodels"}
)

// watched runs a Watcher; the pointer has what it told last, the counter how often.
func watched(t *testing.T, client *fake.FakeDynamicClient) (last *atomic.Pointer[Translation], told *atomic.Int64) {
	ctx, cancel := context.WithCancel(context.Background())
	last, told = new(atomic.Pointer[Translation]), new(atomic.Int64)
	done := make(chan error, 1)
	go func() {
		w := Watcher{Client: client, Log: slog.New(slog.DiscardHandler)}
		done <- w.Run(ctx, func(tr *Translation) {
			last.Store(tr)
			told.Add(1)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return last, told
}

// pause lets everything happen that is to happen soon.
func pause() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func endpoints(t *Translation) string {
	var all []string
	for _, p := range t.World.Pools {
		for _, e := range p.Endpoints {
			all = append(all, e.Address)
		}
	}
	return strings.Join(all, " ")
}

func TestWatcherTellsOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := cluster(t, "testdata/waypoint.yaml")
		last, told := watched(t, client)
		pause()
		if told.Load() != 1 {
			t.Fatalf("told %d times at the beginning", told.Load())
		}
		tr := last.Load()
		if got := endpoints(tr); got != "10.1.0.1:8000 [fd00:1::1]:8000" || len(tr.World.Models) != 1 || len(tr.Services) != 1 || len(tr.Services[0].Ports[0].Routes) != 1 {
			t.Fatalf("%s, %+v", got, tr)
		}

		pods := client.Resource(podResource).Namespace("ai-workloads")
		ready := []byte(`{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`)
		if _, err := pods.Patch(t.Context(), "starting", types.MergePatchType, ready, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := pods.Delete(t.Context(), "six", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pause()
		if got := endpoints(last.Load()); got != "10.1.0.1:8000 10.1.0.3:8000" || told.Load() != 2 {
			t.Errorf("%s, told %d times", got, told.Load())
		}
		// What changes nothing is not told.
		if _, err := pods.Patch(t.Context(), "other", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if pause(); told.Load() != 2 {
			t.Errorf("told %d times", told.Load())
		}
	})
}

// A kind that the API server does not know, or does not let us see, has no objects
// until it does.
func TestWatcherWithoutSomeKinds(t *testing.T) {
	for name, refusal := range map[string]error{
		"unknown": apierrors.NewNotFound(modelResource.GroupResource(), ""),
		"hidden":  apierrors.NewForbidden(modelResource.GroupResource(), "", errors.New("RBAC")),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := cluster(t, "testdata/waypoint.yaml")
				var known atomic.Bool
				client.PrependReactor("list", "inferencemodels", func(clienttesting.Action) (bool, runtime.Object, error) { return !known.Load(), nil, refusal })
				last, _ := watched(t, client)
				pause()
				if tr := last.Load(); tr == nil || len(tr.World.Models) != 0 || endpoints(tr) == "" {
					t.Fatalf("%+v", tr)
				}
				known.Store(true)
				time.Sleep(2 * time.Minute) // it is asked for ever more rarely
				pause()
				if tr := last.Load(); len(tr.World.Models) != 1 {
					t.Errorf("%+v", tr.World.Models)
				}
			})
		})
	}
}

// An API server that does not answer at first is waited for; one that goes away
// takes nothing with it.
func TestWatcherWithoutTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := cluster(t, "testdata/waypoint.yaml")
		var up atomic.Bool
		client.PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			return !up.Load(), nil, errors.New("connection refused")
		})
		last, _ := watched(t, client)
		time.Sleep(time.Hour)
		if tr := last.Load(); tr != nil {
			t.Fatalf("%+v", tr)
		}
		up.Store(true)
		time.Sleep(2 * time.Minute)
		pause()
		if tr := last.Load(); tr == nil || endpoints(tr) == "" {
			t.Fatal("nothing is told")
		}
		up.Store(false)
		time.Sleep(time.Hour)
		if tr := last.Load(); endpoints(tr) == "" {
			t.Error("the endpoints are gone")
		}
	})
}

// BenchmarkTranslate is what a change costs in a cluster of that many pods.
func BenchmarkTranslate(b *testing.B) {
	for _, n := range []int{100, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := new(Objects)
			for i := range n {
				p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: "ns", UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": fmt.Sprint(i % 10)}}}
				p.Status.PodIP = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
				o.Pods = append(o.Pods, p)
			}
			for i := range 10 {
				p := &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("pool", i), Namespace: "ns"}}
				p.Spec.Selector.MatchLabels = map[inferencev1.LabelKey]inferencev1.LabelValue{"app": inferencev1.LabelValue(fmt.Sprint(i))}
				p.Spec.TargetPorts = []inferencev1.Port{{Number: 8000}}
				o.Pools = append(o.Pools, p)
			}
			for b.Loop() {
				if t := Translate(o, Options{}); len(t.World.Pools) != 10 || len(t.World.Pools[0].Endpoints) != n/10 {
					b.Fatal(len(t.World.Pools))
				}
			}
		})
	}
}
