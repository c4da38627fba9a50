package file

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/route"
)

// Bounds of retry.attempts, and what it is unless told.
const (
	defaultAttempts = 1
	maxAttempts     = 100
)

// route reads one of the routes: a rule of an HTTPRoute, spelled as there
// (gateway.networking.k8s.io/v1), with the hostnames it is for. The names of its
// backends are those of pools.
func (r *reader) route(n *yaml.Node, path string) route.Route {
	out := route.Route{Name: path, Rules: make([]route.Rule, 1)}
	rule := &out.Rules[0]
	r.mapping(n, path, map[string]field{
		"name":        textInto(r, &out.Name, "a name"),
		"hostnames":   r.texts(&out.Hostnames, "a hostname"),
		"matches":     listInto(r, &rule.Matches, r.match),
		"filters":     r.filters(&rule.Filters),
		"backendRefs": listInto(r, &rule.Backends, r.backend),
		"timeouts": r.section(map[string]field{
			"request":        r.optionalDuration(&rule.Timeouts.Request),
			"backendRequest": r.optionalDuration(&rule.Timeouts.BackendRequest),
		}),
		"retry": func(n *yaml.Node, path string) {
			rule.Retry = &route.Retry{Attempts: defaultAttempts}
			r.mapping(n, path, map[string]field{
				"codes": listInto(r, &rule.Retry.Codes, func(n *yaml.Node, path string) (code int) {
					r.number(&code, 599)(n, path)
					return code
				}),
				"attempts": r.number(&rule.Retry.Attempts, maxAttempts),
				"backoff":  r.duration(&rule.Retry.Backoff, 0),
			})
		},
	})
	return out
}

func (r *reader) match(n *yaml.Node, path string) (m route.Match) {
	r.mapping(n, path, map[string]field{
		"path": func(n *yaml.Node, path string) {
			m.Path = route.PathMatch{Type: route.PathPrefix, Value: "/"}
			r.mapping(n, path, map[string]field{
				"type":  textInto(r, &m.Path.Type, "Exact, PathPrefix or RegularExpression"),
				"value": textInto(r, &m.Path.Value, "a path such as /v1"),
			})
		},
		"method":      textInto(r, &m.Method, "a method such as POST"),
		"headers":     listInto(r, &m.Headers, r.valueMatch),
		"queryParams": listInto(r, &m.Query, r.valueMatch),
	})
	return m
}

func (r *reader) valueMatch(n *yaml.Node, path string) route.ValueMatch {
	v := route.ValueMatch{Type: route.Exact}
	r.mapping(n, path, map[string]field{
		"type":  textInto(r, &v.Type, "Exact or RegularExpression"),
		"name":  textInto(r, &v.Name, "a name"),
		"value": textInto(r, &v.Value, "a value"),
	})
	return v
}

// backend reads the name of a pool and its weight, which is 1 unless told
// otherwise.
func (r *reader) backend(n *yaml.Node, path string) route.Backend {
	b := route.Backend{Weight: 1}
	r.mapping(n, path, map[string]field{
		"name":   textInto(r, &b.Pool, "the name of a pool"),
		"weight": r.number(&b.Weight, maxWeight),
		"filters": func(n *yaml.Node, path string) {
			var f route.Filters
			r.filters(&f)(n, path)
			if f.Redirect != nil || f.Rewrite != nil || len(f.Mirrors) > 0 {
				r.problem(path, "a backend's own filters are RequestHeaderModifier and ResponseHeaderModifier only: put others into the filters of the route")
			}
			b.RequestHeaders, b.ResponseHeaders = f.RequestHeaders, f.ResponseHeaders
		},
	})
	return b
}

// filterKeys are the types of filters and the key that each one's settings have.
var filterKeys = map[string]string{
	"RequestHeaderModifier": "requestHeaderModifier", "ResponseHeaderModifier": "responseHeaderModifier",
	"RequestRedirect": "requestRedirect", "URLRewrite": "urlRewrite", "RequestMirror": "requestMirror",
}

func (r *reader) filters(f *route.Filters) field {
	return r.list(func(n *yaml.Node, path string) {
		var kind string
		var given []string
		// one is the field of the settings of a filter that there may be once.
		one := func(key string, there bool, read field) field {
			return func(n *yaml.Node, path string) {
				if given = append(given, key); there {
					r.problem(path, "a second filter of this type: want it once")
					return
				}
				read(n, path)
			}
		}
		r.mapping(n, path, map[string]field{
			"type":                   textInto(r, &kind, "the type of a filter"),
			"requestHeaderModifier":  one("requestHeaderModifier", f.RequestHeaders != nil, r.modifier(&f.RequestHeaders)),
			"responseHeaderModifier": one("responseHeaderModifier", f.ResponseHeaders != nil, r.modifier(&f.ResponseHeaders)),
			"requestRedirect": one("requestRedirect", f.Redirect != nil, func(n *yaml.Node, path string) {
				f.Redirect = new(route.Redirect)
				r.mapping(n, path, map[string]field{
					"scheme":     textInto(r, &f.Redirect.Scheme, "http or https"),
					"hostname":   textInto(r, &f.Redirect.Hostname, "a hostname"),
					"port":       r.number(&f.Redirect.Port, 65535),
					"statusCode": r.number(&f.Redirect.Status, 399),
					"path":       r.pathModifier(&f.Redirect.Path),
				})
			}),
			"urlRewrite": one("urlRewrite", f.Rewrite != nil, func(n *yaml.Node, path string) {
				f.Rewrite = new(route.Rewrite)
				r.mapping(n, path, map[string]field{
					"hostname": textInto(r, &f.Rewrite.Hostname, "a hostname"),
					"path":     r.pathModifier(&f.Rewrite.Path),
				})
			}),
			"requestMirror": one("requestMirror", false, func(n *yaml.Node, path string) {
				f.Mirrors = append(f.Mirrors, r.mirror(n, path))
			}),
		})
		known := slices.Sorted(maps.Keys(filterKeys))
		if r.judged(path) {
			return
		}
		switch key, ok := filterKeys[kind]; {
		case kind == "":
			r.problem(path+".type", "missing: want %s", oneOf(known))
		case !ok:
			r.problem(path+".type", "%s%s: want %s", show(kind), didYouMean(kind, known), oneOf(known))
		case len(given) != 1 || given[0] != key:
			r.problem(path, "a %s has its settings in %s: want that, and no settings of another filter", kind, key)
		}
	})
}

