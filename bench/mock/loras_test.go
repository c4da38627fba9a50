package mock

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLoadAndUnloadAdapters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.LoraUpdates = true
		cfg.Profile.Engine.Cost.AdapterLoad = 300 * time.Millisecond
		cfg.Speed = 3
		_, ln := start(t, cfg)
		c := connect(t, ln)
		const load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
		for _, tt := range []struct {
			path, body string
			status     int
			says       string
			took       time.Duration
		}{
			{unload, `{"lora_name":"ad2"}`, 404, `{"error":{"message":"The lora adapter 'ad2' cannot be found.","type":"NotFoundError","param":null,"code":404}}`, 0},
			{load, `{"lora_name":"ad2","lora_path":"./lora/ad2"}`, 200, "Success: LoRA adapter 'ad2' added successfully.", 100 * time.Millisecond},
			{load, `{"lora_name":"ad2","lora_path":"./lora/ad2"}`, 400, `{"error":{"message":"The lora adapter 'ad2' has already been loaded. If you want to ` +
				`load the adapter in place, set 'load_inplace' to True.","type":"InvalidUserInput","param":null,"code":400}}`, 0},
			{load, `{"lora_name":"ad2","lora_path":"./elsewhere","load_inplace":true}`, 200, "Success: LoRA adapter 'ad2' added successfully.", 100 * time.Millisecond},
			{load, `{"lora_name":"tiny","lora_path":"x"}`, 400, "conflicts with a served base model", 0},
			{load, `{"lora_name":"","lora_path":"x"}`, 400, "must be provided", 0},
			{load, `{"lora_name":"x"}`, 400, "Field required", 0},
			{unload, `{}`, 400, "Field required", 0},
			{unload, `{"lora_name":""}`, 400, "needs to be provided", 0},
			{unload, `{"lora_name":"ad2"}`, 200, "Success: LoRA adapter 'ad2' removed successfully.", 0},
		} {
			begun := time.Now()
			resp, text := c.ask(post(tt.path, tt.body))
			if resp.StatusCode != tt.status || !strings.Contains(text, tt.says) || time.Since(begun) != tt.took {
				t.Errorf("%s %s: %s %s after %v", tt.path, tt.body, resp.Status, text, time.Since(begun))
			}
			if resp.StatusCode == 200 && resp.Header.Get("Content-Type") != "" {
				t.Errorf("%s has the type %s", text, resp.Header.Get("Content-Type"))
			}
			_, models := c.ask(get("/v1/models"))
			listed := strings.Contains(models, `"id":"ad2"`)
			chat, _ := c.ask(post("/v1/chat/completions", `{"model":"ad2","messages":[],"max_tokens":1}`))
			if served := chat.StatusCode == http.StatusOK; served != listed {
				t.Errorf("after %s: listed %v, served %v", text, listed, served)
			}
			if after := strings.Contains(text, "added") || tt.status != 200 && listed; after != listed {
				t.Errorf("after %s: listed %v", text, listed)
			}
		}
	})
}

// Two loads of the same adapter at once: one of them is told so, whichever it is.
func TestLoadTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.LoraUpdates = true
		_, ln := start(t, cfg)
		statuses := map[int]int{}
		var clients []*client
		for range 2 {
			c := connect(t, ln)
			c.send(post("/v1/load_lora_adapter", `{"lora_name":"a","lora_path":"b"}`))
			clients = append(clients, c)
		}
		for _, c := range clients {
			resp, _ := c.read()
			statuses[resp.StatusCode]++
		}
		if statuses[200] != 1 || statuses[400] != 1 {
			t.Error(statuses)
		}
	})
}

// A server with max_loras 1 runs one adapter's requests after the other's, and each switch costs the time of a load.
func TestAdaptersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := tiny()
		cfg.Loras = []string{"ad1", "ad2"}
		cfg.Profile.Engine.Cost.AdapterLoad = time.Second
		_, ln := start(t, cfg)
		c := connect(t, ln)
		took := func(model string) time.Duration {
			begun := time.Now()
			c.ask(post("/v1/chat/completions", fmt.Sprintf(`{"model":%q,"messages":[],"max_tokens":1}`, model)))
			return time.Since(begun).Truncate(time.Second)
		}
		for i, tt := range []struct {
			model string
			want  time.Duration
		}{{"ad1", time.Second}, {"ad1", 0}, {"tiny", 0}, {"ad1", 0}, {"ad2", time.Second}, {"ad1", time.Second}} {
			if got := took(tt.model); got != tt.want {
				t.Errorf("request %d, %s: took %v, want %v", i, tt.model, got, tt.want)
			}
		}
	})
}
