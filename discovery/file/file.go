// Package file makes a proxy.World out of fairway.yaml, the way to say what
// Fairway serves where there is no Kubernetes to ask.
//
// It promises that a file is understood as a whole or refused as a whole: an
// unknown key, a value that makes no sense, or a setting that this version
// does not serve is an error, never ignored. Every error names the file, the
// line and the path of keys, and all errors of a file are told at once. Memory
// is bounded whatever the file holds.
//
// A Config is plain data: its owner guards it. A Watcher is used by one
// goroutine.
package file

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/mtls"
	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/watch"
)

// MaxSize is the largest file read, in bytes.
const MaxSize = watch.MaxSize

// Config is what a fairway.yaml says.
type Config struct {
	Listen  Listen
	Log     Log
	Tracing Tracing
	World   *proxy.World
	// TLS is where our identity in the mesh comes from: mtls.Files,
	// mtls.WorkloadAPI or mtls.IstioCA; nil: we have none.
	TLS mtls.Provider
	// Keys is the file of API keys, empty for none. It is not read: the World has
	// no key of it.
	Keys string
	// CostLabel is the label of pods that says what a second of them costs; empty: none
	// does. It is for what comes from a cluster.
	CostLabel string

	cluster bool // what is served comes from a cluster
}

// Listen says where the proxy can be reached: each is host:port, or empty for
// a listener that is off.
type Listen struct {
	// HTTP takes plain HTTP requests.
	HTTP string
	// HBONE takes mTLS tunnels, as an Istio ambient waypoint does.
	HBONE string
	// Sandwich takes what a ztunnel on this machine has unwrapped, announced by the
	// PROXY protocol.
	Sandwich string
	// Metrics serves metrics and health.
	Metrics string
	// Admin serves the dashboard and what operators ask for.
	Admin string
	// TLS has HTTP taken over TLS; the zero value does not.
	TLS TLS
}

// Log says what is logged. Its zero value is info, and an access log in the format of
// the rest.
type Log struct {
	// Level is the least that is logged: debug, info, warn or error.
	Level string
	// Access is the format of the access log.
	Access Access
}

// Access is how requests are logged.
type Access string

// The formats of the access log.
const (
	AccessText Access = "text"
	AccessJSON Access = "json"
	AccessOff  Access = "off" // there is none
)

// Tracing says where spans of requests go. Its zero value is nowhere.
type Tracing struct {
	// Endpoint is the URL of an OpenTelemetry collector.
	Endpoint string `json:"endpoint"`
	// Protocol is how it is spoken to.
	Protocol OTLP `json:"protocol"`
	// Sampling is the share of the traces that begin here of which spans are sent, 0 to 1.
	Sampling float64 `json:"sampling"`
}

// OTLP is a transport of OpenTelemetry's protocol.
type OTLP string

// The transports. Empty counts as OTLPGRPC.
const (
	OTLPGRPC OTLP = "grpc"
	OTLPHTTP OTLP = "http"
)

// DefaultSampling is the share of traces that are sampled unless told otherwise.
const DefaultSampling = 0.01

// TLS is a certificate and its key, files in PEM.
type TLS struct{ Certificate, Key string }

// Default is what an empty fairway.yaml would mean if it could name no pool:
// every default filled in, nothing served yet.
func Default() *Config {
	return &Config{
		Listen:  Listen{HTTP: ":8080", Metrics: ":15020", Admin: "127.0.0.1:15000"},
		Tracing: Tracing{Protocol: OTLPGRPC, Sampling: DefaultSampling},
		World: &proxy.World{
			Timeouts: proxy.Timeouts{
				Connect: proxy.DefaultConnectTimeout,
				Drain:   proxy.DefaultDrain,
			},
			Limits: proxy.Limits{
				Body:    proxy.DefaultBodyLimit,
				Buffers: proxy.DefaultBufferLimit,
				Headers: proxy.DefaultHeaderLimit,
			},
			Scrape: proxy.Scrape{
				Interval: proxy.DefaultScrapeInterval,
				Timeout:  proxy.DefaultScrapeTimeout,
				Path:     proxy.DefaultMetricsPath,
			},
			Usage:      proxy.UsageInject,
			ModelNames: proxy.ModelAsked,
			Explain:    proxy.ExplainOnRequest,
			Shadow:     proxy.ShadowNone,
		},
	}
}

// Load reads and parses the file at path.
func Load(path string) (*Config, error) {
	data, err := watch.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// Parse makes a Config of the content of a file. Everything the file leaves
// out has its default filled in. The error, if any, joins one error per
// problem in the order of lines, each beginning with name and line.
func Parse(name string, data []byte) (*Config, error) { return parseInto(name, data, Default(), "") }

// parseSettings is Parse for a Watcher's Settings.
func parseSettings(name string, data []byte, listen string) (*Config, error) {
	c := Default()
	c.Listen.HTTP, c.Listen.HBONE, c.cluster = "", ":15008", true
	return parseInto(name, data, c, listen)
}

// parseInto reads a file into c, which has the defaults. Listen, if there is one, stands
// for the file's listen.http.
func parseInto(name string, data []byte, c *Config, listen string) (*Config, error) {
	if len(data) > MaxSize {
		return nil, watch.TooLarge(name)
	}
	root, err := document(name, data)
	if err != nil {
		return nil, err
	}
	r := reader{lines: map[string]int{"": 1}}
	if root != nil {
		r.config(root, c)
	}
	c.Listen.HTTP = cmp.Or(listen, c.Listen.HTTP)
	problems := r.problems
	if len(problems) < maxProblems {
		for _, p := range c.check() {
			if !r.judged(p.path) {
				problems = append(problems, p)
			}
		}
	}
	if len(problems) > 0 {
		return nil, r.report(name, problems)
	}
	return c, nil
}

// document returns the root node of the one YAML document in data, nil if
// there is nothing but comments.
func document(name string, data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, syntaxError(name, err)
	}
	if err := dec.Decode(&second); err == nil {
		return nil, fmt.Errorf("%s:%d: a second YAML document: want one in a file", name, second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxError(name, err)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	return root, nil
}

// syntaxError turns the library's "yaml: line 3: …" into "name:3: not YAML: …".
func syntaxError(name string, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if line, text, ok := strings.Cut(rest, ": "); ok {
			if _, err := strconv.Atoi(line); err == nil {
				return fmt.Errorf("%s:%s: not YAML: %s", name, line, text)
			}
		}
	}
	return fmt.Errorf("%s: not YAML: %s", name, msg)
}
