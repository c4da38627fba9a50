package account

// flags are Envoy's response flags (envoy, "Access logging", %RESPONSE_FLAGS%) for our reasons. What has none there is no failure of
// the proxy's or of the engine's, or one that Envoy tells by the code alone, as a policy's 403.
var flags = map[string]string{
	"fairway_no_endpoint":       "UH",
	"fairway_upstream_failed":   "UF", // but see responseFlags
	UpstreamCut:                 "UC",
	"fairway_timeout":           "UT",
	ClientGone:                  "DC",
	Stopped:                     "DC",
	ClientTimeout:               "SI",
	TunnelIdle:                  "SI",
	"fairway_no_route":          "NR",
	"fairway_unknown_model":     "NR",
	"fairway_no_backend":        "NC",
	"fairway_saturated":         "UO",
	"fairway_queue_full":        "UO",
	"fairway_queue_timeout":     "UO",
	"fairway_deadline":          "UO",
	"fairway_budget_exceeded":   "RL",
	"fairway_buffers_spent":     "OM",
	"fairway_exhausted":         "OM",
	"fairway_authorizer_failed": "UAEX", // as of Envoy's ext_authz, whether it denies or cannot ask
	"fairway_unauthenticated":   "UAEX", // as of Envoy's filter for JWTs
	"fairway_keys_unavailable":  "UAEX",
}

// responseFlags says what went wrong in Envoy's words, "-" for nothing.
func responseFlags(rec *Record) string {
	if rec.Reason == "" {
		return "-"
	}
	f := flags[rec.Reason]
	switch {
	case f == "UF" && rec.Unanswered && rec.Retries > 0:
		return "UC,URX" // and no attempt is left
	case f == "UF" && rec.Unanswered:
		return "UC"
	case f == "UF" && rec.Retries > 0:
		return "UF,URX"
	case f == "" && rec.ByAuthorizer:
		return "UAEX"
	case f == "":
		return "-"
	}
	return f
}
