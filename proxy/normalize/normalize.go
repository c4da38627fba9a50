// Package normalize gives the paths of requests one spelling, by which they are
// judged, routed and sent on, so that one place has one name.
package normalize

import (
	"bytes"
	"errors"
)

// Mode says how much counts as the same spelling. The words are Istio's (its
// reference of Authorization Policy Normalization). Empty counts as
// DecodeAndMergeSlashes.
type Mode string

const (
	// DecodeAndMergeSlashes also takes %2F and %5C for slashes. It is the default:
	// uvicorn and nginx take %2F for one too.
	DecodeAndMergeSlashes Mode = "DECODE_AND_MERGE_SLASHES"
	// MergeSlashes is Base, and several slashes are one.
	MergeSlashes Mode = "MERGE_SLASHES"
	// Base resolves dot segments (RFC 3986 section 5.2.4), takes a backslash for a
	// slash, and decodes what need not be encoded. Istio stops at unreserved
	// characters there; here it is all that a path may hold as it is but the
	// semicolon, and what remains is encoded in capitals, the semicolon too: some
	// servers cut a path short there.
	Base Mode = "BASE"
	// None leaves paths as they came.
	None Mode = "NONE"
)

func (n Mode) decodesSlashes() bool { return n == "" || n == DecodeAndMergeSlashes }
func (n Mode) mergesSlashes() bool  { return n.decodesSlashes() || n == MergeSlashes }

// ErrPath is the error of a path with %00 or a percent sign that encodes nothing.
var ErrPath = errors.New("the path holds a NUL, or a percent sign that is not followed by two hex digits")

// Target gives the request target its one spelling, in dst's memory if it is not the
// one it has. What is no path ("*") stays as it is, and so does a query.
func (n Mode) Target(dst, target []byte) ([]byte, error) {
	if n == None || len(target) == 0 || target[0] != '/' || n.isNormal(target) {
		return target, nil
	}
	path, query := target, []byte(nil)
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
	}
	dst, err := n.appendSpelled(dst[:0], path)
	if err != nil {
		return nil, err
	}
	dst = resolve(dst, n.mergesSlashes())
	return append(dst, query...), nil
}

// isNormal tells of most targets that there is nothing to do.
func (n Mode) isNormal(target []byte) bool {
	slash := false
	for _, c := range target {
		switch {
		case c == '?':
			return true
		case c == '/':
			if slash && n.mergesSlashes() {
				return false
			}
			slash = true
			continue
		case c == '.' && slash, !plain[c]:
			return false
		}
		slash = false
	}
	return true
}

// plain has what stands in a path as it is: pchar of RFC 3986 appendix A but for the
// semicolon.
var plain = func() (t [256]bool) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,=:@/") {
		t[c] = true
	}
	return t
}()

// appendSpelled appends path with every character in its one spelling.
func (n Mode) appendSpelled(dst, path []byte) ([]byte, error) {
	for i := 0; i < len(path); i++ {
		c, encoded := path[i], false
		if c == '%' {
			if i+2 >= len(path) {
				return nil, ErrPath
			}
			high, low := unhex(path[i+1]), unhex(path[i+2])
			if high|low > 15 {
				return nil, ErrPath
			}
			c, encoded = high<<4|low, true
			i += 2
		}
		if c == 0 {
			return nil, ErrPath
		}
		slash := c == '/' || c == '\\'
		switch {
		case slash && (!encoded || n.decodesSlashes()):
			dst = append(dst, '/')
		case plain[c] && !slash:
			dst = append(dst, c)
		default:
			const digits = "0123456789ABCDEF"
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst, nil
}

// unhex gives the value of a hex digit, 0xff for anything else.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 0xff
}

// Spell is for a path in a policy or a route, or a part of one: dot segments and
// empty ones stay.
func (n Mode) Spell(path string) string {
	if n == None {
		return path
	}
	spelled, err := n.appendSpelled(nil, []byte(path))
	if err != nil {
		return path // no request is spelled like that
	}
	return string(spelled)
}

// resolve takes dot segments, and empty ones if merge is set, out of a path in place.
func resolve(path []byte, merge bool) []byte {
	w := 0
	for r := 0; r < len(path); {
		end := bytes.IndexByte(path[r+1:], '/') // path[r] is a slash
		if end < 0 {
			end = len(path)
		} else {
			end += r + 1
		}
		segment, last := path[r+1:end], end == len(path)
		keep := true
		switch string(segment) {
		case ".":
			keep = false
		case "..":
			w, keep = max(0, bytes.LastIndexByte(path[:w], '/')), false
		case "":
			keep = !merge
		}
		if keep {
			w += copy(path[w:], path[r:end])
		} else if last {
			path[w] = '/'
			w++
		}
		r = end
	}
	return path[:w]
}
