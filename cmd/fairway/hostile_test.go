package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairway-proxy/fairway/bench/e2e/ztunnel"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
)

// An attack is what hostile clients do, each on a connection of its own.
type attack struct {
	name string
	// few are there in the short test, many when it is measured.
	few, many int
	// bound is what one of them may have the proxy hold, in KiB.
	bound int
	// pace is how long a client waits between two steps, or until it comes back when its
	// connection was cut.
	pace time.Duration
	// do is one client, until step tells it to stop or its connection is cut.
	do func(h *hostileClient) error
	// ends: it is always cut off, or refused, and comes back.
	ends bool
	// mesh: it speaks HTTP/2 where tunnels are taken.
	mesh bool
	// narrow: it offers the smallest window of TCP there is, so that little waits in the kernel.
	narrow bool
	// sign is a series of the metrics that grows by it; empty: it only is there.
	sign string
}

// hostileClient is one client of an attack.
type hostileClient struct {
	net.Conn
	tunnel *ztunnel.Client
	over   <-chan struct{}
	pace   time.Duration
}

// step waits for the next step's time, which is not that of the others. It says false
// when there shall be none.
func (h *hostileClient) step() bool {
	select {
	case <-h.over:
		return false
	case <-time.After(h.pace/2 + rand.N(h.pace)):
		return true
	}
}

