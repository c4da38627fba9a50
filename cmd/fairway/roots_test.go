package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"testing"
)

// Where the system names no authorities, as in an image of our binaries alone, the public ones are trusted: issuers of
// tokens are asked for their keys over HTTPS.
func TestPublicAuthoritiesAreTrustedWhereTheSystemNamesNone(t *testing.T) {
	if os.Getenv("SSL_CERT_FILE") != os.DevNull { // what the system says is read once, at the start
		again := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		again.Env = append(os.Environ(), "SSL_CERT_FILE="+os.DevNull, "SSL_CERT_DIR="+t.TempDir())
		if out, err := again.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	pool, err := x509.SystemCertPool()
	if err != nil || pool.Equal(x509.NewCertPool()) {
		t.Errorf("nobody is trusted (%v)", err)
	}
}
