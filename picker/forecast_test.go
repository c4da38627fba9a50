package picker

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// draw makes up what a request finds at an endpoint.
func draw(rng *rand.Rand) features {
	c := Candidate{left: 4000 * rng.ExpFloat64(), Uncached: 100 + 2000*rng.Float64(), Hit: 6000 * rng.Float64(), InFlight: float64(rng.IntN(60)), KV: rng.Float64()}
	c.capacity = 400_000
	return c.features()
}

// An engine is what a latency is made of: seconds for each feature.
type law features

func (l law) at(x *features) (y float64) {
	for i := range x {
		y += l[i] * x[i]
	}
	return y
}

// Whatever an endpoint is like, the latency is known after some dozen requests to the noise that is in it, also if it was another before.
func TestForecastLearnsWhatIsThere(t *testing.T) {
	fast := law{.015, 25e-6, 50e-6, 39e-9, 0}
	for _, tt := range []struct {
		name        string
		was, is     law
		noise, want float64 // as shares
		stalls      float64 // share of the requests that take five times as long
	}{
		{"an H100", law{}, fast, 0, .02, 0},
		{"an A100", law{}, law{.03, 47.8e-6, 3e-6, 64e-9, 0}, 0, .02, 0},
		{"a CPU, with its attention", law{}, law{.003, 36e-6, 130e-6, 0, 20e-9}, 0, .02, 0},
		{"as noisy as a step is long", law{}, fast, .3, .17, 0},
		{"one that stalls now and then", law{}, fast, 0, .1, .1},
		{"five times slower than before", law{.003, 5e-6, 10e-6, 8e-9, 0}, fast, 0, .1, 0},
		{"five times faster than before", law{.075, 125e-6, 250e-6, 195e-9, 0}, fast, 0, .1, 0},
	} {
		rng := rand.New(rand.NewPCG(1, 2))
		var pool, f forecast
		ask := func(l law) float64 {
			x := draw(rng)
			y := l.at(&x) * (1 + tt.noise*(2*rng.Float64()-1))
			if rng.Float64() < tt.stalls {
				y *= 5
			}
			p := f.of(&x, &pool, defaultSpeed*x[1])
			f.learn(&x, y, p, &pool)
			return math.Abs(p-y) / y
		}
		if tt.was != (law{}) {
			for range 3 * forecastMemory {
				ask(tt.was)
			}
			for range forecastMemory { // it becomes another
				ask(tt.is)
			}
		}
		for range forecastMemory {
			ask(tt.is)
		}
		var off []float64
		for range 500 {
			off = append(off, ask(tt.is))
		}
		slices.Sort(off)
		if got := off[len(off)/2]; got > tt.want {
			t.Errorf("%s: a median error of %.3f, want at most %.3f", tt.name, got, tt.want)
		}
	}
}

// An endpoint that has answered nothing yet is taken to be as those of its pool are, and a pool that has not to be as fast as is assumed.
func TestForecastOfTheUnknown(t *testing.T) {
	p := newTestPool(2, Config{})
	rng := rand.New(rand.NewPCG(3, 4))
	a, b := p.Endpoints()[0], p.Endpoints()[1]
	x := draw(rng)
	if first, each := b.forecast(&x, defaultSpeed); first != defaultSpeed*x[1] || each != 0 {
		t.Errorf("at first %v and %v", first, each)
	}
	l := law{.02, 30e-6, 0, 40e-9, 0}
	for range 300 {
		x := draw(rng)
		first, each := a.forecast(&x, defaultSpeed)
		a.learnFirst(&x, l.at(&x), first, 0)
		a.learnEach(&x, .01, each)
	}
	if first, each := b.forecast(&x, defaultSpeed); math.Abs(first/l.at(&x)-1) > .05 || math.Abs(each/.01-1) > .05 {
		t.Errorf("by its pool %v and %v, want %v and .01", first, each, l.at(&x))
	}
	for _, e := range p.Endpoints() {
		e.restarted(1)
	}
	if a.forecasts.first.learned.Load() || a.forecasts.each.learned.Load() {
		t.Error("a new process is known")
	}
}

// What of a queue has been computed since its head became that is not waited for again.
func TestForecastOfAQueueThatIsWorkedOff(t *testing.T) {
	p := newTestPool(1, Config{})
	e := p.Endpoints()[0]
	now := time.Hour
	ask := func(id, tokens int, stream bool) (l Lease, before float64) {
		r := prompt(prose(id, 4*tokens))
		r.Stream = stream
		l = pick(t, p, r, now)
		return l, l.features[1] - float64(l.uncached)
	}
	wait := func(tokens float64) { now += seconds(tokens * e.speed.mean(p.meanSpeed(), speedPrior)) }
	off := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 50 {
			t.Errorf("%s: %.0f tokens are still to be computed before it, want %.0f", what, got, want)
		}
	}

	a, before := ask(1, 2000, true)
	off("nothing is queued", before, 0)
	wait(500)
	b, before := ask(2, 4000, true)
	off("a quarter of one is done", before, 1500)
	wait(1000)
	_, before = ask(3, 1000, true)
	off("that has been so for a while", before, 4500)
	wait(500)
	a.FirstToken(now)
	_, before = ask(4, 1000, false)
	off("the first has come", before, 5000)
	wait(100_000)
	c, before := ask(5, 1000, true)
	off("more time than all of it takes", before, 0)
	b.End(now, Done)
	off("one has left", func() float64 { _, n := ask(6, 1000, true); return n }(), 2000)
	c.End(now, NeverSent)
}

