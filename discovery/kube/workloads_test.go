package kube

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-proxy/fairway/proxy"
)

// ownedPod is a pod at 10.0.0.1 that belongs to something of a kind.
func ownedPod(kind, name string, labels map[string]string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod", Namespace: "ns", Labels: labels},
		Spec:       corev1.PodSpec{ServiceAccountName: "sa"},
		Status:     corev1.PodStatus{PodIP: "10.0.0.1", Phase: corev1.PodRunning},
	}
	if kind != "" {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "Other", Name: "no controller"}, {Kind: kind, Name: name, Controller: &yes, UID: "u"}}
	}
	return p
}

func TestWorkloads(t *testing.T) {
	type labels = map[string]string
	at := netip.MustParseAddr("10.0.0.1")
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want string // name, app, version, canonical service and revision
	}{
		"a Deployment's":             {ownedPod("ReplicaSet", "vllm-7d9f6", labels{"pod-template-hash": "7d9f6", "app": "llm", "version": "v2"}), "vllm llm v2 llm v2"},
		"a ReplicaSet's":             {ownedPod("ReplicaSet", "vllm-7d9f6", nil), "vllm-7d9f6 - - vllm-7d9f6 -"},
		"a StatefulSet's":            {ownedPod("StatefulSet", "vllm", nil), "vllm - - vllm -"},
		"a CronJob's":                {ownedPod("Job", "nightly-29012345", nil), "nightly - - nightly -"},
		"a Job's":                    {ownedPod("Job", "once-123", nil), "once-123 - - once-123 -"},
		"nobody's":                   {ownedPod("", "", nil), "pod - - pod -"},
		"with recommended labels":    {ownedPod("DaemonSet", "d", labels{"app.kubernetes.io/name": "n", "app.kubernetes.io/version": "3", "app": "a", "version": "v"}), "d a v n 3"},
		"with Istio's own":           {ownedPod("DaemonSet", "d", labels{"app": "a", "service.istio.io/canonical-name": "c", "service.istio.io/canonical-revision": "r"}), "d a - c r"},
		"in its node's network":      {func() *corev1.Pod { p := ownedPod("", "", nil); p.Spec.HostNetwork = true; return p }(), ""},
		"one that has ended":         {func() *corev1.Pod { p := ownedPod("", "", nil); p.Status.Phase = corev1.PodFailed; return p }(), ""},
		"one that has no address":    {func() *corev1.Pod { p := ownedPod("", "", nil); p.Status.PodIP = ""; return p }(), ""},
		"one that the watch slimmed": {slim(ownedPod("ReplicaSet", "vllm-7d9f6", labels{"pod-template-hash": "7d9f6"})).(*corev1.Pod), "vllm - - vllm -"},
	} {
		t.Run(name, func(t *testing.T) {
			w := Workloads(&Objects{Pods: []*corev1.Pod{c.pod}}, Options{TrustDomain: "td", Cluster: "c1"})[at]
			if w == nil {
				if c.want != "" {
					t.Error("it is not there")
				}
				return
			}
			got := ""
			for _, s := range []string{w.Name, w.App, w.Version, w.CanonicalService, w.CanonicalRevision} {
				if s == "" {
					s = "-"
				}
				got += " " + s
			}
			if got != " "+c.want || w.Namespace != "ns" || w.Principal != "spiffe://td/ns/ns/sa/sa" || w.Cluster != "c1" {
				t.Errorf("%+v", w)
			}
		})
	}
}

// A pod that serves nothing changes what is told of workloads, and no World.
func TestWatcherTellsOfWorkloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := cluster(t, "testdata/waypoint.yaml")
		ctx, cancel := context.WithCancel(context.Background())
		var worlds atomic.Int64
		var pods atomic.Pointer[map[netip.Addr]*proxy.Workload]
		done := make(chan error, 1)
		go func() {
			w := Watcher{Client: client, Log: slog.New(slog.DiscardHandler), Workloads: func(now map[netip.Addr]*proxy.Workload) { pods.Store(&now) }}
			done <- w.Run(ctx, func(*Translation) {
				if pods.Load() == nil {
					t.Error("the first World came before the workloads")
				}
				worlds.Add(1)
			})
		}()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		pause()
		before, n := worlds.Load(), len(*pods.Load())
		create(t, client, podResource, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": "elsewhere"}, "status": {"podIP": "10.9.9.9", "phase": "Running"}}`)
		pause()
		w := (*pods.Load())[netip.MustParseAddr("10.9.9.9")]
		if w == nil || w.Name != "client" || w.Cluster != DefaultCluster || len(*pods.Load()) != n+1 || n == 0 {
			t.Errorf("%d workloads after %d, the new one is %+v", len(*pods.Load()), n, w)
		}
		if worlds.Load() != before {
			t.Error("it made another World")
		}
	})
}
