package h2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

const (
	preface   = http2.ClientPreface
	frameHead = 9
)

// frames finds the frames in what goes one way on a connection, piece by piece, without looking
// into them.
type frames struct {
	skip int                 // bytes until the next head
	head [frameHead + 4]byte // of a frame, with what is all of a WINDOW_UPDATE or RST_STREAM
	have int                 // of head
}

// each tells of each frame whose head is whole after p, with the increment of a WINDOW_UPDATE or
// the code of a RST_STREAM, until frame gives false; then it does.
func (f *frames) each(p []byte, frame func(kind http2.FrameType, flags http2.Flags, length int, word uint32) bool) bool {
	for len(p) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(p))
			f.skip -= n
			p = p[n:]
			continue
		}
		n := copy(f.head[f.have:f.want()], p)
		f.have += n
		p = p[n:]
		want := f.want() // more, now that it is known what it is
		if f.have < want {
			continue
		}
		f.have = 0
		f.skip = f.length() - (want - frameHead)
		var word uint32
		if want > frameHead {
			word = binary.BigEndian.Uint32(f.head[frameHead:]) &^ (1 << 31)
		}
		if !frame(f.kind(), http2.Flags(f.head[4]), f.length(), word) {
			return false
		}
	}
	return true
}

func (f *frames) length() int {
	return int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
}

func (f *frames) kind() http2.FrameType { return http2.FrameType(f.head[3]) }

// want is how much of a frame has to be seen.
func (f *frames) want() int {
	if f.have >= frameHead && f.length() == 4 && (f.kind() == http2.FrameWindowUpdate || f.kind() == http2.FrameRSTStream) {
		return frameHead + 4
	}
	return frameHead
}
