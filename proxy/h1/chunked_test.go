package h1

import (
	"strings"
	"testing"
)

// Each body is decoded whole, and cut at every byte.
func TestChunked(t *testing.T) {
	for _, tt := range []struct {
		in, want, trailers string
		err                *ProtocolError
	}{
		{"0\r\n\r\n", "", "", nil},
		{"3\r\nabc\r\n0\r\n\r\n", "abc", "", nil},
		{"003\r\nabc\r\nA\r\n0123456789\r\na\r\n0123456789\r\n00\r\n\r\n", "abc01234567890123456789", "", nil},
		{"3;x=\"y z\";\tw\r\nabc\r\n0;last\r\n\r\n", "abc", "", nil},
		{"5\r\n\r\n0\r\n\r\n0\r\n\r\n", "\r\n0\r\n", "", nil},
		{"0\r\nA: b\r\nC:\r\n\r\n", "", "a: b|c: ", nil},
		{"0\r\nHost: x\r\nA: b\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nTrailer: y\r\nConnection: A\r\n\r\n", "", "a: b", nil},
		{"000000000000003\r\nabc\r\n0\r\n\r\n", "abc", "", nil},

		{"\r\n", "", "", errChunkSize},
		{" 3\r\n", "", "", errChunkSize},
		{"3 \r\n", "", "", errChunkSize},
		{"+3\r\n", "", "", errChunkSize},
		{"-3\r\n", "", "", errChunkSize},
		{"0x3\r\n", "", "", errChunkSize},
		{"g\r\n", "", "", errChunkSize},
		{";x\r\n", "", "", errChunkSize},
		{"3\n", "", "", errChunkSize},
		{"3\rx", "", "", errChunkSize},
		{"3;x\n", "", "", errChunkSize},
		{"3;x\ry", "", "", errChunkSize},
		{"3;x\x00y\r\n", "", "", errChunkSize},
		{"0000000000000003\r\n", "", "", errChunkSize},
		{"ffffffffffffffff\r\n", "", "", errChunkSize},
		{"10000000000000003\r\nabc\r\n", "", "", errChunkSize},
		{"3;" + strings.Repeat("x", maxExtension+1) + "\r\n", "", "", errChunkLong},
		{strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", maxExtension/1000+1), "", "", errChunkLong},
		{"3\r\nabc0\r\n\r\n", "", "", errChunkEnd},
		{"3\r\nabcd\r\n", "", "", errChunkEnd},
		{"3\r\nabc\n", "", "", errChunkEnd},
		{"3\r\nabc\rx", "", "", errChunkEnd},
		{"3\r\nabcx\n0\r\n\r\n", "", "", errChunkEnd},
		{"0\r\n\n", "", "", errBareLF},
		{"0\r\nA: b\n\r\n", "", "", errBareLF},
		{"0\r\nA b\r\n\r\n", "", "", errName},
		{"0\r\nA : b\r\n\r\n", "", "", errName},
		{"0\r\nA: b\r\n c\r\n\r\n", "", "", errFold},
		{"0\r\nA: b\rc\r\n\r\n", "", "", errValue},
		{"0\r\nA: " + strings.Repeat("x", maxTrailer) + "\r\n\r\n", "", "", errChunkLong},
		{"0\r\n" + strings.Repeat("A: b\r\n", maxTrailer/6+1) + "\r\n", "", "", errChunkLong},
	} {
		for _, sizes := range [][]byte{nil, {0}, {1}, {4, 0, 9}} {
			data, rest, d, err := decodeAll([]byte(tt.in+"GET /"), sizes)
			if tt.err != nil {
				if err != tt.err {
					t.Errorf("%.60q in pieces of %v: %v, want %v", tt.in, sizes, err, tt.err)
				}
				continue
			}
			trailers := strings.Join(canonical(d.trailers), "|")
			if err != nil || d.state != chunksDone || string(data) != tt.want || trailers != tt.trailers || !strings.HasSuffix("GET /", string(rest)) {
				t.Errorf("%.60q in pieces of %v: %q, trailers %q, rest %q, %v", tt.in, sizes, data, trailers, rest, err)
			}
		}
	}
}
