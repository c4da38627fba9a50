// Package extproc is the Endpoint Picker Protocol of the Gateway API Inference
// Extension (docs/proposals/004-endpoint-picker-protocol there): Envoy's external
// processing (envoy/service/ext_proc/v3/external_processor.proto) with a
// destination as its answer.
//
// The server's end makes each processed request a Stream: a request whose two
// ends another proxy holds. To whoever serves it, it looks like a request that
// came in by HTTP: its head, its body, an answer to be written; and, once Direct
// has named its destination, like the connection to the endpoint too: the request
// is sent, the answer's head and body are read. What is sent and what is read
// pass through the proxy, which does the forwarding.
//
// The client's end asks a picker where a request goes: Client.Ask gives a Ruling.
//
// Bodies are taken in the modes FULL_DUPLEX_STREAMED, which the protocol asks for,
// and BUFFERED; answers also in STREAMED, and without their bodies.
package extproc
