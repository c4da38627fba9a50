package proxy

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
)

// CacheSalt says whom engines keep what they have computed apart for. An engine that has
// a prompt in its cache answers sooner: whoever may send it prompts can find out what
// others have asked, piece by piece, unless it is told to keep them apart.
type CacheSalt string

// CacheSaltNone is the default.
const (
	CacheSaltNone      CacheSalt = "none"      // nobody, but who sends a cache_salt
	CacheSaltPrincipal CacheSalt = "principal" // each principal, and who shows none from them all
)

// season has the request bring a cache_salt that no other principal can: one made of
// whose it is and of the one that it came with.
func (x *Exchange) season() error {
	if x.serving.world.CacheSalt != CacheSaltPrincipal {
		return nil
	}
	if x.early {
		if err := x.receiveAll(); err != nil { // a salt may come at its end
			return err
		}
	}
	h := sha256.New()
	h.Write([]byte(cmp.Or(x.record.Principal, x.record.Peer)))
	h.Write([]byte{0}) // which no salt has as JSON writes it
	h.Write(x.read.CacheSalt)
	// 256 bits, as vLLM advises, of which it takes neither slashes nor more than 128 characters.
	x.salted = base64.RawURLEncoding.EncodeToString(h.Sum(nil))
	return nil
}

// salt is what the engine keeps the request's prompt apart by.
func (x *Exchange) salt() []byte {
	if x.salted != "" {
		return []byte(x.salted)
	}
	return x.read.CacheSalt
}
