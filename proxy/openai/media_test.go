package openai

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/picker/prefix"
)

// encoded is a picture of that size.
func encoded(t testing.TB, format string, width, height int) []byte {
	t.Helper()
	picture := image.NewPaletted(image.Rect(0, 0, width, height), color.Palette{color.Black})
	var b bytes.Buffer
	var err error
	switch format {
	case "png":
		err = png.Encode(&b, picture)
	case "jpeg":
		err = jpeg.Encode(&b, picture, nil)
	case "gif":
		err = gif.Encode(&b, picture, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// wav is so many seconds of silence, 16 bits, 16 kHz.
func wav(seconds int) []byte {
	b := []byte("RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00")
	b = binary.LittleEndian.AppendUint32(b, 16_000)
	b = binary.LittleEndian.AppendUint32(b, 32_000)
	b = append(b, "\x02\x00\x10\x00data\x00\x00\x00\x00"...)
	return append(b, make([]byte, 32_000*seconds)...)
}

// mp3 is a tag and so many seconds at 128 kbit/s, of which only the first frame's head is
// one.
func mp3(seconds int) []byte {
	b := append([]byte("ID3\x04\x00\x00\x00\x00\x01\x00"), make([]byte, 128)...)
	b = append(b, 0xff, 0xfb, 0x90, 0x00)
	return append(b, make([]byte, 16_000*seconds)...)
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// The shapes are those of OpenAI's and Anthropic's API references, and of vLLM's
// documentation on multimodal inputs.
func TestMediaCountByKindAndSize(t *testing.T) {
	chat := func(part string) string {
		return `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"What is this?"},` + part + `]}]}`
	}
	responses := func(part string) string {
		return `{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"What is this?"},` + part + `]}]}`
	}
	jpg := encoded(t, "jpeg", 280, 2800)
	behind := append(append([]byte{0xff, 0xd8, 0xff, 0xe1, 0x10, 0x00}, make([]byte, 0x0ffe)...), jpg[2:]...) // behind Exif
	vp8 := "RIFF....WEBPVP8 \x00\x00\x00\x00\x00\x00\x00\x9d\x01\x2a" + "\x18\x01\x30\x02"                    // 280×560
	vp8l := "RIFF....WEBPVP8L\x00\x00\x00\x00\x2f" + "\x17\xc1\x8b\x00"                                       // 280×560
	vp8x := "RIFF....WEBPVP8X\x00\x00\x00\x00\x00\x00\x00\x00" + "\x17\x01\x00\x2f\x02\x00"                   // 280×560
	slashed := strings.ReplaceAll(b64(encoded(t, "png", 2800, 280)), "/", `\/`)
	for _, tt := range []struct {
		name   string
		kind   Kind
		body   string
		media  Media
		result string // of the text
	}{
		{"image_url, PNG", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/png;base64,` + b64(encoded(t, "png", 1024, 1024)) + `","detail":"high"}}`), Media{Images: 1, MediaTokens: 1338}, ""},
		{"image_url, JPEG", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,` + b64(jpg) + `"}}`), Media{Images: 1, MediaTokens: 1000}, ""},
		{"image_url, JPEG behind Exif", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,` + b64(behind) + `"}}`), Media{Images: 1, MediaTokens: 1000}, ""},
		{"image_url, GIF", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/gif;base64,` + b64(encoded(t, "gif", 280, 28)) + `"}}`), Media{Images: 1, MediaTokens: minImageTokens}, ""},
		{"image_url, WebP", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/webp;base64,` + b64([]byte(vp8)) + `"}}`), Media{Images: 1, MediaTokens: 200}, ""},
		{"image_url, lossless WebP", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/webp;base64,` + b64([]byte(vp8l)) + `"}}`), Media{Images: 1, MediaTokens: 200}, ""},
		{"image_url, extended WebP", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/webp;base64,` + b64([]byte(vp8x)) + `"}}`), Media{Images: 1, MediaTokens: 200}, ""},
		{"image_url, slashes escaped as by PHP", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image\/png;base64,` + slashed + `"}}`), Media{Images: 1, MediaTokens: 1000}, ""},
		{"image_url, huge", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/png;base64,` + b64(encoded(t, "png", 1<<14, 1<<14)) + `"}}`), Media{Images: 1, MediaTokens: maxImageTokens}, ""},
		{"image_url, a link", Chat, chat(`{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}`), Media{Images: 1, MediaTokens: ImageTokens}, ""},
		{"image_url, garbage", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/png;base64,!"}}`), Media{Images: 1, MediaTokens: ImageTokens}, ""},
		{"image_url, not in base64", Chat, chat(`{"type":"image_url","image_url":{"url":"data:image/svg+xml,%3Csvg/%3E"}}`), Media{Images: 1, MediaTokens: ImageTokens}, ""},
		{"input_audio, WAV", Chat, chat(`{"type":"input_audio","input_audio":{"data":"` + b64(wav(8)) + `","format":"wav"}}`), Media{Audios: 1, MediaTokens: 201}, ""},
		{"input_audio, MP3", Chat, chat(`{"type":"input_audio","input_audio":{"data":"` + b64(mp3(20)) + `","format":"mp3"}}`), Media{Audios: 1, MediaTokens: 501}, ""},
		{"audio_url", Chat, chat(`{"type":"audio_url","audio_url":{"url":"data:audio/ogg;base64,T2dnUw=="}}`), Media{Audios: 1, MediaTokens: AudioTokens}, ""},
		{"video_url", Chat, chat(`{"type":"video_url","video_url":{"url":"data:video/mp4;base64,AAAA"}}`), Media{Videos: 1, MediaTokens: VideoTokens}, ""},
		{"file", Chat, chat(`{"type":"file","file":{"filename":"a.pdf","file_data":"data:application/pdf;base64,JVBERi0="}}`), Media{Files: 1, MediaTokens: FileTokens}, ""},
		{"file by id", Chat, chat(`{"type":"file","file":{"file_id":"file-abc"}}`), Media{Files: 1, MediaTokens: FileTokens}, ""},
		{"input_image", Responses, responses(`{"type":"input_image","detail":"auto","image_url":"data:image/png;base64,` + b64(encoded(t, "png", 560, 280)) + `"}`), Media{Images: 1, MediaTokens: 200}, ""},
		{"input_image by id", Responses, responses(`{"type":"input_image","file_id":"file-abc"}`), Media{Images: 1, MediaTokens: ImageTokens}, ""},
		{"input_file", Responses, responses(`{"type":"input_file","filename":"a.pdf","file_data":"data:application/pdf;base64,JVBERi0="}`), Media{Files: 1, MediaTokens: FileTokens}, `"filename":"a.pdf"`},
		{"input_file, a link", Responses, responses(`{"type":"input_file","file_url":"https://example.com/a.pdf"}`), Media{Files: 1, MediaTokens: FileTokens}, ""},
		{"a tool's output", Responses, `{"input":[{"type":"function_call_output","call_id":"c","output":[{"type":"input_image","image_url":"data:image/png;base64,` + b64(encoded(t, "png", 560, 280)) + `"}]}]}`, Media{Images: 1, MediaTokens: 200}, ""},
		{"a screenshot", Responses, `{"input":[{"type":"computer_call_output","call_id":"c","output":{"type":"computer_screenshot","image_url":"data:image/png;base64,` + b64(encoded(t, "png", 560, 280)) + `"}}]}`, Media{Images: 1, MediaTokens: 200}, ""},
		{"a generated image", Responses, `{"input":[{"type":"image_generation_call","id":"i","result":"` + b64(encoded(t, "png", 560, 280)) + `"}]}`, Media{Images: 1, MediaTokens: 200}, ""},
		{"source", Messages, chat(`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + b64(encoded(t, "png", 560, 280)) + `"}}`), Media{Images: 1, MediaTokens: 200}, ""},
		{"source, a link", Messages, chat(`{"type":"image","source":{"type":"url","url":"https://example.com/a.png"}}`), Media{Images: 1, MediaTokens: ImageTokens}, ""},
		{"document", Messages, chat(`{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"JVBERi0="}}`), Media{Files: 1, MediaTokens: FileTokens}, ""},
		{"document of text", Messages, chat(`{"type":"document","source":{"type":"text","media_type":"text/plain","data":"Once upon a time"}}`), Media{}, "Once upon a time"},
		{"a tool's result", Messages, chat(`{"type":"tool_result","tool_use_id":"t","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + b64(encoded(t, "png", 560, 280)) + `"}}]}`), Media{Images: 1, MediaTokens: 200}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r Request
			if err := r.Read(tt.kind, []byte(tt.body)); err != nil {
				t.Fatal(err)
			}
			if r.Media != tt.media {
				t.Errorf("counted %+v, want %+v", r.Media, tt.media)
			}
			if !strings.Contains(prompt(&r), tt.result) || r.TextBytes > 60+len(tt.result) {
				t.Errorf("%d bytes of text, want %q in it", r.TextBytes, tt.result)
			}
			// In the chain they are as long as their tokens are: chunks of 256 bytes or more.
			chain, _, _ := prefix.AppendChain(nil, 1, r.Spans)
			if got, want := prefix.Offset(len(chain)), 4*tt.media.MediaTokens; got < want-want/32-prefix.ChunkSize || got > want+2*prefix.ChunkSize {
				t.Errorf("%d chunks stand for %d bytes, want about %d", len(chain), got, want)
			}
		})
	}
}

// A data URL of 10 MB is an image like another: neither the millions of tokens that its
// bytes would be nor thousands of chunks.
func TestLargeMediumIsSmall(t *testing.T) {
	content := append(encoded(t, "png", 1024, 768), make([]byte, 10<<20)...)
	body := []byte(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + b64(content) + `"}},{"type":"text","text":"?"}]}]}`)
	var r Request
	if err := r.Read(Chat, body); err != nil {
		t.Fatal(err)
	}
	chain, digest, text := prefix.AppendChain(nil, 1, r.Spans)
	if r.MediaTokens != 1004 || len(chain) > 20 || text > 10 {
		t.Errorf("%d tokens, %d chunks, %d bytes of text", r.MediaTokens, len(chain), text)
	}
	// It counts by its content: another last byte is another image.
	at := bytes.LastIndex(body, []byte(`AA"}}`))
	body[at] = 'B'
	if err := r.Read(Chat, body); err != nil {
		t.Fatal(err)
	}
	if other, d, _ := prefix.AppendChain(nil, 1, r.Spans); d == digest || other[0] == chain[0] {
		t.Error("two images have the same hash")
	}
	if n := testing.AllocsPerRun(10, func() {
		if err := r.Read(Chat, body); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzMedia holds that no content has more tokens than its kind allows, and that nothing
// panics on it, in base64 with and without escapes, and as it is.
func FuzzMedia(f *testing.F) {
	for _, format := range []string{"png", "jpeg", "gif"} {
		f.Add(encoded(f, format, 30, 40), uint8(0))
	}
	f.Add(wav(1)[:64], uint8(1))
	f.Add(mp3(1)[:160], uint8(1))
	f.Add([]byte("RIFF....WEBPVP8X\x00\x00\x00\x00\x00\x00\x00\x00\x17\x01\x00\x2f\x02\x00"), uint8(0))
	f.Add([]byte("\xff\xd8\xff\xe1\xff\xff"), uint8(0))
	var r Request
	f.Fuzz(func(t *testing.T, content []byte, kind uint8) {
		part := [...]string{`"image_url":"data:image/x;base64,%s"`, `"input_audio":{"data":"%s"}`, `"video_url":"%s"`, `"file":{"file_data":"%s"}`}[kind%4]
		var counted [2]Media
		for i, text := range []string{b64(content), strings.ReplaceAll(b64(content), "/", `\/`)} {
			if err := r.Read(Chat, fmt.Appendf(nil, `{"messages":[{"content":[{`+part+`}]}]}`, text)); err != nil {
				t.Fatal(err)
			}
			counted[i] = r.Media
		}
		m := counted[0]
		if m.MediaTokens < 0 || m.MediaTokens > maxAudioTokens || m.Images+m.Audios+m.Videos+m.Files > 1 {
			t.Fatalf("%+v", m)
		}
		if len(content) < 1000 && kind%4 != 1 && counted[1] != m {
			t.Fatalf("%+v, with slashes escaped %+v", m, counted[1])
		}
		if n := (content64{text: content, plain: true, size: len(content)}).tokens(mediaKind(kind % 4)); n < 0 || n > maxAudioTokens {
			t.Fatalf("%d tokens", n)
		}
		if kind%4 == 0 && len(content) > 0 {
			config, format, err := image.DecodeConfig(bytes.NewReader(content))
			w, h := (content64{text: content, plain: true}).dimensions()
			if err == nil && (format == "png" || format == "gif") && config.Width > 0 && config.Height > 0 && (w != config.Width || h != config.Height) {
				t.Fatalf("%s of %d×%d, decoded %d×%d", format, w, h, config.Width, config.Height)
			}
		}
	})
}
