package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/mtls"
)

// TestServeWaitsForItsIdentity starts before its certificate is there.
func TestServeWaitsForItsIdentity(t *testing.T) {
	pod := startPod(t, "", mock.Config{})
	at := freeAddresses(3)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	writeFile(t, path("fairway.yaml"), fmt.Sprintf(`
listen: {http: %q, metrics: %q, admin: %q}
tls: {files: {certificate: %s, key: %s, roots: %s}}
pools: [{name: a, endpoints: [http://%s]}]
`, at[0], at[1], at[2], path("tls.crt"), path("tls.key"), path("root.pem"), pod.address))
	r := serve(t, "--config", path("fairway.yaml"))
	ready := func() (int, string) { return get("http://" + at[1] + "/healthz/ready") }
	waitFor(t, "that it is up, and not ready for want of an identity", func() bool {
		status, why := ready()
		return status == 503 && strings.Contains(why, "no identity in the mesh: open "+path("tls.crt")+": no such file")
	})
	if _, page := get("http://" + at[1] + "/metrics"); strings.Contains(page, "fairway_certificate_expiry_timestamp_seconds{") {
		t.Error("the certificate that is not there expires")
	}

	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/waypoint")
	ca := newAuthority(t)
	cert, err := ca.Issue(id.String(), time.Now().Add(-time.Minute), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key, err := ztunnel.PEM(cert)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path("tls.crt"), string(certificate))
	writeFile(t, path("tls.key"), string(key))
	writeFile(t, path("root.pem"), string(ca.PEM()))
	waitFor(t, "readiness", func() bool { status, _ := ready(); return status == 200 })
	want := fmt.Sprintf(`fairway_certificate_expiry_timestamp_seconds{spiffe_id="%s"} %v`, id, float64(cert.Leaf.NotAfter.Unix()))
	if _, page := get("http://" + at[1] + "/metrics"); !strings.Contains(page, want) {
		t.Errorf("want %s\n%s", want, page)
	}
	_, page := get("http://" + at[2] + "/config")
	var config struct {
		TLS map[string]map[string]string
	}
	if err := json.Unmarshal([]byte(page), &config); err != nil || config.TLS["files"]["certificate"] != path("tls.crt") {
		t.Error(err, page)
	}
	r.stop()
	if code := <-r.code; code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr)
	}
}

func TestDescribeTLS(t *testing.T) {
	partner := spiffeid.RequireTrustDomainFromString("partner.example")
	for want, p := range map[string]mtls.Provider{
		`null`: nil,
		`{"spiffe":{"socket":"/run/secrets/workload-spiffe-uds/socket"}}`: mtls.WorkloadAPI{},
		`{"federated":{"partner.example":"b"},"istio_ca":{"address":"istiod.istio-system.svc:15012","cluster":"c","roots":"/var/run/secrets/istio/root-cert.pem",` +
			`"token":"/var/run/secrets/tokens/istio-token","trust_domain":"cluster.local"}}`: mtls.IstioCA{ClusterID: "c", Federated: map[spiffeid.TrustDomain]string{partner: "b"}},
	} {
		if got, err := json.Marshal(describeTLS(p)); err != nil || string(got) != want {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	}
}

// Every key of tls is documented.
func TestDocumentedTLS(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range []mtls.Provider{mtls.Files{}, mtls.WorkloadAPI{}, mtls.IstioCA{}} {
		for provider, keys := range describeTLS(p) {
			_, row, found := strings.Cut(string(page), "| `tls."+provider+"` |")
			if !found {
				t.Errorf("tls.%s is not documented", provider)
			}
			row, _, _ = strings.Cut(row, "\n")
			for key, value := range keys.(map[string]string) {
				n++
				if !strings.Contains(row, "`"+key+"`") || value != "" && !strings.Contains(row, "`"+value+"`") {
					t.Errorf("tls.%s.%s, by default %q, is not documented", provider, key, value)
				}
			}
		}
	}
	if n < 9 {
		t.Errorf("%d keys found: this test shows little", n)
	}
}
