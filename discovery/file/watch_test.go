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

// watch runs test in fake time with a Watcher on a minimal file.
func watch(t *testing.T, test func(w *watched)) {
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

func TestWatchTellsNewContentOnce(t *testing.T) {
	watch(t, func(w *watched) {
		w.after(time.Minute)
		w.write(pool("second"))
		w.after(2*time.Second, "second")
		w.after(time.Minute)
		w.write(pool("third")) // as long as the second, within the same second
		w.after(2*time.Second, "third")
		w.write(pool("third"))
		w.after(time.Minute)
	})
}

func TestWatchKeepsTheLastGood(t *testing.T) {
	watch(t, func(w *watched) {
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

func TestWatchWaitsForTheWriter(t *testing.T) {
	watch(t, func(w *watched) {
		w.after(time.Second - settle/2)
		// Written in pieces, as each look finds it: all but the last are valid
		// or not, none is told.
		for _, part := range []string{"", pool("half"), pool("more"), pool("whole")} {
			w.write(part)
			w.after(settle)
		}
		w.after(2*time.Second, "whole")
	})
}

func TestWatchFollowsThePath(t *testing.T) {
	watch(t, func(w *watched) {
		// An editor writes another file and renames it.
		next := w.path + ".swp"
		if err := os.WriteFile(next, []byte(pool("renamed")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, w.path); err != nil {
			t.Fatal(err)
		}
		w.after(2*time.Second, "renamed")

		// A Kubernetes volume swaps a symlink to a directory.
		dir := filepath.Dir(w.path)
		for _, version := range []string{"v1", "v2"} {
			if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, version, "fairway.yaml"), []byte(pool(version)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		link := func(target, name string) {
			if err := os.Symlink(target, name+".new"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(name+".new", name); err != nil {
				t.Fatal(err)
			}
		}
		link("v1", filepath.Join(dir, "..data"))
		link("..data/fairway.yaml", w.path)
		w.after(2*time.Second, "v1")
		link("v2", filepath.Join(dir, "..data"))
		w.after(2*time.Second, "v2")

		// Gone: told once, and again when it is back.
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		w.after(time.Minute, "no such file")
		w.write(pool("back"))
		w.after(2*time.Second, "back")
	})
}

func TestWatchTrigger(t *testing.T) {
	watch(t, func(w *watched) {
		w.trigger <- syscall.SIGHUP
		w.after(0, "first") // at once, though nothing changed
		w.write(pool("second"))
		w.trigger <- syscall.SIGHUP
		w.after(settle, "second")
		w.write("x")
		w.after(2*time.Second, "want a mapping")
		w.trigger <- syscall.SIGHUP
		w.after(0, "want a mapping")
		close(w.trigger)
		w.after(time.Minute)
	})
}

func TestWatchLeavesPipesAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skip("a pipe is needed, which cannot be made here:", err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		(&Watcher{Path: path}).Run(ctx, func(c *Config, err error) { t.Error(c, err) })
	})
}
