package account

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// writes keeps what came in each write.
type writes struct {
	mu  sync.Mutex
	all []string
	err error
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(p))
	return len(p), w.err
}

func (w *writes) got() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all
}

// A line waits for a tenth of a second at most, and those that come meanwhile leave with it.
func TestLogIsWrittenSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w writes
		l := NewLog(&w, Text)
		for i := range 3 {
			l.put([]byte("first\n"))
			time.Sleep(40 * time.Millisecond)
			l.put([]byte("second\n"))
			if n := len(w.got()); n != i {
				t.Errorf("%d writes before time", n)
			}
			time.Sleep(60 * time.Millisecond)
			if got := w.got(); len(got) != i+1 || got[i] != "first\nsecond\n" {
				t.Errorf("after 100 ms: %q", got)
			}
		}
		time.Sleep(time.Hour)
		if n := len(w.got()); n != 3 {
			t.Errorf("%d writes of nothing", n-3)
		}
	})
}

func TestLogIsWrittenWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no time goes by, however slow the machine is
		var w writes
		l := NewLog(&w, Text)
		line := []byte(strings.Repeat("x", 999) + "\n")
		for range flushSize/len(line) + 1 {
			l.put(line)
		}
		if got := w.got(); len(got) != 1 || len(got[0]) < flushSize {
			t.Errorf("%d writes", len(got))
		}
		l.put(bytes.Repeat([]byte("y"), 2*flushSize))
		if got := w.got(); len(got) != 2 || len(got[1]) != 2*flushSize {
			t.Errorf("a line of its own: %d writes", len(got))
		}
	})
}

func TestLogCloses(t *testing.T) {
	var w writes
	l := NewLog(&w, JSON)
	if err := l.Close(); err != nil || len(w.got()) != 0 {
		t.Errorf("nothing to write: %v, %q", err, w.got())
	}
	l.put([]byte("a\n"))
	if err := l.Close(); err != nil || len(w.got()) != 1 {
		t.Errorf("%v, %q", err, w.got())
	}
	w.err = errors.New("disk full")
	l.put([]byte("b\n"))
	if err := l.Close(); err != w.err {
		t.Errorf("%v", err)
	}
}

// disk takes so many bytes.
type disk struct {
	bytes.Buffer
	room int
}

func (d *disk) Write(p []byte) (int, error) {
	n := min(len(p), d.room)
	d.room -= n
	d.Buffer.Write(p[:n])
	if n < len(p) {
		return n, errors.New("no space left on device")
	}
	return n, nil
}

// What a full disk did not take is counted, and a line that it took a part of does not run into the next.
func TestLogOnAFullDisk(t *testing.T) {
	d := &disk{room: 12}
	l := NewLog(d, Text)
	for _, step := range []struct {
		line string
		room int // more from now on
		lost uint64
	}{{"first\n", 0, 0}, {"second\nthird\n", 0, 2}, {"fourth\n", 0, 3}, {"fifth\n", 100, 3}} {
		d.room += step.room
		l.put([]byte(step.line))
		l.flush()
		if l.Lost() != step.lost {
			t.Errorf("after %q: %d lines lost, want %d", step.line, l.Lost(), step.lost)
		}
	}
	if got := d.String(); got != "first\nsecond\nfifth\n" {
		t.Errorf("%q", got)
	}
	if l.Close() == nil {
		t.Error("Close says that nothing was lost")
	}
}

// Every line is written once and whole, whoever writes at the same time.
func TestLogConcurrently(t *testing.T) {
	const workers, each = 8, 2000
	var w writes
	l := NewLog(&w, Text)
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() {
			for j := range each {
				l.put(fmt.Appendf(nil, "%d %d %s\n", i, j, strings.Repeat("z", j%200)))
			}
		})
	}
	all.Wait()
	l.Close()
	next := make([]int, workers)
	for line := range strings.Lines(strings.Join(w.got(), "")) {
		var i, j int
		var rest string
		fmt.Sscan(line, &i, &j, &rest)
		if len(rest) != j%200 || next[i] != j || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%q, after %d of %d", line, next[i], i)
		}
		next[i]++
	}
	for i, n := range next {
		if n != each {
			t.Errorf("%d lines of %d", n, i)
		}
	}
}

// Text lines are as package slog writes them.
func TestTextLine(t *testing.T) {
	rec := told()
	rec.Path, rec.Model, rec.Reason, rec.Start = "/v1/a=b", "two words \"x\"\n", "", time.Unix(1e9, 0).UTC()
	l := line{format: Text}
	l.access(rec, new(last))
	const want = `time=2001-09-09T01:46:41.234Z level=INFO msg=access request_id=the-id method=POST path="/v1/a=b" response_code=200 response_code_details="" response_flags=- ` +
		`downstream_remote_address=192.0.2.1:4711 upstream_host=10.0.0.1:8000 upstream_cluster=the-pool model="two words \"x\"\n" stream=true ` +
		`duration_ms=1234.567 bytes_received=16 bytes_sent=17 upstream_request_attempt_count=2 ttft_ms=98.765 ` +
		`prompt_tokens=11 cached_tokens=12 completion_tokens=13 predicted_prompt_tokens=14 predicted_cached_tokens=15` + "\n"
	if string(l.b) != want {
		t.Errorf("got  %swant %s", l.b, want)
	}
}

