package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/discovery/kube"
	"github.com/fairway-proxy/fairway/proxy/authz"
)

func newCheck() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check [-f] FILE|DIR",
		Short: "Read a configuration or Kubernetes manifests and print what they would serve, or what is wrong and where",
		Long: "check reads a fairway.yaml, or Kubernetes manifests: one file, or all .yaml, .yml and .json files below a directory.\n" +
			"Nothing is asked of a cluster. Of manifests, all objects are taken together, those of kinds that Fairway does not read are passed over,\n" +
			"and a namespace that is left out is \"default\".",
		RunE: func(cmd *cobra.Command, args []string) error {
			if path == "" && len(args) == 1 {
				path, args = args[0], nil
			}
			if path == "" || len(args) > 0 {
				return cli.Misuse(errors.New("which file? give one, as -f FILE"))
			}
			manifests, err := holdsManifests(path)
			if err == nil && manifests {
				return checkManifests(cmd, path)
			}
			c, err := file.Load(path)
			if cli.JSON(cmd) {
				return checkJSON(cmd, c, err)
			}
			if err != nil {
				return fmt.Errorf("this configuration cannot be served:\n%w", err)
			}
			return writeRoutes(cmd.OutOrStdout(), describeConfig(c))
		},
	}
	cmd.Flags().StringVarP(&path, "file", "f", "", "the configuration `file`, or Kubernetes manifests: a file or a directory")
	return cmd
}

// holdsManifests tells whether there are Kubernetes manifests at path: in a
// directory nothing else is looked for.
func holdsManifests(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return err == nil, err
	}
	if info.Size() > file.MaxSize && filepath.Ext(path) != ".json" {
		return true, nil // too large for a fairway.yaml
	}
	data, err := os.ReadFile(path)
	return kube.IsManifest(data), err
}

// checkManifests prints what Kubernetes objects would have Fairway serve. What is
// found beside the routes is told on standard error.
func checkManifests(cmd *cobra.Command, path string) error {
	m, err := kube.ReadManifests(path)
	if err != nil {
		return err
	}
	if m.Empty() {
		m.Problems = append(m.Problems, path+": no manifests: want .yaml, .yml or .json files with Kubernetes objects")
	}
	t := kube.Translate(&m.Objects, kube.Options{})
	v := describeManifests(m, t)
	if cli.JSON(cmd) {
		if err := cli.WriteJSON(cmd.OutOrStdout(), v); err != nil {
			return err
		}
	} else {
		if err := writeManifests(cmd.OutOrStdout(), v); err != nil {
			return err
		}
		for _, e := range v.Errors {
			fmt.Fprintln(cmd.ErrOrStderr(), e)
		}
		for _, w := range v.Warnings {
			fmt.Fprintln(cmd.ErrOrStderr(), w)
		}
	}
	switch n := len(v.Errors); n {
	case 0:
	case 1:
		return errors.New("1 problem in these manifests")
	default:
		return fmt.Errorf("%d problems in these manifests", n)
	}
	return nil
}

// manifestsView is what Kubernetes objects say.
type manifestsView struct {
	OK       bool          `json:"ok"`
	Errors   []string      `json:"errors"`
	Warnings []string      `json:"warnings"`
	Pools    []poolView    `json:"pools"`
	Models   []modelView   `json:"models"`
	Routes   []routeView   `json:"routes"`
	Services []serviceView `json:"services"`
	Others   int           `json:"others"` // objects of kinds that are not read
}

// serviceView is a port of a Service.
type serviceView struct {
	Service  string      `json:"service"` // namespace/name:port
	Bound    bool        `json:"bound"`   // to a waypoint of Fairway
	Protocol string      `json:"protocol"`
	Policies []string    `json:"policies"` // AuthorizationPolicies, namespace/name
	Pool     string      `json:"pool"`     // where it goes without routes
	Routes   []routeView `json:"routes"`
}

func describeManifests(m *kube.Manifests, t *kube.Translation) manifestsView {
	v := manifestsView{
		Errors: append([]string{}, m.Problems...), Warnings: []string{}, Services: []serviceView{}, Others: m.Others,
		Pools: describePools(&t.World), Models: describeModels(t.World.Models), Routes: describeRoutes(t.World.Routes),
	}
	for _, f := range t.Findings {
		text := f.String()
		if where := m.Where(f); where != "" {
			text = where + ": " + text
		}
		if f.Warning {
			v.Warnings = append(v.Warnings, text+" (warning)")
		} else {
			v.Errors = append(v.Errors, text)
		}
	}
	for _, s := range t.Services {
		for _, p := range s.Ports {
			v.Services = append(v.Services, serviceView{
				Service: fmt.Sprintf("%s:%d", s.Key, p.Port), Bound: s.Bound, Protocol: string(p.Protocol), Policies: describePolicies(s.Access), Pool: p.Pool, Routes: describeRoutes(p.Routes),
			})
		}
	}
	v.OK = len(v.Errors) == 0
	return v
}

// describePolicies names the policies of a destination.
func describePolicies(s authz.Scope) []string {
	names := []string{}
	for _, p := range s.Policies {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	return names
}

func writeManifests(out io.Writer, v manifestsView) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(v.Routes) > 0 {
		writeRules(w, "ROUTE", v.Routes)
	}
	for _, s := range v.Services {
		if len(s.Policies) > 0 {
			fmt.Fprintf(w, "SERVICE %s\tjudged by %s\n", s.Service, strings.Join(s.Policies, ", "))
		}
		if len(s.Routes) == 0 {
			fmt.Fprintf(w, "SERVICE %s\tto its own endpoints\n\n", s.Service)
			continue
		}
		writeRules(w, "SERVICE "+s.Service, s.Routes)
	}
	writeModels(w, v.Models, v.Pools)
	fmt.Fprintln(w, "POOL\tENDPOINTS")
	for _, p := range v.Pools {
		fmt.Fprintf(w, "%s\t%d\n", p.Name, len(p.Endpoints))
	}
	if v.Others > 0 {
		fmt.Fprintf(w, "\n%d objects of kinds that Fairway does not read\n", v.Others)
	}
	return w.Flush()
}

// checkJSON prints the verdict as one object; a bad configuration is still a
// failure.
func checkJSON(cmd *cobra.Command, c *file.Config, err error) error {
	verdict := struct {
		OK     bool        `json:"ok"`
		Errors []string    `json:"errors"`
		Config *configView `json:"config,omitempty"`
	}{OK: err == nil, Errors: []string{}}
	if err == nil {
		v := describeConfig(c)
		verdict.Config = &v
	} else {
		for _, e := range problems(err) {
			verdict.Errors = append(verdict.Errors, e.Error())
		}
	}
	if werr := cli.WriteJSON(cmd.OutOrStdout(), verdict); werr != nil {
		return werr
	}
	if err != nil {
		return errors.New("this configuration cannot be served")
	}
	return nil
}

// problems takes a joined error apart.
func problems(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}
