package workload

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// traceBlock is the number of tokens that one of a trace's hash_ids stands for.
const traceBlock = 512

// traceLine is a request as the Mooncake traces write it down (kvcache-ai/Mooncake, FAST25-release/traces).
type traceLine struct {
	Timestamp    float64  `json:"timestamp"` // ms from the beginning
	InputLength  int      `json:"input_length"`
	OutputLength int      `json:"output_length"`
	HashIDs      []uint64 `json:"hash_ids"` // one for each block of 512 tokens, the last one's partial; equal ids share all before them too
}

// ReadTrace reads recorded requests: JSON lines in the format of the Mooncake traces. Each is a conversation of one turn; Params().Rate
// is the recorded rate, and At plays the trace faster or slower. A trace ends.
func ReadTrace(name string, r io.Reader) (*Workload, error) {
	w := &Workload{kind: kind{name: name, about: "recorded requests"}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for n := 1; lines.Scan(); n++ {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var l traceLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("%s:%d: %w; a line looks like {\"timestamp\": 0, \"input_length\": 6755, \"output_length\": 500, \"hash_ids\": [0, 1]}", name, n, err)
		}
		s, err := l.session(uint64(len(w.trace)))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		if k := len(w.trace); k > 0 && s.Start < w.trace[k-1].Start {
			return nil, fmt.Errorf("%s:%d: the timestamp is before that of the line before", name, n)
		}
		w.trace = append(w.trace, s)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(w.trace) == 0 {
		return nil, fmt.Errorf("%s: there is no request in it", name)
	}
	// The traces have their requests in bunches of the same millisecond: a rate needs more than one bunch.
	last := w.trace[len(w.trace)-1].Start
	if last <= 0 {
		return nil, fmt.Errorf("%s: all requests are of the same moment: there is no rate", name)
	}
	w.recorded = float64(len(w.trace)) / last.Seconds()
	w.params = Params{Rate: w.recorded, Turns: 1}
	return w, nil
}

// session is the line as a conversation.
func (l *traceLine) session(id uint64) (Session, error) {
	const most = 1 << 24 // tokens, and far beyond any
	switch {
	case l.InputLength < 1 || l.InputLength > most || l.OutputLength < 1 || l.OutputLength > most:
		return Session{}, errors.New("input_length and output_length must be from 1 to 16777216")
	case len(l.HashIDs) > (l.InputLength+traceBlock-1)/traceBlock:
		return Session{}, fmt.Errorf("%d hash_ids are more than %d tokens have blocks of %d", len(l.HashIDs), l.InputLength, traceBlock)
	case !(l.Timestamp >= 0 && l.Timestamp < math.MaxInt64/1e7):
		return Session{}, errors.New("timestamp must be milliseconds from the beginning")
	}
	var user []Segment
	left := l.InputLength
	for _, h := range l.HashIDs {
		n := min(left, traceBlock)
		user = append(user, Segment{identity(traced, h), n})
		left -= n
	}
	if left > 0 { // without ids it shares nothing
		user = append(user, Segment{identity(traced, question, id), left})
	}
	return Session{
		ID: id, Start: time.Duration(l.Timestamp * float64(time.Millisecond)),
		Turns: []Turn{{User: user, Answer: Segment{identity(traced, answer, id), l.OutputLength}}},
	}, nil
}

// replay yields the recorded conversations at the rate in force.
func (w *Workload) replay(yield func(Session) bool) {
	slower := w.recorded / w.params.Rate
	for _, s := range w.trace {
		s.Start = time.Duration(float64(s.Start) * slower)
		if !yield(s) {
			return
		}
	}
}
