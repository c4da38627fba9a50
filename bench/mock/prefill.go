package mock

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"
)

// A prompt may be computed by another server: that of the request's header x-prefiller-host-port, which llm-d's routing sidecar honours
// in front of the engine that decodes. The mock is both. It asks the other for one token, and takes its time for the transfer of the
// KV cache; that the engine's blocks are taken meanwhile is left out. If the other fails, the prompt is computed here.

const fieldPrefiller = "X-Prefiller-Host-Port"

// transferParams are those of the request that only computes a prompt (vLLM's kv_transfer_params, of its NIXL connector).
const transferParams = `{"do_remote_decode":true,"do_remote_prefill":false}`

// limitFields are what the APIs call the limit of an answer.
var limitFields = []string{"max_tokens", "max_completion_tokens", "max_output_tokens"}

// isPrefill says whether a request only computes a prompt for another server.
func (f *fields) isPrefill() bool {
	o := f.object("kv_transfer_params")
	return o != nil && o.boolean("do_remote_decode")
}

// prefillElsewhere has the other server compute the prompts, if the request names one, and waits for the transfer to d. It returns false when
// the client has gone.
func (g *generation) prefillElsewhere(d *driver) bool {
	address := g.x.req.Header.Get(fieldPrefiller)
	if address == "" {
		return true
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan bool, 1)
	go func() { done <- g.askPrefiller(ctx, address) }()
	select {
	case ok := <-done:
		if !ok {
			return true
		}
	case <-g.x.c.in.gone:
		cancel()
		<-done
		return false
	}
	tokens := 0
	d.mu.Lock()
	for _, j := range g.call.jobs {
		tokens += j.seq.PromptTokens - d.eng.CachedPrefix(&j.seq)
		j.seq.Transferred = j.seq.PromptTokens
	}
	d.mu.Unlock()
	g.x.s.count(&g.x.s.counts.Remote)
	return g.x.pause(time.Duration(float64(tokens) * float64(g.x.s.cfg.TransferToken) / d.eng.Config().Speed))
}

// askPrefiller has the other server compute the prompts, and says whether it did.
func (g *generation) askPrefiller(ctx context.Context, address string) bool {
	var body map[string]json.RawMessage
	if json.Unmarshal(g.x.body, &body) != nil {
		return false
	}
	delete(body, "stream_options")
	body["stream"] = json.RawMessage("false")
	body["kv_transfer_params"] = json.RawMessage(transferParams)
	limited := false
	for _, name := range limitFields {
		if body[name] != nil {
			body[name], limited = json.RawMessage("1"), true
		}
	}
	if !limited {
		body["max_tokens"] = json.RawMessage("1")
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+g.x.req.URL.Path, bytes.NewReader(raw))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", g.x.req.Header.Get("X-Request-Id"))
	for _, name := range []string{"Authorization", "X-Data-Parallel-Rank"} { // of those that it passes on, which are all
		if value := g.x.req.Header.Get(name); value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := g.x.s.prefiller.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK
}
