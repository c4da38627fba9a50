package account

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Whichever desks records wait on, those who ask hear of all of them, in order.
func TestDesksAreTold(t *testing.T) {
	const n = batch - 1 // no desk is full
	var out bytes.Buffer
	log, reg := NewLog(&out, Text), prometheus.NewRegistry()
	r := New(reg, Config{Access: log, Receipts: n})
	var want []string
	for i := range n {
		r.desks.idle.Get() // so that the next one gets another
		r.Done(picked(fmt.Sprint("id-", i), 2))
		want = append(want, fmt.Sprint("id-", i))
	}
	if got := tokens(series(t, reg)); got != 11*n {
		t.Errorf("%v tokens of %d requests are counted", got, n)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	if got := regexp.MustCompile(`id-\d+`).FindAllString(out.String(), -1); !slices.Equal(got, want) {
		t.Errorf("lines of %v", got)
	}
	slices.Reverse(want)
	if got := ids(r.Receipts(Query{})); !slices.Equal(got, want) {
		t.Errorf("receipts of %v", got)
	}
}
