package prefix

import (
	"syscall"
	"unsafe"
)

// largePage is the size of the large pages that an address of Linux is mapped by in the second level of the page tables, on the
// architectures with pages of 4 KiB.
const largePage = 2 << 20

// leastLarge: smaller memory is not worth a large page.
const leastLarge = 128 << 10

// onLargePages asks the kernel to have memory on large pages, which others share that lie beside it. A look at one of many large tables is
// likely to miss the processor's cache of page addresses otherwise, which is as long a wait as that for the memory. Kernels that keep large
// pages for who asks ("madvise" in /sys/kernel/mm/transparent_hugepage/enabled, as distributions set it) give them at the first write, or in
// time where there was one.
func onLargePages[T any](s []T) {
	if size := uintptr(len(s)) * unsafe.Sizeof(s[0]); size >= leastLarge {
		from := uintptr(unsafe.Pointer(&s[0])) &^ (largePage - 1)
		to := (uintptr(unsafe.Pointer(&s[0])) + size + largePage - 1) &^ (largePage - 1)
		// A kernel that does not take the advice says so, and nothing is lost.
		syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_HUGEPAGE)
	}
}
