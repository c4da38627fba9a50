package file

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/fairway-proxy/fairway/mtls"
)

// tls reads where our identity comes from: one of the providers, and the roots
// of other trust domains for those that do not bring them.
func (r *reader) tls(into *mtls.Provider) field {
	return func(n *yaml.Node, path string) {
		var (
			files     mtls.Files
			agent     mtls.WorkloadAPI
			istio     mtls.IstioCA
			given     []string
			federated map[spiffeid.TrustDomain]string
		)
		// A provider of which everything is left to its default is {}.
		provider := func(name string, fields map[string]field) field {
			return func(n *yaml.Node, path string) {
				if n := r.visit(n, path); n != nil && !isNull(n) {
					given = append(given, name)
				}
				r.mapping(n, path, fields)
			}
		}
		const file = "the path of a file"
		present := r.mapping(n, path, map[string]field{
			"files": provider("files", map[string]field{
				"certificate": textInto(r, &files.Certificate, file),
				"key":         textInto(r, &files.Key, file),
				"roots":       textInto(r, &files.Roots, file),
			}),
			"spiffe": provider("spiffe", map[string]field{
				"socket": textInto(r, &agent.Socket, "the path of a socket"),
			}),
			"istio_ca": provider("istio_ca", map[string]field{
				"address":      textInto(r, &istio.Address, "an address, host:port"),
				"token":        textInto(r, &istio.Token, file),
				"roots":        textInto(r, &istio.Roots, file),
				"cluster":      textInto(r, &istio.ClusterID, "the name of this cluster"),
				"trust_domain": r.trustDomain(&istio.TrustDomain),
			}),
			"federated": r.federated(&federated),
		})
		if !present {
			return
		}
		switch len(given) {
		case 0:
			if !r.judged(path) {
				r.problem(path, "no provider: want one of files, spiffe and istio_ca")
			}
			return
		case 1:
		default:
			r.problem(path, "%s: want one of them", strings.Join(given, " and "))
			return
		}
		switch given[0] {
		case "files":
			files.Federated = federated
			*into = files
		case "spiffe":
			if federated != nil {
				r.problem(path+".federated", "the Workload API says itself what its trust domain is federated with: leave it out")
			}
			*into = agent
		case "istio_ca":
			istio.Federated = federated
			*into = istio
		}
	}
}

// trustDomain is the field of a trust domain's name.
func (r *reader) trustDomain(into *spiffeid.TrustDomain) field {
	return func(n *yaml.Node, path string) {
		if name, ok := r.text(n, path, trustDomainForm); ok {
			*into, _ = r.domain(name, path)
		}
	}
}

const trustDomainForm = "the name of a trust domain such as cluster.local"

// domain reads the name of a trust domain.
func (r *reader) domain(name, path string) (spiffeid.TrustDomain, bool) {
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil || domain.Name() != name {
		r.problem(path, "%s: want %s", show(name), trustDomainForm)
		return spiffeid.TrustDomain{}, false
	}
	return domain, true
}

// federated is the field of the files with the roots of each trust domain.
func (r *reader) federated(into *map[spiffeid.TrustDomain]string) field {
	return func(n *yaml.Node, path string) {
		r.entries(n, path, "a mapping of trust domains to files", func(name string, n *yaml.Node, path string) {
			domain, ok := r.domain(name, path)
			if !ok {
				return
			}
			if roots, ok := r.text(n, path, "the path of a file with the roots of "+name); ok {
				if *into == nil {
					*into = make(map[spiffeid.TrustDomain]string)
				}
				(*into)[domain] = roots
			}
		})
	}
}

// tls checks where our identity comes from; nil: nowhere.
func (k *checker) tls(p mtls.Provider) {
	path := func(at, path, what string) {
		if path == "" {
			k.problem(at, "missing: want the path of a file with %s", what)
		}
	}
	var federated map[spiffeid.TrustDomain]string
	switch p := p.(type) {
	case mtls.Files:
		path("tls.files.certificate", p.Certificate, "our certificate, in PEM")
		path("tls.files.key", p.Key, "the key of our certificate, in PEM")
		path("tls.files.roots", p.Roots, "the roots of our trust domain, in PEM")
		federated = p.Federated
	case mtls.WorkloadAPI:
		if _, err := p.Address(); err != nil {
			k.problem("tls.spiffe.socket", "%s: %v", show(p.Socket), err)
		}
	case mtls.IstioCA:
		if p.Address != "" {
			if err := checkAddress(p.Address); err != nil {
				k.problem("tls.istio_ca.address", "%v", err)
			}
		}
		federated = p.Federated
	}
	for _, domain := range slices.SortedFunc(maps.Keys(federated), spiffeid.TrustDomain.Compare) {
		path(fmt.Sprintf("tls.federated.%s", domain), federated[domain], fmt.Sprintf("the roots of %s, in PEM", domain))
	}
}
