//go:build !linux

package main

// unmapProgram does nothing where it is not known what is mapped.
func unmapProgram() {}
