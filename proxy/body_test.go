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
