package proxy

import "testing"

func TestBufferClassesFitAndWasteLittle(t *testing.T) {
	last := -1
	for n := 1; n <= largestPooled; n += 1 + n/97 {
		class, size := bufferClass(n)
		if size < n || n > smallestBuffer && size > n+n/4+1 {
			t.Fatalf("%d bytes get a buffer of %d", n, size)
		}
		if class < last || class >= len(buffers) {
			t.Fatalf("%d bytes are of class %d, after %d", n, class, last)
		}
		if again, same := bufferClass(size); again != class || same != size {
			t.Fatalf("a buffer of %d is of class %d and of %d", size, class, again)
		}
		last = class
	}
	if class, _ := bufferClass(largestPooled); class != len(buffers)-1 {
		t.Errorf("the largest is of class %d of %d", class, len(buffers))
	}
}

// A body that was announced and does not come holds little of what all bodies share.
func TestAnnouncedBodyHoldsLittle(t *testing.T) {
	var shared budget
	shared.limit.Store(DefaultBufferLimit)
	for _, length := range []int64{100, 20_000, wholeSize, DefaultBodyLimit} {
		m := post("/", "{")
		m.head.ContentLength = length
		var b body
		if err := b.begin(m, DefaultBodyLimit, &shared); err != nil {
			t.Fatal(err)
		}
		if _, err := b.more(m); err != nil {
			t.Fatal(err)
		}
		if most := min(int64(bufferSize(int(length))), 4*smallestBuffer); shared.used.Load() > most {
			t.Errorf("of %d bytes one has come: %d are held, want %d at most", length, shared.used.Load(), most)
		}
		b.release()
	}
}
