package file

import (
	"context"
	"os"
	"time"

	"github.com/fairway-proxy/fairway/watch"
)

// Watcher tells what each new content of one file says. How it looks is
// package watch's.
type Watcher struct {
	// Path of the file.
	Path string
	// Every is how often to look; zero means watch.DefaultEvery.
	Every time.Duration
	// Trigger makes the Watcher look at once and tell what it finds even if
	// nothing changed; nil: none. Made for signal.Notify with SIGHUP.
	Trigger <-chan os.Signal
	// Settings is for a file that says all but what is served, which comes from a
	// cluster: it names no pools, models, routes or services. Tunnels are taken at
	// :15008 and plain HTTP is not, unless it says otherwise.
	Settings bool
	// Listen is where plain HTTP is taken, whatever the file says; empty: as it says.
	Listen string

	files watch.Files
}

// Load reads the file as it is now. Run tells what changes from there.
func (w *Watcher) Load() (*Config, error) {
	w.files.Paths = []string{w.Path}
	return w.parse(w.files.Read())
}

func (w *Watcher) parse(contents [][]byte, err error) (*Config, error) {
	if err != nil {
		return nil, err
	}
	if w.Settings {
		return parseSettings(w.Path, contents[0], w.Listen)
	}
	return parseInto(w.Path, contents[0], Default(), w.Listen)
}

// Run calls apply, one call at a time, with what each new content of the file
// says, or with why it cannot be used: then what was in force stays so, and
// the error is told once. It returns when ctx is done. What is not a regular
// file (a pipe) cannot be read twice, and is not watched.
func (w *Watcher) Run(ctx context.Context, apply func(*Config, error)) {
	w.files.Paths, w.files.Every, w.files.Trigger = []string{w.Path}, w.Every, w.Trigger
	w.files.Run(ctx, func(contents [][]byte, err error) { apply(w.parse(contents, err)) })
}
