package engine

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// BlockHash stands for a full block and all that comes before it in its sequence. It is never 0.
type BlockHash uint64

// RootHash is the parent of a sequence's first block. Sequences of different adapters, or of different salts, share no block.
func RootHash(adapter, salt string) BlockHash {
	h := xxhash.Sum64String(adapter)
	if salt != "" {
		h = h*0x9E3779B97F4A7C15 + xxhash.Sum64String(salt)
	}
	return nonZero(h)
}

// HashBlock hashes a block of tokens that follows parent.
func HashBlock(parent BlockHash, tokens *[BlockSize]uint32) BlockHash {
	var b [8 + 4*BlockSize]byte
	binary.LittleEndian.PutUint64(b[:], uint64(parent))
	for i, t := range tokens {
		binary.LittleEndian.PutUint32(b[8+4*i:], t)
	}
	return nonZero(xxhash.Sum64(b[:]))
}

// AppendHashes appends the hashes of the full blocks of tokens to dst, the first of which follows root.
func AppendHashes(dst []BlockHash, root BlockHash, tokens []uint32) []BlockHash {
	for ; len(tokens) >= BlockSize; tokens = tokens[BlockSize:] {
		root = HashBlock(root, (*[BlockSize]uint32)(tokens))
		dst = append(dst, root)
	}
	return dst
}

func nonZero(h uint64) BlockHash {
	if h == 0 {
		return 1
	}
	return BlockHash(h)
}
