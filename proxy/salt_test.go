package proxy

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-proxy/fairway/bench/mock"
	"github.com/fairway-proxy/fairway/proxy/authz"
)

// With cache_salt: principal, no principal can have an engine's cache for what another
// has asked, whatever salt it sends; its own it finds again, on any replica.
func TestCacheSalt(t *testing.T) {
	p := startPod(t, "", quick)
	var mu sync.Mutex
	var salts []string
	p.SetFaults(mock.Faults{OnRequest: func(r *http.Request, b []byte) {
		if r.Method == "POST" {
			var body struct {
				Salt string `json:"cache_salt"`
			}
			if err := json.Unmarshal(b, &body); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			salts = append(salts, body.Salt)
		}
	}})
	world := World{CacheSalt: CacheSaltPrincipal,
		Access: authz.Config{HasKeys: true, Keys: []authz.Key{{Name: "a", Sum: sha256.Sum256([]byte("A"))}, {Name: "b", Sum: sha256.Sum256([]byte("B"))}}}}
	s, replica := startServer(t, world, p), startServer(t, world, p)
	prompt := strings.Repeat("what everybody asks ", 100)
	ask := func(s *Server, key, more string) (salt string, cached int) {
		t.Helper()
		var fields []string
		if key != "" {
			fields = []string{"Authorization", "Bearer " + key}
		}
		m := post("/v1/chat/completions", strings.TrimSuffix(chat(false, 1, prompt), "}")+more+"}", fields...)
		s.Handle(m)
		var answer struct {
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		if err := json.Unmarshal([]byte(m.seen()), &answer); err != nil || m.answer.Status != 200 {
			t.Fatalf("%d %v: %s", m.answer.Status, err, m.seen())
		}
		mu.Lock()
		defer mu.Unlock()
		return salts[len(salts)-1], answer.Usage.Details.Cached
	}
	a, cold := ask(s, "A", "")
	again, warm := ask(replica, "A", "")
	if cold != 0 || warm == 0 || a != again || len(a) != 43 {
		t.Errorf("cached at first %d, then %d; salts %q and %q", cold, warm, a, again)
	}
	seen := []string{a}
	for _, attempt := range []struct{ key, more string }{
		{"B", ""}, {"B", `,"cache_salt":"` + a + `"`}, {"B", `,"cache_sal\u0074":"` + a + `"`}, {"B", `,"cache_salt":"x","cache_salt":"` + a + `"`},
		{"", ""}, {"", `,"cache_salt":"` + a + `"`}, {"A", `,"cache_salt":"mine"`},
	} {
		salt, cached := ask(s, attempt.key, attempt.more)
		if cached != 0 && !slices.Contains(seen[1:], salt) || salt == a {
			t.Errorf("%+v: salt %q, %d tokens from the cache", attempt, salt, cached)
		}
		seen = append(seen, salt)
	}
	// Of a large body too, whose end may have the salt.
	m := post("/v1/chat/completions", largeChat(`"model":"mock",`, `,"cache_salt":"`+a+`"`), "Authorization", "Bearer B")
	s.Handle(m)
	mu.Lock()
	defer mu.Unlock()
	if last := salts[len(salts)-1]; last == a || last == "" || len(salts) != len(seen)+2 {
		t.Errorf("a large body arrives with salt %q", last)
	}
}
