package mock

import "github.com/fairway-proxy/fairway/bench/engine"

// Stats are a server's own counters: what a test holds against what a proxy claims.
type Stats struct {
	Engine      engine.Stats // of all its engines together
	Connections uint64       // accepted
	Received    uint64       // requests for an answer of the model read to their end, whatever the API
	Prefills    uint64       // of them, to compute a prompt for another server
	Remote      uint64       // of them, with a prompt that another server has computed
	Refused     uint64       // of them, answered with an error
	Answered    uint64       // of them, answered to the end
	Aborted     uint64       // of them, left by their client before the end of the answer
	// Tokens of those that were answered to the end, as their usage has them whether the client asked for it or not.
	PromptTokens, CachedTokens, CompletionTokens int
}

// maxIDs bounds how many request ids are remembered.
const maxIDs = 1 << 16

type counters struct {
	Stats
	ids map[string]int // X-Request-Id → how often it was received; emptied when full
}

// Stats returns the present figures.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	st := s.counts.Stats
	s.mu.Unlock()
	st.Engine = s.stats()
	return st
}

// ReceivedID returns how often a request with this X-Request-Id was received. Only the latest 65,536 ids or so are remembered.
func (s *Server) ReceivedID(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts.ids[id]
}

func (s *Server) countReceived(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Received++
	if id == "" {
		return
	}
	if len(s.counts.ids) >= maxIDs {
		clear(s.counts.ids)
	}
	s.counts.ids[id]++
}

// countAnswered counts an answer to the end, or with -1 one that was not taken after all.
func (s *Server) countAnswered(u usage, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Answered += uint64(by)
	s.counts.PromptTokens += by * u.prompt
	s.counts.CachedTokens += by * u.cached
	s.counts.CompletionTokens += by * u.completion
}

func (s *Server) count(n *uint64) {
	s.mu.Lock()
	*n++
	s.mu.Unlock()
}
