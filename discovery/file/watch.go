package file

import (
	"context"
	"crypto/sha256"
	"os"
	"time"
)

// DefaultEvery is how often a Watcher looks unless told otherwise.
const DefaultEvery = time.Second

// settle is how long a new content must stay the same before it counts, so
// that a file is not read while it is being written.
const settle = 100 * time.Millisecond

// Watcher tells of changes to one file. It compares contents rather than
// waiting for notice from the kernel, which neither NFS nor the replaced
// symlinks of a Kubernetes volume give, and follows the path, not the file,
// so that an editor may put another in its place.
type Watcher struct {
	// Path of the file.
	Path string
	// Every is how often to look; zero means DefaultEvery.
	Every time.Duration
	// Trigger makes the Watcher look at once and tell what it finds even if
	// nothing changed; nil: none. Made for signal.Notify with SIGHUP.
	Trigger <-chan os.Signal

	told string // the content last told, as state has it
}

// Load reads the file as it is now. Run tells what changes from there.
func (w *Watcher) Load() (*Config, error) {
	state, data, err := w.look()
	w.told = state
	if err != nil {
		return nil, err
	}
	return Parse(w.Path, data)
}

// look returns the file's content and a short word for it, equal only for
// equal contents. That it cannot be read is such a content too.
func (w *Watcher) look() (state string, data []byte, err error) {
	data, err = read(w.Path)
	if err != nil {
		return err.Error(), nil, err
	}
	sum := sha256.Sum256(data)
	return string(sum[:]), data, nil
}

// Run calls apply, one call at a time, with what each new content of the file
// says, or with why it cannot be used: then what was in force stays so, and
// the error is told once. It returns when ctx is done. What is not a regular
// file (a pipe) cannot be read twice, and is not watched.
func (w *Watcher) Run(ctx context.Context, apply func(*Config, error)) {
	if info, err := os.Stat(w.Path); err == nil && !info.Mode().IsRegular() {
		<-ctx.Done()
		return
	}
	every := w.Every
	if every <= 0 {
		every = DefaultEvery
	}
	timer := time.NewTimer(every)
	defer timer.Stop()
	trigger, forced, seen := w.Trigger, false, w.told
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case _, open := <-trigger:
			if forced = true; !open {
				trigger, forced = nil, false
			}
		}
		state, data, err := w.look()
		switch {
		case state != seen && state != w.told:
			seen = state
			timer.Reset(min(settle, every))
			continue
		case state != w.told || forced:
			var c *Config
			if err == nil {
				c, err = Parse(w.Path, data)
			}
			w.told, forced = state, false
			apply(c, err)
		}
		seen = state
		timer.Reset(every)
	}
}
