package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/fairway-proxy/fairway/proxy/extproc"
)

// ownPicker is a pool's own picker, for as long as Worlds say the same of it.
type ownPicker struct {
	config Picker
	limit  int64 // of a body, in bytes
	client *extproc.Client

	warning  rate.Sometimes
	renewal  rate.Sometimes // of its connections
	timeouts atomic.Int32   // in a row
	resting  atomic.Int64   // it is spared until then; 0: it is not

	mu      sync.Mutex
	users   int  // exchanges that have it; guarded by mu
	retired bool // no World has it any more; guarded by mu
}

// setOwnPicker has the pool ask w, nil for nobody.
func (s *Server) setOwnPicker(p *pool, w *Picker, limit int64) {
	was := p.own.Load()
	switch {
	case w == nil && was == nil, w != nil && was != nil && was.config == *w && was.limit == limit:
		return
	case w == nil:
		p.own.Store(nil)
	default:
		p.own.Store(newOwnPicker(*w, limit))
	}
	if was != nil {
		was.retire()
	}
}

func newOwnPicker(c Picker, limit int64) *ownPicker {
	config := extproc.ClientConfig{
		Address: c.Address, Buffered: c.Body == BodyBuffered,
		TellHead: c.Answers != AnswersNone, TellBody: c.Answers == AnswersBody,
		MessageLimit: int(min(limit, 1<<30)) + 1<<20,
	}
	if !c.Plain {
		host, _, _ := net.SplitHostPort(c.Address)
		config.TLS = &tls.Config{ServerName: or(c.ServerName, host), MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Roots == ""}
		if c.Roots != "" {
			config.TLS.RootCAs = x509.NewCertPool()
			config.TLS.RootCAs.AppendCertsFromPEM([]byte(c.Roots))
		}
	}
	return &ownPicker{
		config: c, limit: limit, client: extproc.NewClient(config),
		warning: rate.Sometimes{Interval: warnEvery}, renewal: rate.Sometimes{Interval: pickerRest},
	}
}

func (o *ownPicker) failsOpen() bool { return o.config.FailureMode == FailOpen }

func (o *ownPicker) timeout() time.Duration { return or(o.config.Timeout, DefaultPickerTimeout) }

// begin has the connections kept until end; false if they have gone.
func (o *ownPicker) begin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retired {
		return false
	}
	o.users++
	return true
}

func (o *ownPicker) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.users--; o.users == 0 && o.retired {
		o.client.Close()
	}
}

// retire lets the connections go once nobody has them.
func (o *ownPicker) retire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retired = true; o.users == 0 {
		o.client.Close()
	}
}

const (
	// maxPickerTimeouts in a row have a picker connected to anew and, with FailOpen,
	// spared.
	maxPickerTimeouts = 3
	// pickerRest is for how long; then one request finds out whether it answers again.
	pickerRest = time.Second
	// warnEvery is how often a picker's failing is told.
	warnEvery = 10 * time.Second
)

// mayAsk tells whether the picker is worth the wait.
func (o *ownPicker) mayAsk(now time.Duration) bool {
	until := o.resting.Load()
	return until == 0 || int64(now) >= until && o.resting.CompareAndSwap(until, int64(now+pickerRest))
}

// heard takes in how it went to ask it.
func (o *ownPicker) heard(err error) {
	if !errors.Is(err, extproc.ErrTimeout) {
		o.timeouts.Store(0)
		o.resting.Store(0)
		return
	}
	if o.timeouts.Add(1) < maxPickerTimeouts {
		return
	}
	if o.failsOpen() {
		o.resting.Store(int64(Now() + pickerRest))
	}
	o.renewal.Do(o.client.Reconnect)
}

// PickerOutcome is what came of asking a pool's own picker.
type PickerOutcome int

const (
	PickerNamed       PickerOutcome = iota // it named an endpoint of the pool
	PickerAnswered                         // it answered in the endpoint's place
	PickerTimeout                          // it took too long
	PickerUnavailable                      // it could not be asked, or broke off
	PickerProtocol                         // it said what cannot be
	PickerOutside                          // it named only what the pool does not have
	PickerSpared                           // it was not asked, having taken too long for others
	pickerOutcomes
)

func (o PickerOutcome) String() string {
	return [...]string{"named", "answered", "timeout", "unavailable", "protocol", "outside", "spared"}[o]
}

// consultedCounts are what a pool tells of its own picker.
type consultedCounts struct {
	outcomes  [pickerOutcomes]atomic.Uint64
	fallbacks atomic.Uint64
}

func (c *consultedCounts) count(o PickerOutcome) { c.outcomes[o].Add(1) }

// PickerState is what came of asking a pool's own picker so far.
type PickerState struct {
	Pool     string
	Outcomes [pickerOutcomes]uint64 // by PickerOutcome
	// Fallbacks are the choices that the embedded picker made in its place.
	Fallbacks uint64
}

// Pickers tells of the pools, in the World in force, that have a picker of their own.
func (s *Server) Pickers() []PickerState {
	v := s.serving.Load()
	if v == nil {
		return nil
	}
	var all []PickerState
	for _, p := range v.pools {
		if p.own.Load() == nil {
			continue
		}
		state := PickerState{Pool: p.name, Fallbacks: p.consulted.fallbacks.Load()}
		for o := range p.consulted.outcomes {
			state.Outcomes[o] = p.consulted.outcomes[o].Load()
		}
		all = append(all, state)
	}
	return all
}
