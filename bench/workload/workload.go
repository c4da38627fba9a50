// Package workload describes traffic: who starts a conversation when, what each turn of it adds to the prompt, how long an answer it
// asks for, and how long the user then thinks.
//
// A description is deterministic: the same name, parameters and seed give the same conversations, on every machine. It has no text
// in it but segments, which are an identity and a length, so that a simulator can play millions of prompts by arithmetic
// (AppendBlocks) and a player over real sockets can write them out (Text). Both see the same sharing: two prompts have a common
// prefix where their segments agree, and nowhere else.
//
// Nothing here reads a clock or keeps state between calls; a Workload may be used by several goroutines at once.
package workload

import (
	"cmp"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Params shape a workload. A zero field means what the named workload has; the fields' values then show in Workload.Params.
type Params struct {
	Seed uint64  `json:"-"` // of arrivals, lengths and contents: no text is shared between two seeds
	Rate float64 `json:"-"` // requests a second in the long run: conversations begin at Rate over their mean number of turns; 0: 1

	Groups       int           `json:"groups"`        // distinct system prompts
	Users        int           `json:"users"`         // fixed users in a group, each always opening with the same message; 0: every conversation is new
	SystemTokens int           `json:"system_tokens"` // length of a system prompt; 0: none
	TurnTokens   int           `json:"turn_tokens"`   // length of a user's message
	AnswerTokens int           `json:"answer_tokens"` // length of an answer
	Turns        int           `json:"turns"`         // questions in a conversation
	Think        time.Duration `json:"think_ns"`      // pause between an answer and the next question
	Burst        int           `json:"burst"`         // conversations that begin at the same moment, in the mean; 0 and 1: each by itself
}

// kind is a named workload.
type kind struct {
	name, about string
	defaults    Params
	// varied: lengths are uniform between half and one and a half of what the parameters say, turns between 1 and twice their
	// number less one, pauses exponential; what the parameters say is the mean. Otherwise they are exact.
	varied bool
	shape  func(*Workload, *Session, *rand.Rand) // changes a conversation made by the parameters; nil: nothing
}

// kinds are all the workloads there are.
var kinds = []kind{
	// The next two have the lengths and groups of the shared-prefix benchmark that llm-d publishes. There, five fixed questions
	// a group are asked over and over, so that a cache that holds them all answers everything (Users: 5 does the same); here
	// every question is new.
	{
		"shared-prefix", "150 groups with a long common prompt, long answers",
		Params{Groups: 150, SystemTokens: 6000, TurnTokens: 1200, AnswerTokens: 1000, Turns: 1}, false, nil,
	},
	{
		"shared-prefix-short", "the same with short answers",
		Params{Groups: 150, SystemTokens: 6000, TurnTokens: 1200, AnswerTokens: 250, Turns: 1}, false, nil,
	},
	{
		"chat", "conversations of several turns; assistants share system prompts",
		Params{Groups: 20, SystemTokens: 1000, TurnTokens: 150, AnswerTokens: 250, Turns: 6, Think: 15 * time.Second}, true, nil,
	},
	{
		"agents", "long tool loops with contexts that grow from 20,000 to 60,000 tokens",
		Params{Groups: 5, SystemTokens: 5000, TurnTokens: 1000, AnswerTokens: 150, Turns: 20, Think: 3 * time.Second}, true, agent,
	},
	{
		"rag", "questions on five documents each, some of them popular: little is shared",
		Params{Groups: 1, SystemTokens: 500, TurnTokens: 100, AnswerTokens: 200, Turns: 1}, true, rag,
	},
	{
		"mix", "four interactive questions to one long job of a batch; a third each is Critical, Standard and Sheddable",
		Params{Groups: 50, SystemTokens: 2000, TurnTokens: 300, AnswerTokens: 150, Turns: 1}, true, mixed,
	},
	{
		"hot-prefix", "of 150 groups one suddenly has most of the requests, after 30 s",
		Params{Groups: 150, SystemTokens: 4000, TurnTokens: 400, AnswerTokens: 100, Turns: 1}, false, hot,
	},
	{
		"heterogeneous", "the traffic of shared-prefix-short; half of the simulated fleet is of a slower GPU",
		Params{Groups: 150, SystemTokens: 6000, TurnTokens: 1200, AnswerTokens: 250, Turns: 1}, false, nil,
	},
	{
		"unshared", "single questions that have nothing in common",
		Params{TurnTokens: 256, AnswerTokens: 128, Turns: 1}, false, nil,
	},
	{
		"adapters", "32 LoRA adapters, some popular, of which an engine runs few at once",
		Params{Groups: 32, SystemTokens: 1000, TurnTokens: 300, AnswerTokens: 150, Turns: 1}, true, adapted,
	},
}

// Names are the names that New knows.
func Names() []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.name
	}
	return names
}

