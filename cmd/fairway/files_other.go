//go:build !unix

package main

// maxConnections is how many client connections are held unless told otherwise; 0: any
// number.
func maxConnections() int { return 0 }
