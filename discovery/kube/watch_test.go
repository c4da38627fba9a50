package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
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
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/fairway-proxy/fairway/proxy"
)

// cluster is an API server in memory that holds the objects of files.
func cluster(t testing.TB, names ...string) *fake.FakeDynamicClient {
	t.Helper()
	lists := make(map[schema.GroupVersionResource]string)
	for _, r := range resources {
		for _, v := range r.versions {
			lists[v] = v.Resource + "List"
		}
	}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
	var documents []string
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, strings.Split(string(data), "\n---\n")...)
	}
	for _, doc := range documents {
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
		for _, r := range resources {
			for _, v := range r.versions {
				kind := strings.ToLower(u.GetKind())
				if v.GroupVersion() != u.GroupVersionKind().GroupVersion() || v.Resource != kind+"s" && v.Resource != kind+"es" && v.Resource != strings.TrimSuffix(kind, "y")+"ies" {
					continue
				}
				if err := client.Tracker().Create(v, u, u.GetNamespace()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return client
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

// What takes long to be put in force is not put in force without a rest, however much changes.
func TestWatcherRestsAfterWhatTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for took, most := range map[time.Duration]int64{0: 500, 50 * time.Millisecond: 40, time.Minute: 1} {
			client := cluster(t, "testdata/waypoint.yaml")
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			var told atomic.Int64
			w := Watcher{Client: client, Log: slog.New(slog.DiscardHandler)}
			go func() {
				done <- w.Run(ctx, func(*Translation) {
					told.Add(1)
					time.Sleep(took)
				})
			}()
			pause()
			told.Store(0)
			for i := range 1000 { // in ten seconds
				ready := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q}]}}`, []string{"True", "False"}[i/2%2])
				if _, err := client.Resource(podResource).Namespace("ai-workloads").Patch(t.Context(), "starting", types.MergePatchType, []byte(ready), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			if n := told.Load(); n > most || n < most/3 {
				t.Errorf("of what takes %v: told %d times, want %d at most", took, n, most)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
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

// crowd is n pods behind ten pools.
func crowd(n int) *Objects {
	o := new(Objects)
	for i := range n {
		p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: "ns", UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": fmt.Sprint(i % 10)}}}
		p.Status.PodIP = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		o.Pods = append(o.Pods, p)
	}
	for i := range 10 {
		p := &inferencev1.InferencePool{TypeMeta: metav1.TypeMeta{APIVersion: poolResource.GroupVersion().String(), Kind: "InferencePool"}, ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("pool", i), Namespace: "ns"}}
		p.Spec.Selector.MatchLabels = map[inferencev1.LabelKey]inferencev1.LabelValue{"app": inferencev1.LabelValue(fmt.Sprint(i))}
		p.Spec.TargetPorts = []inferencev1.Port{{Number: 8000}}
		o.Pools = append(o.Pools, p)
	}
	return o
}

// BenchmarkTranslate is what a change costs in a cluster of that many pods.
func BenchmarkTranslate(b *testing.B) {
	for _, n := range []int{100, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := crowd(n)
			for b.Loop() {
				if t := Translate(o, Options{}); len(t.World.Pools) != 10 || len(t.World.Pools[0].Endpoints) != n/10 {
					b.Fatal(len(t.World.Pools))
				}
			}
		})
	}
}

// BenchmarkChange is the time from a pod's becoming ready, or no longer so, to its
// being told, with what is gathered meanwhile (DefaultSettle); the longest of them is a
// metric.
func BenchmarkChange(b *testing.B) {
	client, o := cluster(b), crowd(5000)
	create := func(r schema.GroupVersionResource, object runtime.Object) {
		raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err == nil {
			err = client.Tracker().Create(r, &unstructured.Unstructured{Object: raw}, "ns")
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, p := range o.Pods {
		create(podResource, p)
	}
	for _, p := range o.Pools {
		create(poolResource, p)
	}
	ctx, cancel := context.WithCancel(b.Context())
	told, done := make(chan int), make(chan struct{})
	go func() {
		defer close(done)
		w := Watcher{Client: client, Log: slog.New(slog.DiscardHandler)}
		w.Run(ctx, func(t *Translation) {
			n := 0
			for _, p := range t.World.Pools {
				n += len(p.Endpoints)
			}
			select {
			case told <- n:
			case <-ctx.Done():
			}
		})
	}()
	defer func() { cancel(); <-done }()
	wait := func(want int) {
		for n := range told {
			if n == want {
				return
			}
		}
	}
	wait(5000)
	var longest time.Duration
	ready := true
	for b.Loop() {
		ready = !ready
		status, n := "True", 5000
		if !ready {
			status, n = "False", 4999
		}
		begin := time.Now()
		if _, err := client.Resource(podResource).Namespace("ns").Patch(ctx, "p7", types.MergePatchType, fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":%q}]}}`, status), metav1.PatchOptions{}); err != nil {
			b.Fatal(err)
		}
		wait(n)
		longest = max(longest, time.Since(begin))
	}
	b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
}

