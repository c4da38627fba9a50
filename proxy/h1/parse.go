package h1

import (
	"bytes"

	"github.com/fairway-proxy/fairway/proxy/message"
)

const maxTarget = 16 << 10

// parser reads the head of a message where it lies in a buffer, in which more
// and more of it arrives. Lines are taken as they are complete, so that nothing
// is looked at twice; every call gets the same buffer, only longer, until
// restart. The head it fills is slices of that buffer.
type parser struct {
	head  head
	line  int // where the first line not taken begins
	scan  int // no LF lies between line and here
	minor int // of the HTTP version, 0 or 1
	begun bool
}

// restart forgets what was parsed: for the next message, or because the buffer
// was moved.
func (p *parser) restart() {
	p.line, p.scan, p.minor, p.begun = 0, 0, 0, false
}

// nextLine gives the next complete line without its CRLF, ok false when it is
// not all there.
func (p *parser) nextLine(buf []byte) (line []byte, ok bool, err *ProtocolError) {
	i := bytes.IndexByte(buf[p.scan:], '\n')
	if i < 0 {
		p.scan = len(buf)
		return nil, false, nil
	}
	end := p.scan + i
	if end == p.line || buf[end-1] != '\r' {
		return nil, false, errBareLF
	}
	line = buf[p.line : end-1]
	p.line, p.scan = end+1, end+1
	return line, true, nil
}

// request parses the head of a request. done tells that it is complete; it then
// ends at p.line. err is final.
func (p *parser) request(buf []byte, r *message.Request) (done bool, err *ProtocolError) {
	if !p.begun {
		line, ok, err := p.nextLine(buf)
		if err != nil || !ok {
			return false, cmpErr(err, earlyRequest(buf))
		}
		p.head.reset(r.Fields, false)
		*r = message.Request{Fields: p.head.fields}
		if err := p.requestLine(line, r); err != nil {
			return false, err
		}
		p.begun = true
	}
	done, err = p.fieldLines(buf)
	if !done || err != nil {
		return false, err
	}
	h := &p.head
	r.Fields = h.fields
	if !h.hasHost && p.minor >= 1 {
		return false, errHostMissing
	}
	if h.hasHost {
		if !message.ValidAuthority(h.host) {
			return false, errHost
		}
		if r.Authority == nil {
			r.Authority = h.host
		}
	}
	switch {
	case h.chunked:
		r.ContentLength = message.Unknown
	case h.length > 0:
		r.ContentLength = h.length
	}
	// An Upgrade may be ignored (RFC 9110 section 7.8). Beside a body it is: there
	// are servers, such as uvicorn with httptools, that decline it and yet take
	// the body for the next request.
	if r.ContentLength == 0 {
		r.Upgrade = h.upgrade
	}
	return true, nil
}

// response parses the head of a response, as request does. The framing, which
// depends on the request, is left to the caller.
func (p *parser) response(buf []byte, r *message.Response) (done bool, err *ProtocolError) {
	if !p.begun {
		line, ok, err := p.nextLine(buf)
		if err != nil || !ok {
			return false, err
		}
		p.head.reset(r.Fields, true)
		*r = message.Response{Fields: p.head.fields}
		if err := p.statusLine(line, r); err != nil {
			return false, err
		}
		p.begun = true
	}
	done, err = p.fieldLines(buf)
	r.Fields = p.head.fields
	if r.Status == 101 {
		r.Upgrade = p.head.upgrade
	}
	return done && err == nil, err
}

// fieldLines takes the complete field lines. done tells that the empty line
// after the last was among them.
func (p *parser) fieldLines(buf []byte) (done bool, err *ProtocolError) {
	for {
		line, ok, err := p.nextLine(buf)
		if err != nil || !ok {
			return false, err
		}
		if len(line) == 0 {
			return true, p.head.finish(p.minor)
		}
		if err := p.head.add(line); err != nil {
			return false, err
		}
	}
}

// preface is how a client that speaks HTTP/2 with prior knowledge begins (RFC
// 9113 section 3.4). Its first line is told from HTTP/1.1 by itself.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func (p *parser) requestLine(line []byte, r *message.Request) *ProtocolError {
	i := bytes.IndexByte(line, ' ')
	j := bytes.LastIndexByte(line, ' ')
	if i <= 0 || i == j {
		return errRequestLine
	}
	method, target, version := line[:i], line[i+1:j], line[j+1:]
	if !message.ValidToken(method) {
		return errMethod
	}
	r.Method = method
	var ok bool
	if p.minor, ok = parseVersion(version); !ok {
		switch {
		case string(line) == preface[:14]:
			return errPreface
		case isVersion(version):
			return errVersion
		}
		return errRequestLine
	}
	if string(method) == "CONNECT" {
		return errConnect
	}
	return setTarget(r, target)
}

// setTarget reads the request target: RFC 9112 section 3.2.
func setTarget(r *message.Request, target []byte) *ProtocolError {
	if len(target) > maxTarget {
		return errTargetLong
	}
	if len(target) == 0 || !message.ValidTarget(target) {
		return errTarget
	}
	options := string(r.Method) == "OPTIONS"
	if target[0] == '/' || target[0] == '*' && len(target) == 1 && options {
		r.Target = target
		return nil
	}
	// What is left is the absolute form. Its authority counts, not the Host field.
	rest := target
	switch {
	case len(rest) > 7 && foldEqual(rest[:7], "http://"):
		rest = rest[7:]
	case len(rest) > 8 && foldEqual(rest[:8], "https://"):
		rest = rest[8:]
	default:
		return errTarget
	}
	slash := bytes.IndexByte(rest, '/')
	switch {
	case slash >= 0:
		r.Target = rest[slash:]
		rest = rest[:slash]
	case options:
		r.Target = asterisk
	default:
		r.Target = root
	}
	if !message.ValidAuthority(rest) {
		return errHost
	}
	r.Authority = rest
	return nil
}

// Targets that an absolute form without a path stands for. Nobody writes into a
// head's slices.
var (
	root     = []byte("/")
	asterisk = []byte("*")
)

func (p *parser) statusLine(line []byte, r *message.Response) *ProtocolError {
	// HTTP/1.1 200 OK; the phrase, and by nginx and others the space before it,
	// may be absent.
	if len(line) < 12 || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errStatusLine
	}
	var ok bool
	if p.minor, ok = parseVersion(line[:8]); !ok {
		return errStatusLine
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return errStatusLine
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || !message.ValidValue(line[12:]) {
		return errStatusLine
	}
	return nil
}

func parseVersion(v []byte) (minor int, ok bool) {
	switch string(v) {
	case "HTTP/1.1":
		return 1, true
	case "HTTP/1.0":
		return 0, true
	}
	return 0, false
}

// isVersion tells whether v is any HTTP version at all.
func isVersion(v []byte) bool {
	return len(v) == 8 && string(v[:5]) == "HTTP/" && v[6] == '.' &&
		'0' <= v[5] && v[5] <= '9' && '0' <= v[7] && v[7] <= '9'
}

// earlyRequest refuses the beginning of a request line that cannot become one,
// such as a TLS hello, so that its sender is not left waiting.
func earlyRequest(buf []byte) *ProtocolError {
	for i, c := range buf {
		if c == ' ' && i > 0 {
			break
		}
		if !message.IsToken(c) {
			return errMethod
		}
	}
	if len(buf) > maxTarget+64 {
		return errTargetLong
	}
	return nil
}

func cmpErr(a, b *ProtocolError) *ProtocolError {
	if a != nil {
		return a
	}
	return b
}
