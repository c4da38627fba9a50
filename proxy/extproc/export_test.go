package extproc

// Process has a conversation served whose messages are all there.
func Process(s *Server, c conversation) error { return s.process(c) }
