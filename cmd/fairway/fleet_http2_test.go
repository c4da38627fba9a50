package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-proxy/fairway/bench/mock"
)

// The plain listener speaks HTTP/2 to clients that begin with it: many streams at
// once on one connection, errors and large bodies too.
func TestHTTP2(t *testing.T) {
	p := startPod(t, "", quick)
	f := startFleet(t, p)
	f.speakHTTP2()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			a, err := f.ask(t.Context(), request{Messages: []message{{"user", prose(i, 100)}}, MaxTokens: 20})
			if err != nil || !a.done || a.text == "" || a.endpoint != p.address {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
	all.Wait()
	large := request{Messages: []message{{"user", strings.Repeat("word ", 230_000)}}, MaxTokens: 5, Model: "mock"} // 1.1 MB: sent on while it is received
	resp, err := f.client.Post(f.url+"/v1/chat/completions", "application/json", large.body())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != 400 { // the engine's word: longer than its context
		t.Errorf("%s %d", resp.Proto, resp.StatusCode)
	}
	resp, err = f.client.Get(f.url + "/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.ContentLength <= 0 {
		t.Errorf("%d, length %d", resp.StatusCode, resp.ContentLength)
	}
	resp, err = f.client.Head(f.url + "/health")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	bad, err := http.NewRequestWithContext(t.Context(), "POST", f.url+"/v1/chat/completions", strings.NewReader("{"))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err = f.client.Do(bad); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 || resp.Header.Get("X-Request-Id") == "" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// A proxy that stops lets the streams of an HTTP/2 connection end, and the
// connection after them.
func TestHTTP2Drain(t *testing.T) {
	p := startPod(t, "", mock.Config{})
	f := startFleet(t, p)
	f.speakHTTP2()
	got := make(chan string, 1)
	go func() {
		a, err := f.ask(context.Background(), request{Messages: []message{{"user", "at length"}}, MaxTokens: 100})
		got <- fmt.Sprint(a.done, err)
	}()
	waitFor(t, "the engine streams", func() bool { return p.Stats().Engine.GenerationTokens > 3 })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := f.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if s := <-got; s != "true <nil>" {
		t.Error(s)
	}
}
