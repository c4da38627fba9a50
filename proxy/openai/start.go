package openai

import "bytes"

// MinStart is how many bytes of prompt are enough to choose by: some 16,000 tokens.
const MinStart = 64 << 10

// ReadStart reads the start of a JSON body of which the rest has not arrived, from
// its first byte on, and tells whether what can be known by then is enough to choose
// by: the model has been named, and the spans have MinStart bytes of text. An error is
// what no continuation can mend. Each call starts over, so that reading again is for
// when there is much more to read. Follow it with [Request.ReadRest] once the body is
// whole, or with Read.
//
// All fields are what a body would say that ends here: a text that is cut off is a
// span up to the cut, and a medium is none until it is complete. The rest may change
// them. As for the prompt, Spans are a prefix of those of the whole body, but for the
// last, unless
//   - tools, documents, system text or a cache salt come behind the messages,
//   - a key comes a second time, with another value, or
//   - the role comes behind the content in the message where the cut is, and is not
//     the user's.
//
// That only costs a better choice. It is not so for the model, which must not be one
// thing here and another for the server: ReadRest sees to that.
//
// Until then ReplaceModel and AppendSegments work, on any longer start too, if the
// model has been named; Len is the edited start's. InjectUsage waits for the rest.
func (r *Request) ReadStart(kind Kind, start []byte) (known bool, err error) {
	r.begin(kind, start)
	r.cut = true
	if bytes.HasPrefix(byteOrderMark, start) {
		r.end()
		return false, nil
	}
	r.walk()
	s := &r.scan
	if s.failed() && !s.cut() {
		return false, &Error{Offset: s.at, Reason: s.reason}
	}
	r.cut = s.failed()
	if r.modelErr != "" {
		if !r.cut {
			return false, &Error{Offset: r.model[0], Param: "model", Reason: r.modelErr}
		}
		r.Model, r.hasModel = nil, false // a second one may mend it
	}
	r.end()
	return r.hasModel && r.TextBytes >= MinStart, nil
}

// ReadRest is [Request.Read] of the whole body after ReadStart has read its start. If
// that named a model, it is an error for the body to name another.
func (r *Request) ReadRest(body []byte) error {
	var buf [MaxModel]byte
	named := append(buf[:0], r.Model...)
	known := r.hasModel
	if err := r.Read(r.Kind, body); err != nil {
		return err
	}
	if known && !bytes.Equal(named, r.Model) {
		return &Error{Offset: r.model[0], Param: "model", Reason: "the model is named a second time, differently"}
	}
	return nil
}
