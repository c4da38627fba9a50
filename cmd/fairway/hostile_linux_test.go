package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	hostile     = flag.Duration("hostile", 0, "for how long TestHostileClientsCost lets each hostile client go on, against a process of its own, beside others that are timed; prints a table")
	hostileRole = flag.String("hostile-role", "", "which of its processes TestHostileRole is, as JSON; TestHostileClientsCost says it")
)

// period is how long each turn is.
const period = 2500 * time.Millisecond

// hostileOrder is what one process of the measurement is to be: the engine, or the clients of
// one attack.
type hostileOrder struct {
	Attack      string // empty: the engine
	HTTP, HBONE string
	Dir         string
}

// TestHostileRole is a process of TestHostileClientsCost. It begins with a line on its standard
// input and ends with the end of it; what it has to say are lines of its standard output.
func TestHostileRole(t *testing.T) {
	if *hostileRole == "" {
		t.Skip("a process of TestHostileClientsCost")
	}
	var order hostileOrder
	if err := json.Unmarshal([]byte(*hostileRole), &order); err != nil {
		t.Fatal(err)
	}
	makeRoomForFiles() // neither is what is measured
	if order.Attack == "" {
		engine := httptest.NewServer(http.HandlerFunc(answerHostile))
		fmt.Println("role:", engine.URL)
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0) // streams that nobody reads would be waited for
	}
	target := &target{http: order.HTTP, hbone: order.HBONE, dir: order.Dir}
	target.enroll(t)
	a := &attacks[slices.IndexFunc(attacks, func(a attack) bool { return a.name == order.Attack })]
	dialer := new(net.Dialer)
	if a.narrow {
		dialer.Control = narrow
	}
	fmt.Println("role: ready")
	in := bufio.NewReader(os.Stdin)
	in.ReadString('\n')
	stop, cut := target.launch(a, a.many, a.pace, dialer)
	io.Copy(io.Discard, in)
	n := cut.Load()
	if err := stop(); err != nil {
		fmt.Println("role: wrong:", err)
	} else {
		fmt.Println("role:", n)
	}
	os.Exit(0)
}

// narrow makes a client's socket one that takes little, in segments as they are outside of
// loopback, so that the kernel at the other end keeps little for it.
func narrow(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400)
	})
}

// hostileProcess is one that runs TestHostileRole.
type hostileProcess struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startRole starts one; idle: by processors that nobody else wants, as if it were on a machine of
// its own.
func startRole(t *testing.T, order hostileOrder, idle bool) *hostileProcess {
	t.Helper()
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{os.Args[0], "-test.run=^TestHostileRole$", "-hostile-role", string(text)}
	if idle {
		args = append([]string{"chrt", "-i", "0"}, args...)
	}
	p := &hostileProcess{Cmd: exec.Command(args[0], args[1:]...)}
	in, err1 := p.StdinPipe()
	out, err2 := p.StdoutPipe()
	if err := cmp.Or(err1, err2, p.Start()); err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	return p
}

// says is the next line that it has to say.
func (p *hostileProcess) says(t *testing.T) string {
	t.Helper()
	for {
		line, err := p.out.ReadString('\n')
		if text, ok := strings.CutPrefix(line, "role: "); ok {
			return strings.TrimSpace(text)
		}
		if err != nil {
			t.Fatalf("a process of the test has ended before it should: %v", err)
		}
	}
}

// end has it end.
func (p *hostileProcess) end() {
	p.in.Close()
	p.out.WriteTo(io.Discard)
	p.Wait()
}

// resident is the memory of a process in KiB.
func resident(t *testing.T, pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no VmRSS in %s", text)
	}
	kb, _ := strconv.Atoi(string(m[1]))
	return kb
}

// spent is the time of processors that a process has had.
func spent(t *testing.T, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')'):]))
	user, _ := strconv.Atoi(fields[12])
	system, _ := strconv.Atoi(fields[13])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ
}

// sample is what others saw of a proxy for some time.
type sample struct {
	took    times
	settled times         // of took: those that came when half a second was over
	direct  times         // of requests to the engine, past the proxy
	cpu     time.Duration // that the proxy has had
	over    time.Duration // in that time
	peak    int           // of its memory, KiB
}

// times are how long requests took, those that are under way from when they were to begin.
type times []time.Duration

