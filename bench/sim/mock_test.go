package sim

import (
	"context"
	"math"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
	"github.com/fairway-proxy/fairway/bench/load"
	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/bench/workload"
)

// The same traffic finds as much in a simulated engine's cache as in that of the mock server, which is sent real text over HTTP: this
// package's short cuts from segments to block hashes share what text shares, and only that.
func TestHitsAgreeWithTheMock(t *testing.T) {
	const speed, rate, length = 20, 40.0, 1500 * time.Millisecond
	params := workload.Params{Seed: 3, Rate: rate, Groups: 6, SystemTokens: 1200, TurnTokens: 300, AnswerTokens: 20, Turns: 3, Think: 100 * time.Millisecond}

	played, err := workload.New("chat", params)
	if err != nil {
		t.Fatal(err)
	}
	cfg := engine.Profiles[0].Engine
	cfg.Speed = speed
	simulated, err := Run(context.Background(), Config{Workload: played, Policy: "round-robin", Fleet: []engine.Config{cfg}, Measure: length})
	if err != nil {
		t.Fatal(err)
	}
	var prompt, cached int
	for _, r := range simulated.Records {
		prompt, cached = prompt+r.PromptTokens, cached+r.CachedTokens
	}

	var real *load.Result
	synctest.Test(t, func(t *testing.T) { // a machine that is busy does not stretch the pauses between turns
		ln := pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		srv := mock.New(mock.Config{Speed: speed})
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ln) }()
		transport := &http.Transport{DialContext: ln.dial, MaxIdleConnsPerHost: 1000}
		real, err = load.Run(t.Context(), load.Config{URL: "http://mock", Transport: transport, Workload: played, Duration: length, IgnoreEOS: true})
		transport.CloseIdleConnections()
		srv.Close()
		<-served
	})
	if err != nil {
		t.Fatal(err)
	}
	if real.HitRate == nil || real.Failed > 0 {
		t.Fatalf("%d of %d requests failed, hit rate %v", real.Failed, real.Requests, real.HitRate)
	}
	a, b := float64(cached)/float64(prompt), *real.HitRate
	t.Logf("hit rate %.3f simulated (%d requests), %.3f from the mock (%d requests)", a, len(simulated.Records), b, real.Requests)
	if math.Abs(a-b) > 0.03 {
		t.Errorf("hit rate %.3f simulated, %.3f from the mock", a, b)
	}
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	p.conns <- far
	return near, nil
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error {
	close(p.done)
	return nil
}

func (pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
