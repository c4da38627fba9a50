package openai

import "bytes"

// What a medium costs, in tokens of the prompt. Bytes say nothing: they are compressed,
// or only a link. What counts is the kind, and the size where the first bytes of the
// content tell it. Models differ by a factor of two or three either way; the answer's
// usage corrects the picker.
const (
	// ImageTokens is an image of unknown size: 1024×1024 at high detail as OpenAI counts
	// it, 85 + 4 tiles of 170 (platform.openai.com, "Images and vision").
	ImageTokens = 765
	// Of others, a token for each 28×28 pixels, as Qwen2-VL and its successors have it,
	// between bounds: 1,337 for 1024×1024. For the same picture LLaVA-1.5 takes 576,
	// Gemma 3 256; Pixtral takes 4,096 at most, InternVL 3,328.
	imagePatch     = 28 * 28
	minImageTokens = 16
	maxImageTokens = 4096
	// AudioTokens is a sound of unknown length: a window of 30 s. Of others, 25 tokens a
	// second (Qwen2-Audio's report), up to half an hour.
	AudioTokens    = 750
	audioRate      = 25
	maxAudioTokens = 30 * 60 * audioRate
	// VideoTokens: the 32 frames that vLLM samples by default (VideoMediaIO,
	// num_frames), whatever the length, 144 tokens each (LLaVA-NeXT-Video).
	VideoTokens = 4608
	// FileTokens: two pages, each as its text and as a picture.
	FileTokens = 3000
)

// Media is how many media a prompt has.
type Media struct {
	Images, Audios, Videos, Files int
	// MediaTokens estimates the tokens that all of them take.
	MediaTokens int
}

// mediaKind is what a medium is.
type mediaKind uint8

const (
	imageMedium mediaKind = iota
	audioMedium
	videoMedium
	fileMedium
)

// kindOfType is the kind that a media type names; without one that is known, otherwise.
func kindOfType(mediaType []byte, otherwise mediaKind) mediaKind {
	top, _, _ := bytes.Cut(mediaType, []byte("/"))
	switch string(top) {
	case "image":
		return imageMedium
	case "audio":
		return audioMedium
	case "video":
		return videoMedium
	case "application", "text":
		return fileMedium
	}
	return otherwise
}

