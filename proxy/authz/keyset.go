package authz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// freshFor is how long a key set is used without looking whether it has changed
	// (Envoy's cache of five minutes); after twice that, a token waits for the look.
	freshFor = 5 * time.Minute
	// leastPause is between two fetches: of a set that does not come, or one that lacks
	// a key.
	leastPause = 5 * time.Second
	// fetchTimeout is how long a fetch may take unless the rule says otherwise.
	fetchTimeout = 5 * time.Second
	// maxKeySet is the largest document read, in bytes; maxKeys how many keys of it
	// are taken.
	maxKeySet = 1 << 20
	maxKeys   = 64
)

// ParseKeys reads the public signing keys of a JWKS (RFC 7517 section 5). Keys of a
// kind that is not known are passed over; none left is an error.
func ParseKeys(document []byte) (keys []jose.JSONWebKey, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || !k.Valid() || k.Use == "enc" { // what is symmetric is not valid
			continue
		}
		if !k.IsPublic() {
			k = k.Public()
		}
		if keys = append(keys, k); len(keys) == maxKeys {
			break
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("the JSON Web Key Set has no public signing key")
	}
	return keys, nil
}

// KeySets fetches key sets and keeps them from one Guard to the next. The zero value
// works; it is safe for concurrent use.
type KeySets struct {
	// Client fetches; nil: one that follows three redirects and keeps no cookies.
	Client *http.Client
	// Log is told of fetches that fail; nil: slog.Default.
	Log *slog.Logger

	mu      sync.Mutex
	sets    map[string]*keySet // by URL; guarded by mu
	closed  bool               // guarded by mu
	fetches sync.WaitGroup
	stop    context.CancelFunc // ends all fetches; made with stopped
	stopped context.Context
}

// get gives the set at a URL and begins to fetch a new one.
func (s *KeySets) get(url string, timeout time.Duration) *keySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	if timeout <= 0 {
		timeout = fetchTimeout
	}
	k := s.sets[url]
	if k == nil || k.timeout != timeout {
		k = &keySet{url: url, timeout: timeout, owner: s}
		if s.sets == nil {
			s.sets = make(map[string]*keySet)
			s.stopped, s.stop = context.WithCancel(context.Background())
		}
		s.sets[url] = k
		k.mu.Lock()
		s.start(k)
		k.mu.Unlock()
	}
	return k
}

// keep forgets the sets whose URLs are not named.
func (s *KeySets) keep(named map[string]bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for url := range s.sets {
		if !named[url] {
			delete(s.sets, url)
		}
	}
}

// Close ends the fetches under way and waits for them. Keys that are there stay.
func (s *KeySets) Close() {
	s.mu.Lock()
	s.closed = true
	if s.stop != nil {
		s.stop()
	}
	s.mu.Unlock()
	s.fetches.Wait()
}

// start begins a fetch of k in the background; s.mu and k.mu are held.
func (s *KeySets) start(k *keySet) {
	if s.closed {
		return
	}
	done := make(chan struct{})
	k.fetching, k.tried = done, time.Now()
	s.fetches.Go(func() {
		keys, err := k.fetch(s.stopped)
		k.mu.Lock()
		defer k.mu.Unlock()
		if err == nil {
			k.keys, k.fetched = keys, time.Now()
		} else if s.stopped.Err() == nil {
			log := s.Log
			if log == nil {
				log = slog.Default()
			}
			log.Warn("a key set could not be fetched; the keys known so far stay", "url", k.url, "keys", len(k.keys), "error", err)
		}
		k.fetching = nil
		close(done)
	})
}

// keySet is the key set at one URL.
type keySet struct {
	url     string
	timeout time.Duration
	owner   *KeySets

	mu       sync.Mutex
	keys     []jose.JSONWebKey // the last that came; replaced as a whole; guarded by mu
	fetched  time.Time         // when they came; guarded by mu
	tried    time.Time         // when a fetch last began; guarded by mu
	fetching chan struct{}     // closed when the fetch under way has ended; nil: none; guarded by mu
}

var errKeysUnavailable = &TokenError{Reason: "the keys of the token's issuer cannot be had at the moment", Unavailable: true}

// find gives the keys of an id, looking for new ones when there are none, when they
// are old, or when the id is not among them.
func (k *keySet) find(ctx context.Context, id string) ([]jose.JSONWebKey, error) {
	keys, fetched := k.current()
	found := withID(keys, id)
	age := time.Since(fetched)
	if len(found) > 0 && age < freshFor {
		return found, nil
	}
	wait := k.refresh()
	if wait != nil && (len(found) == 0 || age >= 2*freshFor) {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, errKeysUnavailable
		}
		keys, _ = k.current()
		found = withID(keys, id)
	}
	if len(keys) == 0 {
		return nil, errKeysUnavailable
	}
	return found, nil
}

func (k *keySet) current() ([]jose.JSONWebKey, time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys, k.fetched
}

// refresh begins a fetch unless one is under way, whose end the channel tells. Nil: the
// last one was a moment ago.
func (k *keySet) refresh() <-chan struct{} {
	k.owner.mu.Lock()
	defer k.owner.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fetching == nil && time.Since(k.tried) >= leastPause {
		k.owner.start(k)
	}
	return k.fetching
}

func (k *keySet) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, err
	}
	request.Close = true // the next one is minutes away
	client := k.owner.Client
	if client == nil {
		client = defaultClient
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", answer.Status)
	}
	document, err := io.ReadAll(io.LimitReader(answer.Body, maxKeySet+1))
	if err != nil {
		return nil, err
	}
	if len(document) > maxKeySet {
		return nil, fmt.Errorf("larger than %d bytes", maxKeySet)
	}
	return ParseKeys(document)
}

var defaultClient = &http.Client{CheckRedirect: func(_ *http.Request, via []*http.Request) error {
	if len(via) > 3 {
		return errors.New("more than three redirects")
	}
	return nil
}}
