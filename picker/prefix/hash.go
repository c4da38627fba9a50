package prefix

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

const (
	// ChunkSize is how many bytes of the stream the first hashes of a chain stand for: about 64 tokens of English, four of
	// vLLM's blocks. Smaller chunks cost memory and time, larger ones lose the end of a shared prefix.
	ChunkSize = 256

	// Chunks grow with what lies before them, so that a long prompt costs little more than a short one: evenChunks of
	// ChunkSize, then octaveChunks of twice the size, as many of twice that size, and so on. What is lost of a shared
	// prefix is 1/octaveChunks of it at most.
	evenChunks   = 2 * octaveChunks
	octaveChunks = 32

	// MaxChunks bounds a chain: 4 MiB of prompt, about a million tokens. What lies beyond is counted and not hashed.
	MaxChunks = evenChunks + 8*octaveChunks

	// A span ends in a byte that no UTF-8 text contains, so that ["ab","c"] and ["a","bc"] differ, and text never
	// looks like media.
	textEnd  = 0xFF
	mediaEnd = 0xFE

	// A medium stands for textBytes in the stream for each of its tokens, of which no more than maxMedium count.
	textBytes = 4
	maxMedium = 1 << 16

	multiplier = 0x9E3779B97F4A7C15 // 2^64 over the golden ratio, odd
)

var zeros [ChunkSize]byte

// A Span is one piece of a prompt, in the order in which the pod's chat template lays them out.
type Span struct {
	// Data lies in the request's body: raw JSON bytes, neither unescaped nor copied.
	Data []byte
	// Media says that Data is an image, a sound or a reference to one. It enters the stream as the 8 bytes of its
	// hash, whatever its size: a pod's cache knows it by its content and counts other tokens for it than bytes.
	Media bool
	// Tokens is what a medium takes in the pod's cache, an estimate. In the stream it stands for as much as text of so
	// many tokens would, so that what follows it is as far from the beginning as it is for the pod.
	Tokens int
}

// Seed is where a chain starts: prompts under different seeds share nothing, as in the pod's own cache. The parts are
// what that cache distinguishes beside the prompt: model or adapter, salt. Order and boundaries of parts count.
func Seed(parts ...string) uint64 {
	seed := uint64(0)
	for _, p := range parts {
		seed = Link(seed, xxhash.Sum64String(p))
	}
	return seed
}

// ExtendSeed adds a part that is at hand as bytes: ExtendSeed(Seed(a), b) == Seed(a, string(b)).
func ExtendSeed(seed uint64, part []byte) uint64 {
	return Link(seed, xxhash.Sum64(part))
}

// AppendChain cuts the stream of spans into chunks and appends one hash per whole chunk, each chained to the one
// before: a hash stands for the whole prefix up to its chunk's end. A trailing partial chunk has no hash. No hash is 0.
//
// digest is the hash of the whole stream with its partial end: the prompt's identity, also when it is shorter than a
// chunk. text is the number of text bytes, without media and separators.
//
// It allocates only to grow dst.
func AppendChain(dst []uint64, seed uint64, spans []Span) (chain []uint64, digest uint64, text int) {
	c := newCutter(dst, seed)
	for i := range spans {
		s := &spans[i]
		if s.Media {
			var media [9]byte
			binary.LittleEndian.PutUint64(media[:], xxhash.Sum64(s.Data))
			media[8] = mediaEnd
			c.write(media[:])
			for filler := min(s.Tokens, maxMedium)*textBytes - len(media); filler > 0 && c.room > 0; filler -= ChunkSize {
				c.write(zeros[:min(filler, ChunkSize)])
			}
			continue
		}
		text += len(s.Data)
		c.write(s.Data)
		c.write([]byte{textEnd})
	}
	return c.chain, Link(c.prev, c.end()), text
}

// Offset is where a chain's chunk i begins in the stream, in bytes: the chunks before it have as many. It holds for any
// i that a chain can have, and one more.
func Offset(i int) int {
	if i <= evenChunks {
		return i * ChunkSize
	}
	octave, in := (i-evenChunks)/octaveChunks, (i-evenChunks)%octaveChunks
	return (octaveChunks + in) * 2 * ChunkSize << octave
}

// A cutter holds the end of the stream that does not fill a chunk yet. Only chunks that straddle spans pass through
// open; the others are hashed where they lie.
type cutter struct {
	chain []uint64
	prev  uint64
	size  int // of the chunk to come
	in    int // chunks of that size still to come
	room  int // chunks that the chain may still grow by
	n     int // bytes in open, < size between calls
	open  xxhash.Digest
}

func newCutter(dst []uint64, seed uint64) cutter {
	return cutter{chain: dst, prev: seed, size: ChunkSize, in: evenChunks, room: MaxChunks}
}

func (c *cutter) write(b []byte) {
	for len(b) > 0 && c.room > 0 {
		k := min(len(b), c.size-c.n)
		switch {
		case vectors && k == c.size && len(b) >= sumsAtOnce*k && min(c.in, c.room) >= sumsAtOnce:
			for _, sum := range sums(b, k) {
				c.add(sum)
			}
			k *= sumsAtOnce
		case k == c.size:
			c.add(xxhash.Sum64(b[:k]))
		default:
			if c.n == 0 {
				c.open.Reset()
			}
			c.open.Write(b[:k])
			if c.n += k; c.n == c.size {
				c.n = 0
				c.add(c.open.Sum64())
			}
		}
		b = b[k:]
	}
}

// end is the hash of what fills no chunk.
func (c *cutter) end() uint64 {
	if c.n == 0 {
		return xxhash.Sum64(nil)
	}
	return c.open.Sum64()
}

func (c *cutter) add(sum uint64) {
	c.prev = Link(c.prev, sum)
	c.chain = append(c.chain, c.prev)
	c.room--
	if c.in--; c.in == 0 {
		c.size, c.in = 2*c.size, octaveChunks
	}
}

// Link chains one hash to the next. For a given parent it is a bijection of sum (a multiplication by an odd number, an
// addition, MurmurHash3's finaliser), so that chaining adds no collisions to those of xxhash; only 0 is moved to 1.
func Link(parent, sum uint64) uint64 {
	h := mix(parent*multiplier + sum + 1)
	if h == 0 {
		return 1
	}
	return h
}

// mix is the finaliser of MurmurHash3 (public domain, Austin Appleby): every bit of the input moves every bit of the output.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xFF51AFD7ED558CCD
	h ^= h >> 33
	h *= 0xC4CEB9FE1A85EC53
	h ^= h >> 33
	return h
}
