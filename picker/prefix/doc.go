// Package prefix knows which pod holds how much of a prompt in its KV cache.
//
// A prompt's bytes, in the order of the pod's chat template, are cut into chunks, of 256 bytes
// at first and of larger ones farther in. Each chunk's hash is chained to the one before, so that one number stands for a
// whole prefix:
//
//	spans   "You are…" | "What is…" | <image> | …         raw bytes in the request's body, never copied
//	stream  You are…\xff What is…\xff hash8\xfe …         separators keep ["ab","c"] apart from ["a","bc"]
//	                                                     a medium is as long as text of so many tokens
//	chunks  [   256   ][   256   ][   256   ][ rest ]     the rest has no hash
//	chain   h0 = Link(seed, xx(c0))   h1 = Link(h0, xx(c1))   h2 = Link(h1, xx(c2))
//
// An Index approximates one pod's own cache, which drops the least recently used blocks, the tail of a prompt before its
// head. It maps a chunk's hash to a stamp of an allocation clock, the number of tokens the pod has computed (prompt and
// generated), and to a count of pins, the requests in flight that use the chunk:
//
//	a chunk is alive  ⇔  it is pinned, or clock − stamp < window     window = tokens of cache that are not in use
//
// An index is bounded in bytes, 16 a slot and 32 to 64 for each chunk of the pod's cache. A Census tells of many indexes at once which may
// hold a chunk, for two to eight bytes more a slot, so that a chain is looked for in each of them only where its prefix is likely to end. Readers
// never wait for a writer: each slot is two atomic words. Writers exclude each other by a mutex per index. The package reads no clock and
// allocates only when a table is made.
package prefix
