package file

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// minimal is the shortest file there is.
const minimal = "pools: [{name: llama, endpoints: [http://10.0.0.1:8000]}]\n"

func parse(t *testing.T, data string) *Config {
	t.Helper()
	c, err := Parse("fairway.yaml", []byte(data))
	if err != nil {
		t.Fatalf("%s\n%v", data, err)
	}
	return c
}

func TestMinimalFileHasEveryDefault(t *testing.T) {
	want := &Config{
		Tracing: Tracing{Protocol: OTLPGRPC, Sampling: DefaultSampling},
		Listen:  Listen{HTTP: ":8080", HBONE: "", Metrics: ":15020", Admin: "127.0.0.1:15000"},
		World: &proxy.World{
			Pools:    []proxy.Pool{{Name: "llama", Endpoints: []proxy.Endpoint{{Address: "10.0.0.1:8000"}}}},
			Timeouts: proxy.Timeouts{Connect: 2 * time.Second, Drain: 300 * time.Second},
			Limits:   proxy.Limits{Body: 64 << 20, Buffers: 1 << 30, Headers: 64 << 10},
			Scrape:   proxy.Scrape{Interval: 100 * time.Millisecond, Timeout: time.Second, Path: "/metrics"},
			Usage:    "inject", ModelNames: "asked",
			Explain: "on-request",
			Shadow:  "none",
		},
	}
	if got := parse(t, minimal); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v", got.Listen, got.World, want.Listen, want.World)
	}
	// Sections left without a value, as when their keys are commented out.
	if got := parse(t, "listen:\nmodels:\nroutes: []\ntimeouts:\nlimits:\nscrape:\nservices:\ntls:\n"+minimal); !reflect.DeepEqual(got, want) {
		t.Errorf("with empty sections: %+v %+v", got.Listen, got.World)
	}
}

