package account

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// picked is a record of a request for which n endpoints were weighed; the second is chosen, the first comes next.
func picked(id string, n int) *Record {
	rec := told()
	rec.ID, rec.Endpoint = id, "10.0.0.1:8000"
	rec.Pick.At, rec.Pick.Queued, rec.Pick.PredictedTTFT = 8*time.Millisecond, 5*time.Millisecond, 80*time.Millisecond
	rec.Pick.DecidedBy, rec.Pick.Weighed, rec.Pick.Chosen, rec.Pick.Next = "cache", n, min(1, n-1), 0
	for i := range n {
		rec.Pick.Candidates = append(rec.Pick.Candidates, Candidate{
			Endpoint: fmt.Sprintf("10.0.0.%d:8000", i), Score: []float32{.5, .1, .9}[i%3], Queue: .25, Prompt: .125, Adapter: .0625, Inflicted: .03125, Pressure: 1.5, Price: 2,
			HitTokens: 64, UncachedTokens: 36, QueuedTokens: 70, Requests: 2.5, KV: .4, SecondsPerToken: 25e-6, Home: i == 2,
		})
	}
	return rec
}

func recorder(receipts int) *Recorder {
	return New(prometheus.NewRegistry(), Config{Receipts: receipts, Replica: "fairway-0"})
}

func ids(all []Receipt) (ids []string) {
	for _, r := range all {
		ids = append(ids, r.ID)
	}
	return ids
}

func TestReceiptTellsAll(t *testing.T) {
	r := recorder(0)
	rec := picked("the-id", 3)
	rec.Criticality, rec.Shed, rec.Trace.ID = Sheddable, "saturated", [16]byte{0xab, 15: 0xcd}
	rec.Pick.Shadow = Shadow{Policy: "round-robin", Endpoint: "10.0.0.2:8000", FirstToken: .75, Chosen: .25}
	rec.Pick.Fail("10.0.0.9:8000", 3*time.Millisecond, errors.New("connection refused"))
	r.Done(rec)
	got := r.Receipts(Query{})
	if len(got) != 1 {
		t.Fatalf("%d receipts", len(got))
	}
	const want = `{"receipt":"the-id@fairway-0","id":"the-id","replica":"fairway-0","seq":1,"time":"2001-09-09T01:46:40Z",` +
		`"method":"POST","path":"/v1/chat/completions","model":"the-model","pool":"the-pool","endpoint":"10.0.0.1:8000","stream":true,` +
		`"code":200,"reason":"the-reason","criticality":"sheddable","shed":"saturated","trace_id":"ab0000000000000000000000000000cd","retries":1,"tried":[{"endpoint":"10.0.0.9:8000","at_s":0.003,"why":"connection refused"}],` +
		`"duration_s":1.234567,"picked_s":0.008,"queued_s":0.005,` +
		`"predicted":{"ttft_s":0.08,"prompt_tokens":14,"cached_tokens":15},` +
		`"actual":{"ttft_s":0.090765,"tpot_s":0.094650166,"prompt_tokens":11,"cached_tokens":12,"completion_tokens":13},` +
		`"decided_by":"cache","next":"10.0.0.0:8000","margin_s":0.4,"shadow":{"policy":"round-robin","endpoint":"10.0.0.2:8000","regret_s":0.5},"weighed":3,"candidates":[` +
		`{"endpoint":"10.0.0.1:8000","chosen":true,"score_s":0.1,` + same + `,"home":false},` +
		`{"endpoint":"10.0.0.0:8000","chosen":false,"score_s":0.5,` + same + `,"home":false},` +
		`{"endpoint":"10.0.0.2:8000","chosen":false,"score_s":0.9,` + same + `,"home":true}]}`
	got[0].Time = got[0].Time.UTC()
	text, err := json.Marshal(got[0])
	if err != nil || string(text) != want {
		t.Errorf("got  %s\nwant %s\n%v", text, want, err)
	}
	var back Receipt
	if err := json.Unmarshal(text, &back); err != nil || back.ID != "the-id" || *back.Actual.TTFT != *got[0].Actual.TTFT {
		t.Errorf("read back: %+v, %v", back, err)
	}
}

const same = `"queue_s":0.25,"prompt_s":0.125,"adapter_s":0.0625,"inflicted_s":0.03125,"kv_pressure":1.5,"price":2,` +
	`"hit_tokens":64,"uncached_tokens":36,"queued_tokens":70,"requests":2.5,"kv_usage":0.4,"seconds_per_token":0.000025`

// What is not known is not there, and nothing is something else than not known.
func TestReceiptOfNothing(t *testing.T) {
	r := recorder(0)
	var rec Record
	rec.Reset()
	r.Done(&rec)
	r.Done(new(Record)) // whoever makes one without Reset
	got := r.Receipts(Query{})
	if len(got) != 2 || got[1].Predicted != (Outcome{}) || got[1].Actual != (Outcome{}) || got[1].Next != "" || got[1].Candidates != nil {
		t.Errorf("%+v", got)
	}
	if got[0].Actual.PromptTokens == nil || *got[0].Actual.PromptTokens != 0 || got[0].Margin != nil {
		t.Errorf("%+v", got[0])
	}
}

