package prefix

import "golang.org/x/sys/cpu"

// vectors tells whether the machine has what lanesAVX512 takes.
var vectors = cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL

// lanesAVX512 takes eight chunks of size bytes, a multiple of 32, that lie one behind the other from b on, to where the four lanes of XXH64
// of each of them end.
//
//go:noescape
func lanesAVX512(lanes *[sumsAtOnce][4]uint64, b *byte, size int)