// About says in a few words what the workload is.
func (w *Workload) About() string { return w.kind.about }

// Workload is a supply of conversations: an endless one of New's, or a trace's.
type Workload struct {
	kind   kind
	params Params

	// Of a trace.
	trace    []Session
	recorded float64 // requests a second
}

// New returns the workload of that name, shaped by p. It fails if there is none, or if a parameter is below zero.
func New(name string, p Params) (*Workload, error) {
	for _, k := range kinds {
		if k.name != name {
			continue
		}
		if p.Rate < 0 || min(p.Groups, p.Users, p.SystemTokens, p.TurnTokens, p.AnswerTokens, p.Turns, p.Burst, int(p.Think)) < 0 {
			return nil, fmt.Errorf("workload %q: a parameter is below zero; leave it 0 for the workload's own", name)
		}
		return &Workload{kind: k, params: p.or(k.defaults)}, nil
	}
	return nil, fmt.Errorf("there is no workload %q; there are %s", name, strings.Join(Names(), ", "))
}

// or returns p with the values of d where p has none.
func (p Params) or(d Params) Params {
	if p.Rate == 0 {
		p.Rate = 1
	}
	for _, f := range []struct{ own, other *int }{
		{&p.Groups, &d.Groups},
		{&p.Users, &d.Users},
		{&p.SystemTokens, &d.SystemTokens},
		{&p.TurnTokens, &d.TurnTokens},
		{&p.AnswerTokens, &d.AnswerTokens},
		{&p.Turns, &d.Turns},
	} {
		if *f.own == 0 {
			*f.own = *f.other
		}
	}
	if p.Think == 0 {
		p.Think = d.Think
	}
	return p
}

// Length is from the beginning to the last conversation's Start; 0: without end.
func (w *Workload) Length() time.Duration {
	if w.trace == nil {
		return 0
	}
	return duration(float64(len(w.trace)) / w.params.Rate)
}

// At is the same workload at another rate, in requests a second.
func (w *Workload) At(rate float64) *Workload {
	other := *w
	other.params.Rate = rate
	return &other
}

// Name is the name it was made by.
func (w *Workload) Name() string { return w.kind.name }

// Params are the parameters in force, with the workload's own where New was given none.
func (w *Workload) Params() Params { return w.params }

// Criticalities are what a Session's Criticality may be, the most critical first.
var Criticalities = [...]string{"Critical", "Standard", "Sheddable"}

// Session is one conversation. Its prompt in a turn is the system prompt, the questions and answers of the turns before, and the
// turn's question.
type Session struct {
	ID          uint64        // no other conversation of the workload has it
	Start       time.Duration // when its first question is asked, from the beginning of the workload
	System      []Segment     // the system prompt; empty: none
	Turns       []Turn        // at least one
	Adapter     string        // the LoRA adapter it asks for, by its model name; "": the base model
	Criticality string        // one of Criticalities; "": Standard
	Resume      int           // the turn it starts with; those before it took place before the workload began, and are only in its prompts
}

// Turn is a question and the answer it asks for.
type Turn struct {
	Think  time.Duration // from the end of the previous answer; 0 in the first turn; passed already in the one resumed
	User   []Segment
	Answer Segment // its Tokens limit the answer; whoever makes the answers up has an identity for its content
}

// AppendPrompt appends to dst the segments of the prompt in turn i, counted from 0, with the answers before it as they were asked
// for. What a chat template adds between messages is not in it.
func (s *Session) AppendPrompt(dst []Segment, i int) []Segment {
	dst = append(dst, s.System...)
	for _, t := range s.Turns[:i] {
		dst = append(append(dst, t.User...), t.Answer)
	}
	return append(dst, s.Turns[i].User...)
}

// PromptTokens is the length of the prompt in turn i, counted from 0.
func (s *Session) PromptTokens(i int) int {
	n := Tokens(s.System)
	for _, t := range s.Turns[:i] {
		n += Tokens(t.User) + t.Answer.Tokens
	}
	return n + Tokens(s.Turns[i].User)
}

// What an identity or a stream of random numbers is for.
const (
	arrivals uint64 = iota
	cycle
	sessions
	systemPrompt
	openingQuestion
	question
	answer
	traced
	document
	lot
	rank
)

// past is the first ID of the conversations that began before the workload.
const past = 1 << 32

// pace is how long a token of the answers before the workload is taken to have lasted. An engine that is faster or slower answers a
// little more or less than the rate at first.
const pace = 10 * time.Millisecond

