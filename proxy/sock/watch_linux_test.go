package sock

import "testing"

// watcherIsGone checks that nothing is left of the watcher after the last
// connection.
func watcherIsGone(t *testing.T) {
	t.Helper()
	watcher.mu.Lock()
	defer watcher.mu.Unlock()
	if len(watcher.conns) != 0 || watcher.file != nil {
		t.Errorf("%d connections are still watched", len(watcher.conns))
	}
}
