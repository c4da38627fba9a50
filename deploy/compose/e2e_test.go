//go:build e2e

// Package compose_test runs docker-compose.yaml on a real Docker engine and uses it as a client would, on
// the ports it publishes. `make e2e-compose` gives it an engine of its own.
package compose_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

const (
	origin = "http://127.0.0.1:8080"
	ops    = "http://127.0.0.1:15020"
	admin  = "http://127.0.0.1:15000"
)

var pods = []string{"pod-1:8000", "pod-2:8000", "pod-3:8000"}

var client = &http.Client{Timeout: 2 * time.Minute}

func TestCompose(t *testing.T) {
	c := newComposition(t)
	c.run(t, append(documented(t), "-d")...)
	fairway := c.container(t, "fairway")
	waitFor(t, 5*time.Minute, ops+"/healthz/ready")

	steps := []struct {
		name string
		test func(t *testing.T)
	}{
		{"models", testModels},
		{"answer", testAnswer},
		{"stream", testStream},
		{"conversation stays on its pod", testConversation},
		{"new system prompts spread", testSpread},
		{"admin", testAdmin},
		{"confined", func(t *testing.T) { testConfined(t, fairway) }},
		{"workload", func(t *testing.T) { testWorkload(t, c) }},
		{"a pod restarts", func(t *testing.T) { testPodRestart(t, c) }},
		{"stop drains", func(t *testing.T) { testDrain(t, c, fairway) }},
	}
	for _, step := range steps {
		t.Run(step.name, step.test)
	}
}

func testModels(t *testing.T) {
	resp := get(t, origin+"/v1/models")
	var models struct {
		Data []struct{ ID string }
	}
	if err := json.Unmarshal(resp.body, &models); err != nil || len(models.Data) == 0 || models.Data[0].ID != "llama" {
		t.Errorf("the models are %s (%v), want llama first", resp.body, err)
	}
}

func testAnswer(t *testing.T) {
	resp := chat(t, chatRequest{Messages: []chatMessage{{"user", "What is a fairway?"}}, MaxTokens: 16}, true)
	if pod := resp.Header.Get("x-fairway-endpoint"); !slices.Contains(pods, pod) {
		t.Errorf("x-fairway-endpoint is %q, want one of %v", pod, pods)
	}
	if resp.Header.Get("x-request-id") == "" {
		t.Error("the answer has no x-request-id")
	}
	if resp.answer.Usage.CompletionTokens != 16 || resp.answer.text() == "" {
		t.Errorf("the answer is %s, want a text of 16 tokens", resp.body)
	}

	resp = chat(t, chatRequest{Messages: []chatMessage{{"user", "What is a fairway?"}}, MaxTokens: 1}, false)
	if pod := resp.Header.Get("x-fairway-endpoint"); pod != "" {
		t.Errorf("x-fairway-endpoint is %q in an answer that was not asked to explain itself", pod)
	}
}

func testStream(t *testing.T) {
	s := openStream(t, chatRequest{Messages: []chatMessage{{"user", "Count."}}, MaxTokens: 100})
	defer s.body.Close()
	if pod := s.header.Get("x-fairway-endpoint"); !slices.Contains(pods, pod) {
		t.Errorf("x-fairway-endpoint is %q, want one of %v", pod, pods)
	}
	if kind := s.header.Get("content-type"); !strings.HasPrefix(kind, "text/event-stream") {
		t.Errorf("content-type is %q, want text/event-stream", kind)
	}
	events, last := 0, ""
	for data := range s.events(t) {
		if strings.Contains(data, `"usage":{`) {
			t.Errorf("the stream tells usage, which was not asked for: %s", data)
		}
		events, last = events+1, data
	}
	if events < 50 || last != "[DONE]" {
		t.Errorf("the stream has %d events and ends with %q, want about 100 and [DONE]", events, last)
	}

	// Events that come while the pod has a quarter of an hour to go were not held back.
	s = openStream(t, chatRequest{Messages: []chatMessage{{"user", "Count on."}}, MaxTokens: 100_000})
	defer s.body.Close()
	events = 0
	for range s.events(t) {
		if events++; events == 20 {
			return
		}
	}
	t.Errorf("of an answer without end %d events came", events)
}

func testConversation(t *testing.T) {
	messages := []chatMessage{{"system", "You are patient. " + strings.Repeat("Answer with care. ", 200)}}
	home := ""
	for turn := range 6 {
		messages = append(messages, chatMessage{"user", fmt.Sprintf("Question %d: and then?", turn)})
		resp := chat(t, chatRequest{Messages: messages, MaxTokens: 8}, true)
		pod := resp.Header.Get("x-fairway-endpoint")
		if turn == 0 {
			home = pod
		} else if pod != home {
			t.Errorf("turn %d went to %s, the conversation is cached on %s", turn, pod, home)
		} else if resp.answer.Usage.Details.CachedTokens == 0 {
			t.Errorf("turn %d found nothing cached on %s", turn, pod)
		}
		messages = append(messages, chatMessage{"assistant", resp.answer.text()})
	}
}

