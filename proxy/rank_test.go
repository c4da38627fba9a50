package proxy

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fairway-proxy/fairway/picker/queue"
	"github.com/fairway-proxy/fairway/proxy/message"
)

// Whose a request is goes by what was verified, and else by where it comes from: a stranger is one flow whatever keys it shows.
func TestFlowsAreOfWhoIsKnown(t *testing.T) {
	flow := func(principal, address, key string) uint64 {
		x := Exchange{progress: progress{head: &message.Request{Fields: []message.Field{{Name: []byte("Authorization"), Value: []byte(key)}, {Name: []byte("X-Api-Key"), Value: []byte(key)}}}}}
		x.judged.Source = netip.MustParseAddr(address)
		x.record.Principal = principal
		return x.flowKey()
	}
	base := flow("", "192.0.2.1", "a")
	for _, c := range []struct {
		name                    string
		principal, address, key string
		same                    bool
	}{
		{"another key", "", "192.0.2.1", "b", true},
		{"mapped to IPv6", "", "::ffff:192.0.2.1", "a", true},
		{"another address", "", "192.0.2.2", "a", false},
		{"somebody who is known", "k", "192.0.2.1", "a", false},
	} {
		if same := flow(c.principal, c.address, c.key) == base; same != c.same {
			t.Errorf("%s: the same flow: %v", c.name, same)
		}
	}
	if flow("", "2001:db8::1", "") != flow("", "2001:db8::2:0:0:1", "") || flow("", "2001:db8::1", "") == flow("", "2001:db8:0:1::1", "") {
		t.Error("hosts in IPv6 are not told apart by their networks")
	}
	if flow("k", "192.0.2.1", "a") != flow("k", "192.0.2.2", "b") {
		t.Error("who is known is another flow from another address")
	}
}

// What an engine has refused costs nothing; what it was asked costs what was expected, though the client leaves before the answer.
func TestBudgetIsNotGivenBackForLeaving(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		asked := make(chan struct{}, 2)
		var left atomic.Bool
		p := scripted(t, func(c net.Conn, in *bufio.Reader) {
			for {
				if _, err := take(in); err != nil {
					return
				}
				asked <- struct{}{}
				if !leaves || left.Load() {
					io.WriteString(c, "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}")
				}
			}
		})
		s := startServer(t, World{Budgets: []queue.Limit{{TokensPerMinute: 100}}}, p)
		body := chat(false, 5, strings.Repeat("word ", 300))
		m := post("/v1/chat/completions", body)
		done := make(chan struct{})
		go func() { s.Handle(m); close(done) }()
		<-asked
		if leaves {
			left.Store(true)
			m.leave()
		}
		<-done
		m = post("/v1/chat/completions", body)
		s.Handle(m)
		if want := map[bool]int{false: 400, true: 429}[leaves]; m.answer.Status != want {
			t.Errorf("it leaves: %v: then %d %s, want %d", leaves, m.answer.Status, m.seen(), want)
		}
	}
}
