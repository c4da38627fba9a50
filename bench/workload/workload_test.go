package workload

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// take returns the first n conversations that begin with the workload or later.
func take(t *testing.T, name string, p Params, n int) []Session {
	t.Helper()
	w, err := New(name, p)
	if err != nil {
		t.Fatal(err)
	}
	var out []Session
	for s := range w.Sessions() {
		if len(out) == n {
			break
		}
		if s.ID < past {
			out = append(out, s)
		}
	}
	return out
}

func TestSameSeedSameTraffic(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			a, b := take(t, name, Params{Seed: 7, Rate: 3}, 50), take(t, name, Params{Seed: 7, Rate: 3}, 50)
			if !reflect.DeepEqual(a, b) {
				t.Fatal("the same seed gave two workloads")
			}
			seen := map[uint64]bool{}
			for _, s := range a {
				for _, seg := range s.AppendPrompt(nil, len(s.Turns)-1) {
					seen[seg.ID] = true
				}
			}
			for _, s := range take(t, name, Params{Seed: 8, Rate: 3}, 50) {
				for _, seg := range s.AppendPrompt(nil, len(s.Turns)-1) {
					if seen[seg.ID] {
						t.Fatal("two seeds share content")
					}
				}
			}
		})
	}
}

func TestRateMovesOnlyTheStarts(t *testing.T) {
	slow, fast := take(t, "chat", Params{Seed: 1, Rate: 1}, 100), take(t, "chat", Params{Seed: 1, Rate: 10}, 100)
	for i := range slow {
		if d := slow[i].Start - 10*fast[i].Start; d.Abs() > time.Microsecond {
			t.Fatalf("conversation %d starts at %v and %v", i, slow[i].Start, fast[i].Start)
		}
		slow[i].Start, fast[i].Start = 0, 0
	}
	if !reflect.DeepEqual(slow, fast) {
		t.Fatal("the rate changed what is said")
	}
}

// The offered rate is that of requests, whatever the number of turns, and the gaps are those of a Poisson process.
func TestArrivals(t *testing.T) {
	for _, name := range Names() {
		const n, rate = 20_000, 5.0
		var requests int
		var gaps, squares float64
		var last time.Duration
		for _, s := range take(t, name, Params{Seed: 3, Rate: rate}, n) {
			gap := (s.Start - last).Seconds()
			if gap < 0 {
				t.Fatal("conversations are out of order")
			}
			gaps, squares, last = gaps+gap, squares+gap*gap, s.Start
			requests += len(s.Turns)
		}
		if got := float64(requests) / last.Seconds(); math.Abs(got/rate-1) > 0.03 {
			t.Errorf("%s: %.2f requests a second, want %v", name, got, rate)
		}
		mean := gaps / n
		if cv := math.Sqrt(squares/n-mean*mean) / mean; math.Abs(cv-1) > 0.03 {
			t.Errorf("%s: the gaps' coefficient of variation is %.3f, want 1", name, cv)
		}
	}
}

func TestBursts(t *testing.T) {
	together, last := 0, time.Duration(-1)
	list := take(t, "unshared", Params{Rate: 10, Burst: 5}, 10_000)
	for _, s := range list {
		if s.Start == last {
			together++
		}
		last = s.Start
	}
	if share := float64(together) / 10_000; math.Abs(share-0.8) > 0.02 || math.Abs(last.Seconds()/1000-1) > 0.1 {
		t.Errorf("%.2f of them begin with the one before, all within %v", share, last)
	}
}