var (
	serviceResource = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	policyResource  = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	betaResource    = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1beta1", Resource: "authorizationpolicies"}
)

// parsed makes an object from its text in JSON.
func parsed(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := new(unstructured.Unstructured)
	if err := u.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return u
}

// create makes an object in the cluster.
func create(t *testing.T, client *fake.FakeDynamicClient, r schema.GroupVersionResource, text string) {
	t.Helper()
	o := parsed(t, text)
	if _, err := client.Resource(r).Namespace(o.GetNamespace()).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

const (
	newService = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"new","namespace":"a"},"spec":{"clusterIP":"10.0.0.9","ports":[{"port":80,"name":"http"}]}}`
	newPolicy  = `{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"new","namespace":"a"},"spec":{"targetRefs":[{"kind":"Service","name":"new"}],"action":"DENY","rules":[{}]}}`
)

// service finds a Service of a World, nil for none.
func service(t *Translation, host string) *proxy.Service {
	for i := range t.World.Services {
		if strings.HasPrefix(t.World.Services[i].Host, host) {
			return &t.World.Services[i]
		}
	}
	return nil
}

// state says how the new Service stands: "", withheld, open or guarded.
func state(t *Translation) string {
	switch s := service(t, "new."); {
	case s == nil:
		return ""
	case s.Access.Withheld != "":
		return "withheld"
	case len(s.Access.Policies) == 0:
		return "open"
	}
	return "guarded"
}

// However late the watch brings a policy that was there before a Service, the Service
// lets nothing in before it.
func TestServicesWaitForTheirPolicies(t *testing.T) {
	for _, behind := range []bool{false, true} {
		t.Run(fmt.Sprint("policies behind: ", behind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := cluster(t, "testdata/bound.yaml")
				late := watch.NewRaceFreeFake()
				client.PrependWatchReactor("authorizationpolicies", func(clienttesting.Action) (bool, watch.Interface, error) { return behind, late, nil })
				last, _ := watched(t, client)
				pause()
				if tr := last.Load(); tr == nil || service(tr, "by-label").Access.Withheld != "" || len(service(tr, "by-label").Access.Policies) != 1 {
					t.Fatalf("%+v", last.Load())
				}
				create(t, client, policyResource, newPolicy)
				create(t, client, serviceResource, newService)
				for range 1000 {
					time.Sleep(time.Millisecond)
					synctest.Wait()
					if s := state(last.Load()); s == "open" {
						t.Fatal("the Service is open while its policy is not known")
					} else if s == "guarded" && behind {
						t.Fatal("the policy is known before it came")
					}
				}
				if want := map[bool]string{false: "guarded", true: "withheld"}[behind]; state(last.Load()) != want {
					t.Fatalf("%q, want %q", state(last.Load()), want)
				}
				if service(last.Load(), "by-label").Access.Withheld != "" {
					t.Error("a Service whose policies are known is withheld")
				}
				if behind {
					late.Add(parsed(t, newPolicy))
					time.Sleep(10 * time.Second)
					synctest.Wait()
					if s := state(last.Load()); s != "guarded" {
						t.Errorf("%q after the policy came", s)
					}
				}
			})
		})
	}
}

// The other way round: a policy that comes after its Service is in force at once.
func TestPolicyAfterItsService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := cluster(t, "testdata/bound.yaml")
		last, _ := watched(t, client)
		create(t, client, serviceResource, newService)
		pause()
		if s := state(last.Load()); s != "open" {
			t.Fatalf("%q", s)
		}
		create(t, client, policyResource, newPolicy)
		time.Sleep(DefaultSettle)
		synctest.Wait()
		if s := state(last.Load()); s != "guarded" {
			t.Errorf("%q", s)
		}
		// A Service that is made anew is new.
		services := client.Resource(serviceResource).Namespace("a")
		if err := services.Delete(t.Context(), "new", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pause()
		client.PrependReactor("list", "authorizationpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("connection refused")
		})
		create(t, client, serviceResource, newService)
		pause()
		if s := state(last.Load()); s != "withheld" {
			t.Errorf("%q", s)
		}
	})
}

// Where policies may not be seen, nothing is let in; where their kind is not known there
// are none; and v1beta1 does where there is no v1.
func TestPoliciesThatCannotBeSeen(t *testing.T) {
	for name, tt := range map[string]struct {
		refusal     error
		beta        bool
		first, then string
	}{
		"hidden":  {apierrors.NewForbidden(policyResource.GroupResource(), "", errors.New("RBAC")), false, "withheld", "guarded"},
		"unknown": {apierrors.NewNotFound(policyResource.GroupResource(), ""), false, "open", "guarded"},
		"v1beta1": {apierrors.NewNotFound(policyResource.GroupResource(), ""), true, "guarded", "guarded"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := cluster(t, "testdata/bound.yaml")
				var known atomic.Bool
				refuse := func(a clienttesting.Action) bool {
					return !known.Load() && (!tt.beta || a.GetResource().Version == "v1")
				}
				client.PrependReactor("list", "authorizationpolicies", func(a clienttesting.Action) (bool, runtime.Object, error) { return refuse(a), nil, tt.refusal })
				client.PrependWatchReactor("authorizationpolicies", func(a clienttesting.Action) (bool, watch.Interface, error) { return refuse(a), nil, tt.refusal })
				if tt.beta {
					create(t, client, betaResource, strings.Replace(newPolicy, "/v1", "/v1beta1", 1))
				} else {
					create(t, client, policyResource, newPolicy)
				}
				create(t, client, serviceResource, newService)
				last, _ := watched(t, client)
				time.Sleep(time.Minute)
				synctest.Wait()
				if s := state(last.Load()); s != tt.first {
					t.Fatalf("%q, want %q", s, tt.first)
				}
				if tt.beta {
					return
				}
				known.Store(true)
				time.Sleep(2 * time.Minute) // it is asked for ever more rarely
				synctest.Wait()
				if s := state(last.Load()); s != tt.then {
					t.Errorf("%q, want %q", s, tt.then)
				}
			})
		})
	}
}

// refusing is a way to an API server where nobody listens.
type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// That an API server is away is told once, whatever is asked of it, and what waits for it ends at once.
func TestWatcherWhereNobodyListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, err := dynamic.NewForConfigAndClient(&rest.Config{Host: "http://192.0.2.1"}, &http.Client{Transport: refusing{}})
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		w := Watcher{Client: client, Log: slog.New(slog.NewTextHandler(&log, nil)), Away: new(atomic.Bool)}
		go func() { done <- w.Run(ctx, func(*Translation) { t.Error("told of objects") }) }()
		time.Sleep(10 * time.Minute)
		if !w.Away.Load() {
			t.Error("it is not taken to be away")
		}
		cancel()
		begun := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("ended after %v", d)
		}
		if n := strings.Count(log.String(), "connection refused"); n != 1 {
			t.Errorf("told %d times: %s", n, &log)
		}
	})
}