// A line says the same whatever the one before it said.
func TestLineAfterAnother(t *testing.T) {
	was := new(last)
	lineOf := func(rec *Record, f Format, after *last) string {
		l := line{format: f}
		l.access(rec, after)
		return string(l.b)
	}
	for name, change := range map[string]func(*Record){
		"nothing": func(*Record) {}, "method": func(r *Record) { r.Method = "GET" }, "path": func(r *Record) { r.Path = "/\"" }, "long path": func(r *Record) { r.Path = strings.Repeat("/a", longestAlike) },
		"code": func(r *Record) { r.Status = 400 }, "reason": func(r *Record) { r.Reason = "fairway_upstream_failed" },
		"flags":    func(r *Record) { r.Reason, r.Unanswered = "fairway_upstream_failed", true },
		"attempts": func(r *Record) { r.Reason, r.Retries = "fairway_upstream_failed", 1 },
		"pool":     func(r *Record) { r.Pool = "another" }, "model": func(r *Record) { r.Model = "another" }, "stream": func(r *Record) { r.Streamed = !r.Streamed },
	} {
		for range 2 { // of those changed and not
			for _, change := range []func(*Record){change, func(*Record) {}} {
				rec := picked("id", 1)
				change(rec)
				if got, want := lineOf(rec, Text, was), lineOf(rec, Text, new(last)); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		}
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 999: "0.001", 1000: "0.001", time.Millisecond: "1", 1500 * time.Microsecond: "1.500", 30 * time.Microsecond: "0.030", time.Hour: "3600000", -time.Second: "0",
	} {
		l, key := line{format: JSON}, named("d")
		if l.milliseconds(&key, d); string(l.b) != `,"d":`+want {
			t.Errorf("%v: %s", d, l.b)
		}
	}
}

// Whatever text is logged, a line is one, holds nothing that a terminal obeys, and reads back as what it was.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "plain", "a b", `"\`, "\x00\x1b[31m\n\r\t\x7f", "\u2028\u2029\u202e\u00a0", "é\U0001f600\U000e0001", "\xff\xc3(", `{"a":1}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := appendQuoted(nil, s)
		var back string
		if err := json.Unmarshal(q, &back); err != nil || back != strings.ToValidUTF8(s, "\ufffd") && utf8.ValidString(s) {
			t.Errorf("%q became %s, which reads %q, %v", s, q, back, err)
		}
		for _, c := range string(q) {
			if c < ' ' || c == 0x7f || c == '\u2028' || c == '\u202e' {
				t.Errorf("%s holds %U", q, c)
			}
		}
		if got := string(appendText(nil, s, JSON)); got != string(q) {
			t.Errorf("%q is %s in JSON, not %s", s, got, q)
		}
		word := s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"\\=", r) })
		if got := string(appendText(nil, s, Text)); word && got != s || !word && got != string(q) {
			t.Errorf("%q is %s in text", s, got)
		}
	})
}

func TestLogAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector")
	}
	for _, format := range []Format{Text, JSON} {
		r := New(prometheus.NewRegistry(), Config{Access: NewLog(io.Discard, format)})
		rec := picked("id", 4)
		for range 2000 { // both buffers have their size
			r.Done(rec)
		}
		if n := testing.AllocsPerRun(1000, func() { r.Done(rec) }); n != 0 {
			t.Errorf("format %d: %v allocations a request", format, n)
		}
	}
}

// BenchmarkLog is one line to a file, beside package slog's way.
func BenchmarkLog(b *testing.B) {
	open := func(b *testing.B) *os.File {
		f, err := os.Create(filepath.Join(b.TempDir(), "log"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		b.ReportAllocs()
		return f
	}
	rec := picked("5f0c3a9d2b7e4c61a8f0d3b25e6c7a94", 4)
	for name, format := range map[string]Format{"text": Text, "json": JSON} {
		b.Run(name, func(b *testing.B) {
			log := NewLog(open(b), format)
			defer log.Close()
			r := New(prometheus.NewRegistry(), Config{Access: log})
			for b.Loop() {
				r.Done(rec)
			}
		})
	}
	b.Run("slog", func(b *testing.B) {
		log := slog.New(slog.NewTextHandler(open(b), nil))
		for b.Loop() {
			log.LogAttrs(b.Context(), slog.LevelInfo, "access",
				slog.String("request_id", rec.ID), slog.String("method", rec.Method), slog.String("path", rec.Path),
				slog.Int("response_code", rec.Status), slog.String("response_code_details", rec.Reason), slog.String("response_flags", "-"), slog.String("downstream_remote_address", rec.Remote),
				slog.String("upstream_host", rec.Endpoint), slog.String("upstream_cluster", rec.Pool), slog.String("model", rec.Model),
				slog.Bool("stream", rec.Streamed), slog.Float64("duration_ms", rec.Duration.Seconds()*1000), slog.Int64("bytes_received", rec.BytesIn),
				slog.Int64("bytes_sent", rec.BytesOut), slog.Int("upstream_request_attempt_count", 1+rec.Retries), slog.Float64("ttft_ms", rec.TTFT.Seconds()*1000),
				slog.Int("prompt_tokens", rec.PromptTokens), slog.Int("cached_tokens", rec.CachedTokens), slog.Int("completion_tokens", rec.CompletionTokens),
				slog.Int("predicted_prompt_tokens", rec.PredictedTokens), slog.Int("predicted_cached_tokens", rec.PredictedHit))
		}
	})
}
