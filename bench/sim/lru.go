package sim

// An lru is a bounded set of chunks, the one used longest ago dropped first.
type lru struct {
	most  int
	nodes []lruNode // 0 is the anchor of the ring
	at    map[uint64]int32
}

type lruNode struct {
	key        uint64
	next, prev int32
}

func newLRU(most int) *lru {
	return &lru{most: most, nodes: make([]lruNode, 1, 1024), at: make(map[uint64]int32)}
}

func (l *lru) has(key uint64) bool { _, ok := l.at[key]; return ok }

// touch enters key, or makes it the one used last.
func (l *lru) touch(key uint64) {
	i, ok := l.at[key]
	switch {
	case ok:
		l.unlink(i)
	case len(l.at) < l.most:
		i = int32(len(l.nodes))
		l.nodes = append(l.nodes, lruNode{})
	default:
		i = l.nodes[0].next
		delete(l.at, l.nodes[i].key)
		l.unlink(i)
	}
	l.at[key] = i
	last := l.nodes[0].prev
	l.nodes[i] = lruNode{key: key, prev: last}
	l.nodes[last].next = i
	l.nodes[0].prev = i
}

func (l *lru) unlink(i int32) {
	n := l.nodes[i]
	l.nodes[n.prev].next = n.next
	l.nodes[n.next].prev = n.prev
}

// remembers is, per pod, which chunks were sent there.
type remembers struct {
	most int // chunks a pod
	pods [maxPods]*lru
}

// matched is how many leading chunks of the chain a pod was sent.
func (m *remembers) matched(pod int, chain []uint64) int {
	l := m.pods[pod]
	if l == nil {
		return 0
	}
	for i, key := range chain {
		if !l.has(key) {
			return i
		}
	}
	return len(chain)
}

// sent notes that a pod is sent a chain.
func (m *remembers) sent(pod int, chain []uint64) {
	if m.pods[pod] == nil {
		m.pods[pod] = newLRU(m.most)
	}
	for _, key := range chain {
		m.pods[pod].touch(key)
	}
}

// size is how many chunks a pod is believed to hold.
func (m *remembers) size(pod int) int {
	if m.pods[pod] == nil {
		return 0
	}
	return len(m.pods[pod].at)
}
