package route

import "bytes"

// Normalize gives a request's target, in origin form, one spelling: it decodes
// what need not be encoded and puts other encoded bytes in capitals, takes
// backslashes for slashes, and resolves dot segments (RFC 3986 sections 6.2.2 and
// 5.2.4; "BASE" among Istio's path normalisations). The query stays as it is, and
// so does a target that is no path.
//
// What is matched and what is sent must be the same: the caller replaces the
// target by this. The target is left alone; nothing is allocated unless there is
// something to change.
func Normalize(target []byte) []byte {
	path, _, _ := bytes.Cut(target, []byte("?"))
	if len(path) == 0 || path[0] != '/' || normal(path) {
		return target
	}
	out := decode(make([]byte, 0, len(target)), path)
	out = removeDots(out)
	return append(out, target[len(path):]...)
}

// normal tells whether there is nothing to do: only a glance, it may say no of a
// path that is normal.
func normal(path []byte) bool {
	for i, c := range path {
		if c == '%' || c == '\\' || c == '.' && path[max(i-1, 0)] == '/' {
			return false
		}
	}
	return true
}

// decode appends path to dst, decoded as far as that says the same.
func decode(dst, path []byte) []byte {
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch d, ok := percent(path[i:]); {
		case !ok && c == '\\':
			dst = append(dst, '/')
		case !ok && c == '%':
			dst = append(dst, "%25"...) // it begins no encoded byte
		case !ok:
			dst = append(dst, c)
		case unreserved(d):
			dst = append(dst, d)
			i += 2
		default:
			const hex = "0123456789ABCDEF"
			dst = append(dst, '%', hex[d>>4], hex[d&15])
			i += 2
		}
	}
	return dst
}

// removeDots resolves the segments "." and "..", in place.
func removeDots(path []byte) []byte {
	out := path[:0]
	for len(path) > 0 {
		end := 1 + bytes.IndexByte(path[1:], '/')
		if end == 0 {
			end = len(path)
		}
		segment := path[:end] // with the slash before it
		path = path[end:]
		switch string(segment) {
		case "/.":
		case "/..":
			out = out[:max(0, bytes.LastIndexByte(out, '/'))]
		default:
			out = append(out, segment...)
			continue
		}
		if len(path) == 0 {
			out = append(out, '/')
		}
	}
	return out
}

// unreserved characters mean the same encoded and not (RFC 3986 section 2.3).
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// percent decodes the encoded byte at the beginning of p, if there is one.
func percent(p []byte) (byte, bool) {
	if len(p) < 3 || p[0] != '%' {
		return 0, false
	}
	high, ok1 := fromHex(p[1])
	low, ok2 := fromHex(p[2])
	return high<<4 | low, ok1 && ok2
}

func fromHex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
