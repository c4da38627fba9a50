package account

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// series are the metrics as Prometheus reads them: every line of the page by
// its name and labels.
func series(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	all := make(map[string]float64)
	for lines := bufio.NewScanner(w.Body); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		cut := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[cut+1:], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all[line[:cut]] = v
	}
	return all
}

// without gives the series but for the buckets of histograms, and what is 0.
func without(all map[string]float64) map[string]float64 {
	all = maps.Clone(all)
	maps.DeleteFunc(all, func(name string, v float64) bool { return strings.Contains(name, "_bucket{") || v == 0 })
	return all
}

// untold is a record of which only the outcome is known.
func untold(model string, status int) *Record {
	return &Record{
		Pool: "p", Model: model, Status: status, Duration: time.Second,
		PromptTokens: Unknown, CachedTokens: Unknown, CompletionTokens: Unknown,
		PredictedTokens: Unknown, PredictedHit: Unknown,
	}
}

// left is a record of a client that went away.
func left(pool string, status int, endpoint string) *Record {
	rec := untold("m", status)
	rec.Pool, rec.Reason, rec.Endpoint = pool, ClientGone, endpoint
	return rec
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, Config{})
	if got := series(t, reg); len(got) != 0 {
		t.Errorf("before the first record: %v", got)
	}
	for _, rec := range []*Record{
		{
			Pool: "a", Model: "m", Status: 200, Streamed: true, Retries: 2,
			Duration: 1500 * time.Millisecond, TTFT: 250 * time.Millisecond,
			PromptTokens: 100, CachedTokens: 60, CompletionTokens: 6, PredictedTokens: 90, PredictedHit: 64,
			Operation: "chat",
			Pick:      Pick{At: 125 * time.Millisecond, Queued: 62500 * time.Microsecond, PredictedTTFT: 100 * time.Millisecond, DecidedBy: "cache"},
		},
		{
			Pool: "a", Model: "m", Status: 200, Retries: 1, Duration: 500 * time.Millisecond,
			PromptTokens: 10, CachedTokens: 0, CompletionTokens: 3, PredictedTokens: 12, PredictedHit: 0,
		},
		{
			Pool: "a", Model: "m", Status: 200, Reason: UpstreamCut, Streamed: true,
			Duration: 2 * time.Second, TTFT: 750 * time.Millisecond,
			PromptTokens: Unknown, CachedTokens: Unknown, CompletionTokens: Unknown, PredictedTokens: 8, PredictedHit: Unknown,
		},
		{
			Pool: "b", Status: 429, Reason: "rate_limited", Duration: 125 * time.Millisecond,
			PromptTokens: Unknown, CachedTokens: Unknown, CompletionTokens: Unknown, PredictedTokens: Unknown, PredictedHit: Unknown,
		},
		left("p", 499, ""),
		left("a", 200, "10.0.0.1:8000"),
	} {
		r.Done(rec)
		r.settle() // what ends at about the same time is in no order
	}
	all := series(t, reg)
	want := map[string]float64{
		`fairway_requests_total{code="200",model="m",pool="a",reason=""}`:             2,
		`fairway_requests_total{code="200",model="m",pool="a",reason="upstream_cut"}`: 1,
		`fairway_requests_total{code="429",model="",pool="b",reason="rate_limited"}`:  1,
		`fairway_requests_total{code="499",model="m",pool="p",reason="client_gone"}`:  1,
		`fairway_requests_total{code="200",model="m",pool="a",reason="client_gone"}`:  1,
		`fairway_request_duration_seconds_count{pool="a"}`:                            4,
		`fairway_request_duration_seconds_sum{pool="a"}`:                              5,
		`fairway_request_duration_seconds_count{pool="b"}`:                            1,
		`fairway_request_duration_seconds_sum{pool="b"}`:                              0.125,
		`fairway_request_duration_seconds_count{pool="p"}`:                            1,
		`fairway_request_duration_seconds_sum{pool="p"}`:                              1,
		`fairway_time_to_first_token_seconds_count{model="m",pool="a"}`:               2,
		`fairway_time_to_first_token_seconds_sum{model="m",pool="a"}`:                 1,
		`fairway_time_per_output_token_seconds_count{model="m",pool="a"}`:             1,
		`fairway_time_per_output_token_seconds_sum{model="m",pool="a"}`:               0.25,
		`fairway_hit_prediction_error_tokens_count{pool="a"}`:                         2,
		`fairway_hit_prediction_error_tokens_sum{pool="a"}`:                           4,
		`fairway_ttft_prediction_ratio_count{pool="a"}`:                               1,
		`fairway_ttft_prediction_ratio_sum{pool="a"}`:                                 1.25,
		`fairway_queue_seconds_count{pool="a"}`:                                       1,
		`fairway_queue_seconds_sum{pool="a"}`:                                         0.0625,
		`fairway_picks_total{decided_by="cache",pool="a"}`:                            1,
		`fairway_clients_gone_total{phase="streaming",pool="a"}`:                      1,
		`fairway_clients_gone_total{phase="queued",pool="p"}`:                         1,
		`gen_ai_server_request_duration_seconds_count{error_type="",gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="m"}`: 1,
		`gen_ai_server_request_duration_seconds_sum{error_type="",gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="m"}`:   1.5,
		`gen_ai_server_time_to_first_token_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="m"}`:            1,
		`gen_ai_server_time_to_first_token_seconds_sum{gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="m"}`:              0.25,
		`gen_ai_server_time_per_output_token_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="m"}`:          1,
		`gen_ai_server_time_per_output_token_seconds_sum{gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="m"}`:            0.25,
		`fairway_tokens_total{kind="prompt",model="m",pool="a"}`:                                                                                        110,
		`fairway_tokens_total{kind="cached",model="m",pool="a"}`:                                                                                        60,
		`fairway_tokens_total{kind="completion",model="m",pool="a"}`:                                                                                    9,
		`fairway_predicted_tokens_total{kind="prompt",model="m",pool="a"}`:                                                                              110,
		`fairway_predicted_tokens_total{kind="cached",model="m",pool="a"}`:                                                                              64,
		`fairway_retries_total{pool="a"}`: 3,
	}
	if got := without(all); !maps.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", page(got), page(want))
	}
	for name, want := range map[string]float64{
		`fairway_request_duration_seconds_bucket{pool="a",le="0.32"}`:               0,
		`fairway_request_duration_seconds_bucket{pool="a",le="0.64"}`:               1,
		`fairway_request_duration_seconds_bucket{pool="a",le="1.28"}`:               2,
		`fairway_request_duration_seconds_bucket{pool="a",le="2.56"}`:               4,
		`fairway_request_duration_seconds_bucket{pool="a",le="163.84"}`:             4,
		`fairway_time_to_first_token_seconds_bucket{model="m",pool="a",le="0.005"}`: 0,
		`fairway_time_to_first_token_seconds_bucket{model="m",pool="a",le="0.32"}`:  1,
		`fairway_time_to_first_token_seconds_bucket{model="m",pool="a",le="+Inf"}`:  2,
	} {
		if got, ok := all[name]; !ok || got != want {
			t.Errorf("%s is %v (there: %v), want %v", name, got, ok, want)
		}
	}
}

