package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
)

// writeCertificate puts a certificate of its own for localhost into files, and gives
// it.
func writeCertificate(t *testing.T, c file.TLS, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, c.Key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	writeFile(t, c.Certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func keyLine(name, key string) string {
	return fmt.Sprintf("%s sha256:%x\n", name, sha256.Sum256([]byte(key)))
}

// A proxy by HTTPS that knows its clients by keys, policies that go by them, and all of
// it taken up as its files change.
func TestTLSAndKeysAreTakenUpAsTheyChange(t *testing.T) {
	dir := t.TempDir()
	config, keys := filepath.Join(dir, "fairway.yaml"), filepath.Join(dir, "keys.txt")
	files := file.TLS{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	certificate := writeCertificate(t, files, 1)
	writeFile(t, keys, "# keys\n"+keyLine("a", "alpha")+keyLine("b", "beta"))
	pod := startPod(t, "", mock.Config{Speed: 100})
	text := `
listen: {http: "127.0.0.1:0", metrics: "", admin: "", tls: {certificate: ` + files.Certificate + `, key: ` + files.Key + `}}
pools: [{name: p, endpoints: ["http://` + pod.address + `"]}]
auth: {keys: ` + keys + `}
policies:
- name: a
  rules: [{from: [{source: {requestPrincipals: [key/a, key/c]}}]}]
`
	writeFile(t, config, text)
	c, err := file.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	a := runApp(t, c, slog.New(slog.NewTextHandler(&log, nil)))

	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	ask := func(key string, version int) (code int, serial int64) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: version == 2}
		defer transport.CloseIdleConnections()
		body := `{"model":"mock","messages":[{"role":"user","content":"hello"}],"max_tokens":3,"stream":true}`
		r, err := http.NewRequest("POST", "https://"+a.plain.Addr().String()+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		answer, err := transport.RoundTrip(r)
		if err != nil {
			return 0, 0
		}
		defer answer.Body.Close()
		seen, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode == 200 && !bytes.HasSuffix(seen, []byte("data: [DONE]\n\n")) || answer.ProtoMajor != version {
			t.Errorf("%s %s, %v", answer.Proto, seen, err)
		}
		return answer.StatusCode, answer.TLS.PeerCertificates[0].SerialNumber.Int64()
	}
	status := func(key string) (code int, serial int64) { // by either version of HTTP
		t.Helper()
		code, serial = ask(key, 1)
		if other, _ := ask(key, 2); code != other && code != 0 && other != 0 {
			code = -1 // it changes at this moment
		}
		return code, serial
	}
	for key, want := range map[string]int{"alpha": 200, "beta": 403, "gamma": 401, "": 401} {
		if got, _ := status(key); got != want {
			t.Errorf("key %q: %d, want %d", key, got, want)
		}
	}

	// Another key, and then a file that is none: the last good one stays.
	writeFile(t, keys, keyLine("c", "gamma"))
	waitFor(t, "the new key", func() bool { got, _ := status("gamma"); return got == 200 })
	if got, _ := status("alpha"); got != 401 {
		t.Errorf("a key that was taken away: %d", got)
	}
	writeFile(t, keys, "c gamma\n")
	waitFor(t, "a complaint about the keys", func() bool { return strings.Contains(log.String(), "keys.txt:1: want a name and sha256:") })
	if strings.Contains(log.String(), "gamma") {
		t.Error("the log tells a key")
	}
	if got, _ := status("gamma"); got != 200 {
		t.Errorf("after a bad file: %d", got)
	}
	// What else changes leaves the keys as they are.
	a.reload(c, nil, &serveOptions{})
	if got, _ := status("gamma"); got != 200 {
		t.Errorf("after a reload: %d", got)
	}

	// Another certificate; then one whose key is another's.
	next := writeCertificate(t, files, 2)
	roots.AddCert(next)
	waitFor(t, "the new certificate", func() bool { _, serial := status("gamma"); return serial == 2 })
	writeFile(t, files.Certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})))
	waitFor(t, "a complaint about the certificate", func() bool { return strings.Contains(log.String(), "private key does not match") })
	if got, serial := status("gamma"); got != 200 || serial != 2 {
		t.Errorf("after a bad certificate: %d by %d", got, serial)
	}
}

// Who speaks no TLS, or none that is taken here, gets nothing.
func TestPlainListenerTakesTLSOnly(t *testing.T) {
	dir := t.TempDir()
	files := file.TLS{Certificate: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k")}
	writeCertificate(t, files, 1)
	c := file.Default()
	c.Listen = file.Listen{HTTP: "127.0.0.1:0", TLS: files}
	a := runApp(t, c, slog.New(slog.DiscardHandler))
	if answer, err := http.Get("http://" + a.plain.Addr().String()); err == nil {
		answer.Body.Close()
		t.Errorf("plain HTTP: %s", answer.Status)
	}
	old := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	if conn, err := tls.Dial("tcp", a.plain.Addr().String(), old); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is taken")
	}
}

func TestSecretsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"auth: {keys: nowhere}":                                     "auth.keys: ",
		"listen: {tls: {certificate: nowhere, key: nowhere}}":       "listen.tls: ",
		"auth: {keys: secrets.go}":                                  "auth.keys: ",
		"listen: {tls: {certificate: secrets.go, key: secrets.go}}": "listen.tls: ",
	} {
		config := filepath.Join(dir, "fairway.yaml")
		writeFile(t, config, "pools: [{name: p, endpoints: [http://127.0.0.1:1]}]\n"+text)
		if code, _, says := call(t, "serve", "--config", config); code != 1 || !strings.Contains(says, want) {
			t.Errorf("%s: exit code %d, %s", text, code, says)
		}
	}
}

// runApp runs a proxy until the test ends.
func runApp(t *testing.T, c *file.Config, log *slog.Logger) *app {
	t.Helper()
	a, err := newApp(c, logs{Logger: log}, proxy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := t.Context(), make(chan error, 1)
	go func() { stop <- a.run(ctx) }()
	t.Cleanup(func() {
		if err := <-stop; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return a
}