// Sessions yields the conversations in the order of Start; only those of a trace end. The others begin at random, independently of each other and of how
// anything is answered (a Poisson process), and have done so forever: those that are under way at the beginning are resumed, so that
// the rate is the long run's from the first second. A conversation is the same at every rate but for its Start and Resume.
func (w *Workload) Sessions() iter.Seq[Session] {
	if w.trace != nil {
		return w.replay
	}
	return func(yield func(Session) bool) {
		p := w.params
		order := rand.New(rand.NewPCG(p.Seed, identity(p.Seed, cycle))).Perm(p.Users * max(1, p.Groups))
		resumed := w.resumed(order)
		gaps := rand.New(rand.NewPCG(p.Seed, identity(p.Seed, arrivals, 0)))
		var start float64 // seconds
		for id := uint64(0); ; id++ {
			if burst := float64(max(p.Burst, 1)); burst == 1 || gaps.Float64()*burst < 1 {
				start += burst * gaps.ExpFloat64() / w.starts()
			}
			s := w.session(id, duration(start), order)
			for len(resumed) > 0 && resumed[0].Start <= s.Start {
				if !yield(resumed[0]) {
					return
				}
				resumed = resumed[1:]
			}
			if !yield(s) {
				return
			}
		}
	}
}

// starts is how many conversations begin in a second.
func (w *Workload) starts() float64 { return w.params.Rate / float64(w.params.Turns) }

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// resumed makes the conversations that are under way at the beginning, in the order of Start.
func (w *Workload) resumed(order []int) []Session {
	p := w.params
	turn := p.Think + time.Duration(p.AnswerTokens)*pace
	longest := 4 * float64(p.Turns-1) * turn.Seconds() // hardly ever does a conversation take longer
	gaps := rand.New(rand.NewPCG(p.Seed, identity(p.Seed, arrivals, 1)))
	var list []Session
	before := 0.0 // seconds before the beginning
	for id := uint64(past); ; id++ {
		if before += gaps.ExpFloat64() / w.starts(); before > longest {
			break
		}
		s := w.session(id, -duration(before), order)
		for s.Start < 0 && s.Resume < len(s.Turns) {
			s.Start += time.Duration(s.Turns[s.Resume].Answer.Tokens) * pace
			if s.Resume++; s.Resume < len(s.Turns) {
				s.Start += s.Turns[s.Resume].Think
			}
		}
		if s.Resume < len(s.Turns) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Session) int { return cmp.Compare(a.Start, b.Start) })
	return list
}

// session makes the conversation of that number and start. order is the order in which the fixed users take turns; it is empty if there are none.
func (w *Workload) session(id uint64, start time.Duration, order []int) Session {
	p := w.params
	rng := rand.New(rand.NewPCG(p.Seed, identity(p.Seed, sessions, id)))
	s := Session{ID: id, Start: start}

	group, opening := id, identity(p.Seed, question, id)
	switch {
	case len(order) > 0:
		user := uint64(order[id%uint64(len(order))])
		group, opening = user/uint64(p.Users), identity(p.Seed, openingQuestion, user)
	case p.Groups > 0:
		group = rng.Uint64N(uint64(p.Groups))
	}
	if p.SystemTokens > 0 {
		s.System = []Segment{{identity(p.Seed, systemPrompt, group), p.SystemTokens}}
	}

	turns := p.Turns
	if w.kind.varied {
		turns = 1 + rng.IntN(2*p.Turns-1)
	}
	s.Turns = make([]Turn, turns)
	for i := range s.Turns {
		t := &s.Turns[i]
		t.User = []Segment{{identity(p.Seed, question, id, uint64(i)), w.length(rng, p.TurnTokens)}}
		t.Answer = Segment{identity(p.Seed, answer, id, uint64(i)), w.length(rng, p.AnswerTokens)}
		if i > 0 {
			t.Think = p.Think
			if w.kind.varied {
				t.Think = time.Duration(rng.ExpFloat64() * float64(p.Think))
			}
		}
	}
	s.Turns[0].User[0] = Segment{opening, w.length(rand.New(rand.NewPCG(opening, 0)), p.TurnTokens)}
	if w.kind.shape != nil {
		w.kind.shape(w, &s, rng)
	}
	return s
}

// length draws a length whose mean is mean.
func (w *Workload) length(rng *rand.Rand, mean int) int {
	if !w.kind.varied {
		return mean
	}
	half := mean / 2
	return max(1, mean-half+rng.IntN(2*half+1))
}

// identity mixes numbers into one that no others give.
func identity(parts ...uint64) uint64 {
	h := uint64(len(parts))
	for _, p := range parts {
		h = mix(h, p)
	}
	return h
}

// mix chains p to h with the finalizer of splitmix64.
func mix(h, p uint64) uint64 {
	z := h*0x9E3779B97F4A7C15 + p + 0x9E3779B97F4A7C15
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}
