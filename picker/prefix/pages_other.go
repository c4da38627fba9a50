//go:build !linux

package prefix

// onLargePages does nothing where it is not known how to ask for large pages.
func onLargePages[T any]([]T) {}
