package file

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/proxy"
	"github.com/fairway-proxy/fairway/proxy/authz"
	"github.com/fairway-proxy/fairway/proxy/extauthz"
)

// External authorizers, as the extensionProviders of Istio's mesh configuration
// describe them.

// maxShown bounds what of a body a provider is shown, in bytes.
const maxShown = 16 << 20

func (r *reader) provider(n *yaml.Node, path string) (p extauthz.Provider) {
	kinds := 0
	r.mapping(n, path, map[string]field{
		"name": textInto(r, &p.Name, "a name"),
		"envoyExtAuthzGrpc": func(n *yaml.Node, path string) {
			kinds++
			r.authorizer(n, path, &p, nil)
		},
		"envoyExtAuthzHttp": func(n *yaml.Node, path string) {
			kinds++
			p.HTTP = true
			r.authorizer(n, path, &p, map[string]field{
				"pathPrefix":                      textInto(r, &p.PathPrefix, "a path"),
				"includeRequestHeadersInCheck":    r.names(&p.IncludeHeaders),
				"includeAdditionalHeadersInCheck": r.fieldsShown(&p.AddHeaders),
				"headersToUpstreamOnAllow":        r.names(&p.ToUpstreamOnAllow),
				"headersToDownstreamOnDeny":       r.names(&p.ToClientOnDeny),
				"headersToDownstreamOnAllow":      r.names(&p.ToClientOnAllow),
			})
		},
	})
	if kinds != 1 {
		r.problem(path, "want one of envoyExtAuthzGrpc and envoyExtAuthzHttp")
	}
	return p
}

// authorizer reads what both kinds have, and more.
func (r *reader) authorizer(n *yaml.Node, path string, p *extauthz.Provider, more map[string]field) {
	var service string
	port := 0
	fields := map[string]field{
		"service":  textInto(r, &service, "the full name of a Service"),
		"port":     r.number(&port, 65535),
		"timeout":  r.duration(&p.Timeout, minInterval),
		"failOpen": r.yesNo(&p.FailOpen),
		"statusOnError": func(n *yaml.Node, path string) {
			s, ok := r.text(n, path, "an HTTP status")
			code, err := strconv.Atoi(s)
			if ok && (err != nil || code < 400 || code > 599) {
				r.problem(path, "%s: want a status from 400 to 599", show(s))
			}
			p.StatusOnError = code
		},
		"includeRequestBodyInCheck": r.section(map[string]field{
			"maxRequestBytes":     r.number(&p.Body, maxShown),
			"allowPartialMessage": r.yesNo(&p.AllowPartial),
			"packAsBytes":         r.yesNo(&p.PackAsBytes),
		}),
	}
	maps.Copy(fields, more)
	r.mapping(n, path, fields)
	if _, host, ok := strings.Cut(service, "/"); ok { // behind its namespace
		service = host
	}
	p.Address = net.JoinHostPort(service, strconv.Itoa(port))
}

// names is the field of a list of patterns of field names, whatever their case.
func (r *reader) names(into *[]string) field {
	return r.list(func(n *yaml.Node, path string) {
		if s, ok := r.text(n, path, "the name of a field"); ok {
			*into = append(*into, strings.ToLower(s))
		}
	})
}

// fieldsShown is the field of a mapping of names to values.
func (r *reader) fieldsShown(into *map[string]string) field {
	return func(n *yaml.Node, path string) {
		if n.Kind != yaml.MappingNode {
			r.problem(path, "want a mapping of field names to values")
			return
		}
		*into = make(map[string]string)
		for i := 0; i+1 < len(n.Content); i += 2 {
			(*into)[strings.ToLower(n.Content[i].Value)] = n.Content[i+1].Value
		}
	}
}

// authorizers checks the external authorizers, and that policies name these.
func (k *checker) authorizers(w *proxy.World) {
	names := make(map[string]int)
	for i, p := range w.Authorizers {
		path := fmt.Sprintf("extension_providers[%d]", i)
		k.name(path+".name", p.Name, "extension_providers", i, names)
		if err := checkAddress(p.Address); err != nil {
			k.problem(path, "want service and port of the authorizer: %v", err)
		}
		if p.PathPrefix != "" && p.PathPrefix[0] != '/' {
			k.problem(path+".pathPrefix", "%s: want a path", show(p.PathPrefix))
		}
	}
	known := slices.Sorted(maps.Keys(names))
	for i, p := range w.Access.Policies {
		if _, ok := names[p.Provider]; p.Action == authz.Custom && p.Provider != "" && !ok {
			k.problem(fmt.Sprintf("policies[%d].provider.name", i), "%s is not one of extension_providers (%s)%s", show(p.Provider), list(known), k.hint(p.Provider, known))
		}
	}
}
