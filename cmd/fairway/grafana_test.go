package main

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Grafana's dashboard and the alert rules speak of metrics that there are.
func TestGrafanaMetricsExist(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range []string{"dashboard.json", "alerts.yaml", "alerts_test.yaml"} {
		text, err := os.ReadFile("../../deploy/grafana/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid(text) {
			t.Errorf("%s is not JSON", name)
		}
		for _, m := range regexp.MustCompile(`\b(fairway_[a-z_]+?)(?:_bucket)?[{ \[)]`).FindAllStringSubmatch(string(text), -1) {
			n++
			if !strings.Contains(string(page), "`"+m[1]+"`") {
				t.Errorf("%s: there is no metric %s", name, m[1])
			}
		}
	}
	if n < 50 {
		t.Errorf("%d names found: this test shows little", n)
	}
}

// Every alert has its row in the runbook, and no other; and its condition is made in alerts_test.yaml.
func TestDocumentedAlerts(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("../../deploy/grafana/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("../../deploy/grafana/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	names := func(text []byte, row string) []string {
		var all []string
		for _, m := range regexp.MustCompile(row).FindAllSubmatch(text, -1) {
			all = append(all, string(m[1]))
		}
		slices.Sort(all)
		return all
	}
	documented, there := names(page, "(?m)^\\| `(Fairway\\w+)` \\|"), names(rules, `(?m)- alert: (\w+)`)
	if !slices.Equal(documented, there) || len(there) < 10 {
		t.Errorf("documented %v, there are %v", documented, there)
	}
	fires := regexp.MustCompile(`alertname: (\w+)\n +exp_alerts:\n +- exp_labels|alertname="(\w+)", .*value: 1}`)
	made := make(map[string]bool)
	for _, m := range fires.FindAllStringSubmatch(string(tests), -1) {
		made[m[1]+m[2]] = true
	}
	for _, name := range there {
		if !made[name] {
			t.Errorf("alerts_test.yaml does not have %s fire", name)
		}
	}
}
