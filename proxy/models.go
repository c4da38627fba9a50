package proxy

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/fairway-proxy/fairway/picker/prefix"
	"github.com/fairway-proxy/fairway/proxy/message"
	"github.com/fairway-proxy/fairway/proxy/openai"
)

// Which model a name stands for, and how the answer calls it.

// ModelNames says which name of a model the answer has where its request was served
// under another than it asked for.
type ModelNames string

// ModelAsked is the default.
const (
	ModelAsked  ModelNames = "asked"  // what the client said
	ModelServed ModelNames = "served" // what the engine says
)

// modelKey names a model in a pool, or under the pool "" the first of its name.
type modelKey struct{ pool, model string }

// servedModel is a Model with its pool found.
type servedModel struct {
	Model
	pool  *pool
	ranks []uint64 // of Targets: where each begins to rank itself by a key
}

func newServedModel(m Model, p *pool) *servedModel {
	s := &servedModel{Model: m, pool: p}
	for _, t := range m.Targets {
		s.ranks = append(s.ranks, prefix.Seed(t.Name))
	}
	return s
}

// target is the name the engines know the model by for conversations of that key:
// by weighted rendezvous hashing, so that of many keys each target gets its share, and
// that a target whose weight grows only takes, one whose weight shrinks only gives,
// and between two others nothing moves.
//
// Each target draws from an exponential distribution whose rate is its weight, and the
// earliest wins (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005).
func (m *servedModel) target(key uint64) string {
	name, earliest := m.Name, math.Inf(1)
	for i, t := range m.Targets {
		if t.Weight <= 0 {
			continue
		}
		// In (0, 1), of 53 bits.
		even := (float64(prefix.Link(m.ranks[i], key)>>11) + 0.5) / (1 << 53)
		if drawn := -math.Log(even) / float64(t.Weight); drawn < earliest {
			name, earliest = t.Name, drawn
		}
	}
	return name
}

// splits tells whether conversations are shared out among several names.
func (m *servedModel) splits() bool {
	shares := 0
	for _, t := range m.Targets {
		if t.Weight > 0 {
			shares++
		}
	}
	return shares > 1
}

// nameTarget finds the name that the engines know the request's model by. Every turn
// of a conversation gets the same.
func (x *Exchange) nameTarget() error {
	x.target = x.record.Model
	switch {
	case x.override != "" && x.kind != openai.Other:
		x.target = x.override
	case x.model == nil || len(x.model.Targets) == 0:
	case !x.model.splits():
		x.target = x.model.target(0)
	default:
		key, err := x.conversation()
		if err != nil {
			return err
		}
		x.target = x.model.target(key)
	}
	if x.target == "" { // a name for all, and none was asked for
		x.target = x.record.Model
	}
	x.renames = x.target != x.record.Model && x.record.Model != "" && x.serving.modelNames == ModelAsked
	return nil
}

// conversation is a number that all turns of a conversation share, and hardly ever
// another: of whose it is, and of what it begins with, through the first message of
// the user. A body too large to be there yet is received until that is known.
func (x *Exchange) conversation() (uint64, error) {
	spans, whole := x.read.Opening()
	if !whole {
		if err := x.receiveAll(); err != nil {
			return 0, err
		}
		spans, _ = x.read.Opening()
	}
	var key uint64
	x.chain, key, _ = prefix.AppendChain(x.chain[:0], prefix.Seed(x.flow()), spans)
	return key, nil
}

// flow is whose the request is: by the client's own word, or else by its identity.
func (x *Exchange) flow() string { return cmp.Or(x.fairness, x.record.Peer, x.record.Principal) }

// believed tells whether what the head says of how the request is to be served counts:
// by World.RaisePriority.
func (x *Exchange) believed() bool {
	switch x.serving.world.RaisePriority {
	case RaiseAnyone:
		return true
	case RaiseNobody:
		return false
	}
	return peerID(x.peer) != ""
}

// takeModelField takes from a field of the head what it says of the model, and tells
// whether it is one that does. It is for the proxy alone. (The Inference Extension's
// names, and the newer ones of llm-d.)
func (x *Exchange) takeModelField(f *message.Field, believed bool) bool {
	switch {
	case message.EqualFold(f.Name, "x-gateway-model-name-rewrite"), message.EqualFold(f.Name, "x-llm-d-model-name-rewrite"):
		if believed && len(f.Value) <= openai.MaxModel {
			x.override = string(f.Value)
		}
	case message.EqualFold(f.Name, "x-gateway-inference-fairness-id"), message.EqualFold(f.Name, "x-llm-d-inference-fairness-id"):
		if believed {
			x.fairness = string(f.Value)
		}
	default:
		return false
	}
	return true
}

// beginRename has the answer call the model what the client does, if it was served
// under another name, and can be read.
func (x *Exchange) beginRename(streamed bool) {
	x.renames = x.renames && (streamed || isJSON(&x.answer)) && !encoded(&x.answer)
	if x.renames {
		x.rename.Reset(x.record.Model, streamed)
	}
}

func isJSON(r *message.Response) bool {
	kind, _, _ := bytes.Cut(message.Get(r.Fields, "content-type"), []byte(";"))
	return bytes.EqualFold(bytes.TrimSpace(kind), []byte("application/json"))
}

// knownModels is the list of names for an error, bounded.
func knownModels(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	const most = 20
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return strings.Join(names, ", ")
}
