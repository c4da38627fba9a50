// Package rpc is the server's end of gRPC over HTTP/2 (doc/PROTOCOL-HTTP2.md of
// grpc/grpc), for calls that are conversations of many short messages under load:
// what Envoy's external processing is.
//
// Messages are bytes; what they mean is the handler's to know. What is said in a call
// leaves when its handler begins to listen, or ends, together with what other calls of
// the connection have to say then: a question and its answer are one system call
// each, or less. A message is read where it was received.
//
// A call's deadline (grpc-timeout) is its client's to keep, who resets the call then.
// Compressed messages are not understood, and none are sent.
//
// A connection has one goroutine, which reads; each call has one, the handler's. A
// connection's lock guards what is sent and the windows of both sides for that, a
// call's lock what it has received; the call's is never held while the other is
// taken.
package rpc
