package mock

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"
)

// modelCard is an entry of /v1/models.
type modelCard struct {
	ID          string       `json:"id"`
	Object      string       `json:"object"`
	Created     int64        `json:"created"`
	OwnedBy     string       `json:"owned_by"`
	Root        string       `json:"root"`
	Parent      *string      `json:"parent"`
	MaxModelLen *int         `json:"max_model_len"`
	Permission  []permission `json:"permission"`
}

type permission struct {
	ID                 string  `json:"id"`
	Object             string  `json:"object"`
	Created            int64   `json:"created"`
	AllowCreateEngine  bool    `json:"allow_create_engine"`
	AllowSampling      bool    `json:"allow_sampling"`
	AllowLogprobs      bool    `json:"allow_logprobs"`
	AllowSearchIndices bool    `json:"allow_search_indices"`
	AllowView          bool    `json:"allow_view"`
	AllowFineTuning    bool    `json:"allow_fine_tuning"`
	Organization       string  `json:"organization"`
	Group              *string `json:"group"`
	IsBlocking         bool    `json:"is_blocking"`
}

func newModelCard(id, root string, parent *string, maxLen *int) modelCard {
	now := time.Now().Unix()
	return modelCard{
		ID: id, Object: "model", Created: now, OwnedBy: "vllm", Root: root, Parent: parent, MaxModelLen: maxLen,
		Permission: []permission{{
			ID: "modelperm-" + randomID(), Object: "model_permission", Created: now,
			AllowSampling: true, AllowLogprobs: true, AllowView: true, Organization: "*",
		}},
	}
}

func (x *exchange) models() {
	cfg := &x.s.cfg
	data := []modelCard{newModelCard(cfg.Model, "./"+cfg.Model, nil, &cfg.MaxModelLen)}
	for _, a := range x.s.loaded() {
		data = append(data, newModelCard(a.name, a.path, &cfg.Model, nil))
	}
	x.answerJSON(struct {
		Object string      `json:"object"`
		Data   []modelCard `json:"data"`
	}{"list", data})
}

// render is what vLLM says to requests for tokens only, unless it was started with --enable-scale-out.
func (x *exchange) render() {
	x.fail(&apiError{
		Message: "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.",
		Type:    "PermissionDeniedError", Code: http.StatusForbidden,
	})
}

func (x *exchange) health() { x.answer(http.StatusOK, "", nil) }

func (x *exchange) version() {
	x.answer(http.StatusOK, "application/json", []byte(`{"version":"`+version+`"}`))
}

// load reports the requests in the engine.
func (x *exchange) load() {
	s := x.s.stats()
	x.answer(http.StatusOK, "application/json", fmt.Appendf(nil, `{"server_load":%d}`, s.Running+s.Waiting))
}

// randomID is what vLLM puts after the prefix of an id: 16 hexadecimal digits.
func randomID() string { return fmt.Sprintf("%016x", rand.Uint64()) }
