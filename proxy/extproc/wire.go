package extproc

import (
	"errors"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages of external_processor.proto as the server's end reads and writes them:
// where they lie, without making anything of what nobody looks at. What is read is what
// generated code reads (FuzzWire), but that a part of a message that comes twice, to be
// merged, is refused: nobody writes that. Numbers are those of the fields there, and of
// google/protobuf/struct.proto and envoy/config/core/v3/base.proto.

// part says which of its parts a message has: in both directions, one.
type part = protowire.Number

// Parts of a ProcessingRequest.
const (
	inRequestHeaders   part = 2
	inResponseHeaders  part = 3
	inRequestBody      part = 4
	inResponseBody     part = 5
	inRequestTrailers  part = 6
	inResponseTrailers part = 7
)

// Parts of a ProcessingResponse.
const (
	toRequestHeaders   part = 1
	toResponseHeaders  part = 2
	toRequestBody      part = 3
	toResponseBody     part = 4
	toRequestTrailers  part = 5
	toResponseTrailers part = 6
	immediateResponse  part = 7
)

// partNames are for people.
var partNames = map[part]string{
	0: "nothing", inRequestHeaders: "request headers", inResponseHeaders: "response headers", inRequestBody: "a request's body",
	inResponseBody: "a response's body", inRequestTrailers: "request trailers", inResponseTrailers: "response trailers",
}

// bodyMode is ProcessingMode.BodySendMode.
type bodyMode int32

const (
	modeNone            bodyMode = 0
	modeStreamed        bodyMode = 1
	modeBuffered        bodyMode = 2
	modeBufferedPartial bodyMode = 3
	modeFullDuplex      bodyMode = 4
	modeGRPC            bodyMode = 5
)

func (m bodyMode) String() string {
	switch m {
	case modeNone:
		return "NONE"
	case modeStreamed:
		return "STREAMED"
	case modeBuffered:
		return "BUFFERED"
	case modeBufferedPartial:
		return "BUFFERED_PARTIAL"
	case modeFullDuplex:
		return "FULL_DUPLEX_STREAMED"
	case modeGRPC:
		return "GRPC"
	}
	return "unknown"
}

var errWire = errors.New("this is no message of external processing")

// fields goes through the fields of a message.
type fields struct {
	rest   []byte
	num    protowire.Number
	kind   protowire.Type
	bytes  []byte // of kind BytesType
	varint uint64 // of kind VarintType
	err    error
}

func (f *fields) next() bool {
	if len(f.rest) == 0 || f.err != nil {
		return false
	}
	num, kind, n := protowire.ConsumeTag(f.rest)
	if n < 0 {
		f.err = errWire
		return false
	}
	f.num, f.kind, f.rest = num, kind, f.rest[n:]
	switch kind {
	case protowire.VarintType:
		f.varint, n = protowire.ConsumeVarint(f.rest)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(f.rest)
	default: // nothing that matters
		n = protowire.ConsumeFieldValue(num, kind, f.rest)
	}
	if n < 0 {
		f.err = errWire
		return false
	}
	f.rest = f.rest[n:]
	return true
}

// message tells whether the field is that one, and holds bytes.
func (f *fields) message(num protowire.Number) bool {
	return f.num == num && f.kind == protowire.BytesType
}

// number tells whether the field is that one, and a number.
func (f *fields) number(num protowire.Number) bool {
	return f.num == num && f.kind == protowire.VarintType
}

// keep keeps a part of a message, of which there is one.
func (f *fields) keep(b *[]byte) {
	if *b != nil {
		f.err = errWire
		return
	}
	*b = f.bytes
}

// request is a ProcessingRequest. Its memory is that of the message.
type request struct {
	part     part   // 0: none that is known
	value    []byte // of the part
	metadata []byte // metadata_context
	config   []byte // protocol_config, nil for none
	observes bool   // observability_mode
}

func (r *request) read(b []byte) error {
	*r = request{}
	f := fields{rest: b}
	for f.next() {
		switch {
		case f.kind == protowire.BytesType && f.num >= inRequestHeaders && f.num <= inResponseTrailers:
			r.part = f.num
			f.keep(&r.value)
		case f.message(8):
			f.keep(&r.metadata)
		case f.number(10):
			r.observes = protowire.DecodeBool(f.varint)
		case f.message(11):
			f.keep(&r.config)
		}
	}
	return f.err
}

// modes reads ProtocolConfiguration.
func (r *request) modes() (m modes, err error) {
	f := fields{rest: r.config}
	for f.next() {
		switch {
		case f.number(1):
			m.request = bodyMode(f.varint)
		case f.number(2):
			m.response = bodyMode(f.varint)
		}
	}
	return m, f.err
}

// body reads HttpBody.
func (r *request) body() (body []byte, last bool, err error) {
	f := fields{rest: r.value}
	for f.next() {
		switch {
		case f.message(1):
			body = f.bytes
		case f.number(2):
			last = protowire.DecodeBool(f.varint)
		}
	}
	return body, last, f.err
}

// headers reads HttpHeaders or HttpTrailers, and tells of each field, whose memory is the
// message's.
func (r *request) headers(tell func(name, value []byte)) (last bool, err error) {
	f := fields{rest: r.value}
	for f.next() {
		switch {
		case f.message(1):
			list := fields{rest: f.bytes} // HeaderMap
			for list.next() {
				if !list.message(1) {
					continue
				}
				name, value, err := readHeader(list.bytes)
				if err != nil {
					return false, err
				}
				tell(name, value)
			}
			if list.err != nil {
				return false, list.err
			}
		case f.number(3):
			last = protowire.DecodeBool(f.varint)
		}
	}
	return last && r.part != inRequestTrailers && r.part != inResponseTrailers, f.err
}

// readHeader reads HeaderValue.
func readHeader(b []byte) (name, value []byte, err error) {
	var text []byte
	f := fields{rest: b}
	for f.next() {
		switch {
		case f.message(1):
			name = f.bytes
		case f.message(2):
			text = f.bytes
		case f.message(3):
			value = f.bytes
		}
	}
	if f.err != nil || !utf8.Valid(name) || !utf8.Valid(text) {
		return nil, nil, errWire
	}
	if len(value) == 0 {
		value = text
	}
	return name, value, nil
}

// lookUp finds filter_metadata[space].fields[key], a Value, in the metadata.
func (r *request) lookUp(space, key string) (value []byte, ok bool, err error) {
	s, ok, err := entry(r.metadata, space)
	if !ok || err != nil {
		return nil, false, err
	}
	return entry(s, key)
}

// entry finds a value of the map that is a message's field 1: the last one counts.
func entry(b []byte, key string) (value []byte, ok bool, err error) {
	f := fields{rest: b}
	for f.next() {
		if !f.message(1) {
			continue
		}
		var name, v []byte
		e := fields{rest: f.bytes}
		for e.next() {
			switch {
			case e.message(1):
				name = e.bytes
			case e.message(2):
				e.keep(&v)
			}
		}
		if e.err != nil {
			return nil, false, e.err
		}
		if string(name) == key {
			value, ok = v, true
		}
	}
	return value, ok, f.err
}

// readTexts reads a Value: a text, or a list of Values that are texts, of which it gives the
// first most. What is no text is the empty one.
func readTexts(value []byte, most int) (texts []string, isList bool, err error) {
	var list []byte
	text, err := readText(value, &list)
	if list == nil || err != nil {
		return []string{text}, false, err
	}
	items := fields{rest: list} // ListValue
	for items.next() {
		if !items.message(1) || len(texts) == most {
			continue
		}
		text, err := readText(items.bytes, nil)
		if err != nil {
			return nil, true, err
		}
		texts = append(texts, text)
	}
	return texts, true, items.err
}

// readText reads a Value that is a text, or gives a list's bytes to list, if that is not
// nil. Of several, the last one counts.
func readText(value []byte, list *[]byte) (text string, err error) {
	var lists []byte
	f := fields{rest: value}
	for f.next() {
		switch {
		case f.message(3) && utf8.Valid(f.bytes):
			text, lists = string(f.bytes), nil
		case f.message(3):
			return "", errWire
		case f.message(6):
			text = ""
			f.keep(&lists)
		case f.number(1), f.num == 2 && f.kind == protowire.Fixed64Type, f.number(4), f.message(5): // null, number, bool, struct
			text, lists = "", nil
		}
	}
	if list != nil {
		*list = lists
	}
	return text, f.err
}

// Writing. A message is written from its outside in: how long each part is, is known
// before.

// size is how many bytes a field of so many bytes takes. Numbers are below 16.
func size(n int) int { return 1 + protowire.SizeVarint(uint64(n)) + n }

// appendTag appends the tag and length of a field with n bytes.
func appendTag(b []byte, num part, n int) []byte {
	b = append(b, byte(num)<<3|byte(protowire.BytesType))
	return protowire.AppendVarint(b, uint64(n))
}

func appendText(b []byte, num part, s string) []byte {
	return append(appendTag(b, num, len(s)), s...)
}

func appendNumber(b []byte, num part, v uint64) []byte {
	return protowire.AppendVarint(append(b, byte(num)<<3|byte(protowire.VarintType)), v)
}

// appendNested appends the tags of fields, each of which is within the one before and
// nothing beside it there; the last has n bytes, which follow.
func appendNested(b []byte, n int, path ...part) []byte {
	for i := range path {
		inner := n
		for range path[i+1:] {
			inner = size(inner)
		}
		b = appendTag(b, path[i], inner)
	}
	return b
}

// appendHeadersResponse appends an answer to heads, which are to be changed so.
func appendHeadersResponse(b []byte, to part, m *mutation) []byte {
	return append(appendNested(b, len(m.list), to, 1, 2), m.list...) // HeadersResponse.response, CommonResponse.header_mutation
}

// appendStreamed appends an answer that puts n bytes, which follow, in the place of a
// piece of body.
func appendStreamed(b []byte, to part, n int, last bool) []byte {
	inner := 0
	if n > 0 {
		inner += size(n)
	}
	if last {
		inner += 2
	}
	b = appendNested(b, inner, to, 1, 3, 3) // BodyResponse.response, CommonResponse.body_mutation, BodyMutation.streamed_response
	if last {
		b = appendNumber(b, 2, 1)
	}
	if n > 0 {
		b = appendTag(b, 1, n)
	}
	return b
}

// appendBody appends an answer that puts n bytes, which follow, in the place of a body, and
// changes heads if m is not nil.
func appendBody(b []byte, to part, m *mutation, n int) []byte {
	inner := size(size(n)) // CommonResponse.body_mutation, BodyMutation.body
	if m != nil {
		inner += size(len(m.list))
	}
	b = appendNested(b, inner, to, 1)
	if m != nil {
		b = append(appendTag(b, 2, len(m.list)), m.list...)
	}
	return appendNested(b, n, 3, 1)
}

// appendImmediate appends an answer of our own, whose body of n bytes follows.
func appendImmediate(b []byte, status int, m *mutation, n int) []byte {
	code := appendNumber(nil, 1, uint64(status))
	b = appendTag(b, immediateResponse, size(len(code))+size(len(m.list))+size(n))
	b = append(appendTag(b, 1, len(code)), code...)
	b = append(appendTag(b, 2, len(m.list)), m.list...)
	return appendTag(b, 3, n)
}

// appendMetadata appends dynamic_metadata that has {space: {key: value}}.
func appendMetadata(b []byte, space, key, value string) []byte {
	text := size(len(value))                 // Value.string_value
	inner := size(len(key)) + size(text)     // an entry of Struct.fields
	object := size(size(inner))              // Value.struct_value
	outer := size(len(space)) + size(object) // an entry of Struct.fields
	b = appendNested(b, outer, 8, 1)         // ProcessingResponse.dynamic_metadata
	b = appendText(b, 1, space)
	b = appendNested(b, inner, 2, 5, 1)
	b = appendText(b, 1, key)
	b = appendNested(b, len(value), 2, 3)
	return append(b, value...)
}
