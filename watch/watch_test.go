package watch

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// watched is a file under watch inside a bubble of fake time.
type watched struct {
	t       *testing.T
	path    string
	trigger chan os.Signal

	mu  sync.Mutex
	got []string // what was told: the content, or the error
}

// watch runs test in fake time with Files of one path.
func watch(t *testing.T, test func(w *watched)) {
	path := filepath.Join(t.TempDir(), "file")
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: path, trigger: make(chan os.Signal, 1)}
		w.write("first")
		files := &Files{Paths: []string{path}, Every: time.Second, Trigger: w.trigger}
		contents, err := files.Read()
		if err != nil || string(contents[0]) != "first" {
			t.Fatal(contents, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go files.Run(ctx, func(contents [][]byte, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if err != nil {
				w.got = append(w.got, err.Error())
			} else {
				w.got = append(w.got, string(contents[0]))
			}
		})
		synctest.Wait()
		test(w)
		cancel()
		synctest.Wait()
	})
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
		w.write("second")
		w.after(2*time.Second, "second")
		w.after(time.Minute)
		w.write("thirds") // as long as the second, within the same second
		w.after(2*time.Second, "thirds")
		w.write("thirds")
		w.after(time.Minute)
	})
}

func TestWatchWaitsForTheWriter(t *testing.T) {
	watch(t, func(w *watched) {
		w.after(time.Second - settle/2)
		// Written in pieces, as each look finds it: none but the last is told.
		for _, part := range []string{"", "half", "more", "whole"} {
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
		if err := os.WriteFile(next, []byte("renamed"), 0o600); err != nil {
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
			if err := os.WriteFile(filepath.Join(dir, version, "file"), []byte(version), 0o600); err != nil {
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
		link("..data/file", w.path)
		w.after(2*time.Second, "v1")
		link("v2", filepath.Join(dir, "..data"))
		w.after(2*time.Second, "v2")

		// Gone: told once, and again when it is back.
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		w.after(time.Minute, "no such file")
		w.write("back")
		w.after(2*time.Second, "back")
	})
}

func TestWatchTrigger(t *testing.T) {
	watch(t, func(w *watched) {
		w.trigger <- syscall.SIGHUP
		w.after(0, "first") // at once, though nothing changed
		w.write("second")
		w.trigger <- syscall.SIGHUP
		w.after(settle, "second")
		w.after(time.Minute)
		w.trigger <- syscall.SIGHUP
		w.after(0, "second")
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
		(&Files{Paths: []string{path}}).Run(ctx, func(contents [][]byte, err error) { t.Error(contents, err) })
	})
}

func TestWatchTakesFilesTogether(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		write("a", "1")
		write("b", "1")
		files := &Files{Paths: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}}
		if _, err := files.Read(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		go files.Run(ctx, func(contents [][]byte, err error) { got = append(got, string(contents[0])+string(contents[1])) })
		time.Sleep(time.Second - settle/2)
		write("a", "2")
		time.Sleep(settle) // looked at once, and not yet settled
		write("b", "2")
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(got) != 1 || got[0] != "22" {
			t.Errorf("told %q, want the new contents of both, once", got)
		}
		cancel()
		synctest.Wait()
	})
}

func TestReadFileHoldsNoMoreThanMaxSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); err == nil || err.Error() != TooLarge(path).Error() {
		t.Error(err)
	}
}
