package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	inferencev1alpha2 "sigs.k8s.io/gateway-api-inference-extension/apix/v1alpha2"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/fairway-proxy/fairway/proxy"
)

// DefaultSettle is how long changes are gathered before they are translated.
const DefaultSettle = 20 * time.Millisecond

// Where changes follow each other, they are gathered for restShare times as long as the last took to be put in force, up to
// longestRest: so in a large cluster, too, most of a processor is for requests.
const (
	restShare   = 4
	longestRest = time.Second
)

// Watcher keeps the objects of a cluster, and tells what each change of them
// means. Kinds that the API server does not know, or does not let us see, count as
// having no objects until it does; but without sight of the policies nothing is let in.
// While the API server cannot be reached, what was last known stays.
type Watcher struct {
	Client dynamic.Interface
	Log    *slog.Logger
	Options
	// Settle is how long changes are gathered; zero: DefaultSettle.
	Settle time.Duration
	// Workloads is called with what pods belong to, before the first World is applied
	// and when that has changed; nil: it is not.
	Workloads func(map[netip.Addr]*proxy.Workload)
	// Report is called with what the objects mean, after it was applied, and each
	// time that any of them has changed; nil: it is not. It must not change them.
	Report func(*Objects, *Translation)
	// Away is set while the API server cannot be asked; nil: nobody wants to know.
	Away *atomic.Bool
}

// resource is a kind of object that is watched.
type resource struct {
	name     string                        // for people
	versions []schema.GroupVersionResource // the first that the API server knows counts
	guards   bool                          // objects say who may do what: none of them may be missed
	convert  func(*unstructured.Unstructured) (any, error)
	collect  func(*Objects, []any)
}

// kind makes a resource of the objects that list gives the place of.
func kind[T any](group, version, name string, list func(*Objects) *[]*T) resource {
	return resource{
		name:     strings.TrimSuffix(name+"."+group, "."),
		versions: []schema.GroupVersionResource{{Group: group, Version: version, Resource: name}},
		convert: func(u *unstructured.Unstructured) (any, error) {
			o := new(T)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
				return nil, err
			}
			return slim(o), nil
		},
		collect: func(o *Objects, all []any) {
			to := list(o)
			for _, one := range all {
				if typed, ok := one.(*T); ok {
					*to = append(*to, typed)
				}
			}
		},
	}
}

// policyKind makes a resource of policies of Istio: v1, or v1beta1 where that is all
// there is.
func policyKind(name string) resource {
	r := kind("security.istio.io", "v1", name, func(o *Objects) *[]*Policy { return &o.Policies })
	beta := r.versions[0]
	beta.Version = "v1beta1"
	r.versions, r.guards = append(r.versions, beta), true
	return r
}

// slim drops from an object what is large and not read.
func slim(o any) any {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	switch o := o.(type) {
	case *corev1.Pod:
		maps.DeleteFunc(o.Annotations, func(name, _ string) bool { return name != annotationRedirection && name != annotationRanks })
		if owner := metav1.GetControllerOfNoCopy(o); owner == nil {
			o.OwnerReferences = nil
		} else {
			o.OwnerReferences = []metav1.OwnerReference{{Kind: owner.Kind, Name: owner.Name, Controller: owner.Controller}}
		}
		ready := slices.DeleteFunc(o.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type != corev1.PodReady })
		for i, c := range ready {
			ready[i] = corev1.PodCondition{Type: c.Type, Status: c.Status}
		}
		o.Spec = corev1.PodSpec{ServiceAccountName: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork}
		o.Status = corev1.PodStatus{PodIP: o.Status.PodIP, Phase: o.Status.Phase, Conditions: slices.Clip(ready)}
	case *discoveryv1.EndpointSlice:
		o.Annotations = nil // when it was last written, among them
	}
	return o
}

// same tells whether an object says what it said before, apart from its version.
func same(before, now any) bool {
	was, ok := before.(runtime.Object)
	is, too := now.(metav1.Object)
	if !ok || !too {
		return false
	}
	was = was.DeepCopyObject()
	was.(metav1.Object).SetResourceVersion(is.GetResourceVersion())
	return reflect.DeepEqual(was, now)
}

