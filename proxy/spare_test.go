package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
)

// Streams take turns with the buffers that they are relayed through: each client gets what is its own, also in the request after
// that, and when it sends that before the answer is over.
func TestStreamsThatShareBuffers(t *testing.T) {
	const clients, requests, events = 24, 6, 20
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, rest, _ := strings.Cut(string(body), "client ")
		whose, _, _ := strings.Cut(rest, " ")
		if r.Header.Get("whose") != whose {
			t.Errorf("the head says %q, the body %q", r.Header.Get("whose"), whose)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for range events {
			fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"}}]}\n\n", strings.Repeat(whose, 100))
			w.(http.Flusher).Flush()
		}
		io.WriteString(w, "data: [DONE]\n\n")
	}))
	t.Cleanup(engine.Close)
	s := startServer(t, World{}, &pod{new(mock.Server), strings.TrimPrefix(engine.URL, "http://")})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Shutdown(t.Context()); <-served })

	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			r := bufio.NewReader(c)
			body := chat(true, events, fmt.Sprintf("client #%d; says hello", i))
			request := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nhost: llm\r\nwhose: #%d;\r\ncontent-length: %d\r\n\r\n%s", i, len(body), body)
			if i%3 == 0 { // all at once
				request = strings.Repeat(request, requests)
			}
			for k := range requests {
				if k == 0 || i%3 != 0 {
					io.WriteString(c, request)
				}
				answer, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(answer.Body)
				if n := strings.Count(string(got), fmt.Sprintf("#%d;", i)); err != nil || n != events*100 || strings.Count(string(got), "#") != n || answer.StatusCode != 200 {
					t.Errorf("client %d, request %d: %d, %d of its own of %d, %v: %.300s", i, k, answer.StatusCode, n, strings.Count(string(got), "#"), err, got)
					return
				}
			}
		})
	}
	all.Wait()
}