func TestReceiptsAreTheLast(t *testing.T) {
	for _, tt := range []struct{ keep, done, want int }{{0, 3, 3}, {4, 4, 4}, {4, 5, 4}, {4, 11, 4}, {-1, 3, 0}} {
		r := recorder(tt.keep)
		for i := range tt.done {
			r.Done(picked(fmt.Sprint(i), 2))
		}
		var want []string
		for i := range tt.want {
			want = append(want, fmt.Sprint(tt.done-1-i))
		}
		if got := ids(r.Receipts(Query{})); !slices.Equal(got, want) {
			t.Errorf("%d kept of %d: %v, want %v", tt.keep, tt.done, got, want)
		}
	}
}

func TestReceiptsQueried(t *testing.T) {
	r := recorder(0)
	for i, change := range []func(*Record){
		func(*Record) {},
		func(rec *Record) { rec.Model = "other" },
		func(rec *Record) { rec.Pool = "elsewhere" },
		func(rec *Record) { rec.Endpoint = "10.0.0.2:8000" },
		func(rec *Record) { rec.Pick.Fail("10.0.0.2:8000", 0, errors.New("reset")) },
		func(rec *Record) { rec.ID = "0" }, // as a client may name two
	} {
		rec := picked(fmt.Sprint(i), 2)
		change(rec)
		r.Done(rec)
	}
	for _, tt := range []struct {
		q    Query
		want []string
	}{
		{Query{}, []string{"0", "4", "3", "2", "1", "0"}},
		{Query{Limit: 2}, []string{"0", "4"}},
		{Query{ID: "0"}, []string{"0", "0"}},
		{Query{ID: "0@fairway-0", Limit: 1}, []string{"0"}},
		{Query{ID: "0@fairway-1"}, nil},
		{Query{ID: "7"}, nil},
		{Query{Model: "other"}, []string{"1"}},
		{Query{Pool: "elsewhere"}, []string{"2"}},
		{Query{Endpoint: "10.0.0.2:8000"}, []string{"4", "3"}},
		{Query{Endpoint: "10.0.0.2:8000", Model: "other"}, nil},
	} {
		if got := ids(r.Receipts(tt.q)); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %v, want %v", tt.q, got, tt.want)
		}
	}
}

// What a stranger says takes up no more room than it may, and no receipt changes when its record is used again.
func TestReceiptsAreBoundedCopies(t *testing.T) {
	r := recorder(2)
	long := strings.Repeat("é", 1<<20)
	rec := picked(long, 2)
	for _, text := range []*string{&rec.ID, &rec.Method, &rec.Path, &rec.Model, &rec.Remote, &rec.Peer, &rec.Service, &rec.Principal, &rec.Reason} {
		*text = long
	}
	for range 100 {
		rec.Pick.Fail("x", 0, errors.New(long))
	}
	r.Done(rec)
	rec.Pick.Candidates[0].Endpoint = "another"
	rec.Pick.Tried[0].Endpoint = "another"
	got := r.Receipts(Query{})[0]
	if strings.Contains(got.Candidates[1].Endpoint+got.Tried[0].Endpoint, "another") {
		t.Error("the receipt has changed with its record")
	}
	text, _ := json.Marshal(got)
	if len(text) > 32*maxText {
		t.Errorf("a receipt of %d bytes", len(text))
	}
	held := &r.receipts.slots[0].kept
	for i, text := range []string{held.id, held.method, held.path, held.model, held.rare.reason} {
		if len(text) > maxText+4 {
			t.Errorf("text %d: %d bytes", i, len(text))
		}
	}
	if len(held.rare.tried) != maxTried {
		t.Errorf("%d attempts are kept", len(held.rare.tried))
	}
}

func TestReceiptAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector")
	}
	r := recorder(16)
	rec := picked("id", 8)
	rec.Pick.Fail("10.0.0.9:8000", 0, errors.New("refused"))
	for range 16 * batch {
		r.Done(rec)
	}
	if n := testing.AllocsPerRun(100, func() { r.Done(rec) }); n != 0 {
		t.Errorf("%v allocations a receipt", n)
	}
}

// Receipts are kept and read by everybody at once.
func TestReceiptsConcurrently(t *testing.T) {
	r := recorder(8)
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 500 {
				r.Done(picked(fmt.Sprint(w, "-", i), 1+i%5))
			}
		})
		all.Go(func() {
			for range 200 {
				for _, got := range r.Receipts(Query{}) {
					if got.Weighed != len(got.Candidates) || got.Weighed > 1 && math.Abs(*got.Margin-.4) > 1e-9 {
						t.Errorf("mixed up: %+v", got)
					}
				}
			}
		})
	}
	all.Wait()
	if got := r.Receipts(Query{}); len(got) != 8 {
		t.Errorf("%d receipts", len(got))
	}
}

func BenchmarkReceipt(b *testing.B) {
	r := recorder(0)
	rec := picked("id", 8)
	b.ReportAllocs()
	for b.Loop() {
		r.Done(rec)
	}
}