// say sends text, little of it at a time: a kernel that does not preempt itself lets nobody else have
// the processor while it takes all that it is given.
func (h *hostileClient) say(text string) error {
	for len(text) > 0 {
		n, err := io.WriteString(h.Conn, text[:min(len(text), 16<<10)])
		if err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

// drain reads what comes until the connection ends.
func (h *hostileClient) drain() { io.Copy(io.Discard, h.Conn) }

// hang keeps the connection, doing nothing more.
func (h *hostileClient) hang() error {
	for h.step() {
	}
	return nil
}

const hostileHead = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

func post(body string) string {
	return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", hostileHead, len(body), body)
}

const unending = `{"model":"m","stream":true,"messages":[{"role":"user","content":"at length"}]}`

// speak begins HTTP/2 with that window for each stream.
func (h *hostileClient) speak(window uint32) *http2.Framer {
	h.say(http2.ClientPreface)
	fr := http2.NewFramer(h.Conn, nil)
	fr.AllowIllegalWrites = true
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	return fr
}

// header is the header block of a POST, with more fields behind it.
func header(more ...string) []byte {
	return block(append([]string{":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/v1/chat/completions"}, more...)...)
}

// block is a header block of names and values.
func block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// connect is the header block that opens a tunnel.
var connect = block(":method", "CONNECT", ":authority", vip+":80")

func pings(fr *http2.Framer, i uint32) { fr.WritePing(false, [8]byte{byte(i)}) }

// What counts those that are cut off for it.
const (
	floods     = `fairway_limits_reached_total{limit="http2_flood"}`
	meshFloods = `fairway_hbone_refused_total{reason="flood"}`
)

// flood sends bursts of what frame writes until it is cut off, which it is after some thousands.
func flood(burst int, frame func(fr *http2.Framer, i uint32)) func(*hostileClient) error {
	return func(h *hostileClient) error {
		h.speak(65535)
		go h.drain()
		for i := uint32(0); h.step(); {
			var b bytes.Buffer
			out := http2.NewFramer(&b, nil)
			out.AllowIllegalWrites = true
			for range burst {
				frame(out, i)
				i++
			}
			if _, err := h.Write(b.Bytes()); err != nil {
				return nil
			}
			if i > 1_000_000 {
				return errors.New("a million frames were taken")
			}
		}
		return nil
	}
}

// unread asks for unending streams and takes window bytes of each, then one byte at a time, or none.
func unread(window uint32, streams int, credit uint32) func(*hostileClient) error {
	return func(h *hostileClient) error {
		fr := h.speak(window)
		for i := range streams {
			id := uint32(2*i + 1)
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: header("content-length", strconv.Itoa(len(unending))), EndHeaders: true})
			if err := fr.WriteData(id, true, []byte(unending)); err != nil {
				return err
			}
		}
		if credit == 0 {
			return h.hang()
		}
		go h.drain()
		for h.step() {
			for i := range streams {
				if err := fr.WriteWindowUpdate(uint32(2*i+1), credit); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// answered sends a request and waits for the answer's status.
func (h *hostileClient) answered(request string) (int, error) {
	go h.say(request) // the answer may come before its end
	line := make([]byte, 12)
	if _, err := io.ReadFull(h.Conn, line); err != nil {
		return 0, err
	}
	return strconv.Atoi(string(line[9:]))
}

// refused sends the same request again and again, and wants that status.
func refused(status int, request func() string) func(*hostileClient) error {
	return func(h *hostileClient) error {
		got, err := h.answered(request())
		if err == nil && got != status {
			return fmt.Errorf("status %d, want %d", got, status)
		}
		return nil
	}
}

var attacks = []attack{
	{name: "idle connections", few: 50, many: 5000, bound: 32, pace: time.Second, sign: "fairway_client_connections", do: (*hostileClient).hang},
	{name: "slow heads", few: 50, many: 2000, bound: 32, pace: time.Second, sign: "fairway_client_connections", do: func(h *hostileClient) error {
		h.say(hostileHead)
		for h.step() {
			if err := h.say("X-Slow: 1\r\n"); err != nil {
				return err
			}
		}
		return nil
	}},
	{name: "slow bodies", few: 50, many: 2000, bound: 64, pace: time.Second, sign: "fairway_client_connections", do: func(h *hostileClient) error {
		h.say(hostileHead + "Content-Length: 1000000\r\n\r\n{")
		for h.step() {
			if err := h.say(" "); err != nil {
				return err
			}
		}
		return nil
	}},
	{name: "large heads, never ended", few: 20, many: 500, bound: 128, pace: time.Second, sign: "fairway_client_connections", do: func(h *hostileClient) error {
		h.say(hostileHead + "X-Long: " + strings.Repeat("x", 60<<10))
		return h.hang()
	}},
	{name: "heads of 1 MiB", few: 5, many: 20, bound: 256, pace: 20 * time.Millisecond, ends: true, sign: `fairway_limits_reached_total{limit="headers"}`,
		do: refused(431, func() string { return hostileHead + "X-Long: " + strings.Repeat("x", 1<<20) + "\r\n\r\n" })},
	{name: "10,000 fields", few: 5, many: 20, bound: 320, pace: 20 * time.Millisecond, ends: true, sign: `fairway_limits_reached_total{limit="headers"}`,
		do: refused(431, func() string { return hostileHead + strings.Repeat("A: 1\r\n", 10_000) + "\r\n" })},
	{name: "a stream that nobody reads", narrow: true, few: 10, many: 200, bound: 192, pace: time.Second, sign: "fairway_client_connections", do: func(h *hostileClient) error {
		h.say(post(unending))
		return h.hang()
	}},
	{name: "1,000 requests at once, no answer read", narrow: true, few: 5, many: 100, bound: 192, pace: time.Second, sign: "fairway_client_connections", do: func(h *hostileClient) error {
		go h.say(strings.Repeat("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 1000))
		return h.hang()
	}},
	{name: "JSON nested a million deep", few: 5, many: 10, bound: 4 << 10, pace: 50 * time.Millisecond, ends: true, sign: `fairway_requests_total{code="400",model="",pool="",reason="fairway_bad_request"}`,
		do: refused(400, func() string { return post(`{"model":"m","messages":` + strings.Repeat("[", 1<<20)) })},
	{name: "200,000 messages", few: 2, many: 4, bound: 16 << 10, pace: 50 * time.Millisecond, ends: true,
		do: refused(200, func() string {
			return post(`{"model":"m","messages":[` + strings.Repeat(`{"role":"user"},`, 200_000) + `{}]}`)
		})},
	{name: "prompts of 1 MB, none like another", few: 2, many: 4, bound: 8 << 10, pace: 20 * time.Millisecond, ends: true,
		do: refused(200, func() string {
			return post(fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"%d%s"}]}`, rand.Uint64(), strings.Repeat("tell me of it ", 70_000)))
		})},
	{name: "HTTP/2, windows of 1 byte", narrow: true, few: 2, many: 20, bound: 50 * 80, pace: 100 * time.Millisecond, sign: "fairway_requests_live", do: unread(1, 50, 1)},
	{name: "HTTP/2, nothing is read", narrow: true, few: 2, many: 20, bound: 50 * 80, pace: time.Second, sign: "fairway_requests_live", do: unread(65535, 50, 0)},
	{name: "HTTP/2, HPACK bomb", few: 2, many: 10, bound: 2 << 10, pace: 20 * time.Millisecond, ends: true, do: func(h *hostileClient) error {
		fr := h.speak(65535)
		block := append(header("x-bomb", strings.Repeat("x", 4000)), bytes.Repeat([]byte{0x80 | 62}, 12_000)...) // 12,000 times the same field of 4 KB
		if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: true}); err != nil {
			return err
		}
		return h.awaitEnd(431)
	}},
	{name: "HTTP/2, CONTINUATION without end", few: 2, many: 10, bound: 2 << 10, pace: 5 * time.Millisecond, ends: true, do: func(h *hostileClient) error {
		fr := h.speak(65535)
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header()})
		var b bytes.Buffer
		e := hpack.NewEncoder(&b)
		for range 4 {
			e.WriteField(hpack.HeaderField{Name: "x-more", Value: strings.Repeat("~", 1000), Sensitive: true})
		}
		go func() {
			for fr.WriteContinuation(1, false, b.Bytes()) == nil {
			}
		}()
		h.drain()
		return nil
	}},
	{name: "HTTP/2, streams opened and reset", few: 2, many: 4, bound: 16 << 10, pace: 10 * time.Millisecond, ends: true, do: flood(1000, func(fr *http2.Framer, i uint32) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: header(), EndHeaders: true})
		fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	})},
	{name: "HTTP/2, 1,000 streams at once", few: 2, many: 4, bound: 16 << 10, pace: 10 * time.Millisecond, ends: true, sign: `fairway_limits_reached_total{limit="http2_streams"}`, do: flood(1000, func(fr *http2.Framer, i uint32) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: header(), EndHeaders: true})
	})},
	{name: "HTTP/2, SETTINGS", few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: flood(200, func(fr *http2.Framer, i uint32) {
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000 + i%1000})
	})},
	{name: "HTTP/2, PING", few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: flood(200, pings)},
	{name: "HTTP/2, PING, answers never read", narrow: true, few: 2, many: 10, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: func(h *hostileClient) error {
		fr := h.speak(65535)
		for fr.WritePing(false, [8]byte{}) == nil {
		}
		return nil
	}},
	{name: "HTTP/2, windows widened without end", few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: flood(200, func(fr *http2.Framer, i uint32) {
		fr.WriteWindowUpdate(0, 100)
	})},
	{name: "HTTP/2, empty DATA", few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: flood(200, func(fr *http2.Framer, i uint32) {
		if i == 0 {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header(), EndHeaders: true})
		}
		fr.WriteData(1, false, nil)
	})},
	{name: "HTTP/2, empty CONTINUATION", few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: flood(200, func(fr *http2.Framer, i uint32) {
		if i == 0 {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header()})
		}
		fr.WriteContinuation(1, false, nil)
	})},
	{name: "HTTP/2, PRIORITY", few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: flood(200, func(fr *http2.Framer, i uint32) {
		fr.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 0, Weight: 1})
	})},
	{name: "HTTP/2, frames of no known kind", few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: floods, do: flood(200, func(fr *http2.Framer, i uint32) {
		fr.WriteRawFrame(0xEE, 0, 0, []byte("?"))
	})},
	{name: "tunnels, PING", mesh: true, few: 2, many: 4, bound: 2 << 10, pace: 10 * time.Millisecond, ends: true, sign: meshFloods, do: flood(200, pings)},
	{name: "tunnels, opened and reset", mesh: true, few: 2, many: 4, bound: 4 << 10, pace: 10 * time.Millisecond, ends: true, sign: meshFloods, do: flood(200, func(fr *http2.Framer, i uint32) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: connect, EndHeaders: true})
		fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	})},
	{name: "tunnels, 100 on each connection", few: 2, many: 50, bound: 100 * 24, pace: time.Second, sign: `fairway_hbone_tunnels_total{direction="inbound"}`, do: func(h *hostileClient) error {
		for range 100 {
			tunnel, err := h.tunnel.Connect(context.Background(), ztunnel.Request{Authority: vip + ":80"})
			if err != nil {
				return err
			}
			defer tunnel.Close()
		}
		return h.hang()
	}},
}

// awaitEnd reads frames until the connection or stream 1 ends, and wants that status if there is one.
func (h *hostileClient) awaitEnd(status int) error {
	fr := http2.NewFramer(nil, h.Conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return nil
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if got := f.PseudoValue("status"); got != strconv.Itoa(status) {
				return fmt.Errorf("status %s, want %d", got, status)
			}
			return nil
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return nil
		}
	}
}

// target is a proxy before an engine that answers at once, or without end.
type target struct {
	http, hbone, metrics string
	behind               string       // the engine's URL
	pid                  int          // of its process; 0: this one's
	dir                  string       // has the certificate of a client of the mesh
	tls                  *tls.Config  // of a client of the mesh
	client               *http.Client // of those who mean well
}

// answerHostile is the engine: it answers at once, or for as long as somebody listens, ten events
// of 4 KB a second.
func answerHostile(w http.ResponseWriter, r *http.Request) {
	var start [200]byte
	n, _ := io.ReadFull(r.Body, start[:])
	io.Copy(io.Discard, r.Body) // not kept: what this engine costs is not what is measured
	if !bytes.Contains(start[:n], []byte(`"stream":true`)) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"object":"list","data":[],"choices":[]}`)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	event := []byte("data: {\"choices\":[{\"delta\":{\"content\":\"" + strings.Repeat("word ", 800) + "\"}}]}\n\n")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := w.Write(event); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// startTarget runs a proxy before that engine: of that binary, or if there is none in this process.
func startTarget(t *testing.T, binary, engine string) *target {
	at := freeAddresses(3)
	a := newAuthority(t)
	dir := t.TempDir()
	cert, key := issue(t, a, a.ID("default", "waypoint"), dir)
	roots, config := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "fairway.yaml")
	writeFile(t, roots, string(a.PEM()))
	writeFile(t, config, fmt.Sprintf("listen: {http: %q, hbone: %q, metrics: %q, admin: \"\"}\ntls: {files: {certificate: %q, key: %q, roots: %q}}\nscrape: {interval: 1h}\ntimeouts: {drain: 1m}\nqueue: {off: true}\n%s",
		at[0], at[1], at[2], cert, key, roots, llamaService("http", engine)))
	target := &target{http: at[0], hbone: at[1], metrics: "http://" + at[2], behind: engine, dir: t.TempDir(),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: time.Minute}}
	issue(t, a, a.ID("default", "client"), target.dir)
	target.enroll(t)
	if binary != "" {
		process := start(t, binary, "serve", "--config", config, "--no-access-log", "--log-level", "error")
		target.pid = process.Process.Pid
	} else {
		c, err := file.Load(config)
		if err != nil {
			t.Fatal(err)
		}
		app, err := newApp(c, logs{Logger: slog.New(slog.DiscardHandler)}, proxy.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- app.run(ctx) }()
		t.Cleanup(func() { stop(); <-done })
	}
	t.Cleanup(target.client.CloseIdleConnections)
	waitFor(t, "readiness", func() bool { status, _ := get(target.metrics + "/healthz/ready"); return status == 200 })
	return target
}

// enroll has tunnels opened with the certificate in dir. Who answers is believed to be who it is.
func (t *target) enroll(tb testing.TB) {
	tb.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(t.dir, "tls.crt"), filepath.Join(t.dir, "tls.key"))
	if err != nil {
		tb.Fatal(err)
	}
	t.tls = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
}

// ask is a request of somebody who means well, of the proxy or straight of the engine.
func (t *target) ask(url string) (time.Duration, error) {
	start := time.Now()
	resp, err := t.client.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != 200 {
		return 0, fmt.Errorf("status %d", resp.StatusCode)
	}
	return time.Since(start), nil
}

// series is the value of a series of the metrics.
func (t *target) series(name string) (value float64) {
	_, page := get(t.metrics + "/metrics")
	if m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(page); m != nil {
		value, _ = strconv.ParseFloat(m[1], 64)
	}
	return value
}

// dial connects one client.
func (t *target) dial(a *attack, dialer *net.Dialer) (net.Conn, error) {
	if a.mesh {
		return tls.DialWithDialer(dialer, "tcp", t.hbone, t.tls)
	}
	return dialer.Dial("tcp", t.http)
}

// launch starts an attack of n clients, all within a pace; stop ends it and gives the first thing that went otherwise than it should.
func (t *target) launch(a *attack, n int, pace time.Duration, dialer *net.Dialer) (stop func() error, cut *atomic.Int64) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var wrong error
	cut = new(atomic.Int64)
	open := make(map[net.Conn]bool)
	ended := false
	over := make(chan struct{})
	for range n {
		tunnels := &ztunnel.Client{Address: t.hbone, TLS: t.tls}
		wg.Go(func() {
			defer tunnels.Close()
			select {
			case <-over:
				return
			case <-time.After(rand.N(pace)):
			}
			for {
				c, err := t.dial(a, dialer)
				if err != nil {
					return
				}
				mu.Lock()
				open[c] = true
				stopped := ended
				mu.Unlock()
				h := &hostileClient{Conn: c, tunnel: tunnels, over: over, pace: pace}
				if !stopped {
					err = a.do(h)
				}
				c.Close()
				mu.Lock()
				delete(open, c)
				if stopped = ended; err != nil && a.ends && !ended && wrong == nil {
					wrong = err
				}
				mu.Unlock()
				if err != nil || a.ends {
					cut.Add(1)
				}
				if stopped || !h.step() {
					return
				}
			}
		})
	}
	return func() error {
		mu.Lock()
		ended = true
		close(over)
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
		return wrong
	}, cut
}

// Whatever hostile clients do, others are served; what there is a limit for is refused, cut off and counted. What it costs is
// TestHostileClientsCost's.
func TestHostileClients(t *testing.T) {
	engine := httptest.NewServer(http.HandlerFunc(answerHostile))
	defer engine.Close()
	target := startTarget(t, "", engine.URL)
	for i := range attacks {
		a := &attacks[i]
		t.Run(a.name, func(t *testing.T) {
			before := 0.0
			if a.sign != "" {
				before = target.series(a.sign)
			}
			stop, cut := target.launch(a, a.few, min(a.pace, 10*time.Millisecond), new(net.Dialer))
			if a.sign != "" {
				waitFor(t, a.sign, func() bool { return target.series(a.sign) > before })
			}
			if a.ends {
				waitFor(t, "they are cut off", func() bool { return cut.Load() > 0 })
			}
			for range 10 {
				if _, err := target.ask("http://" + target.http); err != nil {
					t.Errorf("somebody else: %v", err)
				}
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			waitFor(t, "all is let go of", func() bool { return target.series("fairway_requests_live") == 0 })
		})
	}
	if used, most := target.series(`fairway_endpoint_index_bytes{endpoint="`+target.engine()+`",pool="llama"}`), 8.0*(1<<20); used == 0 || used > most {
		t.Errorf("the index of prompts takes %v bytes, want up to %v", used, most)
	}
}

// engine is the engine's address.
func (t *target) engine() string {
	_, page := get(t.metrics + "/metrics")
	if m := regexp.MustCompile(`endpoint="([^"]+)"`).FindStringSubmatch(page); m != nil {
		return m[1]
	}
	return ""
}
