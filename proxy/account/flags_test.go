package account

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestResponseFlags(t *testing.T) {
	for _, tt := range []struct {
		rec  Record
		want string
	}{
		{Record{Status: 200}, "-"},
		{Record{Status: 500}, "-"}, // the engine's own
		{Record{Reason: "fairway_forbidden", Policy: "deny-evil"}, "-"},
		{Record{Reason: "fairway_forbidden", Policy: "ask", ByAuthorizer: true}, "UAEX"},
		{Record{Reason: "fairway_authorizer_failed", ByAuthorizer: true}, "UAEX"},
		{Record{Reason: "fairway_unauthenticated"}, "UAEX"},
		{Record{Reason: "fairway_body_too_large"}, "-"},
		{Record{Reason: "fairway_upstream_failed"}, "UF"},
		{Record{Reason: "fairway_upstream_failed", Retries: 1}, "UF,URX"},
		{Record{Reason: "fairway_upstream_failed", Unanswered: true}, "UC"},
		{Record{Reason: "fairway_upstream_failed", Unanswered: true, Retries: 1}, "UC,URX"},
		{Record{Unanswered: true, Retries: 1, Status: 200}, "-"}, // another endpoint answered
		{Record{Reason: "fairway_timeout", Unanswered: true}, "UT"},
		{Record{Reason: UpstreamCut}, "UC"},
		{Record{Reason: ClientGone}, "DC"},
		{Record{Reason: "fairway_budget_exceeded"}, "RL"},
		{Record{Reason: "fairway_no_endpoint"}, "UH"},
		{Record{Reason: "fairway_saturated"}, "UO"},
		{Record{Reason: "fairway_no_route"}, "NR"},
	} {
		if got := responseFlags(&tt.rec); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.rec, got, tt.want)
		}
	}
}

// The flags are Envoy's, of reasons that there are.
func TestResponseFlagsAreKnown(t *testing.T) {
	// envoy, "Access logging", %RESPONSE_FLAGS%, as of 1.40.
	envoys := strings.Fields("DC DF DI DO DPE DR DT FI IH LH LR NC NFCF NR OM RFCF RL RLSE SI UAEX UC UF UH UMSDR UO UPE UR URX UT")
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	for reason, flag := range flags {
		if !slices.Contains(envoys, flag) {
			t.Errorf("%s: Envoy has no flag %s", reason, flag)
		}
		if !strings.Contains(string(page), "`"+reason+"`") {
			t.Errorf("%s is no reason that docs/errors.md knows", reason)
		}
	}
}
