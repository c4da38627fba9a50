package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
)

// longestID bounds a request id taken from a client: it goes into logs.
const longestID = 128

// validID takes ids that are safe in a header, a log line and a URL.
func validID(id []byte) bool {
	if len(id) == 0 || len(id) > longestID {
		return false
	}
	for _, c := range id {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == ':', c == '/', c == '+', c == '=':
		default:
			return false
		}
	}
	return true
}

// newID makes a request id.
func newID() string { return string(appendID(nil)) }

// appendID appends a request id: 128 random bits, unique but no secret.
func appendID(dst []byte) []byte {
	var raw [16]byte
	binary.LittleEndian.PutUint64(raw[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(raw[8:], rand.Uint64())
	return hex.AppendEncode(dst, raw[:])
}