func TestFullFile(t *testing.T) {
	got, err := Load("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := Default() // the file spells out the defaults
	want.World.Pools = []proxy.Pool{{Name: "llama", Endpoints: []proxy.Endpoint{{Address: "10.0.0.1:8000"}, {Address: "10.0.0.2:8000"}}}}
	want.World.Models = []proxy.Model{{
		Name: "customer-support", Pool: "llama", Criticality: proxy.Critical,
		Targets: []proxy.Target{{Name: "support-v1", Weight: 80}, {Name: "support-v2", Weight: 20}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v", got.Listen, got.World, want.Listen, want.World)
	}
}

func TestEverySettingIsRead(t *testing.T) {
	got := parse(t, `
listen: {http: "127.0.0.1:1", metrics: "", admin: "[::1]:3"}
pools:
  - &p {name: a, endpoints: &e ["http://One.example", {url: "http://[2001:DB8::0:1]:8000/", ranks: 4, role: prefill}]}
  - {name: b, endpoints: *e}
  - {name: d, endpoints: [{url: "http://10.0.0.1:8000", cost: 2.5}, {url: "http://10.0.0.2:8000", cost: 1}]}
  - {name: c, endpoints: ["http://10.0.0.1:8000"], picker: {address: "Picker.example:9002", failure_mode: FailOpen, timeout: 5s, body_mode: BUFFERED, answers: body, secure_serving: false}}
models:
  - {name: m, pool: a, targets: [{name: x}, {name: y, weight: 0}]}
  - {name: "n/7", pool: b, criticality: Sheddable}
objectives: [{name: o, pool: a, priority: -3}, {name: o, pool: b}]
raise_priority: anyone
slo: [{pool: a, ttft: 500ms, tpot: 50ms}, {tpot: 100ms}]
timeouts: {connect: 1ms, first_byte: 2m, stream_idle: 1h30m, request: 4s, drain: 0}
limits: {body: 5, buffers: 6KiB, headers: "7 MB", connections: 8}
scrape: {interval: 1s, timeout: 2s, path: "/m?x=y"}
usage: observe
remote_prefill: 9
pickers: embedded
explain: never
shadow: round-robin
model_names: served
`)
	endpoints := []proxy.Endpoint{{Address: "one.example:80"}, {Address: "[2001:db8::1]:8000", Ranks: 4, Role: proxy.RolePrefill}}
	want := &Config{
		Tracing: Tracing{Protocol: OTLPGRPC, Sampling: DefaultSampling},
		Listen:  Listen{HTTP: "127.0.0.1:1", Admin: "[::1]:3"},
		World: &proxy.World{
			Pools: []proxy.Pool{{Name: "a", Endpoints: endpoints}, {Name: "b", Endpoints: endpoints}, {Name: "d", Endpoints: []proxy.Endpoint{{Address: "10.0.0.1:8000", Cost: 2.5}, {Address: "10.0.0.2:8000", Cost: 1}}}, {Name: "c", Endpoints: []proxy.Endpoint{{Address: "10.0.0.1:8000"}}, Picker: &proxy.Picker{
				Address: "Picker.example:9002", FailureMode: proxy.FailOpen, Timeout: 5 * time.Second, Body: proxy.BodyBuffered, Answers: proxy.AnswersBody, Plain: true,
			}}},
			Models: []proxy.Model{
				{Name: "m", Pool: "a", Targets: []proxy.Target{{Name: "x", Weight: 1}, {Name: "y", Weight: 0}}},
				{Name: "n/7", Pool: "b", Criticality: proxy.Sheddable},
			},
			Objectives:    []proxy.Objective{{Name: "o", Pool: "a", Priority: -3}, {Name: "o", Pool: "b"}},
			SLOs:          []proxy.SLO{{Pool: "a", TTFT: 500 * time.Millisecond, TPOT: 50 * time.Millisecond}, {TPOT: 100 * time.Millisecond}},
			RaisePriority: proxy.RaiseAnyone,
			Timeouts: proxy.Timeouts{
				Connect: time.Millisecond, FirstByte: 2 * time.Minute, StreamIdle: 90 * time.Minute, Request: 4 * time.Second,
			},
			Limits:  proxy.Limits{Body: 5, Buffers: 6 << 10, Headers: 7e6, Connections: 8},
			Scrape:  proxy.Scrape{Interval: time.Second, Timeout: 2 * time.Second, Path: "/m?x=y"},
			Pickers: proxy.EmbeddedPicker,

			RemotePrefill: 9,

			Usage:      proxy.UsageObserve,
			ModelNames: proxy.ModelServed,
			Explain:    proxy.ExplainNever,
			Shadow:     proxy.ShadowRoundRobin,
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v", got.Listen, got.World, want.Listen, want.World)
	}
}

func TestIdentityIsRead(t *testing.T) {
	abroad := spiffeid.RequireTrustDomainFromString("abroad.example")
	for text, want := range map[string]mtls.Provider{
		"":                    nil,
		"tls:":                nil,
		"tls: {spiffe: {}}":   mtls.WorkloadAPI{},
		"tls: {istio_ca: {}}": mtls.IstioCA{},
		"tls: {spiffe: {socket: /run/agent.sock}}":                            mtls.WorkloadAPI{Socket: "/run/agent.sock"},
		"tls: {files: {certificate: tls.crt, key: tls.key, roots: root.pem}}": mtls.Files{Certificate: "tls.crt", Key: "tls.key", Roots: "root.pem"},
		"tls: {files: {certificate: a, key: a, roots: b}, federated: {abroad.example: c}}": mtls.Files{
			Certificate: "a", Key: "a", Roots: "b", Federated: map[spiffeid.TrustDomain]string{abroad: "c"},
		},
		"tls: {istio_ca: {address: 'ca.example:15012', token: t, roots: r, cluster: c, trust_domain: abroad.example}, federated: {}}": mtls.IstioCA{
			Address: "ca.example:15012", Token: "t", Roots: "r", ClusterID: "c", TrustDomain: abroad,
		},
	} {
		if got := parse(t, minimal+text).TLS; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v, want %#v", text, got, want)
		}
	}
}

// Each file is minimal plus something wrong; its errors are told exactly.
func TestLogAndTracing(t *testing.T) {
	c := parse(t, minimal+"log: {level: warn, access: \"off\"}\ntracing: {endpoint: \"https://c:4318\", protocol: http, sampling: 1}\n")
	if c.Log != (Log{"warn", AccessOff}) || c.Tracing != (Tracing{"https://c:4318", OTLPHTTP, 1}) {
		t.Errorf("%+v, %+v", c.Log, c.Tracing)
	}
}

func TestErrorsNameLinePathAndRemedy(t *testing.T) {
	tests := map[string]struct{ file, want string }{
		"nothing":           {"", `f:1: pools: missing: want at least one pool with the endpoints to serve from`},
		"only comments":     {"# pools:\n---\n", `f:1: pools: missing: want at least one pool with the endpoints to serve from`},
		"not a mapping":     {"- a", `f:1: a list: want a mapping of keys (auth, budgets, cache_salt, cost_label, explain, extension_providers, limits, listen, log, model_names, models, normalization, objectives, pickers, policies, pools, queue, raise_priority, remote_prefill, routes, scrape, services, shadow, slo, timeouts, tls, tracing, trusted_proxies, usage, waypoint_for)`},
		"not YAML":          {"pools:\n  - name: a\n endpoints: []\n", `f:2: not YAML: did not find expected key`},
		"two documents":     {minimal + "---\n" + minimal, `f:2: a second YAML document: want one in a file`},
		"unknown anchor":    {"pools: *p", `f: not YAML: unknown anchor 'p' referenced`},
		"unknown key":       {minimal + "timeout: {}", `f:2: timeout: unknown key: did you mean "timeouts"? (keys: auth, budgets, cache_salt, cost_label, explain, extension_providers, limits, listen, log, model_names, models, normalization, objectives, pickers, policies, pools, queue, raise_priority, remote_prefill, routes, scrape, services, shadow, slo, timeouts, tls, tracing, trusted_proxies, usage, waypoint_for)`},
		"no collector":      {minimal + "tracing: {endpoint: \"collector:4317\"}", `f:2: tracing.endpoint: "collector:4317": want the URL of a collector, such as http://collector:4317, or https:// for TLS`},
		"more than all":     {minimal + "tracing: {sampling: 1.5}", `f:2: tracing.sampling: "1.5": want a share from 0 to 1`},
		"no level":          {minimal + "log: {level: loud}", `f:2: log.level: "loud": want debug, info, warn or error`},
		"off, unquoted":     {minimal + "log: {access: false}", `f:2: log.access: "false" is a boolean: want text, json or off (text, in quotes)`},
		"unknown inner key": {minimal + "scrape:\n  # often\n  every: 5s\n", `f:4: scrape.every: unknown key (keys: interval, path, timeout)`},
		"merge key":         {minimal + "scrape: {<<: {path: /x}}", `f:2: scrape.<<: unknown key (keys: interval, path, timeout)`},
		"duplicate key":     {minimal + "usage: inject\nusage: observe\n", `f:3: usage: the same key as on line 2`},
		"complex key":       {minimal + "scrape: {[a]: b}", `f:2: scrape: a key that is not plain text`},
		"section as text":   {minimal + "limits: none", `f:2: limits: "none": want a mapping of keys (body, buffers, connections, connections_per_address, headers, requests_per_principal)`},
		"list as mapping":   {"pools: {name: a}", `f:1: pools: a mapping: want a list`},
		"text as number":    {minimal + "listen: {metrics: 15020}", `f:2: listen.metrics: "15020" is a number: want an address such as ":8080" (text, in quotes)`},
		"text as list":      {minimal + "usage: [inject]", `f:2: usage: a list: want inject or observe`},
		"no value":          {minimal + "listen: {http: }", `f:2: listen.http: no value: want an address such as ":8080"`},

		"no listener":       {minimal + `listen: {http: ""}`, `f:2: listen.http: empty: no listener would take requests: want an address such as ":8080"`},
		"address":           {minimal + `listen: {http: "8080"}`, `f:2: listen.http: "8080" is not an address: want host:port, or ":port" for all interfaces`},
		"address port":      {minimal + `listen: {http: ":http"}`, `f:2: listen.http: port "http": want a number from 0 to 65535`},
		"address twice":     {minimal + `listen: {admin: ":8080"}`, `f:2: listen.admin: ":8080" is the address of listen.http as well`},
		"pool without name": {"pools:\n- endpoints: [http://a:1]", `f:2: pools[0].name: missing: want a name`},
		"empty pool":        {"pools:\n- name: a", `f:2: pools[0].endpoints: missing: want at least one, http://host:port`},
		"pool twice":        {"pools:\n- {name: a, endpoints: [http://a]}\n- {name: a, endpoints: [http://a]}\nmodels: [{name: m, pool: a}]", `f:3: pools[1].name: "a" is the name of pools[0] as well`},
		"endpoint twice":    {"pools:\n- name: a\n  endpoints:\n  - http://a:80\n  - http://A/", `f:5: pools[0].endpoints[1]: "a:80" is endpoints[0] as well`},
		"endpoint":          {"pools:\n- name: a\n  endpoints:\n  - http://a\n  - 10.0.0.1", `f:5: pools[0].endpoints[1]: "10.0.0.1" is not an endpoint URL: want http://host:port, or h2c, https or hbone instead of http`},
		"ranks of none":     {"pools: [{name: a, endpoints: [{url: \"http://a\", ranks: 0}]}]", `f:1: pools[0].endpoints[0].ranks: "0": want a whole number from 1 to 256`},
		"no role":           {"pools: [{name: a, endpoints: [{url: \"http://a\", role: decoder}]}]", `f:1: pools[0].endpoints[0].role: "decoder": did you mean "decode"?: want decode, both or prefill`},
		"prefill alone":     {"pools: [{name: a, endpoints: [{url: \"http://a\", role: prefill}]}]", `f:1: pools[0].endpoints: all have the role prefill: no request would be served`},
		"role, plain":       {"pools: [{name: a, plain: true, endpoints: [{url: \"http://a\", role: decode}]}]", `f:1: pools[0].endpoints[0].role: endpoints of a plain pool are no engines: leave it out`},
		"remote prefill":    {minimal + "remote_prefill: 0", `f:2: remote_prefill: "0": want a whole number from 1 to 1073741824`},
		"ranks, plain":      {"pools: [{name: a, plain: true, endpoints: [{url: \"http://a\", ranks: 2}]}]", `f:1: pools[0].endpoints[0].ranks: endpoints of a plain pool are no engines: leave it out`},
		"endpoint number":   {"pools: [{name: a, endpoints: [8000]}]", `f:1: pools[0].endpoints[0]: "8000" is a number: want an endpoint URL, http://host:port (text, in quotes)`},
		"endpoint null":     {"pools: [{name: a, endpoints: [~]}]", `f:1: pools[0].endpoints[0]: no value: want an endpoint URL, http://host:port`},
		"two pools":         {"pools:\n- {name: a, endpoints: [http://a]}\n- {name: b, endpoints: [http://b]}", `f:1: models: missing: with 2 pools, models must say which pool serves which model name (or routes which request, or leave one pool)`},

		"model without pool": {minimal + "models: [{name: m}]", `f:2: models[0].pool: missing: want the name of a pool (llama)`},
		"unknown pool":       {minimal + "models:\n- name: m\n  pool: lama", `f:4: models[0].pool: no pool is named "lama": did you mean "llama"? (pools: llama)`},
		"model twice":        {minimal + "models: [{name: m, pool: llama}, {name: m, pool: llama}]", `f:2: models[1].name: "m" is the name of models[0] as well`},
		"model name":         {minimal + "models: [{name: \"a\\nb\", pool: llama}]", `f:2: models[0].name: "a\nb": want text without control characters`},
		"criticality":        {minimal + "models: [{name: m, pool: llama, criticality: critical}]", `f:2: models[0].criticality: "critical": did you mean "Critical"?: want Critical, Standard or Sheddable`},
		"weights of 0":       {minimal + "models: [{name: m, pool: llama, targets: [{name: x, weight: 0}]}]", `f:2: models[0].targets: the weights sum to 0: no target would get a request`},
		"negative weight":    {minimal + "models: [{name: m, pool: llama, targets: [{name: x, weight: -1}, {name: y}]}]", `f:2: models[0].targets[0].weight: "-1": want a whole number from 0 to 1000000`},
		"octal weight":       {minimal + "models: [{name: m, pool: llama, targets: [{name: x, weight: 010}]}]", `f:2: models[0].targets[0].weight: "010": want a whole number from 0 to 1000000`},
		"target twice":       {minimal + "models: [{name: m, pool: llama, targets: [{name: x}, {name: x}]}]", `f:2: models[0].targets[1].name: "x" is the name of targets[0] as well`},

		"objective twice":   {minimal + "objectives: [{name: o, pool: llama}, {name: o, pool: llama}]", `f:2: objectives[1].name: "o" is the name of objectives[0] as well`},
		"cost":              {`pools: [{name: a, endpoints: [{url: "http://a:1", cost: 0}]}]`, `f:1: pools[0].endpoints[0].cost: "0": want a number above 0, up to 1e+06`},
		"cost of a cluster": {minimal + "cost_label: gpu-cost", `f:2: cost_label: labels are a cluster's: say at each endpoint what it costs, or serve with --kubernetes`},
		"SLO of nothing":    {minimal + "slo: [{pool: llama}]", `f:2: slo[0]: it asks for nothing: want ttft, tpot or both`},
		"SLO's pool":        {minimal + "slo: [{pool: lama, ttft: 1s}]", `f:2: slo[0].pool: no pool is named "lama": did you mean "llama"? (pools: llama)`},
		"SLO without unit":  {minimal + "slo: [{ttft: 500}]", `f:2: slo[0].ttft: "500" has no unit: want a duration such as 100ms, 2s or 5m`},
		"objective's pool":  {minimal + "objectives: [{name: o, pool: lama}]", `f:2: objectives[0].pool: no pool is named "lama": did you mean "llama"? (pools: llama)`},
		"priority":          {minimal + "objectives: [{name: o, pool: llama, priority: high}]", `f:2: objectives[0].priority: "high": want a whole number from -2147483647 to 2147483647`},
		"raise":             {minimal + "raise_priority: meshes", `f:2: raise_priority: "meshes": did you mean "mesh"?: want mesh, anyone or nobody`},
		"duration":          {minimal + "timeouts: {request: soon}", `f:2: timeouts.request: "soon" is not a duration: want one such as 100ms, 2s or 5m`},
		"duration unit":     {minimal + "timeouts: {request: 30}", `f:2: timeouts.request: "30" has no unit: want a duration such as 100ms, 2s or 5m`},
		"negative duration": {minimal + "timeouts: {drain: -1s}", `f:2: timeouts.drain: "-1s": want 0 or more`},
		"no connect bound":  {minimal + "timeouts: {connect: 0}", `f:2: timeouts.connect: "0": want 1ms or more`},
		"busy scraping":     {minimal + "scrape: {interval: 1ns}", `f:2: scrape.interval: "1ns": want 1ms or more`},
		"scrape path":       {minimal + "scrape: {path: metrics}", `f:2: scrape.path: "metrics" is not a path: want one such as /metrics`},
		"size":              {minimal + "limits: {body: 1.5GiB}", `f:2: limits.body: "1.5GiB" is not a size: want bytes such as 65536, 64KiB or 1GiB`},
		"size of 0":         {minimal + "limits: {headers: 0}", `f:2: limits.headers: "0": want from 1 to 1GiB`},
		"negative size":     {minimal + "limits: {headers: -1}", `f:2: limits.headers: "-1" is negative: want bytes such as 65536, 64KiB or 1GiB`},
		"huge size":         {minimal + "limits: {body: 9000000TiB}", `f:2: limits.body: "9000000TiB" is too large`},
		"large size":        {minimal + "limits: {body: 9000TiB}", `f:2: limits.body: "9000TiB": want from 1 to 1024TiB`},
		"overflowing size":  {minimal + "limits: {body: 9000000000TiB}", `f:2: limits.body: "9000000000TiB" is too large`},
		"body over buffers": {minimal + "limits: {body: 2GiB}", `f:2: limits.body: 2GiB is more than limits.buffers, 1GiB: want no more than all bodies together may have`},
		"connections":       {minimal + "limits: {connections: many}", `f:2: limits.connections: "many": want a whole number from 0 to 1073741824`},
		"cache_salt":        {minimal + "cache_salt: principle", `f:2: cache_salt: "principle": did you mean "principal"?: want none or principal`},
		"usage":             {minimal + "usage: injekt", `f:2: usage: "injekt": did you mean "inject"?: want inject or observe`},
		"model_names":       {minimal + "model_names: mine", `f:2: model_names: "mine": want asked or served`},
		"explain":           {minimal + "explain: sometimes", `f:2: explain: "sometimes": want on-request, always or never`},
		"shadow":            {minimal + "shadow: fairway", `f:2: shadow: "fairway": want none, least-request or round-robin`},

		"no provider":            {minimal + "tls: {}", `f:2: tls: no provider: want one of files, spiffe and istio_ca`},
		"empty provider":         {minimal + "tls: {spiffe: }", `f:2: tls: no provider: want one of files, spiffe and istio_ca`},
		"unknown provider":       {minimal + "tls: {file: {}}", `f:2: tls.file: unknown key: did you mean "files"? (keys: federated, files, istio_ca, spiffe)`},
		"two providers":          {minimal + "tls:\n  istio_ca: {}\n  spiffe: {}", `f:2: tls: istio_ca and spiffe: want one of them`},
		"tls as text":            {minimal + "tls: spiffe", `f:2: tls: "spiffe": want a mapping of keys (federated, files, istio_ca, spiffe)`},
		"no key":                 {minimal + "tls:\n  files:\n    {certificate: a, roots: b}", `f:3: tls.files.key: missing: want the path of a file with the key of our certificate, in PEM`},
		"provider's unknown key": {minimal + "tls: {spiffe: {path: /run/a}}", `f:2: tls.spiffe.path: unknown key (keys: socket)`},
		"socket":                 {minimal + "tls: {spiffe: {socket: agent.sock}}", `f:2: tls.spiffe.socket: "agent.sock": want an absolute path, or a URI such as unix:///path`},
		"address of a CA":        {minimal + "tls: {istio_ca: {address: istiod}}", `f:2: tls.istio_ca.address: "istiod": want host:port`},
		"trust domain":           {minimal + "tls: {istio_ca: {trust_domain: Cluster.Local}}", `f:2: tls.istio_ca.trust_domain: "Cluster.Local": want the name of a trust domain such as cluster.local`},
		"federated as list":      {minimal + "tls: {istio_ca: {}, federated: [a]}", `f:2: tls.federated: a list: want a mapping of trust domains to files`},
		"federated domain":       {minimal + "tls:\n  istio_ca: {}\n  federated:\n    spiffe://a: b", `f:5: tls.federated.spiffe://a: "spiffe://a": want the name of a trust domain such as cluster.local`},
		"federated file":         {minimal + "tls:\n  istio_ca: {}\n  federated:\n    a.example: ''", `f:5: tls.federated.a.example: missing: want the path of a file with the roots of a.example, in PEM`},
		"federated twice":        {minimal + "tls:\n  istio_ca: {}\n  federated:\n    a.example: b\n    a.example: c", `f:6: tls.federated.a.example: the same key as on line 5`},
		"federated SPIFFE":       {minimal + "tls: {spiffe: {}, federated: {a.example: b}}", `f:2: tls.federated: the Workload API says itself what its trust domain is federated with: leave it out`},

		"HBONE listener": {minimal + `listen: {hbone: ":15008"}`, "f:1: services: missing: no tunnel would be accepted: want a Service with its addresses, or waypoint_for: workload\nf:2: listen.hbone: tunnels need an identity: say where it comes from under tls"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := Parse("f", []byte(test.file))
			if err == nil {
				t.Fatalf("accepted as %+v %+v", c.Listen, c.World)
			}
			if got := err.Error(); got != test.want {
				t.Errorf("\ngot  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestAllProblemsAreToldInTheOrderOfLines(t *testing.T) {
	_, err := Parse("fairway.yaml", []byte(`usage: no
pools:
  - name: a
    endpoints: [10.0.0.1, "http://10.0.0.2:70000"]
  - name: a
    endpoint: http://b
models:
  - {name: m, pool: c}
limits: {body: -1}
timeouts: {drain: x}
`))
	want := `fairway.yaml:1: usage: "no": want inject or observe
fairway.yaml:4: pools[0].endpoints[0]: "10.0.0.1" is not an endpoint URL: want http://host:port, or h2c, https or hbone instead of http
fairway.yaml:4: pools[0].endpoints[1]: "http://10.0.0.2:70000" is not an endpoint URL: port "70000": want a number from 1 to 65535
fairway.yaml:5: pools[1].name: "a" is the name of pools[0] as well
fairway.yaml:5: pools[1].endpoints: missing: want at least one, http://host:port
fairway.yaml:6: pools[1].endpoint: unknown key: did you mean "endpoints"? (keys: endpoints, name, picker, plain)
fairway.yaml:8: models[0].pool: no pool is named "c": did you mean "a"? (pools: a)
fairway.yaml:9: limits.body: "-1" is negative: want bytes such as 65536, 64KiB or 1GiB
fairway.yaml:10: timeouts.drain: "x" is not a duration: want one such as 100ms, 2s or 5m`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if many, ok := err.(interface{ Unwrap() []error }); !ok || len(many.Unwrap()) != 9 {
		t.Errorf("%T does not hold 9 errors", err)
	}
}

func TestWaypointFile(t *testing.T) {
	c, err := Load("testdata/waypoint.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.HTTP != "" || c.Listen.HBONE != ":15008" || c.TLS == nil {
		t.Errorf("%+v", c)
	}
	services := []proxy.Service{{Host: "llama.default.svc.cluster.local", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")},
		Ports: []proxy.ServicePort{{Port: 80, Protocol: proxy.PortHTTP, Pool: "llama"}}}}
	if !reflect.DeepEqual(c.World.Services, services) {
		t.Errorf("%+v", c.World.Services)
	}
	want := []proxy.Endpoint{{Address: "10.0.0.1:8000", Scheme: proxy.SchemeHBONE, Identity: spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/vllm")}}
	if !reflect.DeepEqual(c.World.Pools[0].Endpoints, want) {
		t.Errorf("%+v", c.World.Pools)
	}
}

// mesh is a file whose parts a test replaces.
const mesh = `listen: {http: "", hbone: ":15008"}
tls: {spiffe: {}}
waypoint_for: all
services:
  - {host: a.default.svc.cluster.local, vips: [10.96.0.7, "fd00::7"], ports: [{port: 80, pool: a}, {port: 81, protocol: tcp, pool: a}]}
pools:
  - {name: a, endpoints: [{url: "hbone://10.0.0.1:8000", identity: spiffe://cluster.local/ns/default/sa/vllm}, https://b, h2c://c:50051]}
`

func TestMesh(t *testing.T) {
	w := parse(t, mesh).World
	if w.WaypointFor != proxy.ForAll || len(w.Services[0].VIPs) != 2 || !reflect.DeepEqual(w.Services[0].Ports[1], proxy.ServicePort{Port: 81, Protocol: proxy.PortTCP, Pool: "a"}) {
		t.Errorf("%+v", w)
	}
	if e := w.Pools[0].Endpoints; e[1] != (proxy.Endpoint{Address: "b:443", Scheme: proxy.SchemeHTTPS}) || e[2] != (proxy.Endpoint{Address: "c:50051", Scheme: proxy.SchemeH2C}) {
		t.Errorf("%+v", e)
	}
	for _, test := range []struct{ old, replacement, want string }{
		{"tls: {spiffe: {}}\n", "", "f:1: listen.hbone: tunnels need an identity: say where it comes from under tls\n" +
			"f:6: pools[0].endpoints[0]: a tunnel to it needs an identity of ours: say where it comes from under tls"},
		{"waypoint_for: all", "waypoint_for: pods", `f:3: waypoint_for: "pods": want service, workload, all or none`},
		{"host: a.default.svc.cluster.local, ", "", "f:5: services[0].host: missing: want the full name of a Service, such as llama.default.svc.cluster.local"},
		{"host: a.default", "host: a_/default", `f:5: services[0].host: host "a_/default.svc.cluster.local": want an IP address or a DNS name`},
		{"10.96.0.7", "10.96.0", `f:5: services[0].vips[0]: "10.96.0": want an IP address`},
		{"port: 80, ", "", "f:5: services[0].ports[0].port: missing: want a number from 1 to 65535"},
		{"port: 81", "port: 80", "f:5: services[0].ports[1]: a.default.svc.cluster.local:80 is services[0].ports[0] as well"},
		{"protocol: tcp", "protocol: udp", `f:5: services[0].ports[1].protocol: "udp": want http, h2c, grpc, tcp or auto`},
		{"tcp, pool: a", "tcp", "f:5: services[0].ports[1].pool: missing: want the name of a pool (a)"},
		{"80, pool: a", "80, pool: b", `f:5: services[0].ports[0].pool: no pool is named "b": did you mean "a"? (pools: a)`},
		{", identity: spiffe://cluster.local/ns/default/sa/vllm", "", "f:7: pools[0].endpoints[0].identity: missing: want a SPIFFE ID such as spiffe://cluster.local/ns/default/sa/vllm, of the pod's service account"},
		{"identity: spiffe:", "identity: http:", `f:7: pools[0].endpoints[0].identity: "http://cluster.local/ns/default/sa/vllm": want a SPIFFE ID such as spiffe://cluster.local/ns/default/sa/vllm: scheme is missing or invalid`},
		{"hbone://10.0.0.1:8000", "http://10.0.0.1:8000", "f:7: pools[0].endpoints[0].identity: only hbone:// has an identity to expect"},
		{"hbone://10.0.0.1:8000", "hbone://pod:8000", `f:7: pools[0].endpoints[0]: "pod:8000": a tunnel leads to an IP address and a port`},
		{"hbone://10.0.0.1:8000", "hbone://10.0.0.1", `f:7: pools[0].endpoints[0].url: "hbone://10.0.0.1" is not an endpoint URL: port "": want a number from 1 to 65535`},
		{"https://b", "{url: https://b, roots: testdata/none.pem}", "f:7: pools[0].endpoints[1].roots: open testdata/none.pem: no such file or directory"},
		{"https://b", "{url: https://b, roots: testdata/waypoint.yaml}", "f:7: pools[0].endpoints[1].roots: testdata/waypoint.yaml: no certificate in it"},
	} {
		file := strings.Replace(mesh, test.old, test.replacement, 1)
		if _, err := Parse("f", []byte(file)); file == mesh || err == nil || err.Error() != test.want {
			t.Errorf("%s for %s:\ngot  %v\nwant %s", test.replacement, test.old, err, test.want)
		}
	}
}

func TestParseEndpoint(t *testing.T) {
	for raw, want := range map[string]proxy.Endpoint{
		"http://10.0.0.1:8000":         {Address: "10.0.0.1:8000"},
		"http://10.0.0.1:8000/":        {Address: "10.0.0.1:8000"},
		"http://10.0.0.1":              {Address: "10.0.0.1:80"},
		"HTTP://Llama-0.llama.svc.:80": {Address: "llama-0.llama.svc.:80"},
		"http://mock_1:08000":          {Address: "mock_1:8000"},
		"http://[::1]:8000":            {Address: "[::1]:8000"},
		"http://[2001:db8:0:0::1]":     {Address: "[2001:db8::1]:80"},
		"http://[fe80::1%25eth0]:1":    {Address: "[fe80::1%eth0]:1"},
		"h2c://a":                      {Address: "a:80", Scheme: proxy.SchemeH2C},
		"https://a":                    {Address: "a:443", Scheme: proxy.SchemeHTTPS},
		"hbone://10.0.0.1:8000":        {Address: "10.0.0.1:8000", Scheme: proxy.SchemeHBONE},
	} {
		if got, err := ParseEndpoint(raw); got != want || err != nil {
			t.Errorf("ParseEndpoint(%q) = %+v, %v, want %+v", raw, got, err, want)
		}
	}
	for _, raw := range []string{
		"", "10.0.0.1", "10.0.0.1:8000", "localhost:8000", "//a:1", "http:a:1", "http://", "http://:8000", "http:///metrics",
		"ftp://a:1", "hbone://10.0.0.1", "h2://a:1", "http://a:0", "http://a:65536", "http://a:http", "http://a:-1", "http://a:1:2",
		"http://a:1/v1", "http://a:1//", "http://a:1?", "http://a:1?x", "http://a:1#", "http://a:1#x", "http://user@a:1",
		"http://::1:8000", "http://[::1", "http://[10.0.0.1]x:1", "http://10.0.0.300:1", "http://10.0.1:1", "http://a..b:1", "http://a b:1",
		"http://a%20b:1", "http://a,b:1", "http://[x]:1", "http://" + strings.Repeat("a.", 127) + "com:1", "http://" + strings.Repeat("a", 64) + ":1",
		" http://a:1", "http://a:1\n", "http://a:1\x00",
	} {
		if got, err := ParseEndpoint(raw); err == nil {
			t.Errorf("ParseEndpoint(%q) = %+v, want an error", raw, got)
		}
	}
	_, err := ParseEndpoint("http://user:secret@a:1")
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error shows the password: %v", err)
	}
}

func TestValidateNamesTheFlag(t *testing.T) {
	c := Default()
	c.World.Pools = []proxy.Pool{{Name: "default", Endpoints: []proxy.Endpoint{{Address: "a:1"}, {Address: "a:1"}}}}
	c.Listen.HTTP = "8080"
	err := c.Validate(func(path string) string {
		switch path {
		case "listen.http":
			return "--listen"
		case "pools[0].endpoints[1]":
			return "--endpoint"
		}
		return path
	})
	want := `--listen: "8080" is not an address: want host:port, or ":port" for all interfaces
--endpoint: "a:1" is endpoints[0] as well`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestValidateJudgesWhatNoFileCanSay(t *testing.T) {
	good := func() *Config {
		c := Default()
		c.World.Pools = []proxy.Pool{{Name: "a", Endpoints: []proxy.Endpoint{{Address: "a:1"}}}}
		return c
	}
	if err := good().Validate(nil); err != nil {
		t.Fatal(err)
	}
	zero := &Config{Listen: Listen{HTTP: ":0", Metrics: ":0"}, World: &proxy.World{Pools: good().World.Pools}}
	if err := zero.Validate(nil); err != nil {
		t.Errorf("zero values stand for defaults: %v", err)
	}
	// A pod's UID tells it from the one before it on the same address.
	c := good()
	c.World.Pools[0].Endpoints = []proxy.Endpoint{{Address: "a:1", UID: "x"}, {Address: "a:1", UID: "y"}}
	if err := c.Validate(nil); err != nil {
		t.Errorf("two UIDs on one address: %v", err)
	}
	for want, change := range map[string]func(c *Config){
		"no world":                       func(c *Config) { c.World = nil },
		"pools[0].endpoints[0]":          func(c *Config) { c.World.Pools[0].Endpoints[0].Address = "a" },
		"timeouts.connect":               func(c *Config) { c.World.Timeouts.Connect = -1 },
		"timeouts.first_byte":            func(c *Config) { c.World.Timeouts.FirstByte = -1 },
		"timeouts.stream_idle":           func(c *Config) { c.World.Timeouts.StreamIdle = -1 },
		"timeouts.request":               func(c *Config) { c.World.Timeouts.Request = -1 },
		"timeouts.drain":                 func(c *Config) { c.World.Timeouts.Drain = -1 },
		"limits.body":                    func(c *Config) { c.World.Limits.Body = -1 },
		"limits.buffers":                 func(c *Config) { c.World.Limits.Buffers = -1 },
		"limits.headers":                 func(c *Config) { c.World.Limits.Headers = -1 },
		"limits.connections":             func(c *Config) { c.World.Limits.Connections = -1 },
		"limits.connections_per_address": func(c *Config) { c.World.Limits.ConnectionsByAddress = -1 },
		"limits.requests_per_principal":  func(c *Config) { c.World.Limits.RequestsByPrincipal = -1 },
		"scrape.interval":                func(c *Config) { c.World.Scrape.Interval = 1 },
		"scrape.timeout":                 func(c *Config) { c.World.Scrape.Timeout = -1 },
		"scrape.path":                    func(c *Config) { c.World.Scrape.Path = "/a\r\nb" },
		"cache_salt":                     func(c *Config) { c.World.CacheSalt = "x" },
		"usage":                          func(c *Config) { c.World.Usage = "x" },
		"model_names":                    func(c *Config) { c.World.ModelNames = "x" },
		"explain":                        func(c *Config) { c.World.Explain = "x" },
		"shadow":                         func(c *Config) { c.World.Shadow = "x" },
		"models[0].targets[0].weight": func(c *Config) {
			c.World.Models = []proxy.Model{{Name: "m", Pool: "a", Targets: []proxy.Target{{Name: "x", Weight: -1}, {Name: "y", Weight: 2}}}}
		},
	} {
		c := good()
		change(c)
		if err := c.Validate(nil); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want an error of %s, got %v", want, err)
		}
	}
}

func TestBounds(t *testing.T) {
	if _, err := Parse("f", make([]byte, MaxSize+1)); err == nil || err.Error() != "f: larger than 1MiB: not read" {
		t.Errorf("too large: %v", err)
	}
	path := filepath.Join(t.TempDir(), "fairway.yaml")
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("too large: %v", err)
	}

	var bomb strings.Builder
	bomb.WriteString("pools:\n- &p {name: p, endpoints: &e [")
	for i := range 10_000 {
		fmt.Fprintf(&bomb, "http://h%d, ", i)
	}
	bomb.WriteString("]}\n")
	bomb.WriteString(strings.Repeat("- *p\n", 1000))
	_, err := Parse("f", []byte(bomb.String()))
	if err == nil || !strings.Contains(err.Error(), "aliases unfold to more than") {
		t.Errorf("aliases: %.200v", err)
	}
	if n := strings.Count(err.Error(), "\n"); n > maxProblems {
		t.Errorf("%d lines of errors", n)
	}

	for name, file := range map[string]string{
		"deep list":      "pools: " + strings.Repeat("[", 20_000),
		"deep mapping":   strings.Repeat("{a: ", 20_000),
		"cycle":          "pools: &a [*a]",
		"cycle of maps":  "pools:\n- &a {name: *a, endpoints: [*a]}",
		"unknown keys":   keysUpTo(20_000),
		"unknown models": minimal + "models:\n" + strings.Repeat("- {name: m, pool: nonesuch}\n", 10_000),
	} {
		if _, err := Parse("f", []byte(file)); err == nil || len(err.Error()) > 100_000 {
			t.Errorf("%s: %.200v", name, err)
		}
	}
}

func keysUpTo(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "key%d: x\n", i)
	}
	return b.String()
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"full.yaml", "waypoint.yaml"} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(minimal))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v, error %v", c, err)
		}
		if err != nil {
			if len(err.Error()) > 100*4096 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if err := c.Validate(nil); err != nil {
			t.Errorf("accepted what is not valid: %v", err)
		}
	})
}
