package proxy

import (
	"bytes"
	"strconv"

	"github.com/fairway-proxy/fairway/picker"
	"github.com/fairway-proxy/fairway/proxy/message"
)

// Engines can report their load with an answer that does not stream (ORCA, Open
// Request Cost Aggregation; vLLM's vllm/entrypoints/openai/orca_metrics.py). It
// is fresher than any scrape, and costs a field.
const (
	fieldLoadFormat = "endpoint-load-metrics-format"
	fieldLoad       = "endpoint-load-metrics"
)

var askForLoad = message.Field{Name: []byte(fieldLoadFormat), Value: []byte("TEXT")}

// askLoad asks for the report, unless the client did.
func (x *Exchange) askLoad() {
	if !x.loadAsked && !x.read.Stream && x.read.Kind.Generates() {
		x.head.Fields = append(x.head.Fields, askForLoad)
	}
}

// takeLoad gives the report to the picker. The client sees it only if it asked.
func (x *Exchange) takeLoad(e *picker.Endpoint) {
	report := message.Get(x.answer.Fields, fieldLoad)
	if report == nil {
		return
	}
	kv, ok1 := loadValue(report, "kv_cache_usage_perc")
	waiting, ok2 := loadValue(report, "num_requests_waiting")
	if ok1 && ok2 && e.Engine() == "" { // of several engines it does not say which it is about
		e.ObserveAnswer(kv, waiting, Now())
	}
	if !x.loadAsked {
		x.answer.Fields = message.Delete(x.answer.Fields, fieldLoad)
	}
}

// loadValue finds a named number in a report, in text
// ("named_metrics.num_requests_waiting=0.0, …") or JSON
// (`{"named_metrics": {"num_requests_waiting": 0.0, …}}`).
func loadValue(report []byte, name string) (float64, bool) {
	at := bytes.Index(report, []byte(name))
	if at < 0 {
		return 0, false
	}
	rest := bytes.TrimLeft(report[at+len(name):], `"=: `)
	end := bytes.IndexAny(rest, ",} ")
	if end < 0 {
		end = len(rest)
	}
	v, err := strconv.ParseFloat(string(rest[:end]), 64)
	return v, err == nil
}
