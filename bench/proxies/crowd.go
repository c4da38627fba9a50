package main

import (
	"bytes"
	"fmt"
	"log"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	crowdPace    = 500 * time.Millisecond // between the events of one stream
	crowdEvents  = 60
	crowdBegin   = 5 * time.Second // from the first request to the last
	crowdEngines = 100             // fewer hold no 10,000 streams, and Fairway would keep requests waiting
)

// crowding measures each proxy with n streams under way at once, each with an event
// every crowdPace, and writes a table: how late events are, what the proxy computes,
// and what it holds for a stream. This process and the proxy need two open files a
// stream each, but for tunnels.
func crowding(dir string, n int, metrics []byte) error {
	site, err := newSite(dir, metrics, crowdEngines)
	if err != nil {
		return err
	}
	fmt.Printf("%d streams at once, %d events each, one every %v, from %d engines. Late: behind the moment at which the event is due if nothing takes any time, clients' and engines' own delays included.\n\n", n, crowdEvents, crowdPace, crowdEngines)
	row := func(cells ...string) { fmt.Printf("| %s |\n", strings.Join(cells, " | ")) }
	row("", "events/s", "late p50, ms", "p99", "most", "over 1 s", "cores", "a stream, KB", "failed")
	row(slices.Repeat([]string{"---"}, 9)...)
	list := strings.Split(*names, ",")
	for round := range *rounds {
		for i := range list {
			name := list[(round+i)%len(list)]
			p, err := start(name, site)
			if err != nil {
				log.Printf("%s is left out: %v", name, err)
				continue
			}
			log.Printf("round %d of %d: %s", round+1, *rounds, name)
			if err := greet(p.to); err != nil {
				p.stop()
				return fmt.Errorf("%s: %w", name, err)
			}
			idle, before, began := p.resident(), p.cpu(), time.Now()
			var held int64
			late, failed, err := crowd(p.to, n, crowdEvents, crowdBegin, crowdPace, func() { held = p.resident() - idle })
			cores, rate := (p.cpu()-before).Seconds()/time.Since(began).Seconds(), float64(len(late))/time.Since(began).Seconds()
			p.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			over := len(late) - search(late, time.Second)
			row(name, fmt.Sprintf("%.0f", rate), ms(quantile(late, .5)), ms(quantile(late, .99)), ms(quantile(late, 1)), fmt.Sprint(over),
				fmt.Sprintf("%.2f", cores), fmt.Sprintf("%.1f", float64(held)/1e3/float64(n)), fmt.Sprint(failed))
		}
	}
	return nil
}

// greet has nearly all engines asked once, so that what a proxy holds for an engine that it knows is no stream's.
func greet(to dialer) error {
	c, err := to.client()
	if err != nil {
		return err
	}
	defer c.conn.Close()
	for _, request := range newLoad("greet", 1<<10, false).requests {
		if err := c.do(request); err != nil {
			return err
		}
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1e3) }

// search gives how many of the sorted durations are at most d.
func search(sorted []time.Duration, d time.Duration) int {
	i, _ := slices.BinarySearch(sorted, d+1)
	return i
}

// crowd has n streams of so many events under way, which begin one after the other. It
// calls f when half of their time is over, and gives how late each event came, sorted,
// and how many streams were not whole.
func crowd(to dialer, n, events int, begin, pace time.Duration, f func()) (late []time.Duration, failed int, err error) {
	clients, err := connect(to, n)
	if err != nil {
		return nil, 0, err
	}
	defer hangUp(clients)
	l := newStreams("crowd", events, pace)
	var mu sync.Mutex // guards late, failed and err
	var all sync.WaitGroup
	start := time.Now().Add(100 * time.Millisecond)
	half := time.AfterFunc(time.Until(start)+(begin+pace*time.Duration(events))/2, f)
	defer half.Stop()
	for i, c := range clients {
		all.Go(func() {
			at := start.Add(begin * time.Duration(i) / time.Duration(n))
			time.Sleep(time.Until(at))
			own, e := c.events(l.requests[i%variants], at, pace)
			mu.Lock()
			defer mu.Unlock()
			late = append(late, own...)
			if e != nil || len(own) != events {
				failed++
				err = e
			}
		})
	}
	all.Wait()
	if len(late) == 0 {
		return nil, failed, fmt.Errorf("no event came: %w", err)
	}
	if failed > 0 {
		log.Printf("%d streams failed, one of them: %v", failed, err)
	}
	slices.Sort(late)
	return late, failed, nil
}

// events asks for a stream and gives how late each of its events was, the k-th being
// due k paces after begin.
func (c *client) events(request []byte, begin time.Time, pace time.Duration) (late []time.Duration, err error) {
	if _, err := c.conn.Write(request); err != nil {
		return nil, err
	}
	if head, err := readHead(c.r); err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return nil, fmt.Errorf("answered %q, %v", head, err)
	}
	for {
		line, err := c.r.ReadSlice('\n')
		switch {
		case err != nil:
			return late, err
		case bytes.HasPrefix(line, []byte("data: {")):
			late = append(late, time.Since(begin)-time.Duration(len(late)+1)*pace)
		case bytes.HasPrefix(line, []byte("data: [DONE]")):
			return late, nil
		}
	}
}
