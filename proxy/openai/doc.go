// Package openai reads what a request to an OpenAI-compatible server asks for and
// what the answer says, and writes error bodies in the same form.
//
// Requests: [Request.Read] walks the raw body once, whatever the order of its keys,
// and yields the model, the options a proxy needs and the prompt as spans of the
// body in the order in which a chat template uses them. Nothing is unescaped,
// copied or built into a tree. What is read is what vLLM reads, which parses with
// Python's json module: of duplicate keys the last wins, at every level; keys and
// the model may be escaped; NaN and Infinity are numbers; a UTF-8 byte order mark is
// ignored. Whatever is not JSON by those rules is refused with an [Error], so that
// no request is ever routed by a model that its server would not read. Three things
// are left to the server to judge, because nothing here depends on them: whether
// text other than keys and the model is valid UTF-8, whether members have the right
// type (except the model), and limits such as the range of an integer. UTF-16 and
// UTF-32, which Python would detect, are refused.
//
// [Request.ReadForm] does the same for the forms that carry sound, and
// [Request.ReadStart] for the start of a JSON body whose rest has not arrived.
//
// Answers: [Events] watches server-sent events and [Body] one JSON document as the
// pieces pass, however they are cut, for the first token, the usage and failures.
//
// No value here is safe for concurrent use; each belongs to one exchange at a time
// and may be used again for the next. The hot paths allocate nothing once their
// buffers have grown, and what they keep is bounded whatever a stranger sends.
package openai