// quantile is of the times, in milliseconds.
func (t times) quantile(q float64) float64 {
	slices.Sort(t)
	return t[int(q*float64(len(t)-1))].Seconds() * 1000
}

// add asks 400 times a second for that long, and the engine itself 100 times.
func (s *sample) add(t *testing.T, target *target, d time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	start, before := time.Now(), spent(t, target.pid)
	const every = 2500 * time.Microsecond
	ask := func(at time.Time, url string, into ...*times) {
		wg.Go(func() {
			if _, err := target.ask(url); err != nil {
				t.Errorf("somebody else: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, all := range into {
				*all = append(*all, time.Since(at))
			}
		})
	}
	for i := 0; ; i++ {
		since := time.Duration(i) * every
		if since >= d {
			break
		}
		at := start.Add(since)
		<-time.After(time.Until(at))
		if since < time.Second/2 {
			ask(at, "http://"+target.http, &s.took)
		} else {
			ask(at, "http://"+target.http, &s.took, &s.settled)
		}
		if i%4 == 2 {
			ask(at, target.behind, &s.direct)
		}
		if i%40 == 0 {
			s.peak = max(s.peak, resident(t, target.pid))
		}
	}
	s.cpu += spent(t, target.pid) - before
	s.over += time.Since(start)
	wg.Wait()
}

// share is how many processors the proxy took.
func (s *sample) share() float64 { return s.cpu.Seconds() / s.over.Seconds() }

// What hostile clients cost: the memory that a process of its own holds, which is bounded, and
// what those see who mean well, before and meanwhile, by turns. Engine, hostile clients, and those
// who mean well are processes of their own; of the processors the hostile ones have what the
// others leave. Times are told, not judged.
func TestHostileClientsCost(t *testing.T) {
	if *hostile == 0 {
		t.Skip("make hostile")
	}
	if _, err := exec.LookPath("chrt"); err != nil {
		t.Skip("chrt of util-linux is needed:", err)
	}
	binary := build(t)
	engine := startRole(t, hostileOrder{}, false)
	defer engine.end()
	url := engine.says(t)
	var table strings.Builder
	table.WriteString("| hostile clients | how many | cut off or refused | memory they hold, at most | measured | p50 of others | meanwhile | p99 of others | meanwhile | times | after half a second | p99 of the engine itself | meanwhile | times | processors | meanwhile |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for i := range attacks {
		a := &attacks[i]
		t.Run(a.name, func(t *testing.T) {
			target := startTarget(t, binary, url)
			var warm, quiet, attacked sample
			warm.add(t, target, time.Second)
			cut, before := 0, 0
			for turn := range int(max(*hostile/period, 1)) {
				clients := startRole(t, hostileOrder{Attack: a.name, HTTP: target.http, HBONE: target.hbone, Dir: target.dir}, true)
				clients.says(t) // that it is ready
				quiet.add(t, target, period)
				if turn == 0 {
					before = quiet.peak
				}
				io.WriteString(clients.in, "\n")
				attacked.add(t, target, period)
				clients.in.Close()
				n, err := strconv.Atoi(clients.says(t))
				if err != nil {
					t.Error(err)
				}
				cut += n
				clients.end()
			}
			held, bound := max(attacked.peak-before, 0), a.bound*a.many
			fmt.Fprintf(&table, "| %s | %d | %d | %.0f MiB | %.1f MiB | %.2f ms | %.2f ms | %.2f ms | %.2f ms | %.1f | %.1f | %.2f ms | %.2f ms | %.1f | %.2f | %.2f |\n", a.name, a.many, cut, float64(bound)/1024, float64(held)/1024,
				quiet.took.quantile(0.5), attacked.took.quantile(0.5), quiet.took.quantile(0.99), attacked.took.quantile(0.99), attacked.took.quantile(0.99)/quiet.took.quantile(0.99), attacked.settled.quantile(0.99)/quiet.settled.quantile(0.99),
				quiet.direct.quantile(0.99), attacked.direct.quantile(0.99), attacked.direct.quantile(0.99)/quiet.direct.quantile(0.99), quiet.share(), attacked.share())
			if held > bound+16<<10 {
				t.Errorf("%d KiB held, want %d and 16 MiB at most", held, bound)
			}
		})
	}
	fmt.Print(table.String())
}
