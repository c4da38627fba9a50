package kube

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// maxParents is how many entries a status may have for parents (the CRDs' maxItems).
const maxParents = 32

// What an object's status says is kept as it came, whatever fields it has: only what
// is ours is put in, changed or taken away.

// rawStatus is a status as plain maps and lists.
func rawStatus(status any) map[string]any {
	if raw, ok := status.(map[string]any); ok || status == nil {
		return raw
	}
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return nil // never: these are types of the API
	}
	return raw
}

// plain is a value of the API as plain maps and lists.
func plain[T any](v T) any {
	return rawStatus(&struct {
		V T `json:"v"`
	}{v})["v"]
}

// merge puts a report into the status of an object, and tells whether that changes
// it. What was said before keeps the time since when it holds.
func (s *Status) merge(current map[string]any, now time.Time) (merged map[string]any, changed bool) {
	merged = make(map[string]any, len(current)+1)
	maps.Copy(merged, current)
	if len(s.Conditions) > 0 {
		merged["conditions"] = mergeConditions(current["conditions"], s.Conditions, now)
	}
	if s.Addresses != nil {
		merged["addresses"] = plain(s.Addresses)
	}
	if s.Listeners != nil {
		merged["listeners"] = s.mergeListeners(current["listeners"], now)
	}
	if s.Parents != nil || entriesOf(current, s.Resource) != nil {
		merged[parentsField(s.Resource)] = s.mergeParents(entriesOf(current, s.Resource), now)
	}
	return merged, !reflect.DeepEqual(merged, current)
}

// mergeConditions puts conditions among those of an object; types that we do not
// report stay, but for those that are ours alone and have gone.
func mergeConditions(current any, ours []metav1.Condition, now time.Time, gone ...string) []any {
	var out []any
	done := make(map[string]bool, len(ours))
	list, _ := current.([]any)
	for _, c := range list {
		old, _ := c.(map[string]any)
		kind, _ := old["type"].(string)
		at := slices.IndexFunc(ours, func(c metav1.Condition) bool { return c.Type == kind })
		switch {
		case at < 0 && slices.Contains(gone, kind):
		case at < 0:
			out = append(out, c)
		case !done[kind]:
			done[kind] = true
			out = append(out, condition(ours[at], old, now))
		}
	}
	for _, c := range ours {
		if !done[c.Type] {
			out = append(out, condition(c, nil, now))
		}
	}
	return out
}

// condition is one as it is written, given what it was.
func condition(c metav1.Condition, old map[string]any, now time.Time) map[string]any {
	out := map[string]any{"type": c.Type, "status": string(c.Status), "reason": c.Reason, "message": c.Message, "lastTransitionTime": now.UTC().Format(time.RFC3339)}
	if c.ObservedGeneration != 0 {
		out["observedGeneration"] = c.ObservedGeneration
	}
	if since, ok := old["lastTransitionTime"]; ok && old["status"] == string(c.Status) {
		out["lastTransitionTime"] = since
	}
	return out
}

// mergeListeners is what is said of a Gateway's listeners: all of it is ours, but for
// conditions of types that we do not report.
func (s *Status) mergeListeners(current any, now time.Time) []any {
	list, _ := current.([]any)
	out := []any{}
	for _, l := range s.Listeners {
		var before any
		for _, old := range list {
			if old, ok := old.(map[string]any); ok && old["name"] == string(l.Name) {
				before = old["conditions"]
			}
		}
		entry := plain(l).(map[string]any)
		entry["supportedKinds"] = plain(l.SupportedKinds) // even if there are none
		entry["conditions"] = mergeConditions(before, l.Conditions, now)
		out = append(out, entry)
	}
	return out
}

// mergeParents keeps the entries of others, where they are, and puts ours in.
func (s *Status) mergeParents(current []any, now time.Time) []any {
	named := s.Resource != alphaPoolResource // entries say whose they are
	out := []any{}
	done := make(map[string]bool, len(s.Parents))
	for _, e := range current {
		entry, _ := e.(map[string]any)
		id := refKey(parentOf(e), s.Namespace)
		at := slices.IndexFunc(s.Parents, func(p ParentStatus) bool { return refKey(p.Ref, s.Namespace) == id })
		switch {
		case named && entry["controllerName"] != ControllerName, !named && at < 0:
			out = append(out, e)
		case at < 0 || s.Parents[at].Gone || done[id]:
		case len(s.Parents[at].Conditions) == 0: // another process's of ours
			done[id] = true
			out = append(out, e)
		default:
			done[id] = true
			next := make(map[string]any, len(entry))
			maps.Copy(next, entry)
			next["conditions"] = mergeConditions(entry["conditions"], s.Parents[at].Conditions, now, "PartiallyInvalid")
			out = append(out, next)
		}
	}
	for _, p := range s.Parents {
		if id := refKey(p.Ref, s.Namespace); !done[id] && !p.Gone && len(p.Conditions) > 0 && len(out) < maxParents {
			done[id] = true
			entry := map[string]any{"parentRef": plain(p.Ref), "conditions": mergeConditions(nil, p.Conditions, now)}
			if named {
				entry["controllerName"] = ControllerName
			}
			out = append(out, entry)
		}
	}
	return out
}

// parentsField is where the status of a kind has its parents.
func parentsField(resource schema.GroupVersionResource) string {
	if resource == alphaPoolResource {
		return "parent"
	}
	return "parents"
}

// entriesOf gives the entries of a status for parents.
func entriesOf(status map[string]any, resource schema.GroupVersionResource) []any {
	list, _ := status[parentsField(resource)].([]any)
	return list
}

// parentOf is whom an entry is about.
func parentOf(entry any) (ref gatewayv1.ParentReference) {
	e, _ := entry.(map[string]any)
	raw, _ := e["parentRef"].(map[string]any)
	if runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &ref) != nil {
		return gatewayv1.ParentReference{} // that of no object
	}
	return ref
}

// refKey is equal for references that mean the same to an object of a namespace.
func refKey(ref gatewayv1.ParentReference, ns string) string {
	kind, in := "Gateway", ns
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	if ref.Namespace != nil {
		in = string(*ref.Namespace)
	}
	return fmt.Sprintf("%s/%s %s/%s#%s:%d", groupOf(ref.Group, gatewayv1.GroupName), kind, in, ref.Name, value(ref.SectionName), value(ref.Port))
}