func testSpread(t *testing.T) {
	seen := map[string]int{}
	for i := range 24 {
		system := strings.Repeat(fmt.Sprintf("This is system prompt %d. ", i), 100)
		resp := chat(t, chatRequest{Messages: []chatMessage{{"system", system}, {"user", "Hello."}}, MaxTokens: 1}, true)
		seen[resp.Header.Get("x-fairway-endpoint")]++
	}
	if len(seen) != len(pods) {
		t.Errorf("24 unrelated prompts went to %v, want every one of %v used", seen, pods)
	}
}

func testAdmin(t *testing.T) {
	for _, path := range []string{admin + "/config", admin + "/endpoints", ops + "/healthz/live"} {
		get(t, path)
	}
	if n := requestsCounted(t); n == 0 {
		t.Error("fairway_requests_total counts nothing after requests were served")
	}
}

// testConfined looks at the container's process from outside: what the kernel holds it to, whatever
// the compose file says.
func testConfined(t *testing.T, container string) {
	pid := inspect(t, container, "{{.State.Pid}}")
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Skipf("the engine's processes cannot be seen from here: %v", err)
	}
	for _, want := range []string{
		"Uid:\t65532\t65532\t65532\t65532",
		"Gid:\t65532\t65532\t65532\t65532",
		"CapBnd:\t0000000000000000",
		"CapEff:\t0000000000000000",
		"NoNewPrivs:\t1",
	} {
		if !bytes.Contains(status, []byte("\n"+want+"\n")) {
			t.Errorf("/proc/%s/status lacks %q", pid, want)
		}
	}
	// Root, which a file's mode does not stop, tries what the proxy must not be able to do.
	if os.Geteuid() != 0 {
		t.Skip("writing to the container's root needs root")
	}
	for _, name := range []string{"probe", "etc/fairway/probe"} {
		if err := os.WriteFile("/proc/"+pid+"/root/"+name, nil, 0o600); !errors.Is(err, syscall.EROFS) {
			t.Errorf("writing /%s in the container: %v, want %v", name, err, syscall.EROFS)
		}
	}
}

func testWorkload(t *testing.T, c *composition) {
	before := requestsCounted(t)
	t.Setenv("WORKLOAD_DURATION", "10s")
	t.Log(c.run(t, "run", "--rm", "-T", "workload"))
	// 4 a second for 10 seconds; arrivals are random.
	if n := requestsCounted(t) - before; n < 10 {
		t.Errorf("the workload sent %v requests, want about 40", n)
	}
}

// testPodRestart stops a pod: the others serve everything, and it is used again when it is back. The name of
// a stopped container is unknown, and where no outer name server says so, looking it up takes seconds.
func testPodRestart(t *testing.T, c *composition) {
	c.run(t, "stop", "-t", "1", "pod-2")
	for i := range 12 {
		resp := chat(t, chatRequest{Messages: []chatMessage{{"user", strings.Repeat(fmt.Sprintf("Without a pod, %d. ", i), 100)}}, MaxTokens: 1}, true)
		if pod := resp.Header.Get("x-fairway-endpoint"); pod == "pod-2:8000" {
			t.Errorf("request %d went to %s, which is stopped", i, pod)
		}
	}
	c.run(t, "start", "pod-2")
	deadline := time.Now().Add(5 * time.Minute)
	for i := 0; ; i++ {
		resp := chat(t, chatRequest{Messages: []chatMessage{{"user", strings.Repeat(fmt.Sprintf("With it again, %d. ", i), 100)}}, MaxTokens: 1}, true)
		if resp.Header.Get("x-fairway-endpoint") == "pod-2:8000" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests after it came back, pod-2 has not served one", i)
		}
	}
}

func testDrain(t *testing.T, c *composition, fairway string) {
	s := openStream(t, chatRequest{Messages: []chatMessage{{"user", "Tell a long story."}}, MaxTokens: 400})
	defer s.body.Close()
	stopped := make(chan error, 1)
	last := ""
	for data := range s.events(t) {
		if last == "" { // it streams: now stop
			go func() { stopped <- c.command("stop", "fairway").Run() }()
		}
		last = data
	}
	if last != "[DONE]" {
		t.Errorf("the stream ended with %q when fairway was stopped, want it finished", last)
	}
	if err := <-stopped; err != nil {
		t.Errorf("docker-compose stop: %v", err)
	}
	if code := inspect(t, fairway, "{{.State.ExitCode}}"); code != "0" {
		t.Errorf("fairway exited with %s when it was stopped, want 0", code)
	}
	if _, err := client.Get(ops + "/healthz/ready"); err == nil {
		t.Error("fairway still answers after it was stopped")
	}
	c.run(t, "stop")
}

// composition is docker-compose.yaml on an engine, as its own project.
type composition struct {
	program []string // docker compose, or docker-compose
}