// Traffic is the same from the first second on: conversations under way are there from the beginning.
func TestBeginsInTheMiddle(t *testing.T) {
	const window, rate = 20 * time.Second, 30.0
	p := Params{Rate: rate, Turns: 6, Think: 10 * time.Second}
	requests, resumed, seeds := 0, 0, uint64(20)
	for p.Seed = range seeds {
		w, err := New("chat", p)
		if err != nil {
			t.Fatal(err)
		}
		var last time.Duration
		for s := range w.Sessions() {
			if s.Start < last || s.Resume >= len(s.Turns) || (s.Resume > 0) != (s.ID >= past) {
				t.Fatalf("after %v: %+v", last, s)
			}
			if last = s.Start; last > window {
				break
			}
			if s.Resume > 0 {
				resumed++
			}
			due := s.Start
			for i := s.Resume; i < len(s.Turns); i++ {
				if i > s.Resume {
					due += time.Duration(s.Turns[i-1].Answer.Tokens)*pace + s.Turns[i].Think
				}
				if due < window {
					requests++
				}
			}
		}
	}
	if got := float64(requests) / float64(seeds) / window.Seconds(); math.Abs(got/rate-1) > 0.05 {
		t.Errorf("%.2f requests a second in the first %v, want %v", got, window, rate)
	}
	if resumed == 0 {
		t.Error("nothing was resumed")
	}
}

// A fixed user opens every conversation alike, also where lengths vary.
func TestFixedUsers(t *testing.T) {
	openings := map[Segment]int{}
	for _, s := range take(t, "chat", Params{Groups: 2, Users: 3}, 60) {
		openings[s.Turns[0].User[0]]++
	}
	if len(openings) != 6 {
		t.Errorf("6 users have %d openings: %v", len(openings), openings)
	}
}

func TestSharedPrefix(t *testing.T) {
	const prompts = 150 * 5
	for _, c := range []struct {
		users, prompts int
	}{{0, 2 * prompts}, {5, prompts}} { // with fixed users, as published, the same prompts come round after round
		systems, whole := map[uint64]int{}, map[[2]uint64]int{}
		for _, s := range take(t, "shared-prefix", Params{Users: c.users}, 2*prompts) {
			if len(s.Turns) != 1 || Tokens(s.System) != 6000 || s.PromptTokens(0) != 7200 || s.Turns[0].Answer.Tokens != 1000 {
				t.Fatalf("%+v", s)
			}
			systems[s.System[0].ID]++
			whole[[2]uint64{s.System[0].ID, s.Turns[0].User[0].ID}]++
		}
		if len(systems) != 150 || len(whole) != c.prompts {
			t.Fatalf("%d users: %d system prompts and %d prompts", c.users, len(systems), len(whole))
		}
		for id, n := range whole {
			if n != 2*prompts/c.prompts {
				t.Fatalf("%d users: prompt %v was asked %d times", c.users, id, n)
			}
		}
	}
	if short := take(t, "shared-prefix-short", Params{}, 1)[0]; short.Turns[0].Answer.Tokens != 250 {
		t.Fatalf("%+v", short)
	}
}

func TestChatMeansAreThoseAsked(t *testing.T) {
	p := Params{Seed: 5, Groups: 4, SystemTokens: 800, TurnTokens: 100, AnswerTokens: 60, Turns: 5, Think: 2 * time.Second}
	var turns, user, answers int
	var think time.Duration
	systems := map[uint64]bool{}
	const n = 5000
	for _, s := range take(t, "chat", p, n) {
		systems[s.System[0].ID] = true
		turns += len(s.Turns)
		for i, turn := range s.Turns {
			user += Tokens(turn.User)
			answers += turn.Answer.Tokens
			think += turn.Think
			if i == 0 && turn.Think != 0 {
				t.Fatal("the first turn has a pause before it")
			}
		}
	}
	if len(systems) != p.Groups {
		t.Errorf("%d system prompts, want %d", len(systems), p.Groups)
	}
	for what, got := range map[string]float64{
		"turns":  float64(turns) / n / float64(p.Turns),
		"user":   float64(user) / float64(turns) / float64(p.TurnTokens),
		"answer": float64(answers) / float64(turns) / float64(p.AnswerTokens),
		"think":  think.Seconds() / float64(turns-n) / p.Think.Seconds(),
	} {
		if math.Abs(got-1) > 0.04 {
			t.Errorf("%s: the mean is %.2f of what was asked", what, got)
		}
	}
}

