package kube

import (
	"context"
	"fmt"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/dynamic"
)

// A Service and its policies come by watches of their own, in whatever order. So that
// no request slips through between them, a Service (or a Gateway) that is new lets
// nothing in until the policies have been listed once after it was seen, and what the
// watches have brought is no older than that list: then every policy that the API
// server had before the Service is in force.

// listTimeout bounds one list of policies.
const listTimeout = 5 * time.Second

// withheldNew is why nothing is let in until then.
const withheldNew = "the policies for it are being asked for"

// ledger keeps for which claims (see claim) policies are known. It belongs to the one
// goroutine of Run.
type ledger struct {
	known   map[string]bool
	asking  bool       // a round is under way
	tried   bool       // a round has ended, well or not
	results chan round // of the round under way
}

// round is what a look at the policies has shown.
type round struct {
	claims []string // whose policies are known now
	err    error    // why they are not; it is tried on
}

// withhold lets nothing in to what of t is new, and has a look taken at the policies of
// that. It tells whether there is anything to be said of t yet.
func (l *ledger) withhold(ctx context.Context, w *Watcher, feeds []*feed, t *Translation) bool {
	current := make(map[string]bool)
	var wanted []string
	check := func(claim string) bool {
		current[claim] = true
		if !l.known[claim] {
			wanted = append(wanted, claim)
		}
		return l.known[claim]
	}
	for _, c := range t.claims {
		if !check(c) {
			t.World.Gateway.Withheld = withheldNew
		}
	}
	for i := range t.Services {
		if s := &t.Services[i]; s.Bound && !check(s.claim) {
			s.Access.Withheld = withheldNew
		}
	}
	t.World.Services = bound(t.Services)
	// What is no more and comes again is new.
	maps.DeleteFunc(l.known, func(claim string, _ bool) bool { return !current[claim] })
	if len(wanted) > 0 && !l.asking {
		l.asking = true
		go w.confirm(ctx, feeds, wanted, l.results)
	}
	return l.tried || len(wanted) == 0
}

// Withheld tells whether there is something to be served of which nothing is let in, because
// the policies of none of it are known.
func (t *Translation) Withheld() bool {
	some := len(t.claims) > 0
	if some && t.World.Gateway.Withheld != withheldNew {
		return false
	}
	for i := range t.World.Services {
		if some = true; t.World.Services[i].Access.Withheld != withheldNew {
			return false
		}
	}
	return some
}

// take notes what a round has shown.
func (l *ledger) take(r round) {
	l.tried = true
	if r.err != nil {
		return
	}
	l.asking = false
	for _, c := range r.claims {
		l.known[c] = true
	}
}

// confirm lists the policies until what the watches have brought is no older, and tells
// results of that, and of what is in the way.
func (w *Watcher) confirm(ctx context.Context, feeds []*feed, claims []string, results chan<- round) {
	told := ""
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := w.upToDate(ctx, feeds)
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			w.Log.Warn("the policies of new Services cannot be known: nothing is let in to these", "error", err)
		}
		select {
		case results <- round{claims, err}:
		case <-ctx.Done():
			return
		}
		if err == nil || !sleep(ctx, pause) {
			return
		}
	}
}

// upToDate lists the policies and waits until the watches have brought as much.
func (w *Watcher) upToDate(ctx context.Context, feeds []*feed) error {
	for _, f := range feeds {
		if !f.guards {
			continue
		}
		listed, err := f.list(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		const longest = time.Second // a list that an object has left meanwhile is never met
		for pause, sum := time.Millisecond, time.Duration(0); !f.holds(listed); pause *= 2 {
			if sum += pause; sum > longest {
				return fmt.Errorf("%s: the watch is behind", f.name)
			}
			if !sleep(ctx, pause) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// listing is the versions of objects by their keys, as of a version; nil: the API server
// does not know the kind.
type listing struct {
	version string
	objects map[string]string
}

// list asks the API server for all there is by now.
func (f *feed) list(ctx context.Context) (*listing, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	all, err := inVersion(f, func(c dynamic.ResourceInterface) (*unstructured.UnstructuredList, error) {
		return c.List(ctx, metav1.ListOptions{}) // of no version: the most recent
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := &listing{all.GetResourceVersion(), make(map[string]string, len(all.Items))}
	for i := range all.Items {
		o := &all.Items[i]
		l.objects[o.GetNamespace()+"/"+o.GetName()] = o.GetResourceVersion()
	}
	return l, nil
}

// holds tells whether what is known is no older than l.
func (f *feed) holds(l *listing) bool {
	if l == nil {
		return f.absent.Load()
	}
	if f.absent.Load() || !f.informer.HasSynced() {
		return false
	}
	mine := make(map[string]string)
	for _, o := range f.informer.GetStore().List() {
		if m, ok := o.(metav1.Object); ok {
			mine[m.GetNamespace()+"/"+m.GetName()] = m.GetResourceVersion()
		}
	}
	for k, version := range l.objects {
		if have, ok := mine[k]; !ok || have != version && !newer(have, version) {
			return false
		}
	}
	for k, version := range mine {
		if _, ok := l.objects[k]; !ok && !newer(version, l.version) {
			return false // it has gone before the list
		}
	}
	return true
}

// newer compares versions of objects of one kind; what is not a number is not newer.
func newer(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order > 0
}

// sleep waits; false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
