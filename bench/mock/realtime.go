package mock

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
)

// maxFrame bounds a WebSocket frame's payload.
const maxFrame = 1 << 20

// WebSocket opcodes and close codes (RFC 6455, sections 5.2 and 7.4.1, and IANA's registry for 1012).
const (
	opClose, opPing, opPong = 8, 9, 10

	closeProtocolError = 1002
	closeTooBig        = 1009
	closeRestart       = 1012
)

// realtime is GET /v1/realtime: a WebSocket. It understands no events; it sends back every frame it gets, so that whoever relays it
// can be tested.
func (x *exchange) realtime() {
	h := x.req.Header
	key := h.Get("Sec-WebSocket-Key")
	if !strings.EqualFold(h.Get("Upgrade"), "websocket") || !strings.Contains(strings.ToLower(h.Get("Connection")), "upgrade") || key == "" {
		x.answer(http.StatusNotFound, "application/json", []byte(`{"detail":"Not Found"}`))
		return
	}
	x.keepAlive = false
	x.status = http.StatusSwitchingProtocols
	accept := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	x.c.out = append(x.c.out[:0], "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+
		base64.StdEncoding.EncodeToString(accept[:])+"\r\ndate: "+x.s.date()+"\r\nserver: uvicorn\r\n\r\n"...)
	x.write()
	for x.err == nil && x.echo() {
		x.write()
	}
	if x.err == nil && len(x.c.out) > 0 {
		x.write()
	}
}

// echo reads a frame, puts what is to be answered into the connection's scratch buffer, and returns false if that is the end.
func (x *exchange) echo() bool {
	c := x.c
	c.limit.N = maxFrame + 14
	if c.br.Buffered() == 0 && c.in.await(nil) != nil {
		if !c.in.left() {
			c.out = closeFrame(c.out, closeRestart)
		}
		return false
	}
	var head [14]byte // the longest there is
	if _, err := io.ReadFull(c.br, head[:2]); err != nil {
		return false
	}
	extra, masked := 0, head[1]&0x80 != 0
	switch head[1] & 0x7f {
	case 126:
		extra = 2
	case 127:
		extra = 8
	}
	if !masked { // as a client must (RFC 6455, section 5.1)
		c.out = closeFrame(c.out, closeProtocolError)
		return false
	}
	if _, err := io.ReadFull(c.br, head[2:2+extra+4]); err != nil {
		return false
	}
	size := uint64(head[1] & 0x7f)
	switch extra {
	case 2:
		size = uint64(binary.BigEndian.Uint16(head[2:]))
	case 8:
		size = binary.BigEndian.Uint64(head[2:])
	}
	if size > maxFrame {
		c.out = closeFrame(c.out, closeTooBig)
		return false
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(c.br, payload); err != nil {
		return false
	}
	mask := head[2+extra : 6+extra]
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	switch head[0] & 0xf {
	case opPong:
		return true
	case opPing:
		head[0] = head[0]&0xf0 | opPong
	}
	c.out = append(append(append(c.out, head[0], head[1]&0x7f), head[2:2+extra]...), payload...)
	return head[0]&0xf != opClose
}

// closeFrame appends a frame that says goodbye.
func closeFrame(b []byte, code uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, 0x80|opClose, 2), code)
}
