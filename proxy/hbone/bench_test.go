package hbone

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// cpu is what the process has used, in seconds.
func cpu() float64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// road is a way to get connections to a server that serves each with serve.
type road struct {
	dial func() half
	end  func()
}

// apart is the address of a relay to another, by which every byte comes so much later.
func apart(b testing.TB, to net.Addr, delay time.Duration) net.Addr {
	if delay == 0 {
		return to
	}
	l := loopback(b)
	b.Cleanup(func() { l.Close() })
	type piece struct {
		due  time.Time
		data []byte
	}
	pass := func(dst, src half) {
		pieces := make(chan piece, 1<<12)
		go func() {
			defer close(pieces)
			for {
				data := make([]byte, 64<<10)
				n, err := src.Read(data)
				if err != nil {
					return
				}
				pieces <- piece{time.Now().Add(delay), data[:n]}
			}
		}()
		for p := range pieces {
			time.Sleep(time.Until(p.due))
			dst.Write(p.data)
		}
		dst.CloseWrite()
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to.String())
			if err != nil {
				b.Error(err)
				return
			}
			go pass(far.(half), c.(half))
			go pass(c.(half), far.(half))
		}
	}()
	return l.Addr()
}

// plain is TCP or TLS to serve, which is delay away.
func plain(b testing.TB, m *mesh, secure bool, delay time.Duration, serve func(net.Conn)) road {
	inner := loopback(b)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := inner.Accept()
			if err != nil {
				return
			}
			if secure {
				c = tls.Server(c, m.waypoint.ServerConfig())
			}
			serving.Go(func() { serve(c) })
		}
	})
	addr := apart(b, inner.Addr(), delay)
	dial := func() half {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			b.Fatal(err)
		}
		if secure {
			return tls.Client(c, m.waypoint.ClientConfig(m.id("waypoint")))
		}
		return c.(half)
	}
	return road{dial, func() { inner.Close(); serving.Wait() }}
}

// tunnelled is a tunnel to serve, which is delay away, both ends ours.
func tunnelled(b testing.TB, m *mesh, delay time.Duration, serve func(net.Conn)) road {
	w := m.listen(b, serve)
	d := m.dialer(apart(b, w.Addr(), delay), m.waypoint)
	dial := func() half {
		c, err := d.DialContext(b.Context(), "127.0.0.1:80", m.id("waypoint"))
		if err != nil {
			b.Fatal(err)
		}
		return c.(half)
	}
	return road{dial, func() { d.Close(); w.Close(); w.serving.Wait() }}
}

// relay serves a connection by passing it on.
func relay(onward func() half) func(net.Conn) {
	return func(c net.Conn) {
		out := onward()
		var up sync.WaitGroup
		pass := func(dst, src net.Conn) {
			buf := make([]byte, 16<<10)
			io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
			dst.(half).CloseWrite()
		}
		up.Go(func() { pass(out, c) })
		pass(c, out)
		up.Wait()
		c.Close()
		out.Close()
	}
}

// roads are the ways that are compared: in once, and in and out through a relay.
func roads(b *testing.B, serve func(net.Conn), run func(b *testing.B, dial func() half)) {
	m := newMesh(b)
	for _, name := range []string{"tcp", "tls", "hbone", "tls-in-out", "hbone-in-out"} {
		b.Run(name, func(b *testing.B) {
			var r, out road
			switch name {
			case "tcp", "tls":
				r = plain(b, m, name == "tls", 0, serve)
			case "hbone":
				r = tunnelled(b, m, 0, serve)
			case "tls-in-out":
				out = plain(b, m, true, 0, serve)
				r = plain(b, m, true, 0, relay(out.dial))
			case "hbone-in-out":
				out = tunnelled(b, m, 0, serve)
				r = tunnelled(b, m, 0, relay(out.dial))
			}
			before := 0.0
			run(b, func() half {
				c := r.dial()
				before = cpu()
				return c
			})
			b.ReportMetric((cpu()-before)*1e6/float64(b.N), "cpu-µs/op")
			r.end()
			if out.end != nil {
				out.end()
			}
		})
	}
}

// drain serves a connection by reading it to its end, and answering one byte.
func drain(c net.Conn) {
	io.Copy(struct{ io.Writer }{io.Discard}, c)
	c.Write([]byte("."))
	c.Close()
}

