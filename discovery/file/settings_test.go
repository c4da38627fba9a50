package file

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Beside a cluster, a file says all but what is served.
func TestSettings(t *testing.T) {
	const tls = "tls: {files: {certificate: a, key: b, roots: c}}\n"
	load := func(text string) (*Config, error) {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Chdir(filepath.Dir(path))
		w := Watcher{Path: "f", Settings: true}
		return w.Load()
	}
	c, err := load(tls + "timeouts: {request: 4s}")
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.HTTP != "" || c.Listen.HBONE != ":15008" || c.TLS == nil || c.World.Timeouts.Request != 4*time.Second {
		t.Errorf("%+v %+v", c.Listen, c.World.Timeouts)
	}
	if c, err = load(tls + "cost_label: gpu-cost\nslo: [{pool: default/llama, ttft: 1s}]"); err != nil || c.CostLabel != "gpu-cost" || c.World.SLOs[0].Pool != "default/llama" {
		t.Errorf("%v", err)
	}
	if c, err = load(`listen: {http: ":1", hbone: ""}`); err != nil || c.Listen.HTTP != ":1" || c.Listen.HBONE != "" {
		t.Errorf("%v", err)
	}
	for text, want := range map[string]string{
		tls + minimal:             `f:2: pools: the cluster says this: leave it out beside --kubernetes`,
		"limits: {body: 1MiB}":    `f:1: listen.hbone: tunnels need an identity: say where it comes from under tls, or want no tunnels (hbone: "")`,
		tls + "waypoint_for: all": `f:2: waypoint_for: the labels of Gateways say this: leave it out beside --kubernetes`,
	} {
		if _, err := load(text); err == nil || err.Error() != want {
			t.Errorf("\ngot  %v\nwant %s", err, want)
		}
	}
}

// A file need not say where to listen if a flag does, and a flag goes before it.
func TestListenBesideAFile(t *testing.T) {
	for text, settings := range map[string]bool{
		`listen: {hbone: ""}`:                       true,
		`listen: {http: ":1", hbone: ""}`:           true,
		minimal + `listen: {http: "", hbone: ""}`:   false,
		minimal + `listen: {http: ":1", admin: ""}`: false,
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w := Watcher{Path: path, Settings: settings, Listen: ":2"}
		if c, err := w.Load(); err != nil || c.Listen.HTTP != ":2" {
			t.Errorf("%s: %v", text, err)
		}
	}
}
