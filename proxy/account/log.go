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
	flushSize  = 256 << 10
)

// A Format is how the lines of an access log are laid out.
type Format uint8

const (
	Text Format = iota // key=value, as package slog writes text
	JSON               // an object
)

// Log is an access log. Lines are written together, whole and in order: as soon as there are 256 KiB of them, 50 ms after the first of
// them at the latest, and at Close. While the writer takes no more, whoever has a line waits. It is safe for concurrent use.
type Log struct {
	w      io.Writer
	format Format
	desks  sync.Pool // of *desk: a processor gets the one that it had before, which is in its cache

	mu    sync.Mutex
	lines []byte      // not written yet; guarded by mu
	timer *time.Timer // runs while there are lines; guarded by mu

	writing sync.Mutex // held while writing, taken before mu
	spare   []byte     // the memory that is not lines'; guarded by writing
	err     error      // of the first write that failed; guarded by writing
	broken  bool       // what was written last is no whole line; guarded by writing

	lost atomic.Uint64
}

// NewLog makes an access log that writes to w.
func NewLog(w io.Writer, f Format) *Log { return &Log{w: w, format: f} }

// exchange writes the line of an exchange.
func (l *Log) exchange(rec *Record) {
	d, _ := l.desks.Get().(*desk)
	if d == nil {
		d = new(desk)
	}
	line := line{d.memory[:0], l.format}
	line.access(rec, &d.stamp)
	l.add(line.b)
	d.memory = line.b
	l.desks.Put(d)
}

// connection writes the line of a connection that was passed on unread.
func (l *Log) connection(rec *Record) {
	line := line{format: l.format}
	line.tcp(rec, new(stamp))
	l.add(line.b)
}

// add takes a line, which ends with a newline.
func (l *Log) add(line []byte) {
	l.mu.Lock()
	l.lines = append(l.lines, line...)
	full := len(l.lines) >= flushSize
	if len(l.lines) == len(line) && !full {
		if l.timer == nil {
			l.timer = time.AfterFunc(flushAfter, l.flush)
		} else {
			l.timer.Reset(flushAfter)
		}
	}
	l.mu.Unlock()
	if full {
		l.flush()
	}
}

// flush writes the lines there are.
func (l *Log) flush() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	lines := l.lines
	l.lines = l.spare[:0]
	if l.timer != nil {
		l.timer.Stop()
	}
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
