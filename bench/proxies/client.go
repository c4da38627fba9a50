package main

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A load is what clients ask for.
type load struct {
	name     string
	requests [][]byte // each a whole request, different from the others
}

// fields are those the OpenAI SDK sends.
const fields = "host: llm\r\nconnection: keep-alive\r\naccept: application/json\r\ncontent-type: application/json\r\nuser-agent: OpenAI/Python 2.8.0\r\n" +
	"x-stainless-lang: python\r\nx-stainless-package-version: 2.8.0\r\nx-stainless-os: Linux\r\nx-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\n" +
	"x-stainless-runtime-version: 3.12.3\r\nauthorization: Bearer none\r\nx-stainless-async: false\r\nx-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\naccept-encoding: gzip, deflate\r\n"

// variants is how many different prompts a load rotates through.
const variants = 256

// newLoad makes requests with bodies of size bytes. Their prompts share nothing; as
// code, they are full of what JSON escapes.
func newLoad(name string, size int, code bool) *load { return makeLoad(name, size, code, "", false) }

// newStreams makes requests of 1 KB for streams of so many events.
func newStreams(name string, events int, pace time.Duration) *load {
	return makeLoad(name, 1<<10, false, fmt.Sprintf(streamFormat, events, pace.Microseconds()), true)
}

func makeLoad(name string, size int, code bool, begin string, stream bool) *load {
	l := &load{name: name}
	random := rand.New(rand.NewPCG(1, uint64(size)))
	words := strings.Fields("the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were when we there can an your which their said if do will each about how up out them then she many some so these would other into has more her two like him see time could no make than first been its who now people my made over did down only way find use may water long little very after words called just where most know")
	for i := range variants {
		var prompt strings.Builder
		fmt.Fprintf(&prompt, "%s%d: ", begin, i)
		for prompt.Len() < size-120 {
			prompt.WriteString(words[random.IntN(len(words))])
			if code && random.IntN(3) == 0 {
				prompt.WriteString(` = \"` + words[random.IntN(len(words))] + `\";\n\t`)
			} else {
				prompt.WriteByte(' ')
			}
		}
		body := fmt.Sprintf(`{"messages":[{"role":"user","content":"%s"}],"model":"m","max_tokens":4,"stream":%t}`, prompt.String(), stream)
		l.requests = append(l.requests, fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\n%scontent-length: %d\r\n\r\n%s", fields, len(body), body))
	}
	return l
}

// client is one connection.
type client struct {
	conn net.Conn
	r    *bufio.Reader
}

// dialer connects to what is measured.
type dialer func() (net.Conn, error)

func (d dialer) client() (*client, error) {
	c, err := d()
	if err != nil {
		return nil, err
	}
	return &client{c, bufio.NewReaderSize(c, 32<<10)}, nil
}

// tcp connects to an address.
func tcp(address string) dialer {
	return func() (net.Conn, error) { return net.DialTimeout("tcp", address, 5*time.Second) }
}

// do sends a request and reads the answer, which has to be a 200.
func (c *client) do(request []byte) error {
	if _, err := c.conn.Write(request); err != nil {
		return err
	}
	head, err := readHead(c.r)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answered %q", head)
	}
	return skipBody(c.r, head)
}

// connect opens n connections.
func connect(to dialer, n int) ([]*client, error) {
	clients := make([]*client, n)
	for i := range clients {
		c, err := to.client()
		if err != nil {
			hangUp(clients[:i])
			return nil, err
		}
		clients[i] = c
	}
	return clients, nil
}

func hangUp(clients []*client) {
	for _, c := range clients {
		c.conn.Close()
	}
}

// hold has n streams under way, and calls f once each has got its first event.
func hold(to dialer, l *load, n int, f func()) error {
	clients, err := connect(to, n)
	if err != nil {
		return err
	}
	defer hangUp(clients)
	for i, c := range clients {
		if _, err := c.conn.Write(l.requests[i%variants]); err != nil {
			return err
		}
	}
	for _, c := range clients {
		if _, err := readHead(c.r); err != nil {
			return err
		}
		if _, err := c.r.Peek(1); err != nil {
			return err
		}
	}
	f()
	return nil
}

// saturate has n connections send one request after the other for d, and gives how
// many were answered and how many failed, of which there may be a few.
func saturate(to dialer, l *load, n int, d time.Duration) (answered, failed int64, err error) {
	clients, err := connect(to, n)
	if err != nil {
		return 0, 0, err
	}
	defer func() { hangUp(clients) }()
	var count, failures atomic.Int64
	var last atomic.Pointer[error]
	var all sync.WaitGroup
	until := time.Now().Add(d)
	for i, c := range clients {
		all.Go(func() {
			for k := i * variants / n; time.Now().Before(until); k++ {
				if err := c.do(l.requests[k%variants]); err != nil {
					last.Store(&err)
					c.conn.Close()
					if failures.Add(1) > 10 {
						return
					}
					if c, err = to.client(); err != nil {
						last.Store(&err)
						return
					}
					clients[i] = c
					continue
				}
				count.Add(1)
			}
		})
	}
	all.Wait()
	if failures.Load() > 10 || count.Load() == 0 {
		return 0, 0, *last.Load()
	}
	return count.Load(), failures.Load(), nil
}

// latencies sends rate requests a second for d, whether or not answers come, and
// gives how long each took from when it was due, sorted.
func latencies(to dialer, l *load, rate int, d time.Duration) ([]time.Duration, error) {
	const connections = 64
	clients, err := connect(to, connections)
	if err != nil {
		return nil, err
	}
	defer hangUp(clients)
	total := int(float64(rate) * d.Seconds())
	took := make([]time.Duration, total)
	errs := make(chan error, connections)
	var all sync.WaitGroup
	start := time.Now().Add(50 * time.Millisecond)
	for i, c := range clients {
		all.Go(func() {
			for k := i; k < total; k += connections {
				due := start.Add(time.Duration(float64(k) / float64(rate) * float64(time.Second)))
				time.Sleep(time.Until(due))
				if err := c.do(l.requests[k%variants]); err != nil {
					errs <- err
					return
				}
				took[k] = time.Since(due)
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	slices.Sort(took)
	return took, nil
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
