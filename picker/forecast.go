package picker

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// forecastMemory is how many requests a forecast remembers: some ten seconds of a busy pod.
	forecastMemory = 128
	// forecastPrior is how many requests the pool's mean counts for against an endpoint's own.
	forecastPrior = 4
	// forecastSweeps is how often the weights are improved with each request. They need not be exact: the next one goes on from there.
	forecastSweeps = 2
	// driftMemory is how many requests the drift is of: the mean of by how much, in logarithms, what was seen differs from what was
	// predicted. Beyond mostDrift either way the pod is another than it was, and what is known of it is forgotten.
	driftMemory, mostDrift = 32, 0.3
	// surprise: what was seen counts for at most this many times what was predicted, and for no less than that part of it, so that
	// stalls are not taken for the engine's pace.
	surprise = 2

	// The margin with which promisedShare of the requests get what their SLO asks for, of those that were predicted to: it begins at
	// firstMargin, and moves by marginStep.
	firstMargin, mostMargin   = 1.25, 2
	promisedShare, marginStep = 0.95, 0.05

	// minPerToken: the mean of fewer tokens than that is one of the engine's steps, not its pace.
	minPerToken = 8
	// fullKV: of a KV cache that would be fuller than that no time can be promised, since requests lose their place in it.
	fullKV = 0.9
)

// features are what a latency is predicted from: what a candidate's terms say when it is chosen.
type features [5]float64

// features of a request at an endpoint: in each, one for the part that is always there; the tokens that are still to be computed until
// its first one; the requests there; the tokens that these read at each step; and the pairs of tokens that the prompt's attention looks at.
func (c *Candidate) features() features {
	return features{1, c.left + c.Uncached + c.Adapter, c.InFlight, c.KV * c.capacity, c.Uncached * (c.Hit + c.Uncached/2)}
}

// A forecast predicts a latency, in seconds, as a sum of features with weights that are not below zero: those with the least squared
// error, in proportion to what was predicted and to what was seen, over the requests of late: half as long and twice as long are equally
// wrong, which makes it the median, not the mean. They follow from the normal equations by projected Gauss–Seidel
// sweeps (Luo and Tseng, "On the convergence of the coordinate descent method for convex differentiable minimization", 1992).
//
// Reading takes no lock. The zero value knows nothing.
type forecast struct {
	weights [len(features{})]atomic.Uint64 // float64s
	margin  atomic.Uint64                  // float64, of a pool's: see late; 0: firstMargin
	learned atomic.Bool                    // there was a request

	mu    sync.Mutex // guards what follows; an endpoint's is held while its pool's is taken
	n     float64    // requests remembered
	drift float64
	xx    [len(features{})]features
	xy    features
}

// of is what is predicted: by prior if nothing was learned, and if that has learned nothing either, by the speed assumed.
func (f *forecast) of(x *features, prior *forecast, assumed float64) float64 {
	if !f.learned.Load() {
		if prior == nil {
			return assumed
		}
		return prior.of(x, nil, assumed)
	}
	y := 0.0
	for i := range x {
		y += x[i] * math.Float64frombits(f.weights[i].Load())
	}
	return max(y, 1e-6)
}

// late is by how many times a prediction has to be shorter than what an SLO asks for, to be one that meets it.
func (f *forecast) late() float64 {
	if bits := f.margin.Load(); bits != 0 {
		return math.Float64frombits(bits)
	}
	return firstMargin
}

