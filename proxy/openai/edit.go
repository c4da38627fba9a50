package openai

import "bytes"

// edit replaces body[start:end] by insert.
type edit struct {
	start, end int
	insert     []byte
}

const (
	nextModel = `,"model":`
	nextSalt  = `,"cache_salt":`
)

var askUsage = []byte(`,"stream_options":{"include_usage":true}`)

// InjectUsage has the edited body ask for the usage of a stream, and tells whether
// it does: only for a stream of chat or completions whose body says nothing of
// stream_options, not for a form. When it does, the event that holds nothing but the usage is not
// the client's; see [Events].
func (r *Request) InjectUsage() bool {
	if r.cut || r.form || !r.Stream || r.StreamOptions || !r.Kind.usageOnRequest() {
		return false
	}
	r.askUsage = true
	return true
}

// ReplaceModel has the edited body name another model, written as the body writes it:
// quoted in JSON, as it is in a form, where it must hold no line break. A body without
// a model gets one. A later call replaces an earlier one; an empty name takes it back.
func (r *Request) ReplaceModel(name string) {
	r.renamed = r.renamed[:0]
	if name == "" || r.cut && !r.hasModel {
		return
	}
	switch {
	case r.form && r.hasModel:
		r.renamed = append(r.renamed, name...)
		return
	case r.form:
		r.renamed = append(r.renamed, "\r\n"...)
		r.renamed = append(r.renamed, r.body[:bytes.IndexByte(r.body, '\r')]...) // the boundary
		r.renamed = append(r.renamed, partHead...)
		r.renamed = append(r.renamed, name...)
		return
	case r.hasModel:
	case r.empty:
		r.renamed = append(r.renamed, nextModel[1:]...)
	default:
		r.renamed = append(r.renamed, nextModel...)
	}
	r.renamed = AppendQuoted(r.renamed, name)
}

// ReplaceSalt has the edited body say that cache_salt, in place of one of its own, if
// the server keeps what it has computed for a request of this kind apart by it. The salt
// is written as it is, between quotes. A later call replaces an earlier one; an empty
// salt takes it back. It is for a body that was read whole.
func (r *Request) ReplaceSalt(salt string) {
	r.salted = r.salted[:0]
	if salt == "" || r.cut || r.form || !r.Kind.salted() {
		return
	}
	if !r.hasSalt {
		r.salted = append(r.salted, nextSalt...)
	}
	r.salted = append(r.salted, '"')
	r.salted = append(r.salted, salt...)
	r.salted = append(r.salted, '"')
}

// AppendSegments appends the edited body, cut into segments that are to be sent one
// after the other: seven at most, the body as it is when nothing was edited. The
// body is the one that was read, or a copy of it.
func (r *Request) AppendSegments(dst [][]byte, body []byte) [][]byte {
	at := 0
	edits, n := r.edits()
	for _, e := range edits[:n] {
		if e.start > at {
			dst = append(dst, body[at:e.start])
		}
		dst = append(dst, e.insert)
		at = e.end
	}
	return append(dst, body[at:])
}

// Len is the length of the edited body.
func (r *Request) Len() int {
	n := len(r.body)
	edits, count := r.edits()
	for _, e := range edits[:count] {
		n += len(e.insert) - (e.end - e.start)
	}
	return n
}

// edits gives the n edits in order.
func (r *Request) edits() (list [3]edit, n int) {
	add := func(start, end int, insert []byte) {
		at := n
		for ; at > 0 && list[at-1].start > start; at-- {
			list[at] = list[at-1]
		}
		list[at] = edit{start, end, insert}
		n++
	}
	switch {
	case len(r.renamed) == 0:
	case r.hasModel:
		add(r.model[0], r.model[1], r.renamed)
	default:
		add(r.brace, r.brace, r.renamed)
	}
	if r.askUsage {
		add(r.brace, r.brace, askUsage)
	}
	switch {
	case len(r.salted) == 0:
	case r.hasSalt:
		add(r.salt[0], r.salt[1], r.salted)
	case r.empty && len(r.renamed) == 0:
		add(r.brace, r.brace, r.salted[1:])
	default:
		add(r.brace, r.brace, r.salted)
	}
	return list, n
}