// newComposition finds the program; when the test ends, everything of the project is removed.
func newComposition(t *testing.T) *composition {
	c := &composition{program: []string{"docker", "compose"}}
	if exec.Command("docker", "compose", "version").Run() != nil {
		c.program = []string{"docker-compose"}
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := c.command("logs", "--no-color", "--tail", "100").CombinedOutput()
			t.Logf("the containers' logs:\n%s", logs)
		}
		c.run(t, "--profile", "workload", "down", "--volumes", "--timeout", "10")
	})
	return c
}

// documented is what docs/getting-started.md has people say to docker compose.
func documented(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^docker compose -f deploy/compose/docker-compose.yaml (.*)$`).FindAllSubmatch(page, -1)
	if len(all) != 1 {
		t.Fatalf("the page has %d commands for docker compose", len(all))
	}
	return strings.Fields(string(all[0][1]))
}

func (c *composition) command(args ...string) *exec.Cmd {
	line := slices.Concat(c.program, []string{"--project-name", "fairway-e2e", "--file", "docker-compose.yaml"}, args)
	return exec.Command(line[0], line[1:]...)
}

// run runs the command to its end and returns what it printed.
func (c *composition) run(t *testing.T, args ...string) string {
	t.Helper()
	output, err := c.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", strings.Join(c.program, " "), strings.Join(args, " "), err, output)
	}
	return string(output)
}

// container is the id of a service's container.
func (c *composition) container(t *testing.T, service string) string {
	t.Helper()
	return strings.TrimSpace(c.run(t, "ps", "-q", service))
}

func inspect(t *testing.T, container, format string) string {
	t.Helper()
	output, err := exec.Command("docker", "inspect", "--format", format, container).Output()
	if err != nil {
		t.Fatalf("docker inspect %s: %v", container, err)
	}
	return strings.TrimSpace(string(output))
}

// waitFor asks a URL until it answers with 200.
func waitFor(t *testing.T, atMost time.Duration, url string) {
	t.Helper()
	give := time.After(atMost)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := client.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-give:
			t.Fatalf("%s after %v: %v", url, atMost, err)
		case <-tick.C:
		}
	}
}

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type chatRequest struct {
	Model     string        `json:"model"`
	Messages  []chatMessage `json:"messages"`
	MaxTokens int           `json:"max_tokens"`
	IgnoreEOS bool          `json:"ignore_eos"`
	Stream    bool          `json:"stream,omitempty"`
}

type chatAnswer struct {
	Choices []struct{ Message chatMessage }
	Usage   struct {
		CompletionTokens int `json:"completion_tokens"`
		Details          struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
}

func (a chatAnswer) text() string {
	if len(a.Choices) == 0 {
		return ""
	}
	return a.Choices[0].Message.Content
}

// response is a response with status 200, read to its end.
type response struct {
	*http.Response
	body   []byte
	answer chatAnswer
}

func get(t *testing.T, url string) response {
	t.Helper()
	return do(t, "GET", url, nil, nil)
}

// chat asks for an answer in one piece.
func chat(t *testing.T, request chatRequest, explain bool) response {
	t.Helper()
	header := http.Header{"Content-Type": {"application/json"}}
	if explain {
		header.Set("x-fairway-explain", "1")
	}
	resp := do(t, "POST", origin+"/v1/chat/completions", header, encode(t, request))
	if err := json.Unmarshal(resp.body, &resp.answer); err != nil {
		t.Fatalf("the answer is %s: %v", resp.body, err)
	}
	return resp
}

func encode(t *testing.T, request chatRequest) []byte {
	t.Helper()
	request.Model, request.IgnoreEOS = "llama", true
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func do(t *testing.T, method, url string, header http.Header, body []byte) response {
	t.Helper()
	resp := send(t, method, url, header, body)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, url, resp.Status, content)
	}
	return response{Response: resp, body: content}
}

func send(t *testing.T, method, url string, header http.Header, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// stream is a streamed answer whose head has come.
type stream struct {
	header http.Header
	body   io.ReadCloser
}

func openStream(t *testing.T, request chatRequest) stream {
	t.Helper()
	request.Stream = true
	resp := send(t, "POST", origin+"/v1/chat/completions",
		http.Header{"Content-Type": {"application/json"}, "X-Fairway-Explain": {"1"}}, encode(t, request))
	if resp.StatusCode != http.StatusOK {
		content, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		t.Fatalf("a streamed answer: %s: %s", resp.Status, content)
	}
	return stream{resp.Header, resp.Body}
}

// events yields the data of each event.
func (s stream) events(t *testing.T) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		lines := bufio.NewScanner(s.body)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && !yield(data) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			t.Errorf("the stream broke: %v", err)
		}
	}
}

// requestsCounted is how many requests have ended.
func requestsCounted(t *testing.T) float64 {
	t.Helper()
	return process.Metric(t, ops+"/metrics", "fairway_requests_total")
}
