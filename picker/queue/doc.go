// Package queue decides which requests an overloaded pool serves, which wait and which are refused.
//
// A request is offered before its endpoint is picked, and picked in the step that lets it go, with the load of that moment (late
// binding). While nobody waits and the endpoint of choice has room, that is one Pick. Otherwise it waits until
//
//   - nobody of a higher priority waits: bands are strict, but for Config.LowerShare;
//   - it is the turn of its flow: flows of one band share tokens by start-time fair queuing, alone a flow gets everything;
//   - the endpoint of choice has room: few enough tokens whose first token has not come, and KV cache left for what the request will
//     take, its answer included (picker.Room). A priority that others outrank leaves more room free, so that those find short queues.
//
// It is refused if that cannot be in time, and as soon as this is known: priorities below 0 wait for a moment only; a client's
// own time limit may be over before its first token would come; as many wait as may, and none of a lower priority whose place it
// could take; or it has waited for as long as it may. A Refusal says when to come again, by how fast the band drains.
//
//	Offer(request, now) ─► Lease | Ticket | *Refusal        Leave(ticket)  a client has gone
//	Wake(now) ─► tickets, each with its Lease or *Refusal    Next()         when to call Wake at the latest
//
// Budgets bound how many tokens a minute somebody gets of a model: they take what a request is expected to cost, and settle what it
// has cost.
//
// Nothing here reads a clock, starts a goroutine or knows who waits in what way: a proxy parks a goroutine for each ticket, a
// simulation keeps it in a heap. The memory is bounded by Config.Requests, that of what waits by Config.Bytes.
package queue
