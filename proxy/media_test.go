package proxy

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"testing"
)

// The picker counts media as an engine does that has them decoded, and knows them again.
func TestMediaAreCountedAsTheEngineDoes(t *testing.T) {
	p := startPod(t, "", quick)
	s := startServer(t, World{}, p)
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 1024, 768))); err != nil {
		t.Fatal(err)
	}
	large := base64.StdEncoding.EncodeToString(append(bytes.Clone(picture.Bytes()), make([]byte, 512<<10)...))
	small := base64.StdEncoding.EncodeToString(picture.Bytes())
	sound := []byte("RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00")
	sound = binary.LittleEndian.AppendUint32(sound, 16_000)
	sound = binary.LittleEndian.AppendUint32(sound, 32_000)
	sound = append(append(sound, "\x02\x00\x10\x00data\x00\x00\x00\x00"...), make([]byte, 12*32_000)...)
	chat := `{"model":"mock","max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"What is this?"},%s]}]}`
	for name, test := range map[string]struct {
		path, body, part string
		least            int
	}{
		"a large image":         {"/v1/chat/completions", chat, `{"type":"image_url","image_url":{"url":"data:image/png;base64,` + large + `"}}`, 1003},
		"a linked image":        {"/v1/chat/completions", chat, `{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}`, 700},
		"a sound":               {"/v1/chat/completions", chat, `{"type":"input_audio","input_audio":{"format":"wav","data":"` + base64.StdEncoding.EncodeToString(sound) + `"}}`, 300},
		"a video":               {"/v1/chat/completions", chat, `{"type":"video_url","video_url":{"url":"https://example.com/a.mp4"}}`, 4608},
		"a file":                {"/v1/chat/completions", chat, `{"type":"file","file":{"filename":"a.pdf","file_data":"data:application/pdf;base64,JVBERi0="}}`, 3000},
		"an image of responses": {"/v1/responses", `{"model":"mock","max_output_tokens":1,"input":[{"role":"user","content":[{"type":"input_text","text":"What is this?"},%s]}]}`, `{"type":"input_image","image_url":"data:image/png;base64,` + small + `"}`, 1003},
		"an image of messages":  {"/v1/messages", chat, `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + small + `"}}`, 1003},
	} {
		t.Run(name, func(t *testing.T) {
			for again := range 2 {
				m := post(test.path, fmt.Sprintf(test.body, test.part), "x-fairway-explain", "1")
				s.Handle(m)
				var answer struct {
					Usage struct {
						Prompt int `json:"prompt_tokens"`
						Input  int `json:"input_tokens"`
						Read   int `json:"cache_read_input_tokens"`
						Made   int `json:"cache_creation_input_tokens"`
					}
				}
				var receipt struct {
					Prompt int `json:"prompt_tokens"`
					Cached int `json:"cached_tokens"`
				}
				if err := json.Unmarshal([]byte(m.seen()), &answer); err != nil || m.answer.Status != 200 {
					t.Fatalf("%d %.300s", m.answer.Status, m.seen())
				}
				if err := json.Unmarshal([]byte(m.field("x-fairway-receipt")), &receipt); err != nil {
					t.Fatal(err)
				}
				u := &answer.Usage
				counted := max(u.Prompt, u.Input+u.Read+u.Made)
				if off := receipt.Prompt - counted; counted < test.least || off < -50 || off > 50 {
					t.Errorf("the engine counts %d tokens, the picker %d", counted, receipt.Prompt)
				}
				if again == 1 && receipt.Cached < receipt.Prompt*3/4 {
					t.Errorf("of %d tokens asked for again %d are known", receipt.Prompt, receipt.Cached)
				}
			}
		})
	}
}
