package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
)

// apiServer answers as a Kubernetes API server does to those who list and watch,
// for the few objects that it is given.
type apiServer struct {
	*httptest.Server

	mu      sync.Mutex
	objects map[string][]any         // by resource
	hidden  map[string]bool          // resources that nobody may see
	watches map[string][]chan string // by resource
	version int
}

func startAPIServer(t *testing.T) *apiServer {
	s := &apiServer{objects: make(map[string][]any), watches: make(map[string][]chan string), version: 1}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := path.Base(r.URL.Path)
	w.Header().Set("content-type", "application/json")
	s.mu.Lock()
	objects, known := s.objects[resource]
	if resource == "inferencepools" && !strings.Contains(r.URL.Path, "/v1alpha2/") {
		known = false
	}
	if s.hidden[resource] {
		s.mu.Unlock()
		w.WriteHeader(403)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
		return
	}
	if !known || r.URL.Query().Get("sendInitialEvents") == "true" {
		s.mu.Unlock()
		status, reason := 404, "NotFound"
		if known {
			status, reason = 422, "Invalid"
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, status)
		return
	}
	if r.URL.Query().Get("watch") == "" {
		json.NewEncoder(w).Encode(map[string]any{"kind": "List", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": fmt.Sprint(s.version)}, "items": objects})
		s.mu.Unlock()
		return
	}
	events := make(chan string, 16)
	s.watches[resource] = append(s.watches[resource], events)
	s.mu.Unlock()
	w.(http.Flusher).Flush()
	for {
		select {
		case e := <-events:
			fmt.Fprintln(w, e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// put adds an object, or changes the one of its name.
func (s *apiServer) put(t *testing.T, resource, text string) {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	name := func(o any) any { return o.(map[string]any)["metadata"].(map[string]any)["name"] }
	o["metadata"].(map[string]any)["resourceVersion"] = fmt.Sprint(s.version)
	event := "ADDED"
	kept := []any{o}
	for _, other := range s.objects[resource] {
		if name(other) == name(o) {
			event = "MODIFIED"
		} else {
			kept = append(kept, other)
		}
	}
	s.objects[resource] = kept
	raw, err := json.Marshal(map[string]any{"type": event, "object": o})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range s.watches[resource] {
		w <- string(raw)
	}
}

// kubeconfig writes a file that names it.
func (s *apiServer) kubeconfig(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "kubeconfig")
	writeFile(t, name, fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}],
		clusters: [{name: c, cluster: {server: %q}}]}`, s.URL))
	return name
}

// The announcement's objects, read from an API server, serve requests; what changes
// there, or in the settings beside them, is in force soon after.
func TestServeFromACluster(t *testing.T) {
	v1 := startPod(t, "", mock.Config{Speed: 100, Model: "llama-3-8b-customer-v1"})
	_, port, _ := net.SplitHostPort(v1.address)
	s := startAPIServer(t)
	s.put(t, "inferencepools", `{"apiVersion":"inference.networking.x-k8s.io/v1alpha2","kind":"InferencePool","metadata":{"name":"llama-pool","namespace":"ai"},
		"spec":{"targetPortNumber":`+port+`,"selector":{"app":"llama-server"}}}`)
	model := func(weight int) string {
		return fmt.Sprintf(`{"apiVersion":"inference.networking.x-k8s.io/v1alpha2","kind":"InferenceModel","metadata":{"name":"bot","namespace":"ai"},
			"spec":{"modelName":"customer-support","criticality":"Critical","poolRef":{"name":"llama-pool"},
			"targetModels":[{"name":"llama-3-8b-customer-v1","weight":%d},{"name":"not-served","weight":%d}]}}`, weight, 100-weight)
	}
	s.put(t, "inferencemodels", model(100))
	pod := func(ready string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"ai","uid":"u1","labels":{"app":"llama-server"}},
			"status":{"podIP":"127.0.0.1","phase":"Running","conditions":[{"type":"Ready","status":"` + ready + `"}]}}`
	}
	s.put(t, "pods", pod("False"))

	addresses := freeAddresses(2)
	settings := filepath.Join(t.TempDir(), "settings.yaml")
	listen := fmt.Sprintf("listen: {http: %q, hbone: \"\"}\n", addresses[0])
	writeFile(t, settings, listen)
	r := serve(t, "--kubernetes", "--kubeconfig", s.kubeconfig(t), "--config", settings, "--metrics", addresses[1], "--admin", "127.0.0.1:0")
	ask := func() int {
		resp, err := http.Post("http://"+addresses[0]+"/v1/chat/completions", "application/json",
			strings.NewReader(`{"model":"customer-support","messages":[{"role":"user","content":"hi"}],"max_tokens":1}`))
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	waitFor(t, "readiness", func() bool { status, _ := get("http://" + addresses[1] + "/healthz/ready"); return status == 200 })
	if status := ask(); status != 503 {
		t.Errorf("%d without a pod that is ready", status)
	}
	s.put(t, "pods", pod("True"))
	waitFor(t, "the pod serves", func() bool { return ask() == 200 })
	s.put(t, "inferencemodels", model(0))
	waitFor(t, "the other target is asked for", func() bool { return ask() == 404 })
	if v1.Stats().Received == 0 {
		t.Error("no request reached the engine")
	}
	// Settings change while the objects stay, and the objects while the settings stay.
	writeFile(t, settings, listen+"limits: {body: 10}")
	waitFor(t, "the smaller limit is in force", func() bool { return ask() == 413 })
	s.put(t, "inferencemodels", model(100))
	writeFile(t, settings, listen)
	waitFor(t, "the pod serves again", func() bool { return ask() == 200 })
	r.stop()
	if code := <-r.code; code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
	http.DefaultClient.CloseIdleConnections()
}

// Policies of a cluster are in force soon after they are there, and one that cannot be
// read denies.
func TestServePoliciesFromACluster(t *testing.T) {
	engine := startPod(t, "", mock.Config{Speed: 100, Model: "m"})
	_, port, _ := net.SplitHostPort(engine.address)
	s := startAPIServer(t)
	s.put(t, "inferencepools", `{"apiVersion":"inference.networking.x-k8s.io/v1alpha2","kind":"InferencePool","metadata":{"name":"p","namespace":"ai"},
		"spec":{"targetPortNumber":`+port+`,"selector":{"app":"x"}}}`)
	s.put(t, "pods", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"ai","uid":"u1","labels":{"app":"x"}},
		"status":{"podIP":"127.0.0.1","phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`)
	s.put(t, "gateways", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"w","namespace":"ai","uid":"g1"},"spec":{"gatewayClassName":"fairway-waypoint"}}`)
	policy := func(rules string) string {
		return `{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"a","namespace":"ai"},
			"spec":{"targetRefs":[{"group":"gateway.networking.k8s.io","kind":"Gateway","name":"w"}],"action":"DENY","rules":[` + rules + `]}}`
	}
	s.put(t, "authorizationpolicies", policy(`{"to":[{"operation":{"paths":["/version"]}}]}`))
	addresses := freeAddresses(2)
	r := serve(t, "--kubernetes", "--kubeconfig", s.kubeconfig(t), "--listen", addresses[0], "--metrics", addresses[1], "--admin", "127.0.0.1:0")
	waitFor(t, "readiness", func() bool { status, _ := get("http://" + addresses[1] + "/healthz/ready"); return status == 200 })
	asks := func(path string, want int) func() bool {
		return func() bool { status, _ := get("http://" + addresses[0] + path); return status == want }
	}
	if !asks("/version", 403)() {
		t.Error("the policy that was there is not in force as soon as it is ready")
	}
	waitFor(t, "the pod serves", asks("/health", 200))
	s.put(t, "authorizationpolicies", policy(`{"to":[{"operation":{"paths":["/health"]}}]}`))
	waitFor(t, "the changed policy", asks("/health", 403))
	if !asks("/version", 200)() {
		t.Error("the policy that was is still in force")
	}
	s.put(t, "authorizationpolicies", policy(`{"form":[]}`))
	waitFor(t, "the policy that cannot be read", asks("/version", 403))
	waitFor(t, "the line that says why", func() bool {
		return strings.Contains(r.stderr.String(), "unknown field") && strings.Contains(r.stderr.String(), "denied_by=ai/a")
	})
	r.stop()
	if code := <-r.code; code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
	http.DefaultClient.CloseIdleConnections()
}

// A process that may not see the policies lets nothing in; it is not ready either, so that a rollout does not put it in
// the place of one that does.
func TestNotReadyWithoutSightOfThePolicies(t *testing.T) {
	s := startAPIServer(t)
	s.put(t, "gateways", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"w","namespace":"ai","uid":"g1"},"spec":{"gatewayClassName":"fairway-waypoint"}}`)
	s.hidden = map[string]bool{"authorizationpolicies": true}
	addresses := freeAddresses(2)
	r := serve(t, "--kubernetes", "--kubeconfig", s.kubeconfig(t), "--listen", addresses[0], "--metrics", addresses[1], "--admin", "127.0.0.1:0")
	waitFor(t, "the objects", func() bool { return strings.Contains(r.stderr.String(), "objects in force") })
	if status, says := get("http://" + addresses[1] + "/healthz/ready"); status != 503 || !strings.Contains(says, "policies") {
		t.Errorf("%d: %s", status, says)
	}
	s.mu.Lock()
	s.hidden = nil
	s.mu.Unlock()
	waitFor(t, "readiness", func() bool { status, _ := get("http://" + addresses[1] + "/healthz/ready"); return status == 200 })
	s.put(t, "gateways", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"later","namespace":"ai","uid":"g2"},"spec":{"gatewayClassName":"fairway-waypoint"}}`)
	if status, says := get("http://" + addresses[1] + "/healthz/ready"); status != 200 {
		t.Errorf("%d after it was ready: %s", status, says)
	}
	r.stop()
	if code := <-r.code; code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
	http.DefaultClient.CloseIdleConnections()
}
