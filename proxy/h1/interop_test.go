package h1

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// net/http's client is served, with known and unknown lengths, trailers, and
// an expectation.
func TestServesNetHTTP(t *testing.T) {
	addr := listen(t, &Server{Handler: echo})
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	long := strings.Repeat("0123456789", 30000)
	for _, want := range []string{"", "abc", long} {
		for _, expect := range []string{"", "100-continue"} {
			for _, unknown := range []bool{false, true} {
				req, err := http.NewRequest("POST", "http://"+addr+"/x?y", strings.NewReader(want))
				if err != nil {
					t.Fatal(err)
				}
				if expect != "" {
					req.Header.Set("Expect", expect)
				}
				if unknown {
					req.ContentLength = -1
					req.Trailer = http.Header{"X-Sum": {"1"}}
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				// It sends no chunked body that it finds empty, hence no trailer.
				if string(got) != want || err != nil || unknown && want != "" && resp.Trailer.Get("X-Sum") != "6" {
					t.Errorf("%d bytes of %d, %v, trailer %v", len(got), len(want), err, resp.Trailer)
				}
			}
		}
	}
}

// net/http's server is understood.
func TestAsksNetHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.URL.Path == "/stream" {
			w.Header().Set("Trailer", "X-Sum")
			w.(http.Flusher).Flush()
			w.Write(b)
			w.Header().Set("X-Sum", "1")
			return
		}
		w.Write(b)
	}))
	defer server.Close()
	c := dial(t, server.Listener.Addr().String())
	var resp message.Response
	for range 2 {
		for _, target := range []string{"/", "/stream"} {
			for _, want := range []string{"", "abc", strings.Repeat("0123456789", 30000)} {
				req := message.Request{Method: []byte("POST"), Target: []byte(target), Authority: []byte("a")}
				if err := c.Send(&req, []byte(want)); err != nil {
					t.Fatal(err)
				}
				if err := c.ReadHead(&resp); err != nil {
					t.Fatal(err)
				}
				got := readAll(t, c)
				if resp.Status != 200 || got != want || target == "/stream" && string(message.Get(c.Trailers(), "x-sum")) != "1" {
					t.Errorf("%s: %d, %d bytes of %d, trailers %q", target, resp.Status, len(got), len(want), c.Trailers())
				}
			}
		}
	}
	if c.sent != 12 {
		t.Errorf("%d requests were sent on the connection", c.sent)
	}
}
