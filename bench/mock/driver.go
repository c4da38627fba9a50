package mock

import (
	"sync"
	"time"

	"github.com/fairway-proxy/fairway/bench/engine"
)

// maxLag is how far an engine in real time or faster may fall behind the wall clock before it gives up catching up. In slow motion its
// steps are longer, and so is what it catches up with: a busy machine must not make it slower still.
const maxLag = 250 * time.Millisecond

// driver runs an engine against the wall clock: one goroutine plans a step, sleeps until its end, which is reckoned from the last
// step's end and not from when the sleep was over, and hands out the tokens.
//
// Go's timers wake a sleeping process about once a millisecond at best, so steps that are shorter come in bursts of a millisecond's
// worth: their number in any longer time is right, the gaps between tokens are not. Such are the steps of a profile at a Speed of
// some dozens. A finer clock would need a system call a step, and with several engines on a machine most of a core.
type driver struct {
	start time.Time // the engine's time 0
	wake  chan struct{}
	quit  chan struct{}
	done  chan struct{}

	mu     sync.Mutex
	eng    *engine.Engine
	calls  map[*call]struct{} // submitted and not yet left
	page   histograms         // fed as steps end
	loras  loraInfo           // likewise
	killed bool               // what is submitted from now on ends at once
}

func newDriver(eng *engine.Engine, maxModelLen int) *driver {
	return &driver{
		start: time.Now(), wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
		eng: eng, calls: map[*call]struct{}{}, page: newHistograms(maxModelLen),
	}
}

func (d *driver) now() time.Duration { return time.Since(d.start) }

// run steps the engine until stop.
func (d *driver) run() {
	defer close(d.done)
	timer := time.NewTimer(0)
	<-timer.C
	limit := time.Duration(float64(maxLag) / min(1, d.eng.Config().Speed))
	var clock time.Duration // when the last step ended
	for {
		if now := d.now(); now-clock > limit {
			clock = now
		}
		d.mu.Lock()
		took, ok := d.eng.Plan(clock)
		d.mu.Unlock()
		if !ok {
			select {
			case <-d.wake:
				clock = d.now()
				continue
			case <-d.quit:
				return
			}
		}
		clock += took
		if sleep := clock - d.now(); sleep > 0 {
			timer.Reset(sleep)
			select {
			case <-timer.C:
			case <-d.quit:
				return
			}
		}
		d.commit(clock)
	}
}

// commit ends the step and hands its tokens to the calls they belong to.
func (d *driver) commit(now time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	step := d.eng.Commit()
	d.page.step(step)
	for _, s := range step.Tokens {
		j := s.Owner.(*job)
		last := s.Generated == s.OutputTokens
		d.page.token(j, now)
		if j.produce(last) && !last { // a stop string
			s.Ended = now
			d.eng.Stop(s)
			last = true
		}
		if last {
			d.page.finished(j)
		}
	}
	d.loras.observe(d.eng, time.Now())
}

// submit queues the jobs of a call. It reports whether the queue had room: a positive limit bounds what waits and runs.
func (d *driver) submit(c *call, limit int) (ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if limit > 0 {
		if s := d.eng.Stats(); s.Running+s.Waiting+len(c.jobs) > limit {
			d.page.rejected++
			return false, nil
		}
	}
	now := d.now()
	for _, j := range c.jobs {
		if err := d.eng.Submit(&j.seq, now); err != nil {
			for _, j := range c.jobs {
				d.eng.Abort(&j.seq)
			}
			return true, err
		}
	}
	d.calls[c] = struct{}{}
	if d.killed {
		d.kill(c)
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return true, nil
}

// leave forgets a call that has been answered, and removes from the engine what is left of one whose client has gone.
func (d *driver) leave(c *call) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.calls, c)
	for _, j := range c.jobs {
		d.eng.Abort(&j.seq)
	}
}

// kill ends a call as vLLM does when it is told to stop: what was produced so far is the answer, and it says abort.
func (d *driver) kill(c *call) {
	for _, j := range c.jobs {
		if j.seq.Running() || j.seq.Waiting() {
			d.eng.Abort(&j.seq)
			j.end("abort")
		}
	}
}

// killAll ends every call, and all that will be submitted.
func (d *driver) killAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.killed = true
	for c := range d.calls {
		d.kill(c)
	}
}

// driverFor is the driver of a rank, or if that is −1 of the engine with the lowest score by which vLLM shares requests out: 4 for each
// that waits, 1 for each that runs (vllm/v1/engine/core_client.py, DPLBAsyncMPClient).
func (s *Server) driverFor(rank int) *driver {
	if rank >= 0 {
		return s.drivers[rank]
	}
	var best *driver
	lowest := 0
	for _, d := range s.drivers {
		st := d.stats()
		if score := 4*st.Waiting + st.Running; best == nil || score < lowest {
			best, lowest = d, score
		}
	}
	return best
}

// stats are those of all engines together.
func (s *Server) stats() (sum engine.Stats) {
	for _, d := range s.drivers {
		sum.Add(d.stats())
	}
	sum.KVUsage /= float64(len(s.drivers))
	return sum
}

// EngineStats returns the present figures of the engine of a data-parallel rank.
func (s *Server) EngineStats(rank int) engine.Stats { return s.drivers[rank].stats() }

func (d *driver) stats() engine.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.eng.Stats()
}

// stop ends run and waits for it.
func (d *driver) stop() {
	close(d.quit)
	<-d.done
}
