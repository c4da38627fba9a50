package account

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What was counted of a pool that is gone is told for an hour, and forgotten then, in every metric and on every desk.
func TestPoolsThatAreGoneAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		r := New(reg, Config{})
		count := func(pool string) {
			for range 2 * batch { // on desks, and waiting there
				rec := told()
				rec.Pool = pool
				r.Done(rec)
			}
			rec := told()
			rec.Pool, rec.Shed, rec.Reason = pool, "saturated", ClientGone
			r.Done(rec)
			r.DoneTCP(rec)
		}
		named := func(pool string) (n int) {
			for name := range series(t, reg) {
				if strings.Contains(name, `pool="`+pool+`"`) {
					n++
				}
			}
			return n
		}
		all := func(names ...string) map[string]bool {
			live := make(map[string]bool)
			for _, name := range names {
				live[name] = true
			}
			return live
		}
		count("")
		count("a")
		time.Sleep(2 * keepPool)
		if named("a") == 0 {
			t.Error("forgotten though nobody said which pools there are")
		}
		r.SetPools(all("a", "b", "returns"))
		count("b")
		count("returns")
		of := named("b")
		time.Sleep(2 * keepPool)
		r.SetPools(all("a"))
		time.Sleep(keepPool - time.Second)
		if named("b") != of {
			t.Errorf("%d series of %d, less than an hour after the pool is gone", named("b"), of)
		}
		r.SetPools(all("a", "returns"))
		time.Sleep(time.Second)
		named("b") // read for the last time
		if n := named("b"); n != 0 || named("a") != of || named("returns") != of || named("") == 0 {
			t.Errorf("an hour after the pool is gone: %d series of it, %d, %d and %d of others", n, named("a"), named("returns"), named(""))
		}

		count("b") // a stream that has lasted for an hour
		if named("b") != of {
			t.Errorf("%d series of %d of a request that ends late", named("b"), of)
		}
		time.Sleep(keepPool)
		r.SetPools(all("a", "returns")) // also if nobody reads
		if n := len(r.pools.gone); n != 0 {
			t.Errorf("%d pools are remembered", n)
		}
		for _, d := range r.desks.all {
			if d.tally.pools["b"] != nil {
				t.Error("a desk has the pool that is gone")
			}
			for k := range d.tally.models {
				if k.pool == "b" {
					t.Error("a desk has its models")
				}
			}
		}
	})
}
