package file

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/normalize"
)

// Bounds on single values.
const (
	maxBytes       = 1 << 50
	maxHeaderBytes = 1 << 30
	maxConnections = 1 << 30
	maxWeight      = 1_000_000 // as in an HTTPRoute (Gateway API, BackendRef.weight)
	maxTokens      = 1 << 40
	maxPriority    = 1<<31 - 1 // as in an InferenceObjective
	minInterval    = time.Millisecond
)

// config reads the whole file: this function and those below are the schema.
func (r *reader) config(n *yaml.Node, c *Config) {
	w := c.World
	r.mapping(n, "", map[string]field{
		"listen":              r.listen(&c.Listen),
		"log":                 r.log(&c.Log),
		"tracing":             r.tracing(&c.Tracing),
		"auth":                r.auth(c),
		"policies":            listInto(r, &w.Access.Policies, r.policy),
		"extension_providers": listInto(r, &w.Authorizers, r.provider),
		"normalization":       textInto(r, &w.Access.Normalization, oneOf(normalizations)),
		"trusted_proxies":     r.prefixes(&w.Access.TrustedProxies),
		"pools":               listInto(r, &w.Pools, r.pool),
		"models":              listInto(r, &w.Models, r.model),
		"objectives":          listInto(r, &w.Objectives, r.objective),
		"slo":                 listInto(r, &w.SLOs, r.slo),
		"cost_label":          textInto(r, &c.CostLabel, "the name of a label"),
		"queue":               r.queue(&w.Queue),
		"budgets":             listInto(r, &w.Budgets, r.budget),
		"raise_priority":      textInto(r, &w.RaisePriority, oneOf(raisePriorities)),
		"routes":              listInto(r, &w.Routes, r.route),
		"timeouts":            r.timeouts(&w.Timeouts),
		"limits":              r.limits(&w.Limits),
		"scrape":              r.scrape(&w.Scrape),
		"remote_prefill":      r.numberFrom(1, &w.RemotePrefill, maxConnections),
		"cache_salt":          textInto(r, &w.CacheSalt, oneOf(cacheSalts)),
		"usage":               textInto(r, &w.Usage, oneOf(usageModes)),
		"model_names":         textInto(r, &w.ModelNames, oneOf(modelNames)),
		"pickers":             textInto(r, &w.Pickers, oneOf(pickerChoices)),
		"explain":             textInto(r, &w.Explain, oneOf(explainModes)),
		"shadow":              textInto(r, &w.Shadow, oneOf(shadowPolicies)),
		"tls":                 r.tls(&c.TLS),
		"services":            listInto(r, &w.Services, r.service),
		"waypoint_for":        textInto(r, &w.WaypointFor, oneOf(waypointFor)),
	})
}

func (r *reader) listen(l *Listen) field {
	const address = `an address such as ":8080"`
	return r.section(map[string]field{
		"http":     textInto(r, &l.HTTP, address),
		"hbone":    textInto(r, &l.HBONE, address),
		"sandwich": textInto(r, &l.Sandwich, address),
		"metrics":  textInto(r, &l.Metrics, address),
		"admin":    textInto(r, &l.Admin, address),
		"tls": r.section(map[string]field{
			"certificate": textInto(r, &l.TLS.Certificate, "the path of a file"),
			"key":         textInto(r, &l.TLS.Key, "the path of a file"),
		}),
	})
}

func (r *reader) log(l *Log) field {
	return r.section(map[string]field{
		"level":  textInto(r, &l.Level, oneOf(levels)),
		"access": textInto(r, &l.Access, oneOf(accessFormats)),
	})
}

func (r *reader) tracing(t *Tracing) field {
	return r.section(map[string]field{
		"endpoint": textInto(r, &t.Endpoint, "the URL of a collector, such as http://collector:4317"),
		"protocol": textInto(r, &t.Protocol, oneOf(otlps)),
		"sampling": r.share(&t.Sampling),
	})
}

