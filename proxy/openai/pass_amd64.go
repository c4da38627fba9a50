package openai

import "golang.org/x/sys/cpu"

// vectors tells whether the machine has what passAVX2 takes.
var vectors = cpu.X86.HasAVX2

// passAVX2 passes over the inside of a string, 64 bytes at a time, up to a byte that
// ends it or is not allowed there, or to an escape that is not one of two bytes, or
// until fewer than 64 are left: at. What it found on the way is some of passed….
// Which backslashes escape is worked out as in Langdale and Lemire, "Parsing
// Gigabytes of JSON per Second" (2019), section 3.1.1.
//
//go:noescape
func passAVX2(b []byte) (at int, found uint64)
