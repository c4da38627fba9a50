//go:build e2e

package kube_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// cluster is a Kubernetes API server with its etcd. There is nothing else of a cluster: no scheduler, no kubelets, no
// controllers. What they would write, the tests do.
type cluster struct {
	dir          string
	address      string // of the API server
	etcd, server *process.Process
	serverArgs   []string
	config       *rest.Config // of an administrator
	client       dynamic.Interface
}

// theCluster is the one of all tests.
var theCluster *cluster

// systemNamespace has what the chart installs.
const systemNamespace = "fairway-system"

func TestMain(m *testing.M) {
	code := func() int {
		begun := time.Now()
		c, err := startCluster()
		if c != nil {
			defer c.close()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "no cluster:", err)
			return 1
		}
		fmt.Printf("the API server was ready, with its CRDs, after %.1f s\n", time.Since(begun).Seconds())
		theCluster = c
		return m.Run()
	}()
	os.Exit(code)
}

func startCluster() (*cluster, error) {
	dir, err := os.MkdirTemp("", "e2e-kube")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, address: process.FreeAddress()}
	etcd := process.FreeAddress()
	peers := "http://" + process.FreeAddress()
	if c.etcd, err = process.Run(exec.Command("etcd", "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", "http://"+etcd, "--advertise-client-urls", "http://"+etcd,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers, "--log-level", "error")); err != nil {
		return c, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return c, err
	}
	signing, tokens := filepath.Join(dir, "accounts.key"), filepath.Join(dir, "tokens.csv")
	secret := rand.Text()
	if err := errors.Join(os.WriteFile(signing, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(tokens, fmt.Appendf(nil, "%s,admin,admin,system:masters\n", secret), 0o600)); err != nil {
		return c, err
	}
	_, port, _ := net.SplitHostPort(c.address)
	certs := filepath.Join(dir, "certs")
	c.serverArgs = []string{"--etcd-servers", "http://" + etcd, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", port, "--cert-dir", certs,
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", signing, "--service-account-signing-key-file", signing,
		// Tests that choose an address for a Service choose one of the first 256, which the API server gives to nobody by itself.
		"--authorization-mode", "RBAC", "--token-auth-file", tokens, "--service-cluster-ip-range", "10.96.0.0/16", "--endpoint-reconciler-type", "none",
		// Nobody makes the ServiceAccount default of a namespace, which pods would need.
		"--disable-admission-plugins", "ServiceAccount", "--event-ttl", "1m", "--profiling=false"}
	if err := c.startServer(); err != nil {
		return c, err
	}
	c.config = &rest.Config{Host: "https://" + c.address, BearerToken: secret, TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(certs, "apiserver.crt")}, QPS: 500, Burst: 1000}
	if err := c.untilReady(); err != nil {
		return c, err
	}
	if c.client, err = dynamic.NewForConfig(c.config); err != nil {
		return c, err
	}
	if err := c.installCRDs(); err != nil {
		return c, err
	}
	return c, c.installChart()
}

// startServer begins the API server, again after stopServer.
func (c *cluster) startServer() (err error) {
	c.server, err = process.Run(exec.Command(filepath.Join(os.Getenv("E2E_KUBERNETES"), "kube-apiserver"), c.serverArgs...))
	return err
}

func (c *cluster) stopServer() { c.server.End(syscall.SIGKILL) }

func (c *cluster) untilReady() error {
	var client *http.Client
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case <-c.server.Ended:
			return fmt.Errorf("the API server ended at once:\n%s", c.server.Output())
		default:
		}
		if client == nil { // until it has made its certificate
			client, _ = rest.HTTPClientFor(c.config)
			continue
		}
		r, err := client.Get(c.config.Host + "/readyz")
		if err != nil {
			continue
		}
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			return nil
		}
	}
	return errors.New("the API server never got ready")
}

func (c *cluster) close() {
	for _, p := range []*process.Process{c.server, c.etcd} {
		if p != nil {
			p.Kill()
		}
	}
	os.RemoveAll(c.dir)
}

// installCRDs has the API server know what the projects declare.
func (c *cluster) installCRDs() error {
	var names []string
	for _, place := range filepath.SplitList(os.Getenv("E2E_CRDS")) {
		err := filepath.WalkDir(place, func(name string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(name) != ".yaml" {
				return err
			}
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			objects, err := parse(string(text))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			for _, o := range objects {
				group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
				if o.GetKind() != "CustomResourceDefinition" || strings.HasSuffix(group, "istio.io") && group != "security.istio.io" {
					continue
				}
				if err := c.put(o); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				names = append(names, o.GetName())
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(names) < 10 {
		return fmt.Errorf("%d CRDs found in E2E_CRDS: %v", len(names), names)
	}
	crds := c.client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for _, name := range names {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			o, err := crds.Get(context.Background(), name, metav1.GetOptions{})
			if err == nil && condition(o, "Established") == "True" {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the CRD %s is not established: %v", name, err)
			}
		}
	}
	return nil
}

// condition is the status of a condition of an object, "" without it.
func condition(o *unstructured.Unstructured, kind string) string {
	all, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, one := range all {
		if m, ok := one.(map[string]any); ok && m["type"] == kind {
			status, _ := m["status"].(string)
			return status
		}
	}
	return ""
}

// installChart renders the chart and puts in the cluster what a Fairway outside of it needs: who it is, and what that may do.
func (c *cluster) installChart() error {
	text, err := helm("template", "fairway", chart, "--namespace", systemNamespace, "--set", "gateway.allowedRoutes=All")
	if err != nil {
		return err
	}
	objects, err := parse(text)
	if err != nil {
		return err
	}
	objects = append([]*unstructured.Unstructured{namespaceNamed(systemNamespace)}, objects...)
	for _, o := range objects {
		switch o.GetKind() {
		case "Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "GatewayClass":
			if err := c.put(o); err != nil {
				return err
			}
		}
	}
	return nil
}

func namespaceNamed(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name}}}
}

