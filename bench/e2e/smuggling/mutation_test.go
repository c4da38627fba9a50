//go:build e2e

package smuggling_test

import (
	"flag"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	mutations = flag.Int("mutations", 600, "how many mutated requests are sent to each server")
	seed      = flag.Uint64("seed", 1, "of the mutations")
)

// TestMutations sends requests of which nobody knows what they mean: attempts of the corpus, damaged at random. Whatever
// Fairway takes them for, the server behind takes them for the same.
func TestMutations(t *testing.T) {
	for _, behind := range servers {
		t.Run(behind.name, func(t *testing.T) {
			texts := mutate(rand.New(rand.NewPCG(*seed, 0)), *mutations)
			for _, patience := range []time.Duration{300 * time.Millisecond, 3 * time.Second} { // a busy machine needs more
				s := behind.start(t)
				f := startFairway(t, s.address)
				next := make(chan string)
				outcomes := make(chan *outcome, len(texts))
				var clients sync.WaitGroup
				for range 16 {
					clients.Go(func() {
						for text := range next {
							outcomes <- f.send(t, text, patience)
						}
					})
				}
				for _, text := range texts {
					next <- text
				}
				close(next)
				clients.Wait()
				close(outcomes)
				accessed := f.stop(t)
				if answered := agree(t, accessed, s.stop(t), outcomes); answered >= len(accessed)/20 {
					return
				}
			}
			t.Error("hardly any request was answered: the mutations try nothing")
		})
	}
}

// send writes text and reads what comes back, until the connection ends or its patience does: a damaged request may well
// be one that goes on.
func (f *fairway) send(t *testing.T, text string, patience time.Duration) *outcome {
	o := &outcome{attempt: &attempt{raw: text}}
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Error(err)
		return o
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte(text)) // refused before it was written, it is answered all the same
	o.read(c)
	return o
}

// agree compares what the server, Fairway and the clients saw. It gives how many requests the server answered.
func agree(t *testing.T, accessed []access, records []record, outcomes <-chan *outcome) (answered int) {
	byID := make(map[string]access)
	declined := 0 // by the server, which may have read no id then
	for _, a := range accessed {
		byID[a.ID] = a
		if a.Endpoint != "" && a.Status >= 400 {
			declined++
		}
	}
	reached := make(map[string]record)
	nameless := 0
	for _, r := range records {
		if r.ID == "" {
			nameless++
			continue
		}
		a, counted := byID[r.ID]
		path, _, _ := strings.Cut(r.Target, "?")
		switch _, twice := reached[r.ID]; {
		case !counted || twice:
			t.Errorf("the server saw %s %s (id %s); counted by Fairway: %v; seen before: %v", r.Method, r.Target, r.ID, counted, twice)
		case r.Method != a.Method || path != a.Path || len(r.Body) != a.Received:
			t.Errorf("the server took for %s %s with %d bytes what Fairway took for %s %s with %d", r.Method, r.Target, len(r.Body), a.Method, a.Path, a.Received)
		case !soundFraming(&r):
			t.Errorf("%s %s: content-length %q, transfer-encoding %q, host %q for a body of %d bytes", r.Method, r.Target, r.Length, r.Coding, r.Host, len(r.Body))
		}
		reached[r.ID] = r
	}
	if nameless > declined {
		t.Errorf("the server saw %d requests without an id, and declined %d that Fairway sent", nameless, declined)
	}
	for o := range outcomes {
		for _, got := range o.answers {
			a, counted := byID[got.id]
			r, seen := reached[got.id]
			if !counted || a.Status != got.status {
				t.Errorf("an answer of %d, which Fairway counted as %+v, to %q", got.status, a, o.raw)
			}
			if got.status != 200 {
				continue
			}
			answered++
			if !seen || got.body != r.Method+" "+r.Target+"\n" {
				t.Errorf("an answer %q to what the server took for %s %s, in %q", got.body, r.Method, r.Target, o.raw)
			}
		}
	}
	t.Logf("%d requests counted, %d reached the server, %d were answered there", len(accessed), len(records), answered)
	return answered
}

// fragments are what is put into a request to damage it.
var fragments = []string{
	"\r", "\n", "\r\n", "\r\n\r\n", "\n\n", "\x00", " ", "\t", "\v", "\xa0", ":", ";", ",", "0", "5", "a", "f", "0x", "+", "-", "_", "\"",
	"0\r\n\r\n", "5\r\nhello\r\n", "5;\n", "X: y\r\n", " y\r\n", "Content-Length: 5\r\n", "Content-Length: 0\r\n", chunkedField,
	"Transfer-Encoding : chunked\r\n", "Connection: close\r\n", "Connection: upgrade\r\nUpgrade: websocket\r\n", "Expect: 100-continue\r\n",
	"HTTP/1.0", "HTTP/1.1", "Host: b\r\n", smuggled,
}

// mutate makes n texts out of the corpus.
func mutate(r *rand.Rand, n int) []string {
	var whole []string
	for _, a := range corpus {
		// To a HEAD that a client knows nothing of, it cannot read the answer.
		if len(a.raw) < 2000 && !strings.Contains(a.raw, "HEAD ") {
			whole = append(whole, a.raw)
		}
	}
	texts := make([]string, n)
	for i := range texts {
		text := []byte(whole[r.IntN(len(whole))])
		for range 1 + r.IntN(3) {
			at := r.IntN(len(text) + 1)
			switch to := min(len(text), at+1+r.IntN(4)); r.IntN(5) {
			case 0:
				text = slices.Delete(text, at, to)
			case 1:
				text = slices.Insert(text, at, text[at:to]...)
			case 2:
				other := whole[r.IntN(len(whole))]
				text = append(text[:at:at], other[r.IntN(len(other)):]...)
			default:
				text = slices.Insert(text, at, []byte(fragments[r.IntN(len(fragments))])...)
			}
		}
		texts[i] = string(text) + tail
	}
	return texts
}
