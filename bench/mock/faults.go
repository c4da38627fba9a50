package mock

import (
	"net/http"
	"time"
)

// Faults make a server misbehave, for tests. They apply to requests for an answer of the model, whatever the API.
type Faults struct {
	OnRequest   func(r *http.Request, body []byte) // called with each request that was read, from its connection's goroutine
	HeaderDelay time.Duration                      // before anything is said
	Status      int                                // answer with this status and an error body instead
	Garbage     bool                               // answer with bytes that are not HTTP, and close
	CutAfter    int                                // reset the connection after so many events of a stream; 0: never
}

// SetFaults replaces the faults from the next request on.
func (s *Server) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

func (s *Server) presentFaults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults
}
