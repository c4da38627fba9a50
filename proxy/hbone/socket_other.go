//go:build !unix

package hbone

// writeNow writes nothing: there is no writing without waiting here.
func (c *conn) writeNow([]byte) (int, error) { return 0, nil }