// resources are all that is watched.
var resources = []resource{
	kind("inference.networking.k8s.io", "v1", "inferencepools", func(o *Objects) *[]*inferencev1.InferencePool { return &o.Pools }),
	kind(alphaGroup, "v1alpha2", "inferencepools", func(o *Objects) *[]*AlphaPool { return &o.AlphaPools }),
	kind(alphaGroup, "v1alpha2", "inferencemodels", func(o *Objects) *[]*InferenceModel { return &o.Models }),
	kind(alphaGroup, "v1alpha2", "inferenceobjectives", func(o *Objects) *[]*inferencev1alpha2.InferenceObjective { return &o.Objectives }),
	kind(alphaGroup, "v1alpha2", "inferencemodelrewrites", func(o *Objects) *[]*inferencev1alpha2.InferenceModelRewrite { return &o.Rewrites }),
	kind("llm-d.ai", "v1alpha2", "inferenceobjectives", func(o *Objects) *[]*inferencev1alpha2.InferenceObjective { return &o.Objectives }),
	kind("llm-d.ai", "v1alpha2", "inferencemodelrewrites", func(o *Objects) *[]*inferencev1alpha2.InferenceModelRewrite { return &o.Rewrites }),
	kind("gateway.networking.k8s.io", "v1", "httproutes", func(o *Objects) *[]*gatewayv1.HTTPRoute { return &o.Routes }),
	kind("gateway.networking.k8s.io", "v1beta1", "referencegrants", func(o *Objects) *[]*gatewayv1.ReferenceGrant { return &o.Grants }),
	kind("gateway.networking.k8s.io", "v1", "gateways", func(o *Objects) *[]*gatewayv1.Gateway { return &o.Gateways }),
	kind("gateway.networking.k8s.io", "v1", "gatewayclasses", func(o *Objects) *[]*gatewayv1.GatewayClass { return &o.Classes }),
	kind("", "v1", "services", func(o *Objects) *[]*corev1.Service { return &o.Services }),
	kind("discovery.k8s.io", "v1", "endpointslices", func(o *Objects) *[]*discoveryv1.EndpointSlice { return &o.Slices }),
	kind("", "v1", "pods", func(o *Objects) *[]*corev1.Pod { return &o.Pods }),
	kind("", "v1", "namespaces", func(o *Objects) *[]*corev1.Namespace { return &o.Namespaces }),
	policyKind("authorizationpolicies"),
	policyKind("requestauthentications"),
}

// feed keeps the objects of one kind.
type feed struct {
	resource
	clients  []dynamic.ResourceInterface // one for each version
	informer cache.SharedIndexInformer
	absent   atomic.Bool // the API server does not know the kind
	hidden   atomic.Bool // it did not let us see the objects
	outage   *outage
}

// outage is told of once, whatever is asked for meanwhile.
type outage struct {
	log   *slog.Logger
	lasts *atomic.Bool
}

// note keeps whether an API server answers, and tells of it when that changes. What it refuses is told of elsewhere.
func (o *outage) note(resource string, err error) {
	switch {
	case err == nil:
		if o.lasts.Load() && o.lasts.Swap(false) {
			o.log.Info("the API server answers again")
		}
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsInvalid(err), errors.Is(err, context.Canceled):
	default:
		if !o.lasts.Swap(true) {
			o.log.Warn("the API server cannot be asked: what was last known stays in force; it is tried on", "resource", resource, "error", err)
		}
	}
}

// ready tells whether the objects are known, or cannot be.
func (f *feed) ready() bool {
	return f.informer.HasSynced() || f.absent.Load() || f.hidden.Load()
}

