package mtls

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// rotate is how long the tests of rotation under load go on.
var rotate = flag.Duration("rotate", 3*time.Second, "how long to rotate certificates under load")

// traffic is a service of the mesh under load: HTTP/2 over connections that
// live on, connections made for one request each, and streams that are open all
// the time.
type traffic struct {
	t        *testing.T
	stop     context.CancelFunc
	clients  sync.WaitGroup
	requests atomic.Int64
	streams  []*stream
}

// stream is a request that is answered line by line.
type stream struct {
	send *io.PipeWriter
	from *bufio.Reader
	body io.Closer
}

func startTraffic(t *testing.T, server, client *Source, peer spiffeid.ID) *traffic {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		TLSConfig: server.ServerConfig(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if id, err := PeerID(*r.TLS); err != nil || id != client.ID() {
				t.Errorf("the peer is %v, %v", id, err)
			}
			http.NewResponseController(w).Flush()
			in := bufio.NewReader(r.Body)
			for {
				line, err := in.ReadString('\n')
				io.WriteString(w, line)
				http.NewResponseController(w).Flush()
				if err != nil {
					return
				}
			}
		}),
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &traffic{t: t, stop: stop}
	var serving sync.WaitGroup
	serving.Go(func() { srv.ServeTLS(listener, "", "") })
	t.Cleanup(func() {
		stop()
		srv.Close()
		l.clients.Wait()
		serving.Wait()
	})

	transport := func(keep bool) *http.Client {
		tr := &http.Transport{
			DisableKeepAlives: !keep, ForceAttemptHTTP2: true,
			DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return (&tls.Dialer{Config: client.ClientConfig(peer)}).DialContext(ctx, network, address)
			},
		}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	url := "https://" + listener.Addr().String()
	for n := range 8 {
		c := transport(n%2 == 0)
		l.clients.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				want := fmt.Sprintln("request", n, i)
				got, err := post(c, url, want)
				if err != nil || got != want {
					t.Errorf("%q, %v", got, err)
					return
				}
				l.requests.Add(1)
			}
		})
	}
	kept := transport(true)
	for range 4 {
		r, w := io.Pipe()
		request, err := http.NewRequest("POST", url, r)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := kept.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		l.streams = append(l.streams, &stream{w, bufio.NewReader(answer.Body), answer.Body})
	}
	return l
}

func post(c *http.Client, url, body string) (string, error) {
	answer, err := c.Post(url, "text/plain", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.ProtoMajor != 2 {
		return "", fmt.Errorf("answered by %s", answer.Proto)
	}
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

// say sends a line on each of the streams and awaits it back.
func (l *traffic) say(line string) {
	l.t.Helper()
	for _, s := range l.streams {
		if _, err := io.WriteString(s.send, line+"\n"); err != nil {
			l.t.Fatal("a stream broke:", err)
		}
		if got, err := s.from.ReadString('\n'); got != line+"\n" {
			l.t.Fatalf("a stream broke: %q, %v", got, err)
		}
	}
}

// end stops the load, and returns how many requests were answered.
func (l *traffic) end() int64 {
	l.stop()
	l.clients.Wait()
	for _, s := range l.streams {
		s.send.Close()
		if _, err := io.ReadAll(s.from); err != nil {
			l.t.Error("a stream broke:", err)
		}
		s.body.Close()
	}
	return l.requests.Load()
}
