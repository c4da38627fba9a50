package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// watched is a file under watch inside a bubble of fake time.
type watched struct {
	t       *testing.T
	path    string
	trigger chan os.Signal

	mu  sync.Mutex
	got []string // what was told: the first pool's name, or the error
}

// watching runs test in fake time with a Watcher on a minimal file.
func watching(t *testing.T, test func(w *watched)) {
	path := filepath.Join(t.TempDir(), "fairway.yaml")
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: path, trigger: make(chan os.Signal, 1)}
		w.write(pool("first"))
		watcher := &Watcher{Path: path, Every: time.Second, Trigger: w.trigger}
		c, err := watcher.Load()
		if err != nil || c.World.Pools[0].Name != "first" {
			t.Fatal(c, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go watcher.Run(ctx, func(c *Config, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if err != nil {
				w.got = append(w.got, err.Error())
			} else {
				w.got = append(w.got, c.World.Pools[0].Name)
			}
		})
		synctest.Wait()
		test(w)
		cancel()
		synctest.Wait()
	})
}

func pool(name string) string {
	return fmt.Sprintf("pools: [{name: %s, endpoints: [http://10.0.0.1:8000]}]\n", name)
}

func (w *watched) write(content string) {
	w.t.Helper()
	if err := os.WriteFile(w.path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// after lets time pass and holds what was told meanwhile to want.
func (w *watched) after(d time.Duration, want ...string) {
	w.t.Helper()
	time.Sleep(d) // fake time
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.got) != len(want) {
		w.t.Fatalf("told %q, want %q", w.got, want)
	}
	for i := range want {
		if !strings.Contains(w.got[i], want[i]) {
			w.t.Fatalf("told %q, want %q", w.got, want)
		}
	}
	w.got = nil
}

func TestWatchKeepsTheLastGood(t *testing.T) {
	watching(t, func(w *watched) {
		w.write("pools: [")
		w.after(2*time.Second, ":1: not YAML")
		w.after(time.Minute)
		w.write("pools: 7\n")
		w.after(2*time.Second, `:1: pools: "7" is a number: want a list`)
		// Back to what is in force: told, so that the error is known to be over.
		w.write(pool("first"))
		w.after(2*time.Second, "first")
	})
}

func TestWatchTrigger(t *testing.T) {
	watching(t, func(w *watched) {
		w.trigger <- syscall.SIGHUP
		w.after(0, "first") // at once, though nothing changed
		w.write(pool("second"))
		w.trigger <- syscall.SIGHUP
		w.after(2*time.Second, "second")
		w.write("x")
		w.after(2*time.Second, "want a mapping")
		w.trigger <- syscall.SIGHUP
		w.after(0, "want a mapping")
		close(w.trigger)
		w.after(time.Minute)
	})
}
