// Package watch notices when files change.
//
// It compares contents rather than waiting for notice from the kernel, which
// neither NFS nor the replaced symlinks of a Kubernetes volume give, and follows
// paths, not files, so that an editor may put another file in place. A content
// counts once it has stayed the same for a moment, so none is read half written.
//
// A Files is used by one goroutine.
package watch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"time"
)

// DefaultEvery is how often files are looked at unless told otherwise.
const DefaultEvery = time.Second

// settle is how long new contents must stay the same before they count, so
// that files are not read while they are being written.
const settle = 100 * time.Millisecond

// MaxSize is the largest file read, in bytes.
const MaxSize = 1 << 20

// Files tells of changes to the contents of some files, taken together.
type Files struct {
	// Paths of the files.
	Paths []string
	// Every is how often to look; zero means DefaultEvery.
	Every time.Duration
	// Trigger makes Run look at once and tell what it finds even if nothing
	// changed; nil: none. Made for signal.Notify with SIGHUP.
	Trigger <-chan os.Signal

	told string // the contents last told, as state has them
}

// Read returns the contents as they are now, in the order of Paths, or why one
// cannot be read. Run tells what changes from there.
func (w *Files) Read() ([][]byte, error) {
	state, contents, err := w.look()
	w.told = state
	return contents, err
}

// look returns the contents and a short word for them, equal only for equal
// contents. That a file cannot be read is such a content too.
func (w *Files) look() (state string, contents [][]byte, err error) {
	sum := sha256.New()
	for _, path := range w.Paths {
		content, err := ReadFile(path)
		if err != nil {
			return err.Error(), nil, err
		}
		each := sha256.Sum256(content)
		sum.Write(each[:])
		contents = append(contents, content)
	}
	return string(sum.Sum(nil)), contents, nil
}

// Run calls apply, one call at a time, with the contents after each change, or
// with why one cannot be read, which is told once. It returns when ctx is done.
// What is not a regular file (a pipe) cannot be read twice: then nothing is
// watched.
func (w *Files) Run(ctx context.Context, apply func(contents [][]byte, err error)) {
	for _, path := range w.Paths {
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			<-ctx.Done()
			return
		}
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
		state, contents, err := w.look()
		switch {
		case state != seen && state != w.told:
			seen = state
			timer.Reset(min(settle, every))
			continue
		case state != w.told || forced:
			w.told, forced = state, false
			apply(contents, err)
		}
		seen = state
		timer.Reset(every)
	}
}

// TooLarge is the error of a file with more than MaxSize.
func TooLarge(path string) error {
	return fmt.Errorf("%s: larger than %dMiB: not read", path, MaxSize>>20)
}

// ReadFile returns the content of the file at path, and refuses to hold more
// than MaxSize of it.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > MaxSize {
		return nil, TooLarge(path)
	}
	return content, nil
}
