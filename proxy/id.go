package proxy

import (
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

// newID makes a request id: 128 random bits, unique but no secret.
func newID() string {
	var raw [16]byte
	for i, word := 0, rand.Uint64(); i < 16; i++ {
		if i == 8 {
			word = rand.Uint64()
		}
		raw[i] = byte(word)
		word >>= 8
	}
	return hex.EncodeToString(raw[:])
}
