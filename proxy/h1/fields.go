package h1

import (
	"bytes"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// kind is what a field name means to this package.
type kind uint8

const (
	endToEnd kind = iota // nothing: it is passed on
	host
	contentLength
	transferEncoding
	connection
	expect
	trailer
	upgrade
	hopByHop // taken out: RFC 9110 section 7.6.1
)

// kindOf knows the few names by length and first letter.
func kindOf(name []byte) kind {
	switch len(name) {
	case 2:
		if foldEqual(name, "te") {
			return hopByHop
		}
	case 4:
		if foldEqual(name, "host") {
			return host
		}
	case 6:
		if name[0]|0x20 == 'e' && foldEqual(name, "expect") {
			return expect
		}
	case 7:
		switch name[0] | 0x20 {
		case 'u':
			if foldEqual(name, "upgrade") {
				return upgrade
			}
		case 't':
			if foldEqual(name, "trailer") {
				return trailer
			}
		}
	case 10:
		switch name[0] | 0x20 {
		case 'c':
			if foldEqual(name, "connection") {
				return connection
			}
		case 'k':
			if foldEqual(name, "keep-alive") {
				return hopByHop
			}
		}
	case 14:
		if foldEqual(name, "content-length") {
			return contentLength
		}
	case 16:
		if foldEqual(name, "proxy-connection") {
			return hopByHop
		}
	case 17:
		if foldEqual(name, "transfer-encoding") {
			return transferEncoding
		}
	}
	return endToEnd
}

const (
	maxFields    = 200 // header fields of one message
	maxNominated = 16  // fields named by Connection
)

// head is what is parsed of either kind of message: its fields, and what they
// say of framing and of the connection. It is filled line by line; reset makes
// it ready for the next message and keeps its memory.
type head struct {
	fields    []message.Field
	count     int      // field lines seen, those consumed included
	nominated [][]byte // names in Connection other than close, keep-alive and upgrade
	host      []byte
	upgrade   []byte // the protocol asked for, or switched to, if Connection says upgrade
	length    int64  // the Content-Length, -1 without one
	hasHost   bool
	chunked   bool
	close     bool // Connection says close
	keepAlive bool // Connection says keep-alive
	upgrades  bool // Connection says upgrade
	expects   bool // Expect is 100-continue
	response  bool
}

func (h *head) reset(fields []message.Field, response bool) {
	*h = head{fields: fields[:0], nominated: h.nominated[:0], length: -1, response: response}
}

// splitField cuts a line, without its CRLF, into name and value.
func splitField(line []byte) (name, value []byte, err *ProtocolError) {
	i := 0
	for i < len(line) && message.IsToken(line[i]) {
		i++
	}
	if i == 0 || i == len(line) || line[i] != ':' {
		if line[0] == ' ' || line[0] == '\t' {
			return nil, nil, errFold
		}
		return nil, nil, errName
	}
	value = trimSpace(line[i+1:])
	if !message.ValidValue(value) {
		return nil, nil, errValue
	}
	return line[:i], value, nil
}

// add takes one field line, which is not empty and has no CRLF.
func (h *head) add(line []byte) *ProtocolError {
	if h.count++; h.count > maxFields {
		return errFieldCount
	}
	name, value, err := splitField(line)
	if err != nil {
		return err
	}
	switch kindOf(name) {
	case endToEnd:
		h.fields = append(h.fields, message.Field{Name: name, Value: value})
	case host:
		if h.response {
			return nil
		}
		if h.hasHost {
			return errHostTwice
		}
		h.host, h.hasHost = value, true
	case contentLength:
		if h.length >= 0 {
			return errLengthTwice
		}
		if h.length = parseLength(value); h.length < 0 {
			return errLength
		}
	case transferEncoding:
		if h.chunked {
			return errCodingTwice
		}
		if !foldEqual(value, "chunked") {
			return errCoding
		}
		h.chunked = true
	case connection:
		return h.nominate(value)
	case expect:
		if h.expects = foldEqual(value, "100-continue"); !h.expects && !h.response {
			return errExpect
		}
	case upgrade:
		if h.upgrade == nil {
			h.upgrade = protocol(value)
		}
	case trailer:
		// A response's is passed on with its trailers; a request's body may be
		// sent on with a Content-Length, which leaves no place for them.
		if h.response {
			h.fields = append(h.fields, message.Field{Name: name, Value: value})
		}
	}
	return nil
}

// nominate reads the value of a Connection field.
func (h *head) nominate(value []byte) *ProtocolError {
	for len(value) > 0 {
		i := 0
		for i < len(value) && value[i] != ',' {
			i++
		}
		option := trimSpace(value[:i])
		value = value[min(i+1, len(value)):]
		switch {
		case len(option) == 0:
		case foldEqual(option, "close"):
			h.close = true
		case foldEqual(option, "keep-alive"):
			h.keepAlive = true
		case foldEqual(option, "upgrade"):
			h.upgrades = true
		case !message.ValidToken(option) || len(h.nominated) == maxNominated:
			return errConnection
		case kindOf(option) == endToEnd:
			h.nominated = append(h.nominated, option)
		}
	}
	return nil
}

// protocol gives the first of the protocols in an Upgrade field that a tunnel of
// bytes may carry, nil without one. Nothing that is HTTP may, such as h2c: its
// requests would pass unread. A name that is malformed ends the list.
func protocol(value []byte) []byte {
	for len(value) > 0 {
		option := value
		if i := bytes.IndexByte(value, ','); i >= 0 {
			option, value = value[:i], value[i+1:]
		} else {
			value = nil
		}
		option = trimSpace(option)
		name, version, versioned := bytes.Cut(option, []byte("/"))
		switch {
		case len(option) == 0:
		case !message.ValidToken(name) || versioned && !message.ValidToken(version):
			return nil
		case !foldEqual(name, "h2c") && !foldEqual(name, "h2") && !foldEqual(name, "http"):
			return option
		}
	}
	return nil
}

// finish checks what only the whole head can tell, and drops the fields that
// Connection named.
func (h *head) finish(minor int) *ProtocolError {
	if h.chunked {
		if h.length >= 0 {
			return errLengthAndCoding
		}
		if minor == 0 {
			return errCodingOld
		}
	}
	if !h.upgrades || minor == 0 { // RFC 9110 section 7.8
		h.upgrade = nil
	}
	if len(h.nominated) == 0 {
		return nil
	}
	kept := h.fields[:0]
	for _, f := range h.fields {
		if !h.isNominated(f.Name) {
			kept = append(kept, f)
		}
	}
	h.fields = kept
	return nil
}

func (h *head) isNominated(name []byte) bool {
	for _, n := range h.nominated {
		if len(n) == len(name) && foldBoth(n, name) {
			return true
		}
	}
	return false
}

// persistent tells whether the sender will keep the connection open.
func (h *head) persistent(minor int) bool {
	return !h.close && (minor >= 1 || h.keepAlive)
}

// foldBoth compares two tokens of the same length by ASCII folding.
func foldBoth(a, b []byte) bool {
	for i := range a {
		x, y := a[i], b[i]
		if 'A' <= x && x <= 'Z' {
			x |= 0x20
		}
		if 'A' <= y && y <= 'Z' {
			y |= 0x20
		}
		if x != y {
			return false
		}
	}
	return true
}

// parseLength gives -1 for what is not 1*DIGIT or does not fit. Eighteen digits
// always do.
func parseLength(p []byte) int64 {
	if len(p) == 0 || len(p) > 18 {
		return -1
	}
	var n int64
	for _, c := range p {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int64(c-'0')
	}
	return n
}
