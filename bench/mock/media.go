package mock

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"image"
	_ "image/gif" // formats that DecodeConfig knows
	_ "image/jpeg"
	_ "image/png"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// What media are worth, in tokens, as a model of the Qwen2-VL family has it: an image by its pixels, a sound by its seconds, a video
// by the frames that vLLM samples, whatever its length.
const (
	imagePatch     = 28 * 28 // pixels of a token
	minImageTokens = 16
	maxImageTokens = 4096
	linkedImage    = 765 // an image that would have to be fetched
	speechRate     = 25  // tokens of a second of sound
	linkedSpeech   = 30 * speechRate
	videoTokens    = 32 * 144
	fileTokens     = 3000
)

// media are the members of a part that hold a medium, and how many tokens it has.
var media = []struct {
	keys   []string
	tokens func(content []byte) int
}{
	{[]string{"image_url", "image", "source"}, imageTokens},
	{[]string{"input_audio", "audio_url"}, audioTokens},
	{[]string{"video_url"}, func([]byte) int { return videoTokens }},
	{[]string{"file", "file_data", "file_url", "file_id"}, func([]byte) int { return fileTokens }},
}

// tokenizeMedium appends the tokens of a part that is a medium. Its content decides on them, so that the same is found in the cache.
func tokenizeMedium(t []uint32, part map[string]json.RawMessage) []uint32 {
	n, hash := linkedImage, uint64(0)
	for _, m := range media {
		for _, key := range m.keys {
			if raw := part[key]; raw != nil {
				text := mediumText(raw)
				n, hash = m.tokens(decodeMedium(text)), xxhash.Sum64String(text)
			}
		}
	}
	t = append(t, tokenImage)
	for i := range uint64(n - 1) {
		t = append(t, uint32((hash+i)*0x9E3779B97F4A7C15>>33))
	}
	return t
}

// mediumText is a medium's link, data URL or base64.
func mediumText(raw json.RawMessage) string {
	var text string
	var held map[string]json.RawMessage
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	if json.Unmarshal(raw, &held) == nil {
		for _, key := range []string{"url", "data", "file_data", "file_url", "file_id"} {
			if json.Unmarshal(held[key], &text) == nil {
				return text
			}
		}
	}
	return string(raw)
}

// decodeMedium gives the content, nil if that is elsewhere.
func decodeMedium(text string) []byte {
	if _, data, ok := strings.Cut(text, ";base64,"); ok {
		text = data
	}
	content, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	return content
}

func imageTokens(content []byte) int {
	c, _, err := image.DecodeConfig(bytes.NewReader(content))
	if err != nil {
		return linkedImage
	}
	return min(max((c.Width*c.Height+imagePatch-1)/imagePatch, minImageTokens), maxImageTokens)
}

// audioTokens knows WAV.
func audioTokens(content []byte) int {
	if len(content) < 44 || string(content[:4]) != "RIFF" {
		return linkedSpeech
	}
	rate := max(int(binary.LittleEndian.Uint32(content[28:])), 1)
	return max(len(content[44:])*speechRate/rate, 1)
}