func TestPromptGrowsByTheTurnsBefore(t *testing.T) {
	s := Session{
		System: []Segment{{1, 10}},
		Turns:  []Turn{{User: []Segment{{2, 3}}, Answer: Segment{3, 4}}, {User: []Segment{{4, 5}}, Answer: Segment{5, 6}}},
	}
	if got, want := s.AppendPrompt(nil, 1), []Segment{{1, 10}, {2, 3}, {3, 4}, {4, 5}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if a, b := s.PromptTokens(0), s.PromptTokens(1); a != 13 || b != 22 {
		t.Errorf("%d and %d tokens", a, b)
	}
}

func TestBlocksAreSharedAsFarAsSegmentsAre(t *testing.T) {
	system, question := Segment{1, 100}, Segment{2, 50}
	for _, c := range []struct {
		name         string
		a, b         []Segment
		blocks, same int
	}{
		{"equal", []Segment{system, question}, []Segment{system, question}, 9, 9},
		{"other question", []Segment{system, question}, []Segment{system, {3, 50}}, 9, 6},
		{"other start", []Segment{{4, 1}, system, question}, []Segment{system, question}, 9, 0},
		{"longer", []Segment{system}, []Segment{system, question}, 6, 6},
		{"of one text", []Segment{{1, 32}}, []Segment{system}, 2, 2},
		{"nothing", nil, []Segment{system}, 0, 0},
	} {
		a, b := AppendBlocks(nil, c.a, 16), AppendBlocks(nil, c.b, 16)
		same := 0
		for same < min(len(a), len(b)) && a[same] == b[same] {
			same++
		}
		if len(a) != c.blocks || same != c.same {
			t.Errorf("%s: %d blocks, %d in common; want %d, %d", c.name, len(a), same, c.blocks, c.same)
		}
	}
}

func TestText(t *testing.T) {
	const n = 20_000
	long := Text(Segment{42, n})
	if per := float64(len(long)) / n; per < 3.8 || per > 4.4 {
		t.Errorf("%.2f bytes a token", per)
	}
	if tokens := countTokens(long); tokens != n {
		t.Errorf("%d tokens, want %d", tokens, n)
	}
	if short := Text(Segment{42, 777}); !strings.HasPrefix(long, short) || countTokens(short) != 777 {
		t.Error("a shorter segment is no prefix of a longer one")
	}
	if two := Text(Segment{42, 30}, Segment{43, 20}); countTokens(two) != 50 || !strings.HasPrefix(two, Text(Segment{42, 30})) {
		t.Errorf("two segments make %d tokens: %s", countTokens(two), two)
	}
	if a, b := Text(Segment{1, 64}), Text(Segment{2, 64}); a[:64] == b[:64] {
		t.Errorf("two segments begin alike: %s", a)
	}
	if got := Text(); got != "" {
		t.Errorf("nothing reads %q", got)
	}
}

// countTokens counts words and punctuation marks.
func countTokens(s string) int {
	return len(strings.Fields(strings.NewReplacer(".", " .", ",", " ,").Replace(s)))
}

func TestUnknownAndImpossible(t *testing.T) {
	if _, err := New("chatter", Params{}); err == nil || !strings.Contains(err.Error(), "shared-prefix") {
		t.Errorf("error %v does not list what there is", err)
	}
	if _, err := New("chat", Params{Turns: -1}); err == nil {
		t.Error("a negative number of turns is accepted")
	}
}

// What a simulator does for each request costs no memory but what it keeps.
func TestBlocksAllocateNothing(t *testing.T) {
	s := take(t, "shared-prefix", Params{}, 1)[0]
	segs, blocks := make([]Segment, 0, 8), make([]uint64, 0, 1024)
	if n := testing.AllocsPerRun(100, func() { blocks = AppendBlocks(blocks[:0], s.AppendPrompt(segs[:0], 0), 16) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSession(b *testing.B) {
	w, _ := New("chat", Params{})
	n := 0
	for range w.Sessions() {
		if n++; n > b.N {
			break
		}
	}
}

func BenchmarkText(b *testing.B) {
	s := Segment{1, 6000}
	b.SetBytes(int64(len(Text(s))))
	for i := range uint64(b.N) {
		s.ID = i
		Text(s)
	}
}

func BenchmarkAppendBlocks(b *testing.B) {
	var dst []uint64
	for range b.N {
		dst = AppendBlocks(dst[:0], []Segment{{1, 6000}, {2, 1200}}, 16)
	}
}
