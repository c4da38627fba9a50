//go:build e2e && linux

package vllm_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testAdapters loads and unloads an adapter through Fairway: every engine does.
func testAdapters(t *testing.T, f *fleet) {
	const name = "adapter-3"
	load := object{"lora_name": name, "lora_path": filepath.Join(os.Getenv("E2E_MODELS"), name)}
	unload := object{"lora_name": name}
	everywhere := append(f.origins(), f.fairway.origin)

	listed(t, everywhere, name, 0)
	tell(t, f.fairway.origin+"/v1/load_lora_adapter", load, 200, "Success")
	listed(t, everywhere, name, 1)
	texts := map[string]bool{}
	for _, origin := range everywhere {
		texts[post(t, origin+chatPath, chatBody(name, "Who is it?", 16)).decode(t).text()] = true
	}
	if len(texts) != 1 {
		t.Errorf("engines and Fairway say %v, want the same text of all", texts)
	}
	tell(t, f.fairway.origin+"/v1/load_lora_adapter", load, 400, "already been loaded")

	// One engine does not have it: it is still among the models, and that not every engine did as told is an error.
	tell(t, f.engines[1].url()+"/v1/unload_lora_adapter", unload, 200, "Success")
	listed(t, []string{f.engines[1].url()}, name, 0)
	listed(t, []string{f.fairway.origin}, name, 1)
	tell(t, f.fairway.origin+"/v1/unload_lora_adapter", unload, 502, f.engines[1].address)
	listed(t, everywhere, name, 0)
	tell(t, f.fairway.origin+"/v1/unload_lora_adapter", unload, 404, "cannot be found")
	tell(t, f.fairway.origin+chatPath, chatBody(name, "Who is it?", 16), 404, name)
}

// origins are the engines' own.
func (f *fleet) origins() []string { return []string{f.engines[0].url(), f.engines[1].url()} }

// tell posts, and wants an answer with that status whose body has a word in it.
func tell(t *testing.T, url string, body object, status int, word string) {
	t.Helper()
	resp := send(t, context.Background(), "POST", url, body)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status || !strings.Contains(string(content), word) {
		t.Errorf("POST %s: %s: %s, want %d and %q in it", url, resp.Status, content, status, word)
	}
}

// listed wants each of them to list a model that many times.
func listed(t *testing.T, origins []string, name string, times int) {
	t.Helper()
	for _, origin := range origins {
		var models struct{ Data []struct{ ID string } }
		resp := get(t, origin+"/v1/models")
		if err := json.Unmarshal(resp.body, &models); err != nil {
			t.Fatalf("%s/v1/models is %s: %v", origin, resp.body, err)
		}
		n := 0
		for _, m := range models.Data {
			if m.ID == name {
				n++
			}
		}
		if n != times {
			t.Errorf("%s/v1/models lists %s %d times, want %d: %s", origin, name, n, times, resp.body)
		}
	}
}
