package sock

import (
	"io"
	"sync"
)

// aheadLimit is how many bytes are read ahead at most.
const aheadLimit = 16 << 10

// ahead reads a connection in the background while it is guarded, so that its
// end is noticed, and keeps the bytes for the next read.
type ahead struct {
	conn *Conn

	mu      sync.Mutex
	arrived sync.Cond
	guarded bool
	reading bool   // loop is running; it alone reads the conn then
	kept    []byte // read, not yet returned
	err     error  // what ended the reading
}

func newAhead(c *Conn) *ahead {
	a := &ahead{conn: c}
	a.arrived.L = &a.mu
	return a
}

func (a *ahead) guard() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.guarded = true
	if !a.reading && a.err == nil && len(a.kept) < aheadLimit {
		a.reading = true
		go a.loop()
	}
}

func (a *ahead) unguard() {
	a.mu.Lock()
	a.guarded = false
	a.mu.Unlock()
}

// loop reads until nobody guards any more, but always to the end of a read it
// has begun: its bytes are the next Read's.
func (a *ahead) loop() {
	var buf [2048]byte
	for {
		n, err := a.conn.Conn.Read(buf[:])
		a.mu.Lock()
		a.kept = append(a.kept, buf[:n]...)
		a.err = err
		more := err == nil && a.guarded && len(a.kept)+len(buf) <= aheadLimit
		a.reading = more
		a.arrived.Broadcast()
		a.mu.Unlock()
		if err != nil && !a.conn.Interrupted() {
			a.conn.hangup()
		}
		if !more {
			return
		}
	}
}

// readable tells whether read would find something at once.
func (a *ahead) readable() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.kept) > 0 || a.err != nil
}

func (a *ahead) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	a.mu.Lock()
	for len(a.kept) == 0 && a.reading {
		a.arrived.Wait()
	}
	if n := copy(p, a.kept); n > 0 {
		a.kept = append(a.kept[:0], a.kept[n:]...)
		a.mu.Unlock()
		return n, nil
	}
	err := a.err
	a.mu.Unlock()
	if err != nil {
		return 0, err
	}
	// Nobody else reads: Guard and Read are both the owner's to call.
	n, err := a.conn.Conn.Read(p)
	if err == io.EOF {
		a.mu.Lock()
		a.err = err
		a.mu.Unlock()
	}
	return n, err
}