// Of the requests that are predicted to get what they ask for, one of twenty does not, whatever the noise.
func TestMarginKeepsPromises(t *testing.T) {
	for _, spread := range []float64{.1, .2, .3} {
		rng := rand.New(rand.NewPCG(5, 6))
		var f forecast
		late, promised := 0, 0
		for i := range 40_000 {
			predicted := .5 + rng.Float64() // an SLO of 1
			if predicted*f.late() > 1 {
				continue
			}
			kept := predicted*math.Exp(spread*rng.NormFloat64()) <= 1
			f.promised(kept)
			if i >= 10_000 {
				promised++
				if !kept {
					late++
				}
			}
		}
		if share := float64(late) / float64(promised); share > .07 || spread > .15 && share < .03 {
			t.Errorf("spread %v: %.3f are late, with a margin of %.2f", spread, share, f.late())
		}
	}
}

// What a request is predicted to get is what it gets, by way of its lease.
func TestLeasesTeachForecasts(t *testing.T) {
	p := newTestPool(1, Config{})
	now := time.Duration(0)
	for i := range 50 {
		l := pick(t, p, prompt(prose(i, 8000)), now)
		l.FirstToken(now + 300*time.Millisecond)
		l.Usage(2000, 0, 101)
		l.End(now+1300*time.Millisecond, Done)
		now += 10 * time.Second
	}
	l := pick(t, p, prompt(prose(99, 8000)), now)
	first, each := l.Predicted()
	if math.Abs(first.Seconds()-.3) > .03 || math.Abs(each.Seconds()-.01) > .001 {
		t.Errorf("predicted %v and %v, want 300ms and 10ms", first, each)
	}
	l.End(now, NeverSent)

	// What does not stream, failed, or said too little, teaches nothing.
	w := &p.Endpoints()[0].forecasts.each.weights[0]
	was := w.Load()
	for _, tt := range []struct {
		outcome   Outcome
		generated int
		stream    bool
	}{{Failed, 100, true}, {ClientGone, 100, true}, {Done, 2, true}, {Done, -1, true}, {Done, 100, false}} {
		r := prompt(prose(1000, 8000))
		r.Stream = tt.stream
		l := pick(t, p, r, now)
		l.FirstToken(now + 300*time.Millisecond)
		l.Usage(2000, 0, tt.generated)
		l.End(now+5*time.Second, tt.outcome)
		now += 40 * time.Second
	}
	if w.Load() != was {
		t.Error("it has taught how long a token takes")
	}
}

// A pod that has become another, as one that shares its address, is known to be within some hundred prompts; one that stalls now and then, or
// computes several prompts in one step, is not another for it.
func TestSpeedOfAPodThatHasChanged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		factor func(i int) float64
		want   float64
	}{
		{"as it was", func(int) float64 { return 1 }, 1},
		{"five times slower", func(int) float64 { return 5 }, 5},
		{"five times faster", func(int) float64 { return .2 }, .2},
		{"a stall each ten prompts", func(i int) float64 { return map[bool]float64{true: 4, false: 1}[i%10 == 0] }, 1},
	} {
		p := newTestPool(4, Config{})
		now := time.Duration(0)
		first := func(e *Endpoint, factor float64) {
			now += time.Second
			took := 1200 * 30e-6 * factor
			x := features{1, 1200}
			predicted, _ := e.forecast(&x, defaultSpeed)
			e.learnSpeed(now, now+seconds(took), 1200)
			e.learnFirst(&x, took, predicted, 1200)
			now += time.Second
		}
		for range 200 { // for half a minute
			for _, e := range p.Endpoints() {
				first(e, 1)
			}
		}
		e := p.Endpoints()[0]
		for i := range 120 {
			first(e, tt.factor(i))
			for _, other := range p.Endpoints()[1:] {
				first(other, 1)
			}
		}
		got := e.speed.mean(p.meanSpeed(), speedPrior) / 30e-6
		if d := math.Log(got) - math.Log(tt.want); math.Abs(d) > .3*math.Abs(math.Log(tt.want))+.35 {
			t.Errorf("%s: taken to take %.2f times as long, want %.2f", tt.name, got, tt.want)
		}
	}
}
