package main

import (
	"net"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/discovery/file"
	"github.com/fairway-proxy/fairway/proxy"
)

// Nobody connects to an endpoint of a plain pool while engines beside it are scraped.
func TestPlainPoolsAreNotScraped(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	connections := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
			mu.Lock()
			connections++
			mu.Unlock()
		}
	}()
	defer func() {
		l.Close()
		<-done
	}()
	f := startFleetWith(t, func(c *file.Config) {
		c.World.Pools = append([]proxy.Pool{{Name: "database", Plain: true, Endpoints: []proxy.Endpoint{{Address: l.Addr().String()}}}}, c.World.Pools...)
		c.World.Models = []proxy.Model{{Name: "mock", Pool: "pool"}}
	}, startPod(t, "", mock.Config{Speed: 100}))
	engine := f.server.Endpoints()[1].Endpoint
	for range 5 {
		now := proxy.Now()
		waitFor(t, "a scrape of the engine", func() bool {
			age := engine.Load(proxy.Now()).ScrapeAge
			return age >= 0 && proxy.Now()-age > now
		})
	}
	f.mustAsk(t, request{Messages: []message{{"user", "hello"}}, MaxTokens: 1})
	mu.Lock()
	defer mu.Unlock()
	if connections > 0 {
		t.Errorf("%d connections", connections)
	}
}
