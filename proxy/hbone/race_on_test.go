//go:build race

package hbone

// raceEnabled: the race detector has sync.Pool drop what it is given now and then.
const raceEnabled = true
