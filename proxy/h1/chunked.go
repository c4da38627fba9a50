package h1

import (
	"bytes"

	"github.com/fairway-proxy/fairway/proxy/message"
)

const (
	maxExtension = 16 << 10 // bytes of chunk extensions in a body, which are ignored
	maxTrailer   = 8 << 10  // bytes of a trailer section
)

// chunks decodes the chunked coding (RFC 9112 section 7.1), however the wire
// cuts it.
type chunks struct {
	state     chunkState
	digits    int   // of the chunk size being read
	left      int64 // of the chunk's data, or the size read so far
	extension int   // bytes of extensions so far
	section   []byte
	trailers  []message.Field // slices of section, once done
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer
	chunksDone
)

func (d *chunks) reset() {
	*d = chunks{section: d.section[:0], trailers: d.trailers[:0]}
}

// decode consumes used bytes of buf and leaves the data among them, moved
// together, in buf[start:end]. All of buf is consumed unless the body ended
// (state chunksDone) or is malformed. Data found before an error is lost.
func (d *chunks) decode(buf []byte) (start, end, used int, err error) {
	for i := 0; i < len(buf); {
		c := buf[i]
		switch d.state {
		case chunkSize:
			if err := d.size(c); err != nil {
				return 0, 0, i, err
			}
			i++
		case chunkExtension:
			if d.extension++; d.extension > maxExtension {
				return 0, 0, i, errChunkLong
			}
			if c == '\r' {
				d.state = chunkSizeLF
			} else if c < ' ' && c != '\t' || c == 0x7f {
				return 0, 0, i, errChunkSize
			}
			i++
		case chunkSizeLF:
			if c != '\n' {
				return 0, 0, i, errChunkSize
			}
			i++
			d.digits = 0
			if d.state = chunkData; d.left == 0 {
				d.state = chunkTrailer
			}
		case chunkData:
			n := int(min(d.left, int64(len(buf)-i)))
			if end == start {
				start, end = i, i+n
			} else {
				end += copy(buf[end:], buf[i:i+n])
			}
			i += n
			if d.left -= int64(n); d.left == 0 {
				d.state = chunkDataCR
			}
		case chunkDataCR:
			if c != '\r' {
				return 0, 0, i, errChunkEnd
			}
			i++
			d.state = chunkDataLF
		case chunkDataLF:
			if c != '\n' {
				return 0, 0, i, errChunkEnd
			}
			i++
			d.state = chunkSize
		case chunkTrailer:
			n, err := d.trailer(buf[i:])
			i += n
			if err != nil {
				return 0, 0, i, err
			}
		case chunksDone:
			return start, end, i, nil
		}
	}
	return start, end, len(buf), nil
}

// size takes one byte of the line that a chunk begins with.
func (d *chunks) size(c byte) error {
	switch {
	case isHex(c):
		// Fifteen digits cannot overflow.
		if d.digits++; d.digits > 15 {
			return errChunkSize
		}
		d.left = d.left<<4 | int64(unhex(c))
		return nil
	case d.digits == 0:
	case c == '\r':
		d.state = chunkSizeLF
		return nil
	case c == ';':
		d.state = chunkExtension
		return nil
	}
	return errChunkSize
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// trailer takes at most one line of the trailer section.
func (d *chunks) trailer(buf []byte) (used int, err error) {
	n := bytes.IndexByte(buf, '\n') + 1
	complete := n > 0
	if !complete {
		n = len(buf)
	}
	if len(d.section)+n > maxTrailer {
		return 0, errChunkLong
	}
	d.section = append(d.section, buf[:n]...)
	if !complete {
		return n, nil
	}
	s := d.section
	if len(s) < 2 || s[len(s)-2] != '\r' {
		return n, errBareLF
	}
	if len(s) == 2 || s[len(s)-3] == '\n' {
		d.state = chunksDone
		if err := d.splitTrailers(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// splitTrailers reads the whole section. Fields that have no place in it are
// dropped: RFC 9110 section 6.5.1.
func (d *chunks) splitTrailers() *ProtocolError {
	for s := d.section; len(s) > 2; {
		i := bytes.IndexByte(s, '\n')
		name, value, err := splitField(s[:i-1])
		if err != nil {
			return err
		}
		if s = s[i+1:]; kindOf(name) == endToEnd {
			d.trailers = append(d.trailers, message.Field{Name: name, Value: value})
		}
	}
	return nil
}
