package account

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// flushAfter is how long a line waits at most to be written, flushSize how many bytes may.
	flushAfter = 50 * time.Millisecond
	flushSize  = 1024 << 10
)

// A Format is how the lines of an access log are laid out.
type Format uint8

const (
	Text Format = iota // key=value, as package slog writes text
	JSON               // an object
)

// Log is an access log. Lines are written together and whole: as soon as there is 1 MiB of them, 50 ms after the first of them at the
// latest, and at Close. They are in the order in which the requests ended, but for those of a batch that filled in less time: they are together.
// While the writer takes no more, whoever has a line waits. It is safe for concurrent use.
type Log struct {
	w      io.Writer
	format Format
	settle func() // adds the lines of all that waits on desks; nil: there are none

	full atomic.Bool // there are flushSize bytes of lines or more

	mu      sync.Mutex
	lines   []byte      // not written yet; guarded by mu
	timer   *time.Timer // guarded by mu
	ticking atomic.Bool // timer runs, or what it does has not begun

	writing sync.Mutex // held while writing, taken before mu
	spare   []byte     // the memory that is not lines'; guarded by writing
	err     error      // of the first write that failed; guarded by writing
	broken  bool       // what was written last is no whole line; guarded by writing

	lost atomic.Uint64
}

// NewLog makes an access log that writes to w.
func NewLog(w io.Writer, f Format) *Log { return &Log{w: w, format: f} }

// connection writes the line of a connection that was passed on unread.
func (l *Log) connection(rec *Record) {
	line := line{format: l.format}
	line.tcp(rec, new(stamp))
	l.put(line.b)
}

// put writes lines, each of which ends with a newline.
func (l *Log) put(lines []byte) {
	l.add(lines)
	l.due()
	l.wait()
}

// wait writes what there is, if that is much, or waits while somebody else does.
func (l *Log) wait() {
	if !l.full.Load() {
		return
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.full.Load() {
		l.writeAll()
	}
}

// add takes lines. They are not written before the next wait, or what due arranges.
func (l *Log) add(lines []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, lines...)
	if len(l.lines) >= flushSize {
		l.full.Store(true)
	}
}

// due has all lines that there are by now written in time.
func (l *Log) due() {
	if l.ticking.Load() || !l.ticking.CompareAndSwap(false, true) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil {
		l.timer = time.AfterFunc(flushAfter, l.flush)
	} else {
		l.timer.Reset(flushAfter)
	}
}

// flush writes all lines that there are by now.
func (l *Log) flush() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.writeAll()
}

// writeAll is flush. The caller holds writing.
func (l *Log) writeAll() {
	l.mu.Lock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.ticking.Store(false) // before settle: a record that is too late for it has the timer begin again
	l.mu.Unlock()
	if l.settle != nil {
		l.settle()
	}
	l.mu.Lock()
	lines := l.lines
	l.lines = l.spare[:0]
	l.full.Store(false)
	l.mu.Unlock()
	if len(lines) > 0 {
		l.write(lines)
	}
	l.spare = lines[:0]
}

// write writes whole lines, and counts those that could not be, as on a disk that is full. What was begun of one ends
// before the next, once there is room again. The caller holds writing.
func (l *Log) write(lines []byte) {
	if l.broken {
		if _, err := l.w.Write([]byte("\n")); err != nil {
			l.lost.Add(uint64(bytes.Count(lines, []byte("\n"))))
			return
		}
		l.broken = false
	}
	n, err := l.w.Write(lines)
	if err == nil {
		return
	}
	if l.err == nil {
		l.err = err
	}
	n = max(n, 0)
	l.lost.Add(uint64(bytes.Count(lines[n:], []byte("\n"))))
	l.broken = n > 0 && lines[n-1] != '\n'
}

// Lost is how many lines could not be written.
func (l *Log) Lost() uint64 { return l.lost.Load() }

// Close writes what is there and tells of the first line that could not be written. A line that comes later is written all the same.
func (l *Log) Close() error {
	l.flush()
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.err
}
