package flood

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// taken is how many such frames in a row a meter takes, at most some thousands.
func (m *Meter) taken(kind http2.FrameType, flags http2.Flags, length int, increment uint32) (n int) {
	for n < 5000 && m.Received(kind, flags, length, increment) {
		n++
	}
	return n
}

func TestWhatCounts(t *testing.T) {
	const all = 5000
	for _, tt := range []struct {
		name      string
		kind      http2.FrameType
		flags     http2.Flags
		length    int
		increment uint32
		want      int
	}{
		{"HEADERS", http2.FrameHeaders, http2.FlagHeadersEndHeaders, 20, 0, all},
		{"DATA", http2.FrameData, 0, 1, 0, all},
		{"empty DATA", http2.FrameData, 0, 0, 0, 1000},
		{"empty DATA at the end", http2.FrameData, http2.FlagDataEndStream, 0, 0, all},
		{"CONTINUATION", http2.FrameContinuation, 0, 100, 0, 1000},
		{"PING", http2.FramePing, 0, 8, 0, 1000},
		{"PING, acknowledged", http2.FramePing, http2.FlagPingAck, 8, 0, 1000},
		{"SETTINGS", http2.FrameSettings, 0, 6, 0, 1000},
		{"PRIORITY", http2.FramePriority, 0, 5, 0, 1000},
		{"RST_STREAM", http2.FrameRSTStream, 0, 4, 0, 1000},
		{"unknown", 0x42, 0, 100, 0, 1000},
		{"WINDOW_UPDATE", http2.FrameWindowUpdate, 0, 4, 64, 1000},
		{"WINDOW_UPDATE of a byte", http2.FrameWindowUpdate, 0, 4, 1, 250},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var m Meter
				if n := m.taken(tt.kind, tt.flags, tt.length, tt.increment); n != tt.want {
					t.Errorf("%d were taken at once, want %d", n, tt.want)
				}
				time.Sleep(time.Second)
				if n, want := m.taken(tt.kind, tt.flags, tt.length, tt.increment), min(tt.want/10, 100); tt.want < all && n < want-1 || n > tt.want {
					t.Errorf("%d a second later, want %d", n, want)
				}
			})
		})
	}
}

// Nobody is cut off who reads what was sent, however much and in what pieces.
func TestReadersAreNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meter
		for i := range 100_000 {
			// Events of a few bytes, each acknowledged on both windows, with a PING to measure the way.
			m.Sent(http2.FrameData, 40)
			for range 2 {
				if !m.Received(http2.FrameWindowUpdate, 0, 4, 100) {
					t.Fatalf("cut off after %d events", i)
				}
			}
			if !m.Received(http2.FramePing, 0, 8, 0) {
				t.Fatalf("cut off after %d events", i)
			}
		}
		for i := range 10_000 {
			// A long body, read 4 KiB at a time.
			m.Sent(http2.FrameData, 64<<10)
			for range 2 * 16 { // on both windows
				if !m.Received(http2.FrameWindowUpdate, 0, 4, 4<<10) {
					t.Fatalf("cut off after %d KiB", i*64)
				}
			}
		}
	})
}

// What has a stream cut into bytes is cut off, though each is a frame.
func TestDribbleIsAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meter
		for range 2000 {
			if !m.Received(http2.FrameWindowUpdate, 0, 4, 1) {
				return
			}
			m.Sent(http2.FrameData, 1)
		}
		t.Error("2,000 windows of a byte were given")
	})
}

func TestMeterAllocates(t *testing.T) {
	var m Meter
	if n := testing.AllocsPerRun(100, func() {
		m.Sent(http2.FrameData, 100)
		m.Received(http2.FramePing, 0, 8, 0)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
