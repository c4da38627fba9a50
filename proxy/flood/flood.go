// Package flood tells when a peer sends frames of HTTP/2 for the sake of sending them: those that
// cost it nothing and the receiver some work each, more than the connection gives reason for. It
// is one rule for everything that speaks HTTP/2 with strangers.
//
// CVE-2019-9511 to 9518 are floods of windows of a byte, PING, PRIORITY, RST_STREAM, SETTINGS and empty
// frames, CVE-2023-44487 is one of streams that are reset as soon as they are opened. A peer has
// reason to send some of them for what it is sent: it widens windows as it reads, measures the way
// with PING as data comes (gRPC), and resets streams of which it has heard enough. So what is sent
// to it earns it as many.
package flood

import (
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// What a peer may send: burst at once, and one more each interval, besides what it has earned.
const (
	burst = 1000
	every = 10 * time.Millisecond
)

// What it earns by each HEADERS or DATA frame that it is sent: word of two windows and a PING, and
// a word more for each KiB. Go's client widens a window by 4 KiB at a time, others by
// half of it.
const (
	earnedByFrame = 3
	earnedPerByte = 1 << 10
)

// Whoever widens a window by less than the shortest event of a stream has it cut to pieces, a frame
// each. That is dearer than what the frame with a piece earns.
const (
	leastIncrement = 64
	dribble        = 4
)

// Meter is the frames of one connection. Its zero value is ready.
type Meter struct {
	earned atomic.Int64 // less than nothing where it was refused more

	// The reader's.
	used time.Duration // of burst*every
	at   time.Time
}

// Sent notes that the peer was sent a frame with a payload of so many bytes. It may be called by any
// goroutine.
func (m *Meter) Sent(kind http2.FrameType, length int) {
	if kind == http2.FrameData || kind == http2.FrameHeaders {
		m.earned.Add(int64(earnedByFrame + length/earnedPerByte))
	}
}

// Refused notes that a stream was reset which the peer should not have opened. It may be called by
// any goroutine.
func (m *Meter) Refused() { m.earned.Add(-1) }

// Received takes a frame that has come; of a WINDOW_UPDATE, with its increment. False: it is one
// too many, and the connection is to be closed (ENHANCE_YOUR_CALM). It is called by the reader of
// the connection alone.
func (m *Meter) Received(kind http2.FrameType, flags http2.Flags, length int, increment uint32) bool {
	cost := cost(kind, flags, length, increment)
	if cost == 0 && m.earned.Load() >= 0 {
		return true
	}
	now := time.Now()
	m.used = max(m.used-now.Sub(m.at), 0)
	m.used = max(m.used-time.Duration(min(m.earned.Swap(0), burst))*every, 0)
	m.used, m.at = m.used+cost*every, now
	return m.used <= burst*every
}

// cost is what a frame counts. One that brings something of a request counts nothing: a head, a
// piece of a body, their end.
func cost(kind http2.FrameType, flags http2.Flags, length int, increment uint32) time.Duration {
	switch kind {
	case http2.FrameHeaders:
		return 0
	case http2.FrameData:
		if length > 0 || flags.Has(http2.FlagDataEndStream) {
			return 0
		}
	case http2.FrameWindowUpdate:
		if increment < leastIncrement {
			return dribble
		}
	}
	return 1
}