// bulk sends one stream of 64 KiB writes to drain.
func bulk(b *testing.B, dial func() half) {
	c := dial()
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	c.CloseWrite()
	io.ReadAll(c)
	c.Close()
}

// BenchmarkBulk sends one stream.
func BenchmarkBulk(b *testing.B) { roads(b, drain, bulk) }

// BenchmarkDistant sends one stream to where a round trip takes 10 ms. A window that is
// too small for that shows as throughput: a window's bytes every 10 ms at most.
func BenchmarkDistant(b *testing.B) {
	const delay = 5 * time.Millisecond
	m := newMesh(b)
	for _, name := range []string{"tcp", "tls", "hbone"} {
		b.Run(name, func(b *testing.B) {
			var r road
			if name == "hbone" {
				r = tunnelled(b, m, delay, drain)
			} else {
				r = plain(b, m, name == "tls", delay, drain)
			}
			bulk(b, r.dial)
			r.end()
		})
	}
}

// BenchmarkShared sends 32 streams at once through one connection, and reports how much
// the slowest sent for each byte of the fastest.
func BenchmarkShared(b *testing.B) {
	const streams = 32
	m := newMesh(b)
	r := tunnelled(b, m, 0, drain)
	conns := make([]half, streams)
	for i := range conns {
		conns[i] = r.dial()
	}
	var sent [streams]int64
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := c.Write(p); err != nil {
					b.Error(err)
					return
				}
				sent[i]++
			}
			c.CloseWrite()
			io.ReadAll(c)
			c.Close()
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(slices.Min(sent[:]))/float64(slices.Max(sent[:])), "slowest/fastest")
	r.end()
}

// BenchmarkRequest sends 1 KB and gets 300 bytes, over and over.
func BenchmarkRequest(b *testing.B) {
	serve := func(c net.Conn) {
		defer c.Close()
		request, answer := make([]byte, 1024), make([]byte, 300)
		for {
			if _, err := io.ReadFull(c, request); err != nil {
				return
			}
			c.Write(answer)
		}
	}
	roads(b, serve, func(b *testing.B, dial func() half) {
		c := dial()
		request, answer := make([]byte, 1024), make([]byte, 300)
		b.ReportAllocs()
		for b.Loop() {
			c.Write(request)
			if _, err := io.ReadFull(c, answer); err != nil {
				b.Fatal(err)
			}
		}
		c.CloseWrite()
		c.Close()
	})
}

// resident is the memory the process has in RAM, in bytes.
func resident() int {
	status, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	return n << 10
}

// BenchmarkIdleTunnel reports what a tunnel takes that nobody uses, both ends of it
// and the goroutine that waits at one of them.
func BenchmarkIdleTunnel(b *testing.B) {
	const tunnels = 10_000
	m := newMesh(b)
	for b.Loop() {
		r := tunnelled(b, m, 0, func(c net.Conn) {
			var one [1]byte
			c.Read(one[:])
			c.Close()
		})
		r.dial().Close()
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		rss := resident()
		conns := make([]half, tunnels)
		for i := range conns {
			conns[i] = r.dial()
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/tunnels, "heap-B/tunnel")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/tunnels, "stack-B/tunnel")
		b.ReportMetric(float64(resident()-rss)/tunnels, "rss-B/tunnel")
		for _, c := range conns {
			c.Close()
		}
		r.end()
	}
}

// BenchmarkStalled reports a live tunnel's throughput beside 99 whose other end does
// not read, in one connection.
func BenchmarkStalled(b *testing.B) {
	m := newMesh(b)
	for _, stalled := range []int{0, 99} {
		b.Run(fmt.Sprint(stalled), func(b *testing.B) {
			first := make(chan struct{})
			r := tunnelled(b, m, 0, func(c net.Conn) {
				var one [1]byte
				io.ReadFull(c, one[:])
				if one[0] == 's' {
					<-first
				}
				drain(c)
			})
			stuck := make([]half, stalled)
			for i := range stuck {
				stuck[i] = r.dial()
				stuck[i].SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				stuck[i].Write([]byte("s"))
				stuck[i].Write(make([]byte, 8<<20))
			}
			bulk(b, func() half {
				live := r.dial()
				live.Write([]byte("l"))
				return live
			})
			b.ReportMetric(float64(defaultBudget.Held())/(1<<20), "held-MiB")
			close(first)
			for _, c := range stuck {
				c.Close()
			}
			r.end()
		})
	}
}