// addMedium adds body[start:end] as a medium: a link, a data URL, or content in base64.
// What a data URL says of its type wins.
func (r *Request) addMedium(kind mediaKind, start, end int, escaped bool) {
	if start >= end {
		return
	}
	var buf [mediaHead]byte
	content, ok := bytes.CutPrefix(r.body[start:end], []byte("data:"))
	encoded := !ok && !isLink(content)
	if ok {
		at := max(bytes.IndexByte(content[:min(len(content), mediaHead)], ','), 0)
		if escaped && at > 0 { // image\/png
			kind = kindOfType(bytes.ReplaceAll(content[:at], []byte(`\`), nil), kind)
		} else {
			kind = kindOfType(content[:at], kind)
		}
		encoded = bytes.HasSuffix(content[:at], []byte(";base64"))
		content = content[min(at+1, len(content)):]
	}
	c := content64{text: content, size: len(content) / 4 * 3}
	if !encoded {
		c = content64{}
	} else if escaped {
		c.text = buf[:0]
		for _, d := range content { // of base64 only the slash may be escaped
			if len(c.text) == mediaHead {
				break
			}
			if d != '\\' {
				c.text = append(c.text, d)
			}
		}
	}
	r.countMedium(kind, start, end, c.tokens(kind))
}

// mediaHead is how much of a medium's text is looked at where it is written with escapes.
const mediaHead = 2048

// countMedium adds a medium of so many tokens.
func (r *Request) countMedium(kind mediaKind, start, end, tokens int) {
	switch kind {
	case imageMedium:
		r.Images++
	case audioMedium:
		r.Audios++
	case videoMedium:
		r.Videos++
	case fileMedium:
		r.Files++
	}
	r.MediaTokens += tokens
	r.add(start, end, true)
	if n := len(r.spans); n > 0 && r.spans[n-1].Media {
		r.spans[n-1].Tokens = tokens
	}
}

// isLink tells whether a text begins like a URL.
func isLink(text []byte) bool {
	return bytes.IndexByte(text[:min(len(text), 16)], ':') > 0
}

// content64 is the content of a medium: base64, or the bytes themselves. Nothing of it
// is decoded but what is looked at.
type content64 struct {
	text  []byte
	plain bool // text is not encoded
	size  int  // in bytes
}

// tokens estimates what the medium costs.
func (c content64) tokens(kind mediaKind) int {
	switch kind {
	case imageMedium:
		if w, h := c.dimensions(); 0 < w && w < 1<<16 && 0 < h && h < 1<<16 {
			return min(max((w*h+imagePatch-1)/imagePatch, minImageTokens), maxImageTokens)
		}
		return ImageTokens
	case audioMedium:
		if rate := c.byteRate(); rate > 0 {
			return min(c.size*audioRate/rate+1, maxAudioTokens)
		}
		return AudioTokens
	case videoMedium:
		return VideoTokens
	}
	return FileTokens
}

// dimensions are those of a PNG, JPEG, GIF or WebP; zero if they are not known.
func (c content64) dimensions() (width, height int) {
	switch {
	case c.is(0, "\x89PNG"):
		return c.big(16, 4), c.big(20, 4)
	case c.is(0, "GIF8"):
		return c.little(6, 2), c.little(8, 2)
	case c.is(0, "RIFF") && c.is(8, "WEBPVP8 "):
		return c.little(26, 2) & 0x3fff, c.little(28, 2) & 0x3fff
	case c.is(0, "RIFF") && c.is(8, "WEBPVP8L"):
		bits := c.little(21, 4)
		return bits&0x3fff + 1, bits>>14&0x3fff + 1
	case c.is(0, "RIFF") && c.is(8, "WEBPVP8X"):
		return c.little(24, 3) + 1, c.little(27, 3) + 1
	case c.is(0, "\xff\xd8"):
		return c.frame()
	}
	return 0, 0
}

// frame finds the dimensions of a JPEG behind its other segments (ITU T.81, annex B).
func (c content64) frame() (width, height int) {
	const most = 64 // segments before it
	i := 2
	for range most {
		marker := c.at(i + 1)
		switch {
		case c.at(i) != 0xff || marker < 0xc0:
			return 0, 0
		case marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc:
			return c.big(i+7, 2), c.big(i+5, 2)
		}
		i += 2 + c.big(i+2, 2)
	}
	return 0, 0
}

// mp3Rates are the bit rates of layer III, in kbit/s: of MPEG-1, and of MPEG-2.
var mp3Rates = [2][16]int{
	{0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0},
	{0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0},
}

// byteRate is how many bytes of a WAV or MP3 file sound for a second; zero if that is
// not known.
func (c content64) byteRate() int {
	if c.is(0, "RIFF") && c.is(8, "WAVEfmt ") {
		return max(c.little(28, 4), 0)
	}
	at := 0
	if c.is(0, "ID3") { // a tag; its length has seven bits a byte
		at = 10 + c.at(6)<<21 + c.at(7)<<14 + c.at(8)<<7 + c.at(9)
	}
	if head := c.big(at, 4); head>>21 == 0x7ff && head>>17&3 == 1 {
		version := head >> 19 & 3 // 3 is MPEG-1
		rates := &mp3Rates[1]
		if version == 3 {
			rates = &mp3Rates[0]
		}
		return rates[head>>12&15] * 1000 / 8
	}
	return 0
}

// is tells whether s stands at byte i.
func (c content64) is(i int, s string) bool {
	for j := range len(s) {
		if c.at(i+j) != int(s[j]) {
			return false
		}
	}
	return true
}

// big and little read a number of n bytes; it is below zero where the content ends.
func (c content64) big(i, n int) (v int) {
	for j := range n {
		b := c.at(i + j)
		if b < 0 {
			return -1
		}
		v = v<<8 | b
	}
	return v
}

func (c content64) little(i, n int) (v int) {
	for j := range n {
		b := c.at(i + j)
		if b < 0 {
			return -1
		}
		v |= b << (8 * j)
	}
	return v
}

// at is byte i; below zero where there is none.
func (c content64) at(i int) int {
	switch {
	case i < 0:
		return -1
	case c.plain && i < len(c.text):
		return int(c.text[i])
	case c.plain || i/3*4+4 > len(c.text):
		return -1
	}
	quad, bits := c.text[i/3*4:i/3*4+4], 0
	for _, d := range quad {
		v := sixBits(d)
		if v < 0 {
			return -1
		}
		bits = bits<<6 | v
	}
	return bits >> (16 - 8*(i%3)) & 0xff
}

// sixBits is the value of a digit of base64, of either alphabet (RFC 4648); padding
// counts as zero.
func sixBits(d byte) int {
	switch {
	case 'A' <= d && d <= 'Z':
		return int(d - 'A')
	case 'a' <= d && d <= 'z':
		return int(d-'a') + 26
	case '0' <= d && d <= '9':
		return int(d-'0') + 52
	case d == '+' || d == '-':
		return 62
	case d == '/' || d == '_':
		return 63
	case d == '=':
		return 0
	}
	return -1
}

// medium adds a medium: a string, or an object's url, data or file; otherwise the value
// raw. Null is none.
func (r *Request) medium(kind mediaKind) {
	s := &r.scan
	start := s.pos
	switch s.peek() {
	case 'n':
		s.skip()
		return
	case '"':
		if t := s.str(); !s.failed() {
			r.addMedium(kind, t.start, t.end, t.escaped)
		}
		return
	case '{':
		start = s.pos
	default:
		if s.skip(); !s.failed() {
			r.countMedium(kind, start, s.pos, content64{}.tokens(kind))
		}
		return
	}
	var found text
	plain := false
	s.open()
	for key, ok := s.member(); ok; key, ok = s.member() {
		switch string(key) {
		case "url", "data", "file_id", "file_data", "file_url":
			if s.peek() == '"' {
				found = s.str()
				continue
			}
			s.skip()
		case "media_type":
			kind = kindOfType(s.word(), kind)
		case "type": // of a source: {"type":"text","media_type":"text/plain","data":"…"}
			plain = string(s.word()) == "text"
		default:
			s.skip()
		}
	}
	switch {
	case s.failed():
	case plain:
		r.add(found.start, found.end, false)
	case found.end == 0:
		r.countMedium(kind, start, s.pos, content64{}.tokens(kind))
	default:
		r.addMedium(kind, found.start, found.end, found.escaped)
	}
}
