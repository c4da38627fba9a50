package kube

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
)

// How leaders are elected: client-go's own figures (LeaderElectionConfig).
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// An object whose status somebody else keeps undoing is written ever more rarely.
const (
	firstRewrite = time.Second
	lastRewrite  = time.Minute
)

const (
	callTime = 10 * time.Second // of one request to the API server
	tries    = 5                // at once, at a status that others change meanwhile
)

// Reporter writes what Statuses says into the objects of a cluster: only what has
// changed, into the status as it is there, and only while it leads. Replicas of one
// deployment have one Lock. Of what a Reporter was told, the last counts.
type Reporter struct {
	Client  dynamic.Interface
	Log     *slog.Logger
	Options Options
	// Lock is what the replicas that report of the same Gateways vie for; nil: there
	// is but one.
	Lock resourcelock.Interface

	last atomic.Pointer[report]
	told chan struct{}
	once sync.Once
}

// report is a set of objects and what it was translated to.
type report struct {
	objects     *Objects
	translation *Translation
}

func (r *Reporter) signal() chan struct{} {
	r.once.Do(func() { r.told = make(chan struct{}, 1) })
	return r.told
}

// Report takes a set of objects and what it was translated to: a Watcher's Report.
func (r *Reporter) Report(o *Objects, t *Translation) {
	r.last.Store(&report{o, t})
	select {
	case r.signal() <- struct{}{}:
	default:
	}
}

// Run reports until ctx is done.
func (r *Reporter) Run(ctx context.Context) error {
	if r.Lock == nil {
		r.lead(ctx)
		return nil
	}
	for ctx.Err() == nil {
		if err := r.vie(ctx); err != nil {
			return err
		}
	}
	return nil
}

// vie waits to be the leader, and reports for as long as it is.
func (r *Reporter) vie(ctx context.Context) error {
	leads := make(chan context.Context, 1)
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: r.Lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { leads <- ctx },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		e.Run(ctx)
	}()
	select {
	case leading := <-leads:
		r.Log.Info("reporting in the status of objects", "lease", r.Lock.Describe())
		r.lead(leading)
		<-over
	case <-over:
	}
	return nil
}

// lead writes what there is to report until ctx is done.
func (r *Reporter) lead(ctx context.Context) {
	w := writer{
		Reporter: r,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRewrite, lastRewrite)),
		wanted:  make(map[string]Status),
		written: make(map[string]Status),
	}
	var running sync.WaitGroup
	running.Go(func() { w.run(ctx) })
	defer running.Wait()
	defer w.queue.ShutDown()
	for {
		if last := r.last.Load(); last != nil {
			w.want(Statuses(last.objects, last.translation, r.Options))
		}
		select {
		case <-r.signal():
		case <-ctx.Done():
			return
		}
	}
}

// writer writes statuses, one after the other.
type writer struct {
	*Reporter
	queue workqueue.TypedRateLimitingInterface[string]

	mu      sync.Mutex
	wanted  map[string]Status // guarded by mu
	written map[string]Status // guarded by mu
}

func (s *Status) id() string { return s.Resource.String() + " " + s.Namespace + "/" + s.Name }

// want has the statuses written that are not what the objects were last seen to
// have.
func (w *writer) want(all []Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.wanted)
	now := time.Now()
	for _, s := range all {
		_, changed := s.merge(rawStatus(s.current), now)
		s.current = nil
		id := s.id()
		w.wanted[id] = s
		switch {
		case !changed:
		case reflect.DeepEqual(w.written[id], s): // somebody has undone it, or that is not seen yet
			w.queue.AddRateLimited(id)
		default:
			w.queue.Forget(id)
			w.queue.Add(id)
		}
	}
	for id := range w.written {
		if _, still := w.wanted[id]; !still {
			delete(w.written, id)
			w.queue.Forget(id)
		}
	}
}

// run writes what is in the queue until that is shut down.
func (w *writer) run(ctx context.Context) {
	for {
		id, done := w.queue.Get()
		if done {
			return
		}
		w.mu.Lock()
		s, ok := w.wanted[id]
		w.mu.Unlock()
		if ok && ctx.Err() == nil {
			w.try(ctx, id, &s)
		}
		w.queue.Done(id)
	}
}

// try writes a status, now or later.
func (w *writer) try(ctx context.Context, id string, s *Status) {
	var err error
	for range tries {
		var wrote bool
		if wrote, err = w.write(ctx, s); err == nil {
			if !wrote {
				w.queue.Forget(id)
				return
			}
			w.mu.Lock()
			w.written[id] = *s
			w.mu.Unlock()
			w.Log.Info("status written", "kind", s.Kind, "namespace", s.Namespace, "name", s.Name)
			return
		}
		if !apierrors.IsConflict(err) {
			break
		}
	}
	if ctx.Err() != nil {
		return
	}
	if w.queue.NumRequeues(id) == 0 {
		w.Log.Warn("a status cannot be written; it is tried again", "kind", s.Kind, "namespace", s.Namespace, "name", s.Name, "error", err)
	}
	w.queue.AddRateLimited(id)
}

// write puts a status into the object as it is now, if that changes it. Of an object
// that has gone, or that is not the one reported of, nothing is written.
func (w *writer) write(ctx context.Context, s *Status) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var client dynamic.ResourceInterface = w.Client.Resource(s.Resource)
	if s.Namespace != "" {
		client = w.Client.Resource(s.Resource).Namespace(s.Namespace)
	}
	o, err := client.Get(ctx, s.Name, metav1.GetOptions{})
	if err != nil || o.GetGeneration() != s.Generation {
		if apierrors.IsNotFound(err) {
			err = nil
		}
		return false, err
	}
	current, _ := o.Object["status"].(map[string]any)
	merged, changed := s.merge(current, time.Now())
	if !changed {
		return false, nil
	}
	o.Object["status"] = merged
	_, err = client.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
