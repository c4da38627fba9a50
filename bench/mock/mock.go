// Package mock is a vLLM server without a model: its HTTP face, byte for byte as vLLM 0.32.0 under uvicorn shows it, in front of an
// engine that schedules, caches and takes its time as vLLM does. What it says is made up; when and in what form it says it is not.
//
// It is an independent judge of a proxy: it parses with encoding/json, shares no code with the proxy, and counts what reached it.
//
// A Server has a driver goroutine for each engine, which runs it against the wall clock, and two goroutines a connection: one reads, so
// that a client's going away is noticed while an answer is owed, the other serves one request after the other. The engine is
// guarded by its driver's mutex; everything else of a connection belongs to its serving goroutine.
package mock

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// Config is what a Server is started with. The zero value serves a model named "mock" at the speed of the default profile.
type Config struct {
	Model            string         // served model name; "": "mock"
	Loras            []string       // names of LoRA adapters that are loaded from the start; an adapter is a model too
	LoraUpdates      bool           // adapters can be loaded and unloaded, as with VLLM_ALLOW_RUNTIME_LORA_UPDATING
	LoraRoot         string         // what the path of an adapter that can be loaded begins with
	Profile          engine.Profile // model and hardware; zero: the first of engine.Profiles
	Speed            float64        // divides every duration of the engine; 0: 1; see driver for steps shorter than a millisecond
	DataParallel     int            // engines behind the one address, as with --data-parallel-size; 0: 1
	TransferToken    time.Duration  // of a token's KV cache from the server that computed it, at Speed 1; 0: 131,072 bytes at 200 Gbit/s
	Seed             uint64         // of the answers' text and length
	MaxModelLen      int            // longest prompt and answer together; 0: the profile's; what the KV cache holds at most
	MaxQueued        int            // answer 503 when more requests wait or run; 0: no limit
	APIKey           string         // demand it under /v1; "": none
	HideCachedTokens bool           // as without vLLM's --enable-prompt-tokens-details
	ForceUsage       bool           // usage on every event of every stream, as with --enable-force-include-usage
	RequestIDHeaders bool           // X-Request-Id on every answer, as with --enable-request-id-headers
	NoEngineMetrics  bool           // a page without the engine's metrics, as with vLLM's --disable-log-stats
	KeepAlive        time.Duration  // idle time after a request before the connection is closed; 0: uvicorn's 5 s
	ClockSkew        time.Duration  // its clock minus the right one, in the date of answers
}

func (c Config) withDefaults() Config {
	if c.Model == "" {
		c.Model = "mock"
	}
	if c.Profile == (engine.Profile{}) {
		c.Profile = engine.Profiles[0]
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = 5 * time.Second
	}
	c.DataParallel = max(c.DataParallel, 1)
	if c.TransferToken == 0 {
		c.TransferToken = 5243 * time.Nanosecond
	}
	if c.Speed != 0 {
		c.Profile.Engine.Speed = c.Speed
	}
	if c.MaxModelLen == 0 {
		c.MaxModelLen = c.Profile.MaxModelLen
	}
	if c.MaxModelLen == 0 {
		c.MaxModelLen = 131_072
	}
	return c
}

// Server is one mock vLLM. Make it with New, start it with Serve, end it with Shutdown or Close.
type Server struct {
	cfg     Config
	routes  map[string]route
	drivers []*driver // of the engines, by their data-parallel rank
	started time.Time

	vocabulary *vocabulary
	prefiller  http.Client // to servers that compute prompts for this one

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	adapters  []adapter
	draining  bool // Shutdown was called: no new connections, no second request on one
	closed    bool
	faults    Faults
	http      httpMetrics
	counts    counters
	wg        sync.WaitGroup // connections
	closeOnce sync.Once
}

// ErrClosed is what Serve returns after Shutdown or Close.
var ErrClosed = errors.New("mock: server closed")

// New returns a server whose engine is running. It must be ended with Close or Shutdown.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	engines := make([]*engine.Engine, cfg.DataParallel)
	for i := range engines {
		engines[i] = engine.New(cfg.Profile.Engine)
	}
	cfg.MaxModelLen = min(cfg.MaxModelLen, engines[0].MaxTokens())
	s := &Server{
		cfg: cfg, started: time.Now(), vocabulary: newVocabulary(),
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, http: newHTTPMetrics(),
	}
	for _, e := range engines {
		d := newDriver(e, cfg.MaxModelLen)
		d.loras.enabled = len(cfg.Loras) > 0 || cfg.LoraUpdates
		s.drivers = append(s.drivers, d)
	}
	for _, name := range cfg.Loras {
		s.adapters = append(s.adapters, adapter{name, "./lora/" + name})
	}
	s.prefiller.Transport = &http.Transport{DisableKeepAlives: true}
	s.routes = s.table()
	s.counts.ids = map[string]int{}
	for _, d := range s.drivers {
		go d.run()
	}
	return s
}

// acceptPause is between two attempts to accept while the process has too many files open: whoever connects must not wait for ever.
const acceptPause = 100 * time.Millisecond

// Serve accepts connections until the server ends, and then returns ErrClosed. It may be called for several listeners.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.draining || s.closed {
		s.mu.Unlock()
		ln.Close()
		return ErrClosed
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	for {
		nc, err := ln.Accept()
		if err != nil {
			s.mu.Lock()
			ended := s.draining || s.closed
			s.mu.Unlock()
			if ended {
				return ErrClosed
			}
			if passing, ok := err.(interface{ Temporary() bool }); ok && passing.Temporary() {
				time.Sleep(acceptPause) // as asyncio, which uvicorn runs on, when there are no files left
				continue
			}
			return err
		}
		s.accept(nc)
	}
}

func (s *Server) accept(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.draining || s.closed {
		s.mu.Unlock()
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.counts.Connections++
	s.wg.Add(1)
	s.mu.Unlock()
	go c.run()
}

// Shutdown ends the server as SIGTERM ends vLLM: no connection is accepted any more, every answer under way ends at once with
// finish_reason "abort", and Shutdown returns when all are written or ctx is done. The server is closed then.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	for ln := range s.listeners {
		ln.Close()
	}
	for c := range s.conns {
		c.in.stopWaiting()
	}
	s.mu.Unlock()
	for _, d := range s.drivers {
		d.killAll()
	}

	drained := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(drained)
	}()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.Close()
	<-drained
	return err
}

// Close ends the server as SIGKILL would: connections are reset, and nothing more is said on them.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for ln := range s.listeners {
		ln.Close()
	}
	for c := range s.conns {
		c.reset()
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.closeOnce.Do(func() {
		for _, d := range s.drivers {
			d.stop()
		}
	})
	return nil
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
}

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining || s.closed
}
