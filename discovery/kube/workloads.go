package kube

import (
	"cmp"
	"net/netip"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-proxy/fairway/proxy"
)

// Workloads says what each pod with an address of its own is part of. The map is never
// nil.
func Workloads(o *Objects, options Options) map[netip.Addr]*proxy.Workload {
	all := make(map[netip.Addr]*proxy.Workload, len(o.Pods))
	same := make(map[proxy.Workload]*proxy.Workload) // pods of one have it once
	for _, p := range o.Pods {
		a, err := netip.ParseAddr(p.Status.PodIP)
		if err != nil || p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		w := workload(p, options)
		if same[w] == nil {
			same[w] = &w
		}
		all[a.Unmap()] = same[w]
	}
	return all
}

// workload is what a pod is part of, by the labels that Istio goes by (pkg/config/labels,
// CanonicalService; pkg/kube/labels).
func workload(p *corev1.Pod, options Options) proxy.Workload {
	w := proxy.Workload{
		Name: ownerName(p), Namespace: namespace(&p.ObjectMeta),
		App:     cmp.Or(p.Labels["app"], p.Labels["app.kubernetes.io/name"]),
		Version: cmp.Or(p.Labels["version"], p.Labels["app.kubernetes.io/version"]),
		Cluster: cmp.Or(options.Cluster, DefaultCluster),
	}
	w.CanonicalService = cmp.Or(p.Labels["service.istio.io/canonical-name"], p.Labels["app.kubernetes.io/name"], p.Labels["app"], w.Name)
	w.CanonicalRevision = cmp.Or(p.Labels["service.istio.io/canonical-revision"], p.Labels["app.kubernetes.io/version"], p.Labels["version"])
	if options.TrustDomain != "" {
		w.Principal = "spiffe://" + options.TrustDomain + "/ns/" + w.Namespace + "/sa/" + cmp.Or(p.Spec.ServiceAccountName, "default")
	}
	return w
}

// cronJob is how a CronJob names its Jobs: by itself, and when they were due.
var cronJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// ownerName is what a pod belongs to: the Deployment of its ReplicaSet, the CronJob of
// its Job, another owner, or nobody but itself (Istio, pkg/kube,
// GetWorkloadMetaFromPod).
func ownerName(p *corev1.Pod) string {
	owner := metav1.GetControllerOfNoCopy(p)
	switch {
	case owner == nil:
		return p.Name
	case owner.Kind == "ReplicaSet":
		if hash := p.Labels["pod-template-hash"]; hash != "" {
			return strings.TrimSuffix(owner.Name, "-"+hash)
		}
	case owner.Kind == "Job":
		if m := cronJob.FindStringSubmatch(owner.Name); m != nil {
			return m[1]
		}
	}
	return owner.Name
}
