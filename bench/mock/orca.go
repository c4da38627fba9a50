package mock

import (
	"fmt"
	"strings"
)

// orca is the load report a request may ask for with the header endpoint-load-metrics-format, in the text or JSON form of the Open
// Request Cost Aggregation standard. vLLM gives it on whole answers only.
func (x *exchange) orca() []field {
	format := strings.ToUpper(x.req.Header.Get("Endpoint-Load-Metrics-Format"))
	if format != "TEXT" && format != "JSON" {
		return nil
	}
	st := x.s.stats()
	waiting, usage := string(appendFloat(nil, float64(st.Waiting))), string(appendFloat(nil, st.KVUsage))
	text := fmt.Sprintf("TEXT named_metrics.num_requests_waiting=%s, named_metrics.kv_cache_usage_perc=%s", waiting, usage)
	if format == "JSON" {
		text = fmt.Sprintf(`JSON {"named_metrics": {"num_requests_waiting": %s, "kv_cache_usage_perc": %s}}`, waiting, usage)
	}
	return []field{{"endpoint-load-metrics", text}}
}
