//go:build e2e

package soak_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/fairway-proxy/fairway/bench/e2e/process"
)

// A pod is a mock engine in a process of its own, with a relay before it.
type pod struct {
	*relay
	args    []string
	space   *netns // the network namespace it is in; nil: that of all
	log     *os.File
	process atomic.Pointer[process.Process]
}

// pace is that of the mock engines: a quarter of an H100's, so that a few of them load two cores
// lightly, with a cache that does not hold all prompts.
var pace = []string{"--speed", "0.25", "--num-gpu-blocks", "6000", "--max-model-len", "16384"}

func startPod(t *testing.T, number int, j *journal, space *netns) *pod {
	t.Helper()
	engine := process.FreeAddress()
	if space != nil {
		_, port, _ := net.SplitHostPort(engine)
		engine = net.JoinHostPort(space.inside, port)
	}
	p := &pod{relay: startRelay(t, number, engine, j), space: space, log: logFile(t, fmt.Sprintf("%s/engine-%d.log", t.TempDir(), number))}
	p.args = append([]string{program("mockvllm"), "--listen", engine}, pace...)
	if space != nil {
		p.args = append([]string{"ip", "netns", "exec", space.name}, p.args...)
	}
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop() })
	p.awaitUp(t)
	return p
}

func startPods(t *testing.T, n int, j *journal) []*pod {
	pods := make([]*pod, n)
	for i := range pods {
		pods[i] = startPod(t, i, j, nil)
	}
	return pods
}

func (p *pod) awaitUp(t *testing.T) {
	t.Helper()
	p.process.Load().Await(t, patience, process.Answers("http://"+p.engine+"/health"))
}

// run starts the engine.
func (p *pod) run() error {
	engine, err := launch(p.log, p.args[0], p.args[1:]...)
	if err == nil {
		p.process.Store(engine)
	}
	return err
}

// stop ends the engine as SIGKILL does.
func (p *pod) stop() { p.process.Load().End(syscall.SIGKILL) }

// kill has the engine die: connections break, and nobody takes new ones.
func (p *pod) kill() {
	p.close()
	p.stop()
}

// revive starts it again where it was.
func (p *pod) revive(t *testing.T) {
	if err := p.run(); err != nil {
		t.Error(err)
		return
	}
	p.awaitUp(t)
	if err := p.open(); err != nil {
		t.Error(err)
	}
}

func (p *pod) freeze() { p.process.Load().Signal(syscall.SIGSTOP) }
func (p *pod) thaw()   { p.process.Load().Signal(syscall.SIGCONT) }

func addresses(pods []*pod) string {
	var all []string
	for _, p := range pods {
		all = append(all, "http://"+p.address)
	}
	return strings.Join(all, ", ")
}

// netns is a network namespace with a wire to ours.
type netns struct{ name, inside string }

// newNetns makes one, or says why there can be none.
func newNetns(t *testing.T) (*netns, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("a network namespace takes root")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("a network namespace that drops takes the command %s", tool)
		}
	}
	id := os.Getpid() % 16384
	n := &netns{name: fmt.Sprintf("soak%d", id), inside: fmt.Sprintf("10.213.%d.%d", id>>6, id&63<<2|2)}
	outside := fmt.Sprintf("10.213.%d.%d", id>>6, id&63<<2|1)
	near, far := fmt.Sprintf("sk%da", id), fmt.Sprintf("sk%db", id)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", n.name).Run() }) // and with it the wire
	for _, line := range []string{
		"ip netns add " + n.name,
		"ip link add " + near + " type veth peer name " + far,
		"ip link set " + far + " netns " + n.name,
		"ip addr add " + outside + "/30 dev " + near,
		"ip link set " + near + " up",
		"ip netns exec " + n.name + " ip addr add " + n.inside + "/30 dev " + far,
		"ip netns exec " + n.name + " ip link set " + far + " up",
		"ip netns exec " + n.name + " ip link set lo up",
		"ip netns exec " + n.name + " nft add table inet fault",
		"ip netns exec " + n.name + " nft add chain inet fault in { type filter hook input priority 0; }",
	} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return n, nil
}

// drop has every packet that comes into the namespace dropped, or no more.
func (n *netns) drop(t *testing.T, on bool) {
	args := []string{"netns", "exec", n.name, "nft", "add", "rule", "inet", "fault", "in", "tcp", "dport", "1-65535", "drop"}
	if !on {
		args = []string{"netns", "exec", n.name, "nft", "flush", "chain", "inet", "fault", "in"}
	}
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Errorf("nft: %v: %s", err, out)
	}
}
