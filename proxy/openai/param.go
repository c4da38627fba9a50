package openai

import "bytes"

// maxBoundary is RFC 2046's bound of a boundary (section 5.1.1).
const maxBoundary = 70

// boundaryOf gives the boundary that a Content-Type names, or what is wrong with it.
func boundaryOf(contentType []byte) (boundary []byte, wrong string) {
	media, rest := cutValue(contentType)
	if !bytes.EqualFold(media, []byte("multipart/form-data")) {
		return nil, "its Content-Type is not multipart/form-data"
	}
	for len(rest) > 0 {
		var p param
		if p, rest = cutParam(rest); p.name == nil {
			return nil, "its Content-Type cannot be read"
		}
		switch {
		case bytes.EqualFold(p.name, []byte("boundary")) && boundary == nil:
			boundary = p.value
		case bytes.EqualFold(p.name, []byte("charset")) && bytes.EqualFold(p.value, []byte("utf-8")):
		default:
			return nil, "its Content-Type has a parameter that is unknown or repeated"
		}
	}
	if len(boundary) == 0 || len(boundary) > maxBoundary {
		return nil, "its Content-Type has no boundary of 1 to 70 bytes"
	}
	for _, c := range boundary {
		// RFC 2046's bchars without the space.
		if !alphanumeric(c) && bytes.IndexByte([]byte("'()+_,-./:=?"), c) < 0 {
			return nil, "the boundary has a character that none may have"
		}
	}
	return boundary, ""
}

// param is a parameter of a field's value. The value is as it stands between the
// quotes, if it has any.
type param struct{ name, value []byte }

// cutValue cuts what stands before the parameters of a value.
func cutValue(field []byte) (value, params []byte) {
	if i := bytes.IndexByte(field, ';'); i >= 0 {
		return trim(field[:i]), field[i:]
	}
	return trim(field), nil
}

// cutParam cuts off the parameter at the start of s: a semicolon, a token, an equals
// sign, and a token or quoted string (RFC 9110, section 5.6.6). One that cannot be read
// has no name.
func cutParam(s []byte) (p param, rest []byte) {
	s = trim(s[1:])
	n := tokenLen(s)
	if n == 0 || n == len(s) || s[n] != '=' {
		return param{}, nil
	}
	p.name, s = s[:n], s[n+1:]
	if len(s) > 0 && s[0] == '"' {
		if n = quotedLen(s); n == 0 {
			return param{}, nil
		}
		p.value = s[1 : n-1]
	} else {
		if n = tokenLen(s); n == 0 {
			return param{}, nil
		}
		p.value = s[:n]
	}
	if rest = trim(s[n:]); len(rest) > 0 && rest[0] != ';' {
		return param{}, nil
	}
	return p, rest
}

// quotedLen is the length of the quoted string that s starts with, 0 if there is none.
// Two backslashes before a quote are refused: Python's reading, which counts quotes
// that have a backslash before them, ends the string elsewhere.
func quotedLen(s []byte) int {
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return i + 1
		case c != '\\' || i+1 == len(s):
		case s[i+1] == '"':
			i++
		case s[i+1] == '\\':
			if i++; i+1 < len(s) && s[i+1] == '"' {
				return 0
			}
		}
	}
	return 0
}

// tokenLen is the length of the token that s starts with (RFC 9110, section 5.6.2).
func tokenLen(s []byte) int {
	for i, c := range s {
		if !alphanumeric(c) && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) < 0 {
			return i
		}
	}
	return len(s)
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// printable tells whether a line holds no control character but the tab.
func printable(line []byte) bool {
	for _, c := range line {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// trim takes spaces and tabs off both ends.
func trim(s []byte) []byte { return bytes.Trim(s, " \t") }
