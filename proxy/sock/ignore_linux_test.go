package sock

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// What comes meanwhile is not there to be read; what its sender sends again later is.
func TestIgnore(t *testing.T) {
	near, far := tcpPair(t)
	hear := Ignore(near)
	io.WriteString(far, "late")
	got := make([]byte, 4)
	near.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // for what should not come
	if n, err := near.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %q: %v", got[:n], err)
	}
	hear()
	near.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(near, got); err != nil || string(got) != "late" {
		t.Errorf("then read %q: %v", got, err)
	}
}