const chart = "../../../deploy/chart"

// helm runs it for the version of the API server and gives what it prints.
func helm(args ...string) (string, error) {
	cmd := exec.Command(os.Getenv("E2E_HELM"), append(args, "--kube-version", "1.36.3")...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("helm %s: %w: %s%s", strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.String(), nil
}

// parse reads manifests.
func parse(text string) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		o := new(unstructured.Unstructured)
		switch err := decoder.Decode(&o.Object); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return all, err
		case len(o.Object) == 0:
		case o.IsList():
			list, err := o.ToList()
			if err != nil {
				return all, err
			}
			for i := range list.Items {
				all = append(all, &list.Items[i])
			}
		default:
			all = append(all, o)
		}
	}
}

// clusterWide are the kinds in use here that are in no namespace.
var clusterWide = []string{"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "GatewayClass"}

// resource is where objects of this one's kind and namespace are.
func (c *cluster) resource(o *unstructured.Unstructured) dynamic.ResourceInterface {
	plural, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	if o.GetKind() == "Gateway" {
		plural.Resource = "gateways" // its guess is gatewaies
	}
	if slices.Contains(clusterWide, o.GetKind()) {
		return c.client.Resource(plural)
	}
	if o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	return c.client.Resource(plural).Namespace(o.GetNamespace())
}

// put applies one object on the server's side; a status it has too.
func (c *cluster) put(o *unstructured.Unstructured) error {
	r := c.resource(o)
	data, err := json.Marshal(o.Object)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: "e2e", Force: new(true)}
	if _, err = r.Patch(context.Background(), o.GetName(), types.ApplyPatchType, data, options); err == nil && o.Object["status"] != nil && o.GetKind() != "CustomResourceDefinition" {
		_, err = r.Patch(context.Background(), o.GetName(), types.ApplyPatchType, data, options, "status")
	}
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
	}
	return nil
}

// apply puts manifests into the cluster, until the end of the test.
func (c *cluster) apply(t *testing.T, text string) {
	t.Helper()
	objects, err := parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for _, o := range objects {
		if err := c.put(o); err != nil {
			t.Fatal(err)
		}
		if o.GetKind() != "Namespace" { // nobody would see to its end
			t.Cleanup(func() { c.remove(t, o) })
		}
	}
}

// remove deletes an object at once.
func (c *cluster) remove(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	err := c.resource(o).Delete(context.Background(), o.GetName(), metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// finalize ends a namespace that is being deleted, as the controller of namespaces does when nothing is left in it.
func (c *cluster) finalize(t *testing.T, name string) {
	t.Helper()
	namespaces := c.resource(namespaceNamed(name))
	o, err := namespaces.Get(context.Background(), name, metav1.GetOptions{})
	if err == nil && o.GetDeletionTimestamp() != nil {
		unstructured.RemoveNestedField(o.Object, "spec", "finalizers")
		_, err = namespaces.Update(context.Background(), o, metav1.UpdateOptions{}, "finalize")
	}
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// object gives one as it is now.
func (c *cluster) object(t *testing.T, apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"namespace": namespace, "name": name}}}
	o, err := c.resource(o).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// mustParse reads one manifest.
func mustParse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	objects, err := parse(text)
	if err != nil || len(objects) != 1 {
		t.Fatalf("%d objects, %v in %s", len(objects), err, text)
	}
	return objects[0]
}

// kubeconfig is a file with a token of a ServiceAccount.
func (c *cluster) kubeconfig(t *testing.T, namespace, account string) string {
	t.Helper()
	request := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"metadata": map[string]any{"name": account}, "spec": map[string]any{"expirationSeconds": int64(7200)}}}
	accounts := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"namespace": namespace}}}
	answer, err := c.resource(accounts).Create(t.Context(), request, metav1.CreateOptions{}, "token")
	if err != nil {
		t.Fatal(err)
	}
	token, _, _ := unstructured.NestedString(answer.Object, "status", "token")
	return c.writeKubeconfig(t, namespace, token)
}

// writeKubeconfig makes a kubeconfig of a token, with a namespace that it is for.
func (c *cluster) writeKubeconfig(t *testing.T, namespace, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u, namespace: %q}}],
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}], users: [{name: u, user: {token: %q}}]}`, namespace, c.config.Host, c.config.CAFile, token)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
