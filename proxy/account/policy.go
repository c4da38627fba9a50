package account

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// maxPolicies bounds the values of the policy label; further names count as "other".
const maxPolicies = 256

// policyMetrics counts what policies say.
type policyMetrics struct {
	decisions *prometheus.CounterVec

	mu    sync.Mutex
	named map[string]bool // policies that have a label value of their own; guarded by mu
}

func newPolicyMetrics(reg prometheus.Registerer) *policyMetrics {
	m := &policyMetrics{
		named: make(map[string]bool),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_policy_decisions_total",
			Help: "Requests and connections that policies denied or audited, or that dry runs, were they enforced, would have denied or allowed; by policy (default: no ALLOW matched).",
		}, []string{"decision", "policy"}),
	}
	reg.MustRegister(m.decisions)
	return m
}

func (m *policyMetrics) count(rec *Record) {
	count := func(decision, policy string) { m.decisions.WithLabelValues(decision, m.label(policy)).Inc() }
	if rec.Policy != "" {
		count("denied", rec.Policy)
	}
	if rec.AuditPolicy != "" {
		count("audited", rec.AuditPolicy)
	}
	switch {
	case rec.DryRunPolicy != "":
		count("dry_run_denied", rec.DryRunPolicy)
	case rec.DryRun:
		count("dry_run_allowed", "")
	}
}

// label bounds the label: policies come and go.
func (m *policyMetrics) label(policy string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.named[policy] {
		if len(m.named) == maxPolicies {
			return "other"
		}
		m.named[policy] = true
	}
	return policy
}
