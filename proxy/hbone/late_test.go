package hbone

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// echoed reads until stream 1 has been echoed whole: the connection lives on.
func echoed(t *testing.T, r raw) {
	t.Helper()
	r.WriteData(1, true, []byte("hello"))
	r.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				t.Fatal("the connection is given up: ", f)
			}
		case *http2.DataFrame:
			if f.StreamID == 1 && f.StreamEnded() {
				return
			}
		}
	}
}

// A client that does not wait for the 200 sends DATA behind its CONNECT. That one
// is refused costs the other tunnels nothing.
func TestEagerDataOnRefused(t *testing.T) {
	m := newMesh(t)
	w := m.listen(t, echo, func(c *Config, _ *limits) {
		c.Admit = func(p *Peer) error {
			if p.Authority == vip {
				return nil
			}
			return &Refusal{404, "no"}
		}
	})
	r := m.raw(t, w)
	r.connect(1)
	r.until(t, http2.FrameHeaders)
	r.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, EndHeaders: true, BlockFragment: block(":method", "CONNECT", ":authority", "10.0.0.9:80")})
	r.WriteData(3, false, make([]byte, 100))
	echoed(t, r)
}

// The same for one more than there may be.
func TestEagerDataOnTooMany(t *testing.T) {
	m := newMesh(t)
	r := m.raw(t, m.listen(t, echo))
	for i := uint32(0); i <= maxStreams; i++ {
		r.connect(1 + 2*i)
	}
	r.WriteData(1+2*maxStreams, false, make([]byte, 100))
	echoed(t, r)
}

// A stream that came after the last GOAWAY is ignored with all that belongs to it
// (RFC 9113, section 6.8).
func TestLateStreamAfterGoAway(t *testing.T) {
	for kind, say := range map[string]func(raw) error{
		"reset":  func(r raw) error { return r.WriteRSTStream(3, http2.ErrCodeCancel) },
		"data":   func(r raw) error { return r.WriteData(3, false, make([]byte, 10)) },
		"window": func(r raw) error { return r.WriteWindowUpdate(3, 10) },
	} {
		t.Run(kind, func(t *testing.T) {
			m := newMesh(t)
			w := m.listen(t, echo)
			r := m.raw(t, w)
			r.connect(1)
			r.until(t, http2.FrameHeaders)
			w.Drain()
			r.WritePing(true, r.until(t, http2.FramePing).(*http2.PingFrame).Data)
			r.until(t, http2.FrameGoAway)
			r.connect(3)
			if err := say(r); err != nil {
				t.Fatal(err)
			}
			echoed(t, r)
		})
	}
}