// Run watches until ctx is done. It calls apply, one call at a time, with what the
// objects mean, once all are known, and when that has changed.
func (w *Watcher) Run(ctx context.Context, apply func(*Translation)) error {
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	feeds, away := make([]*feed, len(resources)), &outage{log: w.Log, lasts: cmp.Or(w.Away, new(atomic.Bool))}
	for i, r := range resources {
		f, err := w.feed(r, away, tell)
		if err != nil {
			return err
		}
		feeds[i] = f
		running.Go(func() { f.informer.RunWithContext(ctx) })
		running.Go(func() {
			select {
			case <-f.informer.HasSyncedChecker().Done():
				tell()
			case <-ctx.Done():
			}
		})
	}
	var last *Translation
	var workloads map[netip.Addr]*proxy.Workload
	ledger := ledger{known: make(map[string]bool), results: make(chan round)}
	follow := func() {
		o := gather(feeds)
		if o == nil {
			return
		}
		if w.Workloads != nil {
			if now := Workloads(o, w.Options); !reflect.DeepEqual(now, workloads) {
				w.Workloads(now)
				workloads = now
			}
		}
		t := Translate(o, w.Options)
		if !ledger.withhold(ctx, w, feeds, t) {
			return
		}
		if last == nil || !reflect.DeepEqual(t, last) {
			apply(t)
			last = t
		}
		if w.Report != nil {
			w.Report(o, t)
		}
	}
	var rested time.Time
	for {
		select {
		case <-changed:
			if !sleep(ctx, max(cmp.Or(w.Settle, DefaultSettle), time.Until(rested))) {
				return nil
			}
		case r := <-ledger.results:
			ledger.take(r)
		case <-ctx.Done():
			return nil
		}
		begun := time.Now()
		follow()
		rested = time.Now().Add(min(restShare*time.Since(begun), longestRest))
	}
}

// gather gives all objects, nil as long as some are not known yet.
func gather(feeds []*feed) *Objects {
	for _, f := range feeds {
		if !f.ready() {
			return nil
		}
	}
	o := new(Objects)
	for _, f := range feeds {
		if !f.absent.Load() {
			f.collect(o, f.informer.GetStore().List())
		}
	}
	return o
}

// feed makes an informer of a kind, which tells of each change.
func (w *Watcher) feed(r resource, away *outage, tell func()) (*feed, error) {
	f := &feed{resource: r, outage: away}
	for _, v := range r.versions {
		f.clients = append(f.clients, w.Client.Resource(v))
	}
	f.informer = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return had(f, func(c dynamic.ResourceInterface) (runtime.Object, error) { return c.List(ctx, o) })
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			answer, err := had(f, func(c dynamic.ResourceInterface) (watch.Interface, error) { return c.Watch(ctx, o) })
			if o.SendInitialEvents != nil && (utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err)) {
				// Of these errors' kinds the reflector (watchList) sleeps up to a minute, whether ctx ends or not.
				err = errors.New(err.Error())
			}
			return answer, err
		},
	}, w.Client), &unstructured.Unstructured{}, 0, cache.Indexers{})
	if err := f.informer.SetTransform(func(o any) (any, error) {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			return o, nil // transformed before
		}
		typed, err := f.convert(u)
		if err != nil {
			w.Log.Warn("an object that cannot be read counts for nothing", "kind", u.GetKind(), "namespace", u.GetNamespace(), "name", u.GetName(), "error", err)
			return u, nil
		}
		return typed, nil
	}); err != nil {
		return nil, err
	}
	if err := f.informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		f.failed(w.Log, err)
		tell()
	}); err != nil {
		return nil, err
	}
	_, err := f.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { tell() }, DeleteFunc: func(any) { tell() },
		UpdateFunc: func(before, now any) {
			if !same(before, now) {
				tell()
			}
		},
	})
	return f, err
}

// had asks for the objects that are kept.
func had[T any](f *feed, ask func(dynamic.ResourceInterface) (T, error)) (T, error) {
	answer, err := inVersion(f, ask)
	f.outage.note(f.name, err)
	if err == nil {
		f.absent.Store(false)
		f.hidden.Store(false)
	}
	return answer, err
}

// inVersion asks in the first version that the API server knows.
func inVersion[T any](f *feed, ask func(dynamic.ResourceInterface) (T, error)) (answer T, err error) {
	for _, c := range f.clients {
		if answer, err = ask(c); !apierrors.IsNotFound(err) {
			break
		}
	}
	return answer, err
}

// failed notes why the objects could not be had. It is tried again and again.
func (f *feed) failed(log *slog.Logger, err error) {
	switch {
	case apierrors.IsNotFound(err):
		if !f.absent.Swap(true) {
			log.Info("the API server does not know this kind", "resource", f.name)
		}
	case apierrors.IsForbidden(err):
		if !f.hidden.Swap(true) {
			log.Warn("the API server does not let us see these objects", "resource", f.name, "error", err)
		}
	default:
		log.Debug("watching broke off; it is begun anew", "resource", f.name, "error", fmt.Sprint(err))
	}
}