func (r *reader) modifier(into **route.HeaderModifier) field {
	return func(n *yaml.Node, path string) {
		m := new(route.HeaderModifier)
		r.mapping(n, path, map[string]field{
			"set": listInto(r, &m.Set, r.headerField),
			"add": listInto(r, &m.Add, r.headerField),
			"remove": r.list(func(n *yaml.Node, path string) {
				if name, ok := r.text(n, path, "a name"); ok {
					m.Remove = append(m.Remove, strings.ToLower(name))
				}
			}),
		})
		*into = m
	}
}

func (r *reader) headerField(n *yaml.Node, path string) message.Field {
	var name, value string
	r.mapping(n, path, map[string]field{
		"name":  textInto(r, &name, "a name"),
		"value": textInto(r, &value, "a value"),
	})
	return message.Field{Name: []byte(name), Value: []byte(value)}
}

func (r *reader) pathModifier(into **route.PathModifier) field {
	return func(n *yaml.Node, path string) {
		var kind, full, prefix string
		r.mapping(n, path, map[string]field{
			"type":               textInto(r, &kind, "ReplaceFullPath or ReplacePrefixMatch"),
			"replaceFullPath":    textInto(r, &full, "a path"),
			"replacePrefixMatch": textInto(r, &prefix, "a path, or none"),
		})
		switch kind {
		case "ReplaceFullPath":
			*into = &route.PathModifier{Replacement: full}
		case "ReplacePrefixMatch":
			*into = &route.PathModifier{Prefix: true, Replacement: prefix}
		default:
			r.problem(path+".type", "%s: want ReplaceFullPath or ReplacePrefixMatch", show(kind))
		}
	}
}

func (r *reader) mirror(n *yaml.Node, path string) (m route.Mirror) {
	percent := -1
	r.mapping(n, path, map[string]field{
		"backendRef": r.section(map[string]field{"name": textInto(r, &m.Pool, "the name of a pool")}),
		"percent":    r.number(&percent, 100),
		"fraction": func(n *yaml.Node, path string) {
			m.Denominator = 100
			r.mapping(n, path, map[string]field{
				"numerator":   r.number(&m.Numerator, maxWeight),
				"denominator": r.number(&m.Denominator, maxWeight),
			})
		},
	})
	if percent >= 0 {
		if m.Denominator != 0 {
			r.problem(path, "percent and fraction exclude one another")
		}
		m.Numerator, m.Denominator = percent, 100
	}
	return m
}

// optionalDuration is the field of a duration that may be left out.
func (r *reader) optionalDuration(into **time.Duration) field {
	return func(n *yaml.Node, path string) {
		var d time.Duration
		r.duration(&d, 0)(n, path)
		*into = &d
	}
}

// routes checks routes, which share out requests among these pools.
func (k *checker) routes(path string, routes []route.Route, known []string) {
	for i := range routes {
		at := fmt.Sprintf("%s[%d]", path, i)
		for j, h := range routes[i].Hostnames {
			if wrong := route.CheckHostname(h); wrong != "" {
				k.problem(fmt.Sprintf("%s.hostnames[%d]", at, j), "%s", wrong)
			}
		}
		for j := range routes[i].Rules {
			rule := &routes[i].Rules[j]
			rule.Check(func(path, problem string) { k.problem(at+"."+path, "%s", problem) })
			if len(rule.Backends) == 0 && rule.Redirect == nil {
				k.problem(at+".backendRefs", "missing: want at least one pool (%s), or a RequestRedirect", list(known))
			}
			for b := range rule.Backends {
				k.pool(fmt.Sprintf("%s.backendRefs[%d].name", at, b), rule.Backends[b].Pool, known)
			}
			for _, m := range rule.Mirrors {
				k.pool(at+".filters", m.Pool, known)
			}
		}
	}
}

// pool checks the name of a pool.
func (k *checker) pool(path, name string, known []string) {
	if name == "" {
		k.problem(path, "missing: want the name of a pool (%s)", list(known))
	} else if !slices.Contains(known, name) {
		k.problem(path, "no pool is named %s%s (pools: %s)", show(name), k.hint(name, known), list(known))
	}
}
