package proxy

import "time"

// What a body says is read in one go if that takes no time. A large one can take long, and
// whoever shares the processors with it would wait for as long.

const (
	// longRead is from how many bytes on a body is read for so long that others would notice.
	longRead = 256 << 10
	// stretch is for how long one is read at a time.
	stretch = 500 * time.Microsecond
)

// look has the body read. Large ones take half of the processors at most, by turns, and those
// that take long half of their time: whoever sends them leaves others the rest.
func (x *Exchange) look(read func() error) error {
	if len(x.body.bytes) <= longRead {
		return unreadable(read())
	}
	r := reader{x: x}
	if !r.begin() {
		return x.ended()
	}
	defer r.end()
	x.read.Yield = r.yield
	err := read()
	x.read.Yield = nil
	if ended := x.ended(); ended != nil {
		return ended
	}
	return unreadable(err)
}

// reader has a large body read stretch by stretch.
type reader struct {
	x     *Exchange
	since time.Duration // when the stretch began, on Now's clock
	reads bool          // one of the server's readers
}

// begin waits for the next stretch. It gives false if the request was over before.
func (r *reader) begin() bool {
	select {
	case r.x.server.readers <- struct{}{}:
		r.since, r.reads = Now(), true
	case <-r.x.ctx.Done():
	}
	return r.reads
}

// end lets the next one read.
func (r *reader) end() {
	if r.reads {
		r.reads = false
		<-r.x.server.readers
	}
}

// yield ends the stretch when it is time, with a pause as long, during which none of the
// large bodies is read in its place. It gives false if the request is over.
func (r *reader) yield() bool {
	took := Now() - r.since
	if took < stretch {
		return true
	}
	select {
	case <-time.After(took):
	case <-r.x.ctx.Done():
		return false
	}
	r.end()
	return r.begin()
}
