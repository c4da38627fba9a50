package message

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

const (
	isToken = 1 << iota // tchar, RFC 9110 section 5.6.2
	isHost              // unreserved and sub-delims, RFC 3986 section 3.2.2, without percent-encoding
	isHex
)

var chars = func() (t [256]uint8) {
	set := func(s string, bit uint8) {
		for i := range len(s) {
			t[s[i]] |= bit
		}
	}
	const alnum = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	set(alnum+"!#$%&'*+-.^_`|~", isToken)
	set(alnum+"-._~!$&'()*+,;=", isHost)
	set("0123456789abcdefABCDEF", isHex)
	return t
}()

// IsToken tells whether c may stand in a token: RFC 9110 section 5.6.2.
func IsToken(c byte) bool { return chars[c]&isToken != 0 }

// ValidToken tells whether p is a token, such as a method or a field name.
func ValidToken(p []byte) bool {
	all := uint8(isToken)
	for _, c := range p { // to the end, without a branch for each byte: hardly any is none
		all &= chars[c]
	}
	return all != 0 && len(p) > 0
}

// ValidValue tells whether p has no control character but tab: RFC 9110 section
// 5.5, which leaves bytes above 0x7f alone.
func ValidValue(p []byte) bool {
	for len(p) >= 8 {
		if hasControl(binary.LittleEndian.Uint64(p)) && !validBytes(p[:8]) {
			return false
		}
		p = p[8:]
	}
	return validBytes(p)
}

func validBytes(p []byte) bool {
	for _, c := range p {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// hasControl tells whether one of eight bytes is below 0x20 or is 0x7f.
func hasControl(x uint64) bool {
	const ones = 0x0101010101010101
	del := x ^ 0x7f*ones
	return ((x-0x20*ones)&^x|(del-ones)&^del)&(0x80*ones) != 0
}

// ValidTarget tells whether p has only visible ASCII and no fragment, and
// percent signs before the query are followed by two hex digits.
func ValidTarget(p []byte) bool {
	query := false
	for i, c := range p {
		switch {
		case c <= ' ' || c >= 0x7f || c == '#':
			return false
		case c == '?':
			query = true
		case c == '%' && !query:
			if i+2 >= len(p) || chars[p[i+1]]&chars[p[i+2]]&isHex == 0 {
				return false
			}
		}
	}
	return true
}

// ValidAuthority tells whether p is a host with or without a port: a registered
// name or IPv4 address, or an IPv6 address in brackets.
func ValidAuthority(p []byte) bool {
	if len(p) == 0 {
		return false
	}
	i := 0
	if p[0] == '[' {
		if i = bytes.IndexByte(p, ']'); i < 0 {
			return false
		}
		if a, err := netip.ParseAddr(string(p[1:i])); err != nil || !a.Is6() || a.Zone() != "" {
			return false
		}
		i++
	} else {
		for i < len(p) && chars[p[i]]&isHost != 0 {
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(p) {
		return true
	}
	if p[i] != ':' {
		return false
	}
	for _, c := range p[i+1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
