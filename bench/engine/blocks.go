package engine

// blockPool holds the KV blocks: who uses them, which are free, and where a hash is found. Block 0 is never used, as in vLLM.
//
// A block is either used (refs > 0) or in the list of the free ones, a ring through next and prev with block 0 as its anchor: the
// block after the anchor is reused first. A free block that was full keeps its hash, and can be found and taken back by it, until it
// is reused. The hash index is a table of chains through the blocks themselves; two blocks may have the same hash, because a block
// that is computed twice is not merged with its twin.
type blockPool struct {
	blocks    []block
	buckets   []int32 // hash → first block of its chain; 0: none; the length is a power of two
	available int     // blocks in the free list
	hits      []int32 // lookup's result
}

type block struct {
	hash       BlockHash // 0: none
	refs       int32
	next, prev int32 // in the free list
	chain      int32 // next block in the bucket
}

func newBlockPool(n int) blockPool {
	size := 16
	for size < 2*n {
		size *= 2
	}
	p := blockPool{blocks: make([]block, n), buckets: make([]int32, size), available: n - 1}
	for i := range p.blocks {
		p.blocks[i].next = int32((i + 1) % n)
		p.blocks[i].prev = int32((i + n - 1) % n)
	}
	return p
}

// usage is the share of blocks in use, from 0 to 1; blocks that are merely cached count as free.
func (p *blockPool) usage() float64 {
	return 1 - float64(p.available)/float64(len(p.blocks)-1)
}

func (p *blockPool) bucket(h BlockHash) *int32 {
	return &p.buckets[uint64(h)*0x9E3779B97F4A7C15>>32&uint64(len(p.buckets)-1)]
}

// find returns the block with this hash, or 0.
func (p *blockPool) find(h BlockHash) int32 {
	id := *p.bucket(h)
	for id != 0 && p.blocks[id].hash != h {
		id = p.blocks[id].chain
	}
	return id
}

// lookup returns the leading blocks of s that are cached, and how many of them are free at present. The last token is never a hit,
// because the engine must compute something to have an output. The result is valid until the next call.
func (p *blockPool) lookup(s *Sequence) (hits []int32, revived int) {
	hits = p.hits[:0]
	most := min((s.tokens()-1)/BlockSize, len(s.Hashes))
	for _, h := range s.Hashes[:most] {
		id := p.find(h)
		if id == 0 {
			break
		}
		hits = append(hits, id)
		if p.blocks[id].refs == 0 {
			revived++
		}
	}
	p.hits = hits
	return hits, revived
}

// take adds a user to each of these blocks.
func (p *blockPool) take(ids []int32) {
	for _, id := range ids {
		b := &p.blocks[id]
		if b.refs == 0 {
			p.unlink(b)
		}
		b.refs++
	}
}

// allocate takes the free block that is to be reused first, and forgets what it held. There must be one.
func (p *blockPool) allocate() int32 {
	id := p.blocks[0].next
	b := &p.blocks[id]
	p.unlink(b)
	if b.hash != 0 {
		p.forget(id, b)
	}
	b.refs = 1
	return id
}

func (p *blockPool) unlink(b *block) {
	p.blocks[b.prev].next = b.next
	p.blocks[b.next].prev = b.prev
	p.available--
}

// publish makes a full block findable.
func (p *blockPool) publish(id int32, h BlockHash) {
	head := p.bucket(h)
	b := &p.blocks[id]
	b.hash, b.chain = h, *head
	*head = id
}

// forget removes a block from the hash index.
func (p *blockPool) forget(id int32, b *block) {
	link := p.bucket(b.hash)
	for *link != id {
		link = &p.blocks[*link].chain
	}
	*link = b.chain
	b.hash, b.chain = 0, 0
}

// free takes a user off each block of a sequence, the last block first, so that of what nobody uses any more the tail is reused
// before the head.
func (p *blockPool) free(ids []int32) {
	for i := len(ids) - 1; i >= 0; i-- {
		id := ids[i]
		b := &p.blocks[id]
		b.refs--
		if b.refs > 0 {
			continue
		}
		last := p.blocks[0].prev
		b.prev, b.next = last, 0
		p.blocks[last].next = id
		p.blocks[0].prev = id
		p.available++
	}
}