func (r *reader) queue(q *proxy.Queue) field {
	return r.section(map[string]field{
		"off":            r.yesNo(&q.Off),
		"requests":       r.numberFrom(1, &q.Requests, maxConnections),
		"bytes":          size(r, &q.Bytes, maxBytes),
		"wait":           r.duration(&q.Wait, minInterval),
		"sheddable_wait": r.duration(&q.SheddableWait, minInterval),
		"lower_share":    r.share(&q.LowerShare),
	})
}

func (r *reader) timeouts(t *proxy.Timeouts) field {
	return r.section(map[string]field{
		"connect":     r.duration(&t.Connect, minInterval),
		"first_byte":  r.duration(&t.FirstByte, 0),
		"stream_idle": r.duration(&t.StreamIdle, 0),
		"request":     r.duration(&t.Request, 0),
		"drain":       r.duration(&t.Drain, 0),
	})
}

func (r *reader) limits(l *proxy.Limits) field {
	return r.section(map[string]field{
		"body":        size(r, &l.Body, maxBytes),
		"buffers":     size(r, &l.Buffers, maxBytes),
		"headers":     size(r, &l.Headers, maxHeaderBytes),
		"connections": r.number(&l.Connections, maxConnections),

		"connections_per_address": r.number(&l.ConnectionsByAddress, maxConnections),
		"requests_per_principal":  r.number(&l.RequestsByPrincipal, maxConnections),
	})
}

func (r *reader) scrape(s *proxy.Scrape) field {
	return r.section(map[string]field{
		"interval": r.duration(&s.Interval, minInterval),
		"timeout":  r.duration(&s.Timeout, minInterval),
		"path":     textInto(r, &s.Path, "a path such as /metrics"),
	})
}

func (r *reader) pool(n *yaml.Node, path string) (p proxy.Pool) {
	r.mapping(n, path, map[string]field{
		"name":      textInto(r, &p.Name, "a name"),
		"endpoints": listInto(r, &p.Endpoints, r.endpoint),
		"plain":     r.yesNo(&p.Plain),
		"picker":    func(n *yaml.Node, path string) { p.Picker = r.picker(n, path) },
	})
	return p
}

// picker reads how a pool's own endpoint picker is asked.
func (r *reader) picker(n *yaml.Node, path string) *proxy.Picker {
	p := &proxy.Picker{FailureMode: proxy.FailClose, Timeout: proxy.DefaultPickerTimeout, Body: proxy.BodyFullDuplex, Answers: proxy.AnswersHead}
	secure := true
	present := r.mapping(n, path, map[string]field{
		"address":        textInto(r, &p.Address, "an address, host:port"),
		"failure_mode":   textInto(r, &p.FailureMode, oneOf(failureModes)),
		"timeout":        r.duration(&p.Timeout, minInterval),
		"body_mode":      textInto(r, &p.Body, oneOf(pickerBodies)),
		"answers":        textInto(r, &p.Answers, oneOf(pickerAnswers)),
		"secure_serving": r.yesNo(&secure),
		"roots":          r.roots(&p.Roots),
		"server_name":    textInto(r, &p.ServerName, "the name in its certificate"),
	})
	if !present {
		return nil
	}
	p.Plain = !secure
	return p
}

// endpoint reads a URL, or a mapping with one and what else there is to say.
func (r *reader) endpoint(n *yaml.Node, path string) (e proxy.Endpoint) {
	url := func(n *yaml.Node, path string) {
		s, ok := r.text(n, path, "an endpoint URL, "+endpointForm)
		if !ok {
			return
		}
		parsed, err := ParseEndpoint(s)
		if err != nil {
			r.problem(path, "%v", err)
		}
		e.Address, e.Scheme = parsed.Address, parsed.Scheme
	}
	n = r.visit(n, path)
	if n == nil || n.Kind != yaml.MappingNode {
		if n != nil {
			url(n, path)
		}
		return e
	}
	r.mapping(n, path, map[string]field{
		"url":      url,
		"identity": r.identity(&e.Identity),
		"roots":    r.roots(&e.Roots),
		"ranks":    r.numberFrom(1, &e.Ranks, proxy.MaxRanks),
		"role":     textInto(r, &e.Role, oneOf(roles)),
		"cost":     r.cost(&e.Cost),
	})
	return e
}

