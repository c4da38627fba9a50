package h1

// foldEqual compares with lower, which is in lower case, by ASCII folding.
func foldEqual(p []byte, lower string) bool {
	if len(p) != len(lower) {
		return false
	}
	for i, c := range p {
		if c != lower[i] && (c|0x20 != lower[i] || lower[i] < 'a' || lower[i] > 'z') {
			return false
		}
	}
	return true
}

func trimSpace(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}
