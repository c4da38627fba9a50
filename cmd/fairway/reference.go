package main

import (
	"slices"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// The metrics of the Inference Extension's reference picker, for the dashboards that
// are there: each is one of ours by another name. Names and labels are those of
// llm-d-router's pkg/epp/metrics.

// alias says that a metric is one of ours, which has the labels of ours too.
type alias struct {
	name, ours string
	labels     map[string]string // what it calls labels of ours
	of         func(m *dto.Metric) bool
	mean       bool // over the endpoints of the pool
}

var (
	modelNames = map[string]string{"model": "model_name"}
	errorNames = map[string]string{"model": "model_name", "code": "error_code"}
	poolNames  = map[string]string{"pool": "name"}
	podNames   = map[string]string{"pool": "name", "endpoint": "model_server_pod"}
	flowNames  = map[string]string{"pool": "inference_pool", "criticality": "priority"}
)

var aliases = append([]alias{
	{name: "inference_pool_ready_pods", ours: "fairway_pool_endpoints", labels: poolNames},
	{name: "inference_pool_average_kv_cache_utilization", ours: "fairway_pool_kv_cache_usage_ratio", labels: poolNames},
	{name: "inference_pool_average_queue_size", ours: "fairway_pool_requests_waiting", labels: poolNames, mean: true},
	{name: "inference_pool_average_running_requests", ours: "fairway_pool_requests_running", labels: poolNames, mean: true},
	{name: "inference_pool_per_pod_queue_size", ours: "fairway_endpoint_requests_waiting", labels: podNames},
	{name: "inference_extension_info", ours: "fairway_build_info", labels: map[string]string{"version": "build_ref"}},
	{name: "inference_extension_flow_control_queue_size", ours: "fairway_queue_length", labels: flowNames},
	{name: "inference_extension_flow_control_request_queue_duration_seconds", ours: "fairway_queue_seconds", labels: flowNames},
}, append(ofRequests("inference_objective_"), ofRequests("inference_model_")...)...)

// ofRequests are those that are named after what models are ranked by: InferenceObjectives,
// before v1.0 InferenceModels.
func ofRequests(prefix string) []alias {
	return []alias{
		{name: prefix + "request_total", ours: "fairway_requests_total", labels: modelNames},
		{name: prefix + "request_error_total", ours: "fairway_requests_total", labels: errorNames, of: isError},
		{name: prefix + "request_duration_seconds", ours: "fairway_request_duration_seconds", labels: modelNames},
		{name: prefix + "request_ttft_seconds", ours: "fairway_time_to_first_token_seconds", labels: modelNames},
		{name: prefix + "request_tpot_seconds", ours: "fairway_time_per_output_token_seconds", labels: modelNames},
	}
}

func isError(m *dto.Metric) bool {
	code, err := strconv.Atoi(labelOf(m, "code"))
	return err == nil && code >= 400
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// withAliases adds to what was gathered the same by the reference picker's names.
func withAliases(families []*dto.MetricFamily) []*dto.MetricFamily {
	ours := make(map[string]*dto.MetricFamily, len(families))
	for _, f := range families {
		ours[f.GetName()] = f
	}
	endpoints := make(map[string]float64) // by pool
	for _, m := range ours["fairway_pool_endpoints"].GetMetric() {
		endpoints[labelOf(m, "pool")] = m.GetGauge().GetValue()
	}
	for i := range aliases {
		a := &aliases[i]
		f := ours[a.ours]
		next := &dto.MetricFamily{Name: &a.name, Help: proto.String("As " + a.ours + "."), Type: f.GetType().Enum()}
		for _, m := range f.GetMetric() {
			if a.of != nil && !a.of(m) {
				continue
			}
			n := proto.CloneOf(m)
			for _, l := range n.GetLabel() {
				if theirs, ok := a.labels[l.GetName()]; ok {
					l.Name = &theirs
				}
			}
			slices.SortFunc(n.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
			if a.mean {
				of := max(endpoints[labelOf(m, "pool")], 1)
				n.Gauge.Value = proto.Float64(n.GetGauge().GetValue() / of)
			}
			next.Metric = append(next.Metric, n)
		}
		if len(next.Metric) > 0 {
			families = append(families, next)
		}
	}
	return families
}
