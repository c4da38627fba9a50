package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// volume is a directory as Kubernetes mounts a Secret: each file is a symlink
// through ..data, which is swapped as a whole.
type volume struct {
	t       *testing.T
	dir     string
	version int
}

func (v *volume) path(name string) string { return filepath.Join(v.dir, name) }

func (v *volume) files() Files {
	return Files{Certificate: v.path("tls.crt"), Key: v.path("tls.key"), Roots: v.path("root.pem"),
		Federated: map[spiffeid.TrustDomain]string{abroad: v.path("abroad.pem")}}
}

// swap puts other files in place.
func (v *volume) swap(files map[string][]byte) {
	v.t.Helper()
	v.version++
	version := "..v" + string(rune('0'+v.version))
	must := func(err error) {
		if err != nil {
			v.t.Helper()
			v.t.Fatal(err)
		}
	}
	must(os.Mkdir(v.path(version), 0o700))
	for name, content := range files {
		must(os.WriteFile(v.path(version+"/"+name), content, 0o600))
		if v.version == 1 {
			must(os.Symlink("..data/"+name, v.path(name)))
		}
	}
	must(os.Symlink(version, v.path("..new")))
	must(os.Rename(v.path("..new"), v.path("..data")))
}

// secret is what the files of an identity hold.
func secret(t testing.TB, cert tls.Certificate, roots, federated []*x509.Certificate) map[string][]byte {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return map[string][]byte{
		"tls.crt": chain, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"root.pem": PEM(roots...), "abroad.pem": PEM(federated...),
	}
}

func TestFilesAreTakenUpWhenTheyChange(t *testing.T) {
	v := &volume{t: t, dir: t.TempDir()}
	var log logged
	synctest.Test(t, func(t *testing.T) {
		ca, theirs := newCA(t, domain), newCA(t, abroad)
		below, err := ca.Intermediate()
		if err != nil {
			t.Fatal(err)
		}
		first := secret(t, issue(t, below, waypoint), ca.Roots(), theirs.Roots())
		v.swap(first)
		s := Open(v.files(), slog.New(slog.NewTextHandler(&log, nil)))
		defer s.Close()
		if !s.Ready() || s.ID() != waypoint {
			t.Fatal("not taken at once:", s.Err())
		}
		if c := s.current.Load(); c.domains != "abroad.example, cluster.local" || len(c.cert.Certificate) != 2 {
			t.Error(c.domains, len(c.cert.Certificate))
		}
		after := func(d time.Duration) string {
			time.Sleep(d)
			synctest.Wait()
			return log.take()
		}
		after(0)

		second := secret(t, issue(t, below, waypoint, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Hour) }), append(newCA(t, domain).Roots(), ca.Roots()...), theirs.Roots())
		v.swap(second)
		if text := after(2 * time.Second); strings.Count(text, "renewed") != 1 {
			t.Error("after a swap:", text)
		}
		expiry := s.Expiry()

		// A key that is not the certificate's, and a file that is no PEM, are
		// told once each and change nothing.
		v.swap(map[string][]byte{"tls.crt": first["tls.crt"], "tls.key": second["tls.key"], "root.pem": first["root.pem"], "abroad.pem": first["abroad.pem"]})
		if text := after(time.Minute); strings.Count(text, "\n") != 1 || !strings.Contains(text, "tls.key: tls: private key does not match public key") {
			t.Error("with another key:", text)
		}
		v.swap(map[string][]byte{"tls.crt": second["tls.crt"], "tls.key": second["tls.key"], "root.pem": second["root.pem"], "abroad.pem": []byte("x")})
		if text := after(time.Minute); strings.Count(text, "\n") != 1 || !strings.Contains(text, "abroad.pem: no certificate in it: want PEM") {
			t.Error("without roots:", text)
		}
		if !s.Expiry().Equal(expiry) || !s.Ready() || s.Err() == nil {
			t.Errorf("what was in force is not: %v, %v", s.Expiry(), s.Err())
		}
		v.swap(second)
		if text := after(time.Minute); strings.Count(text, "renewed") != 1 || s.Err() != nil {
			t.Error("back to the good ones:", text, s.Err())
		}
	})
}

func TestFilesMayComeLater(t *testing.T) {
	v := &volume{t: t, dir: t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		s := Open(v.files(), nil)
		defer s.Close()
		if s.Ready() || s.Err() == nil || !strings.Contains(s.Err().Error(), "tls.crt: no such file") {
			t.Error(s.Ready(), s.Err())
		}
		ca := newCA(t, domain)
		v.swap(secret(t, issue(t, ca, waypoint), ca.Roots(), newCA(t, abroad).Roots()))
		if err := s.Wait(t.Context()); err != nil || !s.Ready() {
			t.Error(err, s.Err())
		}
	})
}

func FuzzFiles(f *testing.F) {
	ca := newCA(f, domain)
	good := secret(f, issue(f, ca, waypoint), ca.Roots(), nil)
	f.Add(good["tls.crt"], good["tls.key"], good["root.pem"])
	f.Add(good["tls.key"], good["tls.crt"], []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, cert, key, roots []byte) {
		i, err := Files{}.identity([][]byte{cert, key, roots}, federation{})
		if err != nil {
			return
		}
		if len(i.Roots) != 1 {
			t.Errorf("%d trust domains", len(i.Roots))
		}
		i.prepare()
	})
}