// learn takes in that y seconds were seen where predicted had been predicted. It tells whether that is another pod than it was.
func (f *forecast) learn(x *features, y, predicted float64, prior *forecast) (another bool) {
	if y <= 0 {
		return false
	}
	if predicted <= 0 {
		predicted = y // nothing was
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drift += (min(max(math.Log(y/predicted), -1), 1) - f.drift) / driftMemory
	keep := 1 - 1.0/forecastMemory
	if another = math.Abs(f.drift) > mostDrift; another {
		keep, f.drift = 0, 0
	} else {
		y = min(max(y, predicted/surprise), predicted*surprise)
	}
	weight := 1 / (predicted * y)
	for i := range x {
		for j := range x {
			f.xx[i][j] = keep*f.xx[i][j] + weight*x[i]*x[j]
		}
		f.xy[i] = keep*f.xy[i] + weight*x[i]*y
	}
	f.n = keep*f.n + 1
	xx, xy := f.xx, f.xy
	if prior != nil {
		prior.blend(&xx, &xy, forecastPrior*f.xx[0][0]/f.n)
	}
	from := f
	if !f.learned.Load() && prior != nil {
		from = prior
	}
	var w features
	for i := range w {
		w[i] = math.Float64frombits(from.weights[i].Load())
	}
	for range forecastSweeps {
		for i := range w {
			if xx[i][i] == 0 {
				continue
			}
			rest := xy[i] + xx[i][i]*w[i]
			for j := range w {
				rest -= xx[i][j] * w[j]
			}
			w[i] = max(rest/xx[i][i], 0)
		}
	}
	for i := range w {
		f.weights[i].Store(math.Float64bits(w[i]))
	}
	f.learned.Store(true)
	return another
}

// blend adds to equations what requests of the mean say, so that their weights, which are those of the first feature, are so much in sum.
func (f *forecast) blend(xx *[len(features{})]features, xy *features, weights float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n == 0 {
		return
	}
	share := weights / f.xx[0][0]
	for i := range xx {
		for j := range xx[i] {
			xx[i][j] += share * f.xx[i][j]
		}
		xy[i] += share * f.xy[i]
	}
}

// promised takes in whether a request got what it asked for and was predicted to get. The margin grows by nineteen steps for one that did
// not, and shrinks by one for each that did, so that it settles where promisedShare of them do. Two at once may count as one.
func (f *forecast) promised(kept bool) {
	step := promisedShare - 1
	if !kept {
		step = promisedShare
	}
	f.margin.Store(math.Float64bits(min(max(f.late()*(1+marginStep*step), 1), mostMargin)))
}

func (f *forecast) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.learned.Store(false)
	f.margin.Store(0)
	f.n, f.drift, f.xx, f.xy = 0, 0, [len(features{})]features{}, features{}
	for i := range f.weights {
		f.weights[i].Store(0)
	}
}

// forecasts are those of an endpoint, or of all of a pool.
type forecasts struct {
	first forecast // from the choice to the first token
	each  forecast // each further token
}

func (f *forecasts) reset() {
	f.first.reset()
	f.each.reset()
}

// An SLO is what a request should get (service level objective). The zero value asks for nothing.
type SLO struct {
	FirstToken time.Duration // when its first token should have come, on the clock of now; 0: whenever
	PerToken   time.Duration // how long each further token should take, in the mean; 0: any time
}

// predict fills in a candidate's predictions, and whether they meet what the request asks for.
func (e *Endpoint) predict(c *Candidate, m *measure) {
	x := c.features()
	c.FirstToken, c.PerToken = e.forecast(&x, c.Speed)
	slo := &m.request.SLO
	c.Meets = (c.InFlight < 1 || c.full(m) <= fullKV) &&
		(slo.FirstToken == 0 || m.now+seconds(c.FirstToken*e.pool.forecasts.first.late()) <= slo.FirstToken) &&
		(slo.PerToken == 0 || c.PerToken*e.pool.forecasts.each.late() <= slo.PerToken.Seconds())
}

// forecast is what is predicted of a request with these features: seconds until its first token, and for each further one; 0: not known.
func (e *Endpoint) forecast(x *features, speed float64) (first, each float64) {
	return e.forecasts.first.of(x, &e.pool.forecasts.first, speed*x[1]), e.forecasts.each.of(x, &e.pool.forecasts.each, 0)
}

// learnFirst takes in when the first token of a prompt came of which so many tokens had to be computed.
func (e *Endpoint) learnFirst(x *features, took, predicted float64, uncached int64) {
	e.pool.forecasts.first.learn(x, took, predicted, nil)
	if e.forecasts.first.learn(x, took, predicted, &e.pool.forecasts.first) && uncached >= minSpeedTokens {
		e.speed.reset()
	}
}

// learnEach takes in how long each further token took.
func (e *Endpoint) learnEach(x *features, took, predicted float64) {
	e.pool.forecasts.each.learn(x, took, predicted, nil)
	e.forecasts.each.learn(x, took, predicted, &e.pool.forecasts.each)
}
