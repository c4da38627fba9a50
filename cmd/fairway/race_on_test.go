//go:build race

package main

// raceEnabled: the race detector watches, and takes its time.
const raceEnabled = true
