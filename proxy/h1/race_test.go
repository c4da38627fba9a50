//go:build race

package h1

// The race detector has sync.Pool drop what it is given now and then.
func init() { poolsLose = true }