// page lays series out as their page does.
func page(all map[string]float64) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintln(&b, name, all[name])
	}
	return b.String()
}

// tokens are the prompt tokens of the-pool, whatever the model.
func tokens(all map[string]float64) (n float64) {
	for name, v := range all {
		if strings.HasPrefix(name, `fairway_tokens_total{kind="prompt",`) && strings.HasSuffix(name, `pool="the-pool"}`) {
			n += v
		}
	}
	return n
}

// models are the values of the model label, with the requests of each.
func models(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for name, n := range series(t, reg) {
		if labels, ok := strings.CutPrefix(name, "fairway_requests_total{"); ok {
			_, model, _ := strings.Cut(labels, `model="`)
			model, _, _ = strings.Cut(model, `"`)
			all[model] += n
		}
	}
	return all
}

func TestModelLabel(t *testing.T) {
	type done struct {
		model  string
		status int
	}
	for _, tt := range []struct {
		name string
		done []done
		want map[string]float64
	}{
		{"none named", []done{{"", 200}, {"", 404}}, map[string]float64{"": 2}},
		{"served", []done{{"m", 200}, {"m", 200}, {"n", 201}}, map[string]float64{"m": 2, "n": 1}},
		{"stranger's", []done{{"x", 404}, {"y", 400}, {"z", 502}, {"m", 499}, {"u", 0}}, map[string]float64{"other": 5}},
		{"served later", []done{{"m", 503}, {"m", 200}, {"m", 503}}, map[string]float64{"other": 1, "m": 2}},
		{"redirected", []done{{"m", 301}, {"m", 304}}, map[string]float64{"other": 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			r := New(reg, Config{})
			for _, d := range tt.done {
				r.Done(untold(d.model, d.status))
				r.settle() // so that each is told of before the next
			}
			if got := models(t, reg); !maps.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// Those that wait to be told of wait at several places.
func TestModelLabelOfLaterFailures(t *testing.T) {
	for range 50 {
		reg := prometheus.NewRegistry()
		r := New(reg, Config{})
		var all sync.WaitGroup
		r.Done(untold("m", 200))
		for range 2 {
			all.Go(func() { r.Done(untold("m", 503)) })
		}
		all.Wait()
		if got := models(t, reg); got["m"] != 3 {
			t.Fatalf("an answer and two failures count as %v", got)
		}
	}
}

func TestModelLabelIsBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := New(reg, Config{})
	for i := range 3000 {
		r.Done(untold("stranger-"+strconv.Itoa(i), 404))
	}
	if got := series(t, reg); models(t, reg)["other"] != 3000 || len(without(got)) != 3 {
		t.Errorf("3000 strangers' names make\n%s", page(without(got)))
	}
	// What strangers asked for has taken no place from the models there are.
	for i := range maxModels + 50 {
		r.Done(untold("model-"+strconv.Itoa(i), 200))
	}
	got := models(t, reg)
	if len(got) != maxModels+1 || got["other"] != 3050 {
		t.Errorf("%d names, %v of them other", len(got), got["other"])
	}
	for i := range maxModels {
		if got["model-"+strconv.Itoa(i)] != 1 {
			t.Errorf("model-%d is not among them", i)
		}
	}
	if last := "model-" + strconv.Itoa(maxModels); got[last] != 0 {
		t.Errorf("%s has a series of its own", last)
	}
	// Those that have a label keep it.
	r.Done(untold("model-0", 500))
	if n := models(t, reg)["model-0"]; n != 2 {
		t.Errorf("model-0 counts %v", n)
	}
	if n := len(*r.metrics.models.known.Load()); n != maxModels {
		t.Errorf("%d names are held", n)
	}
}

// told is a record that tells everything there is to tell, of what no two
// fields say the same.
func told() *Record {
	return &Record{
		ID: "the-id", Method: "POST", Path: "/v1/chat/completions", Model: "the-model", Pool: "the-pool",
		Endpoint: "10.0.0.1:8000", Remote: "192.0.2.1:4711", Status: 200, Reason: "the-reason",
		Start: time.Unix(1e9, 0), Duration: 1234567 * time.Microsecond, TTFT: 98765 * time.Microsecond, Retries: 1, Streamed: true,
		PromptTokens: 11, CachedTokens: 12, CompletionTokens: 13, PredictedTokens: 14, PredictedHit: 15,
		BytesIn: 16, BytesOut: 17,
	}
}

// logged gives the fields of a record's line, but for those that every line has, as slog's.
func logged(t testing.TB, rec *Record) map[string]any {
	t.Helper()
	var out bytes.Buffer
	log := NewLog(&out, JSON)
	New(prometheus.NewRegistry(), Config{Access: log}).Done(rec)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 1 {
		t.Fatalf("%d lines: %s", n, &out)
	}
	var fields map[string]any
	if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
		t.Fatal(err)
	}
	if fields["msg"] != "access" || fields["level"] != "INFO" || fields["time"] == nil {
		t.Errorf("the line says of itself %v, %v, %v", fields["msg"], fields["level"], fields["time"])
	}
	for _, own := range []string{"msg", "level", "time"} {
		delete(fields, own)
	}
	return fields
}

func TestAccessLog(t *testing.T) {
	full := map[string]any{
		"request_id": "the-id", "method": "POST", "path": "/v1/chat/completions", "model": "the-model",
		"response_code": 200.0, "response_code_details": "the-reason", "response_flags": "-",
		"downstream_remote_address": "192.0.2.1:4711", "upstream_host": "10.0.0.1:8000", "upstream_cluster": "the-pool",
		"stream": true, "duration_ms": 1234.567, "ttft_ms": 98.765, "bytes_received": 16.0, "bytes_sent": 17.0,
		"upstream_request_attempt_count": 2.0,
		"prompt_tokens":                  11.0, "cached_tokens": 12.0, "completion_tokens": 13.0,
		"predicted_prompt_tokens": 14.0, "predicted_cached_tokens": 15.0,
	}
	for _, tt := range []struct {
		name   string
		change func(*Record)
		want   map[string]any // what differs; nil: the field is left out
	}{
		{"all", func(*Record) {}, nil},
		{"no first token", func(r *Record) { r.TTFT = 0 }, map[string]any{"ttft_ms": nil}},
		{"no prompt count", func(r *Record) { r.PromptTokens = Unknown }, map[string]any{"prompt_tokens": nil}},
		{"no cached count", func(r *Record) { r.CachedTokens = Unknown }, map[string]any{"cached_tokens": nil}},
		{"no completion count", func(r *Record) { r.CompletionTokens = Unknown }, map[string]any{"completion_tokens": nil}},
		{"nothing picked", func(r *Record) { r.PredictedTokens, r.PredictedHit = Unknown, Unknown },
			map[string]any{"predicted_prompt_tokens": nil, "predicted_cached_tokens": nil}},
		// Nothing is something else than not known.
		{"nothing cached", func(r *Record) { r.CachedTokens, r.PredictedHit = 0, 0 },
			map[string]any{"cached_tokens": 0.0, "predicted_cached_tokens": 0.0}},
		{"picked", func(r *Record) { r.Pick.At, r.Pick.Queued, r.Pick.DecidedBy = 1, 1500*time.Microsecond, "cache" },
			map[string]any{"queue_ms": 1.5, "decided_by": "cache"}},
		{"left", func(r *Record) { r.Reason = ClientGone }, map[string]any{"response_code_details": ClientGone, "response_flags": "DC"}},
		{"shed", func(r *Record) { r.Criticality, r.Shed = Sheddable, "saturated" }, map[string]any{"criticality": "sheddable", "shed": "saturated"}},
		{"a long name", func(r *Record) { r.Model = strings.Repeat("m", 1<<20) }, map[string]any{"model": strings.Repeat("m", maxText) + "…"}},
		{"nothing tried", func(r *Record) { r.Endpoint, r.Pool, r.Model, r.Retries, r.Streamed = "", "", "", 0, false },
			map[string]any{"upstream_host": "", "upstream_cluster": "", "model": "", "upstream_request_attempt_count": 1.0, "stream": false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := told()
			tt.change(rec)
			want := maps.Clone(full)
			for name, v := range tt.want {
				if want[name] = v; v == nil {
					delete(want, name)
				}
			}
			if got := logged(t, rec); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

// Text of prompts or answers has no place to stand in: what a record holds of
// text is what is named here, and the line holds no text but those, each in the
// field of its name. Whoever adds one has to say here that it is no such text.
func TestAccessLogHoldsNoPrompt(t *testing.T) {
	fieldOf := map[string]string{ // "": it is not logged
		"Operation": "", "Criticality": "criticality", "Shed": "shed",
		"ID": "request_id", "Method": "method", "Path": "path", "Model": "model", "Pool": "upstream_cluster",
		"Endpoint": "upstream_host", "Remote": "downstream_remote_address", "Reason": "response_code_details",
		"Principal": "principal", "Policy": "denied_by", "DryRunPolicy": "dry_run_denied_by", "AuditPolicy": "audited_by",
		"Peer": "downstream_peer_uri_san", "Service": "destination_service",
	}
	var rec Record
	v := reflect.ValueOf(&rec).Elem()
	var names []string
	for f, field := range v.Fields() {
		switch field.Kind() {
		case reflect.String:
			names = append(names, f.Name)
			field.SetString("text of " + f.Name)
		case reflect.Bool, reflect.Int, reflect.Int64: // a time.Duration too
		default:
			if f.Type != reflect.TypeFor[time.Time]() && f.Type != reflect.TypeFor[Pick]() && f.Type != reflect.TypeFor[Trace]() && f.Type != reflect.TypeFor[*Workload]() {
				t.Errorf("%s is a %s, which may hold text", f.Name, f.Type)
			}
		}
	}
	slices.Sort(names)
	if want := slices.Sorted(maps.Keys(fieldOf)); !slices.Equal(names, want) {
		t.Errorf("a record holds the texts %v, known are %v", names, want)
	}
	got := logged(t, &rec)
	for name, field := range fieldOf {
		if field == "" {
			continue
		}
		if got[field] != "text of "+name {
			t.Errorf("%s is %v", field, got[field])
		}
		delete(got, field)
	}
	delete(got, "response_flags") // of a list of our own
	for field, value := range got {
		if text, ok := value.(string); ok {
			t.Errorf("%s holds the text %q", field, text)
		}
	}
}

// What a stranger names cannot forge a line or a field.
func TestAccessLogLineIsOne(t *testing.T) {
	const forged = "m\",\"response_code\":200}\n{\"msg\":\"access\"\x00\u2028\x7f"
	rec := told()
	rec.Model, rec.Path, rec.ID = forged, forged, forged
	got := logged(t, rec)
	for _, field := range []string{"model", "path", "request_id"} {
		if got[field] != forged {
			t.Errorf("%s is %q", field, got[field])
		}
	}
}

// Records come from every exchange at once, while the metrics are read.
func TestConcurrency(t *testing.T) {
	const workers, each = 8, 500
	var out bytes.Buffer
	reg := prometheus.NewRegistry()
	log := NewLog(&out, JSON)
	r := New(reg, Config{Access: log})
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range each {
				rec := told()
				rec.Model = "model-" + strconv.Itoa((w*each+i)%(2*maxModels))
				r.Done(rec)
			}
		})
	}
	all.Go(func() {
		for range 20 {
			if _, err := reg.Gather(); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
	log.Close()
	got := models(t, reg)
	sum := 0.0
	for _, n := range got {
		sum += n
	}
	if sum != workers*each || len(got) != maxModels+1 {
		t.Errorf("%v requests of %d models", sum, len(got))
	}
	if n := tokens(series(t, reg)); n != 11*workers*each {
		t.Errorf("%v prompt tokens", n)
	}
	for d, lines := json.NewDecoder(&out), 0; ; lines++ {
		var line struct {
			Status int `json:"response_code"`
		}
		if err := d.Decode(&line); err == io.EOF {
			if lines != workers*each {
				t.Errorf("%d lines", lines)
			}
			break
		} else if err != nil || line.Status != 200 {
			t.Fatalf("line %d: %+v, %v", lines, line, err)
		}
	}
}

// Two recorders cannot count into the same metrics, which New says at once.
func TestNewTwice(t *testing.T) {
	reg := prometheus.NewRegistry()
	New(reg, Config{})
	defer func() {
		if recover() == nil {
			t.Error("a second recorder registered the same metrics")
		}
	}()
	New(reg, Config{})
}
