package main

import (
	"strings"
	"testing"
)

// The example manifests are what check finds nothing wrong with, taken together and
// each of those that stand alone.
func TestExamples(t *testing.T) {
	const all = "../../deploy/kubernetes"
	for _, path := range []string{all, all + "/announcement.yaml", all + "/mock-engines.yaml", all + "/scaling"} {
		if code, out, problems := call(t, "check", "-f", path); code != 0 {
			t.Errorf("%s: exit code %d\n%s%s", path, code, out, problems)
		}
	}
	_, out, _ := call(t, "check", "-f", all)
	for _, line := range []string{
		"ai-workloads/llm * /* ai-workloads/llama-pool",
		"customer-support ai-workloads/llama-pool Critical llama-3-8b-customer-v1 80%, llama-3-8b-customer-v2 20%",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
}
