package proxy

import (
	"encoding/json"
	"net/url"
	"slices"
	"time"

	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/upstream"
)

// What models there are to ask for: those that are configured, with what their engines
// say of them, and where all names are passed on, what the engines list.

const modelsPath = "/v1/models"

// configuredTimeout bounds the wait for what engines say of models that are configured.
const configuredTimeout = time.Second

// modelEntry is what the list says of a model, in vLLM's words.
type modelEntry struct {
	ID          string  `json:"id"`
	Object      string  `json:"object"`
	Created     int64   `json:"created"`
	OwnedBy     string  `json:"owned_by"`
	Parent      *string `json:"parent"` // of an adapter: its base model
	MaxModelLen *int    `json:"max_model_len,omitempty"`
}

// A card is a model as an engine lists it.
type card struct {
	modelEntry
	raw json.RawMessage
}

// catalogue is what the engines of one pool list, each model once.
type catalogue struct {
	cards []card
	named map[string]*card
}

// add takes in what an engine has said, and tells whether it was a list.
func (c *catalogue) add(r *reply) bool {
	var list struct{ Data []json.RawMessage }
	if r.err != nil || r.status != 200 || json.Unmarshal(r.body, &list) != nil {
		return false
	}
	for _, raw := range list.Data {
		entry := card{raw: raw}
		if json.Unmarshal(raw, &entry.modelEntry) == nil && entry.ID != "" && c.named[entry.ID] == nil {
			c.cards = append(c.cards, entry)
			c.named[entry.ID] = &entry
		}
	}
	return true
}

// describe is the entry of a configured model. What is served under its own name is as
// the engines list it; of others, whose name the engines do not know, it says what holds
// for all targets.
func (c *catalogue) describe(m *Model, models []Model) (json.RawMessage, error) {
	if own := c.named[m.Name]; own != nil && len(m.Targets) == 0 {
		return own.raw, nil
	}
	e := modelEntry{ID: m.Name, Object: "model", Created: processStart.Unix(), OwnedBy: "fairway"}
	for _, t := range m.Targets {
		target := c.named[t.Name]
		if target == nil || t.Weight <= 0 {
			continue
		}
		length := target.MaxModelLen
		if target.Parent != nil {
			if e.Parent == nil {
				e.Parent = askedFor(*target.Parent, m.Pool, models)
			}
			if base := c.named[*target.Parent]; base != nil && length == nil {
				length = base.MaxModelLen
			}
		}
		if length != nil && (e.MaxModelLen == nil || *length < *e.MaxModelLen) {
			e.MaxModelLen = length
		}
	}
	return json.Marshal(&e)
}

// askedFor is the name by which users ask a pool for what its engines know by another.
func askedFor(name, pool string, models []Model) *string {
	for i := range models {
		m := &models[i]
		if m.Pool == pool && m.Name != "" && slices.ContainsFunc(m.Targets, func(t Target) bool { return t.Name == name && t.Weight > 0 }) {
			return &m.Name
		}
	}
	return &name
}

// offer is a model that may be asked for.
type offer struct {
	name  string
	entry json.RawMessage
}

// catalogues asks the engines of pools what they list, which it gives by pool. Fields are
// those of the first engine that has answered.
func (x *Exchange) catalogues(pools []*pool) (listed map[string]*catalogue, fields []message.Field, replies []reply) {
	bound := fanOutTimeout
	if !slices.ContainsFunc(pools, x.passesNames) {
		bound = configuredTimeout
	}
	var transports []*upstream.Transport
	ends := make([]int, len(pools)) // of each pool's in transports
	for i, p := range pools {
		transports = append(transports, servers(p.picker.Endpoints())...)
		ends[i] = len(transports)
	}
	replies = x.askAll(transports, bound)
	listed = make(map[string]*catalogue, len(pools))
	for i, at := 0, 0; i < len(pools); i++ {
		c := &catalogue{named: make(map[string]*card)}
		for ; at < ends[i]; at++ {
			if c.add(&replies[at]) && fields == nil {
				fields = replies[at].fields
			}
		}
		listed[pools[i].name] = c
	}
	return listed, fields, replies
}

// offers are the models that may be asked for by the way the request has come, and by
// whoever asks. Fields are those of the answer: what the first engine says to browsers of
// other origins (CORS) holds for all. Replies are given if there is nothing to offer.
func (x *Exchange) offers() (offers []offer, fields []message.Field, replies []reply, err error) {
	pools := x.meant()
	models := x.serving.modelsOf(pools)
	listed, fields, replies := x.catalogues(pools)
	if x.gone() {
		return nil, nil, nil, errGone
	}
	seen := make(map[string]bool)
	for i := range models {
		m := &models[i]
		if m.Name == "" {
			continue // for names that only its users know
		}
		entry, err := listed[m.Pool].describe(m, models)
		if err != nil {
			return nil, nil, nil, err
		}
		seen[m.Name] = true
		offers = append(offers, offer{m.Name, entry})
	}
	for _, p := range pools {
		if !x.passesNames(p) {
			continue
		}
		for _, c := range listed[p.name].cards {
			if !seen[c.ID] {
				seen[c.ID] = true
				offers = append(offers, offer{c.ID, c.raw})
			}
		}
	}
	if len(offers) == 0 && fields == nil {
		return nil, nil, replies, nil
	}
	offers = slices.DeleteFunc(offers, func(o offer) bool { return !x.mayUse(o.name) })
	if len(offers) == 0 && x.someModels {
		x.record.Policy = byDefault
		return nil, nil, nil, errForbidden("use any model here")
	}
	if fields == nil {
		fields = []message.Field{{Name: []byte("date"), Value: httpDate(time.Now())}, {Name: []byte("content-type"), Value: []byte("application/json")}}
	}
	return offers, fields, nil, nil
}

// passesNames tells whether names that are not configured are passed on to the engines
// of a pool as they are.
func (x *Exchange) passesNames(p *pool) bool {
	in := x.chosen()
	if in != "" {
		in = p.name // one of those that the rule may choose
	}
	if _, configured := x.serving.known[in]; !configured {
		return true
	}
	all := x.serving.models[modelKey{in, ""}]
	return all != nil && all.pool == p && len(all.Targets) == 0
}

// listModels answers with all models there are to ask for.
func (x *Exchange) listModels() error {
	offers, fields, replies, err := x.offers()
	if err != nil {
		return err
	}
	if replies != nil {
		return x.passFirst(replies)
	}
	list := struct {
		Object string            `json:"object"`
		Data   []json.RawMessage `json:"data"`
	}{Object: "list", Data: []json.RawMessage{}}
	for _, o := range offers {
		list.Data = append(list.Data, o.entry)
	}
	return x.answerJSON(list, fields)
}

// showModel answers with one of them, as OpenAI's API does and vLLM's does not.
func (x *Exchange) showModel(escaped string) error {
	name, err := url.PathUnescape(escaped)
	if err != nil {
		return errBadRequest("The path is wrong: " + err.Error() + ".")
	}
	x.head.Target = []byte(modelsPath) // what engines are asked
	offers, fields, replies, err := x.offers()
	if err != nil {
		return err
	}
	if replies != nil {
		return x.passFirst(replies)
	}
	var names []string
	for _, o := range offers {
		if o.name == name {
			return x.answerJSON(o.entry, fields)
		}
		names = append(names, o.name)
	}
	return errUnknownModel(name, knownModels(names))
}