func (r *reader) slo(n *yaml.Node, path string) (s proxy.SLO) {
	r.mapping(n, path, map[string]field{
		"pool": textInto(r, &s.Pool, "the name of a pool"),
		"ttft": r.duration(&s.TTFT, minInterval),
		"tpot": r.duration(&s.TPOT, minInterval),
	})
	return s
}

func (r *reader) model(n *yaml.Node, path string) (m proxy.Model) {
	r.mapping(n, path, map[string]field{
		"name":        textInto(r, &m.Name, "a name"),
		"pool":        textInto(r, &m.Pool, "the name of a pool"),
		"criticality": textInto(r, &m.Criticality, oneOf(criticalities)),
		"targets":     listInto(r, &m.Targets, r.target),
	})
	return m
}

func (r *reader) objective(n *yaml.Node, path string) (o proxy.Objective) {
	r.mapping(n, path, map[string]field{
		"name":     textInto(r, &o.Name, "a name"),
		"pool":     textInto(r, &o.Pool, "the name of a pool"),
		"priority": r.numberFrom(-maxPriority, &o.Priority, maxPriority),
	})
	return o
}

func (r *reader) budget(n *yaml.Node, path string) queue.Limit {
	var l queue.Limit
	tokens := 0
	r.mapping(n, path, map[string]field{
		"model":             textInto(r, &l.Model, "the name of a model"),
		"principal":         textInto(r, &l.Principal, "whose requests it is about"),
		"tokens_per_minute": r.numberFrom(1, &tokens, maxTokens),
	})
	l.TokensPerMinute = float64(tokens)
	return l
}

// target reads one of a model's names and its weight, which is 1 unless told
// otherwise.
func (r *reader) target(n *yaml.Node, path string) proxy.Target {
	t := proxy.Target{Weight: 1}
	r.mapping(n, path, map[string]field{
		"name":   textInto(r, &t.Name, "a name"),
		"weight": r.number(&t.Weight, maxWeight),
	})
	return t
}

// section is the field of a mapping.
func (r *reader) section(fields map[string]field) field {
	return func(n *yaml.Node, path string) { r.mapping(n, path, fields) }
}

// The words a setting can have.
var (
	levels          = []string{"debug", "info", "warn", "error"}
	otlps           = []OTLP{OTLPGRPC, OTLPHTTP}
	accessFormats   = []Access{AccessText, AccessJSON, AccessOff}
	cacheSalts      = []proxy.CacheSalt{proxy.CacheSaltNone, proxy.CacheSaltPrincipal}
	usageModes      = []proxy.UsageMode{proxy.UsageInject, proxy.UsageObserve}
	modelNames      = []proxy.ModelNames{proxy.ModelAsked, proxy.ModelServed}
	explainModes    = []proxy.ExplainMode{proxy.ExplainOnRequest, proxy.ExplainAlways, proxy.ExplainNever}
	normalizations  = []normalize.Mode{normalize.DecodeAndMergeSlashes, normalize.MergeSlashes, normalize.Base, normalize.None}
	raisePriorities = []proxy.RaisePriority{proxy.RaiseInMesh, proxy.RaiseAnyone, proxy.RaiseNobody}
	failureModes    = []proxy.FailureMode{proxy.FailClose, proxy.FailOpen}
	pickerBodies    = []proxy.PickerBody{proxy.BodyFullDuplex, proxy.BodyBuffered}
	pickerAnswers   = []proxy.PickerAnswers{proxy.AnswersNone, proxy.AnswersHead, proxy.AnswersBody}
	pickerChoices   = []proxy.PickerChoice{proxy.HonourPickers, proxy.EmbeddedPicker}
	roles           = []proxy.Role{proxy.RoleDecode, proxy.RoleBoth, proxy.RolePrefill}
	shadowPolicies  = []proxy.ShadowPolicy{proxy.ShadowNone, proxy.ShadowLeastRequest, proxy.ShadowRoundRobin}
	criticalities   = []proxy.Criticality{proxy.Critical, proxy.Standard, proxy.Sheddable}
)

// oneOf lists words for an error: "a, b or c".
func oneOf[T ~string](words []T) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}
