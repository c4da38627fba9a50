package mock

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		fresh, used := connect(t, ln), connect(t, ln)
		for range 3 {
			if resp, _ := used.ask(get("/health")); resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status)
			}
			time.Sleep(4999 * time.Millisecond)
		}
		used.ask(get("/health"))
		begun := time.Now()
		if _, err := used.br.ReadByte(); err != io.EOF {
			t.Fatalf("an idle connection gave %v", err)
		}
		if idle := time.Since(begun); idle != 5*time.Second {
			t.Errorf("closed after %v idle", idle)
		}
		time.Sleep(time.Hour)
		fresh.ask(get("/health")) // idle before its first request: never closed
	})
}

func TestConnectionClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		for _, raw := range []string{
			"GET /health HTTP/1.0\r\n\r\n",
			"GET /health HTTP/1.1\r\nHost: mock\r\nConnection: close\r\n\r\n",
		} {
			c := connect(t, ln)
			if resp, _ := c.ask(raw); !resp.Close {
				t.Errorf("%q: no connection: close", raw)
			}
			if _, err := c.br.ReadByte(); err != io.EOF {
				t.Errorf("%q: the connection gave %v", raw, err)
			}
		}
	})
}

func TestExpectContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		head, body, _ := strings.Cut(post("/v1/chat/completions", userSays("hi", `,"max_tokens":1`), "Expect: 100-continue"), "\r\n\r\n")
		c.send(head + "\r\n\r\n")
		if line, _ := c.br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("got %q", line)
		}
		c.br.ReadString('\n')
		if resp, text := c.ask(body); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", resp.Status, text)
		}
	})
}

func TestPipelining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		go io.WriteString(c.nc, post("/v1/chat/completions", userSays("one", `,"max_tokens":5,"stream":true`))+get("/version")+get("/nothing"))
		for _, want := range []string{"[DONE]", "0.32.0", "Not Found"} {
			if _, body := c.read(); !strings.Contains(body, want) {
				t.Errorf("got %q, want %s", body, want)
			}
		}
	})
}

func TestInvalidRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		for _, raw := range []string{"nonsense\r\n\r\n", "POST / HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"} {
			c := connect(t, ln)
			resp, body := c.ask(raw)
			if resp.StatusCode != http.StatusBadRequest || body != "Invalid HTTP request received." || !resp.Close {
				t.Errorf("%q: %s %q", raw, resp.Status, body)
			}
		}
		c := connect(t, ln)
		go io.WriteString(c.nc, "GET / HTTP/1.1\r\nX-Endless: "+strings.Repeat("x", 2*maxHead)) // the server stops reading
		if resp, _ := c.read(); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("an endless header: %s", resp.Status)
		}
		c.nc.Close()
	})
}

// A client that leaves is out of the engine at once, whatever its request is at.
func TestAbort(t *testing.T) {
	slow := func() Config {
		p := engine.Profile{Name: "slow", MaxModelLen: 100_000, Engine: engine.Config{
			Cost:   engine.Cost{Step: 10 * time.Millisecond, PrefillToken: time.Millisecond},
			Blocks: 10_000, MaxBatchedTokens: 100, MaxSeqs: 1,
		}}
		return Config{Model: "tiny", Profile: p}
	}
	long := strings.Repeat("some words of a prompt ", 500)
	tests := []struct {
		name     string
		busy     bool // another request runs
		prompt   string
		more     string
		leave    time.Duration
		pipeline bool // with another request sent in advance
	}{
		{"waiting", true, "hi", "", 50 * time.Millisecond, false},
		{"waiting, streaming", true, "hi", `,"stream":true`, 50 * time.Millisecond, false},
		{"prefilling", false, long, "", 500 * time.Millisecond, false},
		{"prefilling, streaming", false, long, `,"stream":true`, 500 * time.Millisecond, false},
		{"decoding", false, "hi", "", time.Second, false},
		{"decoding, streaming", false, "hi", `,"stream":true`, time.Second, false},
		{"decoding, pipelined", false, "hi", `,"stream":true`, time.Second, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, ln := start(t, slow())
				inEngine := 1
				if tt.busy {
					inEngine = 2
					other := connect(t, ln)
					other.send(post("/v1/chat/completions", userSays("busy", `,"max_tokens":5000,"stream":true`)))
					go io.Copy(io.Discard, other.nc)
				}
				c := connect(t, ln)
				c.send(post("/v1/chat/completions", userSays(tt.prompt, `,"max_tokens":1000`+tt.more)))
				if tt.pipeline {
					c.send(get("/health"))
				}
				go io.Copy(io.Discard, c.nc)
				time.Sleep(tt.leave)
				if st := s.Stats(); st.Engine.Running+st.Engine.Waiting != inEngine || st.Received != uint64(inEngine) {
					t.Fatalf("before: %+v", st)
				}
				c.nc.Close()
				synctest.Wait() // no time passes
				st := s.Stats()
				if st.Engine.Running+st.Engine.Waiting != inEngine-1 || st.Engine.Aborted != 1 || st.Aborted != 1 || st.Answered != 0 {
					t.Errorf("after: %+v", st)
				}
				if !tt.busy && st.Engine.KVUsage != 0 {
					t.Errorf("blocks are left in use: %v", st.Engine.KVUsage)
				}
			})
		})
	}
}

// A half-close is a disconnect: vLLM says nothing more to a client that has shut down its side.
func TestHalfCloseAborts(t *testing.T) {
	cfg := tiny()
	cfg.Profile.Engine.Cost.Step = time.Hour
	s := New(cfg)
	defer s.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(ln)
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, post("/v1/chat/completions", userSays("hi", "")))
	nc.(*net.TCPConn).CloseWrite()
	if said, err := io.ReadAll(nc); err != nil || len(said) != 0 {
		t.Errorf("got %q, %v", said, err)
	}
	if st := s.Stats(); st.Aborted != 1 || st.Engine.Aborted != 1 {
		t.Errorf("stats %+v", st)
	}
}

// More bytes than anybody asked for do not pile up.
func TestReadAheadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.Profile.Engine.Cost.Step = time.Hour
		_, ln := start(t, cfg)
		c := connect(t, ln)
		c.send(post("/v1/chat/completions", userSays("hi", "")))
		sent := 0
		go func() {
			for {
				n, err := io.WriteString(c.nc, strings.Repeat("x", 1<<10))
				if sent += n; err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		if sent > 2*readAhead {
			t.Errorf("the server took %d bytes", sent)
		}
		c.nc.Close()
	})
}
