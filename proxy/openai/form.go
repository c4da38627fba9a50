package openai

import (
	"bytes"
	"unicode/utf8"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

const (
	// maxParts is Starlette's bound of the fields and of the files of a form.
	maxParts = 1000
	// maxPartFields and maxPartHead bound the head of a part: python-multipart takes
	// 8 fields of 4 KiB.
	maxPartFields = 8
	maxPartHead   = 4 << 10
)

// partHead starts a part that names the model.
const partHead = "\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n"

// ReadForm reads the body of a request that is a form (RFC 7578), given the value of
// its Content-Type. The error is an *[Error]; an error in the Content-Type is at byte
// 0. Neither must change while r is in use.
//
// What is read is what vLLM reads, by Starlette and python-multipart: of fields of
// one name the last wins; a part with a file name is a file, and can be no model; a
// model without text is none. Where parsers of forms differ, the form is refused: a
// preamble, an epilogue of more than empty lines, a line end in a part's head that is not CRLF, a folded
// line, an end without its boundary, the boundary followed by something else, an
// encoded part, parameters that are extended (RFC 8187) or unknown, except for
// filename* beside filename.
//
// Spans are the prompt, the file as a medium, and the language, in that order.
func (r *Request) ReadForm(kind Kind, contentType, body []byte) error {
	r.begin(kind, body)
	r.form = true
	var prompt, file, language []byte
	f := form{body: body}
	f.open(contentType)
	for f.next() {
		text := f.value
		if f.file {
			text = nil
		}
		switch string(f.name) {
		case "model":
			r.formModel(&f)
		case "stream":
			r.Stream = laxBool(text)
		case "stream_include_usage":
			r.StreamOptions, r.IncludeUsage = true, laxBool(text)
		case "max_completion_tokens":
			r.maxCompletion = laxCount(text)
		case "prompt":
			prompt = text
		case "language":
			language = text
		case "file":
			if file = nil; f.file {
				file = f.value
			}
		}
	}
	switch {
	case f.reason != "":
		return &Error{Offset: f.at, Reason: f.reason}
	case r.modelErr != "":
		return &Error{Offset: r.model[0], Param: "model", Reason: r.modelErr}
	}
	r.brace = f.last
	r.addForm(prompt, false)
	r.addForm(file, true)
	r.addForm(language, false)
	r.end()
	return nil
}

func (r *Request) addForm(data []byte, media bool) {
	if len(data) == 0 {
		return
	}
	span := prefix.Span{Data: data, Media: media}
	if media {
		r.Audios++
		span.Tokens = content64{text: data, plain: true, size: len(data)}.tokens(audioMedium)
		r.MediaTokens += span.Tokens
	}
	r.push(span)
}

// formModel takes the field that stands here for the model's.
func (r *Request) formModel(f *form) {
	r.Model, r.modelErr, r.hasModel = f.value, "", true
	r.model = [2]int{f.pos - len(f.value), f.pos}
	switch {
	case f.file:
		r.modelErr = "the model must be text, not a file"
	case len(f.value) > MaxModel:
		r.modelErr = "the name of the model is too long"
	case !utf8.Valid(f.value):
		r.modelErr = "the name of the model is not valid Unicode"
	}
}

// A form is walked part by part. The first failure is kept.
type form struct {
	body   []byte
	pos    int // the end of the value read last; there the delimiter stands
	parts  int
	last   int // where the closing delimiter starts
	at     int // where it failed
	reason string

	name, value []byte
	file        bool // it has a file name

	delimiter [4 + maxBoundary]byte // CRLF, two hyphens, the boundary
	size      int                   // of the delimiter
}

func (f *form) fail(at int, reason string) {
	if f.reason == "" {
		f.at, f.reason = at, reason
	}
}

// open reads the first boundary.
func (f *form) open(contentType []byte) {
	boundary, wrong := boundaryOf(contentType)
	if wrong != "" {
		f.fail(0, wrong)
		return
	}
	f.size = copy(f.delimiter[:], "\r\n--")
	f.size += copy(f.delimiter[f.size:], boundary)
	if !bytes.HasPrefix(f.body, f.delimiter[2:f.size]) {
		f.fail(0, "it does not start with the boundary that its Content-Type names")
		return
	}
	f.pos = -len("\r\n")
}

// next reads the next part into name, value and file, and tells whether there is one.
func (f *form) next() bool {
	if f.reason != "" {
		return false
	}
	b, at := f.body, f.pos+f.size // behind the boundary
	switch {
	case bytes.HasPrefix(b[at:], []byte("\r\n")):
		at += len("\r\n")
	case bytes.HasPrefix(b[at:], []byte("--")):
		f.last = f.pos
		at += len("--")
		if rest := b[at:]; len(rest)%2 != 0 || bytes.Count(rest, []byte("\r\n")) != len(rest)/2 {
			f.fail(at, "something follows the last boundary")
		} else if f.parts == 0 {
			f.fail(at, "it has no fields")
		}
		return false
	default:
		f.fail(at, "a boundary is followed by something else than CRLF or two hyphens")
		return false
	}
	if f.parts++; f.parts > maxParts {
		f.fail(at, "too many fields")
		return false
	}
	if at = f.head(at); f.reason != "" {
		return false
	}
	delimiter := f.delimiter[:f.size]
	if bytes.HasPrefix(b[at:], delimiter[2:]) {
		f.fail(at, "a boundary stands where a value should")
		return false
	}
	size := bytes.Index(b[at:], delimiter)
	if size < 0 {
		f.fail(len(b), "it ends without its last boundary")
		return false
	}
	f.pos = at + size
	f.value = b[at:f.pos]
	return true
}

// head reads the head of the part that starts at a byte, and gives where it ends.
func (f *form) head(at int) int {
	f.name, f.file = nil, false
	limit := min(at+maxPartHead, len(f.body))
	for fields := 0; ; fields++ {
		size := bytes.IndexByte(f.body[at:limit], '\n')
		if size < 0 {
			f.fail(limit, "the head of a part does not end, or is too long")
			return 0
		}
		line, ok := bytes.CutSuffix(f.body[at:at+size], []byte("\r"))
		switch {
		case !ok || !printable(line):
			f.fail(at, "a line in the head of a part holds control characters or does not end in CRLF")
		case len(line) == 0:
			if f.name == nil {
				f.fail(at, "a part has no name")
			}
			return at + size + 1
		case fields == maxPartFields:
			f.fail(at, "the head of a part has too many fields")
		default:
			if wrong := f.field(line); wrong != "" {
				f.fail(at, wrong)
			}
		}
		if f.reason != "" {
			return 0
		}
		at += size + 1
	}
}

// field reads one field of a part's head, and says what is wrong with it.
func (f *form) field(line []byte) (wrong string) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) == 0 || tokenLen(name) < len(name) {
		return "a line in the head of a part is no field"
	}
	switch {
	case bytes.EqualFold(name, []byte("content-disposition")):
		if f.name != nil {
			return "a part has two Content-Dispositions"
		}
		return f.disposition(value)
	case bytes.EqualFold(name, []byte("content-transfer-encoding")):
		// RFC 7578, section 4.7, wants none; the server does not look at it.
		for _, same := range [...]string{"7bit", "8bit", "binary"} {
			if bytes.EqualFold(trim(value), []byte(same)) {
				return ""
			}
		}
		return "a part is encoded"
	}
	return ""
}

// disposition reads a Content-Disposition.
func (f *form) disposition(value []byte) (wrong string) {
	what, rest := cutValue(value)
	if !bytes.EqualFold(what, []byte("form-data")) {
		return "a part is no form-data"
	}
	extended := false
	for len(rest) > 0 {
		var p param
		if p, rest = cutParam(rest); p.name == nil {
			return "a Content-Disposition cannot be read"
		}
		switch {
		case bytes.EqualFold(p.name, []byte("name")) && f.name == nil && bytes.IndexByte(p.value, '\\') < 0:
			f.name = p.value
		case bytes.EqualFold(p.name, []byte("filename")) && !f.file:
			f.file = true
		case bytes.EqualFold(p.name, []byte("filename*")) && !extended:
			extended = true
		default:
			return "a Content-Disposition has a parameter that is unknown, repeated or escaped"
		}
	}
	switch {
	case f.name == nil:
		return "a part has no name"
	case extended && !f.file:
		return "a part has a filename* and no filename"
	}
	return ""
}
