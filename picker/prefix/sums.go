package prefix

import "math/bits"

// XXH64 of several chunks at once, for one alone is bound by one multiplication a cycle.
// The hash is that of xxhash's specification (doc/xxhash_spec.md, "XXH64 Algorithm Description").

// sumsAtOnce is of how many chunks.
const sumsAtOnce = 8

const (
	prime1 = 0x9E3779B185EBCA87
	prime2 = 0xC2B2AE3D27D4EB4F
	prime3 = 0x165667B19E3779F9
	prime4 = 0x85EBCA77C2B2AE63
)

// sums hashes sumsAtOnce chunks of size bytes, a multiple of 32, which b begins with. The machine has vectors.
func sums(b []byte, size int) (all [sumsAtOnce]uint64) {
	var lanes [sumsAtOnce][4]uint64
	lanesAVX512(&lanes, &b[:sumsAtOnce*size][0], size)
	for i := range lanes {
		all[i] = merge(&lanes[i], size)
	}
	return all
}

// merge is the hash of size bytes, a multiple of 32, of which the lanes end so.
func merge(lanes *[4]uint64, size int) uint64 {
	h := bits.RotateLeft64(lanes[0], 1) + bits.RotateLeft64(lanes[1], 7) + bits.RotateLeft64(lanes[2], 12) + bits.RotateLeft64(lanes[3], 18)
	for _, v := range lanes {
		h = (h^bits.RotateLeft64(v*prime2, 31)*prime1)*prime1 + prime4
	}
	h += uint64(size)
	h = (h ^ h>>33) * prime2
	h = (h ^ h>>29) * prime3
	return h ^ h>>32
}
