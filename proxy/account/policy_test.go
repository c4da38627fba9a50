package account

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPolicyDecisions(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, Config{})
	rec := untold("", 200)
	rec.AuditPolicy, rec.DryRun = "a", true
	r.Done(rec)
	rec.DryRunPolicy = "d"
	r.Done(rec)
	rec = untold("", 403)
	rec.Policy = "default"
	r.Done(rec)
	r.DoneTCP(rec)
	r.Done(untold("", 200))
	got := series(t, reg)
	want := map[string]float64{
		`fairway_policy_decisions_total{decision="audited",policy="a"}`:        2,
		`fairway_policy_decisions_total{decision="dry_run_allowed",policy=""}`: 1,
		`fairway_policy_decisions_total{decision="dry_run_denied",policy="d"}`: 1,
		`fairway_policy_decisions_total{decision="denied",policy="default"}`:   2,
	}
	maps.DeleteFunc(got, func(name string, _ float64) bool { return !strings.HasPrefix(name, "fairway_policy_") })
	if !maps.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", page(got), page(want))
	}
	for i := range 3 * maxPolicies {
		rec.Policy = fmt.Sprint("p", i)
		r.Done(rec)
	}
	if got := series(t, reg); len(r.policies.named) != maxPolicies || got[`fairway_policy_decisions_total{decision="denied",policy="other"}`] == 0 {
		t.Errorf("%d names are held", len(r.policies.named))
	}
}
