//go:build !amd64

package prefix

const vectors = false

func lanesAVX512(*[sumsAtOnce][4]uint64, *byte, int) { panic("no vectors here") }
