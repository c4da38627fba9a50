package engine

import (
	"fmt"
	"slices"
	"time"
)

// Cost is how long a step takes: a linear model of what it computes.
type Cost struct {
	Step          time.Duration // every step
	PrefillToken  time.Duration // for each prompt token computed
	DecodeSeq     time.Duration // for each sequence that decodes
	ContextToken  time.Duration // for each token of context a decoding sequence reads
	AttentionPair time.Duration // for each pair of a prompt token computed and a token before it: a prefill's attention
	AdapterLoad   time.Duration // for each adapter brought to the GPU
}

// work is what a step computes.
type work struct {
	prefill, decodes, context, pairs, adapterLoads int
}

// add counts n tokens that s computes beyond those it has computed.
func (w *work) add(s *Sequence, n int) {
	if n == 1 && s.Generated > 0 {
		w.decodes++
		w.context += s.computed
		return
	}
	w.prefill += n
	w.pairs += n*s.computed + n*n/2
}

func (c *Cost) of(w *work) time.Duration {
	return c.Step +
		time.Duration(w.prefill)*c.PrefillToken +
		time.Duration(w.decodes)*c.DecodeSeq +
		time.Duration(w.context)*c.ContextToken +
		time.Duration(w.pairs)*c.AttentionPair +
		time.Duration(w.adapterLoads)*c.AdapterLoad
}

// Of is by how much longer a sequence that has ended has made the steps it took part in: its share of what they computed, without what
// every step takes, and without what was computed again after it lost its place.
func (c *Cost) Of(s *Sequence) time.Duration {
	prefill, decodes := s.PromptTokens-s.Cached, max(s.Generated-1, 0)
	return c.of(&work{
		prefill: prefill, pairs: prefill*s.Cached + prefill*prefill/2,
		decodes: decodes, context: decodes*s.PromptTokens + decodes*(decodes+1)/2,
		adapterLoads: s.AdapterLoads,
	}) - c.Step
}

// A Profile is a model on a GPU (or a CPU), with vLLM's defaults for it.
type Profile struct {
	Name        string
	About       string // model, hardware, and where the figures are from
	MaxModelLen int    // longest prompt and output together, in tokens
	Engine      Config
}

// Profiles are the known ones, the default first.
//
// ContextToken is reading a token's KV (131,072 bytes for an 8B Llama in bfloat16). Where a source gives a figure per decoding
// sequence, DecodeSeq is what that figure leaves, at the context of 235 tokens it was fitted at, once ContextToken is counted.
// AdapterLoad is assumed: no solid figure is published.
var Profiles = []Profile{
	{
		Name:        "llama3-8b-h100",
		About:       "Llama-3-8B on one H100, vLLM 0.11: fitted to inference-perf's published results, 2 % RMS",
		MaxModelLen: 131_072,
		Engine: Config{
			// 8 µs a sequence at 235 tokens is 34 ns a token; the bandwidth of 3.35 TB/s sets a floor of 39.
			Cost: Cost{Step: 7 * time.Millisecond, PrefillToken: 25 * time.Microsecond, ContextToken: 39 * time.Nanosecond,
				AdapterLoad: 100 * time.Millisecond},
			Blocks: 28_500, MaxBatchedTokens: 8192, MaxSeqs: 1024,
		},
	},
	{
		Name:        "llama3.1-8b-a100",
		About:       "Llama-3.1-8B on one A100: the defaults of the BLIS simulator",
		MaxModelLen: 131_072,
		Engine: Config{
			Cost: Cost{Step: 16400 * time.Microsecond, PrefillToken: 47800 * time.Nanosecond,
				DecodeSeq: 3 * time.Microsecond, ContextToken: 64 * time.Nanosecond, AdapterLoad: 100 * time.Millisecond},
			Blocks: 28_500, MaxBatchedTokens: 2048, MaxSeqs: 256,
		},
	},
	{
		Name:        "tiny-cpu",
		About:       "a random Llama of 2 layers on one CPU core, vLLM 0.32.0: fitted to time to first token and inter-token latency",
		MaxModelLen: 8192,
		Engine: Config{
			Cost: Cost{Step: 2300 * time.Microsecond, PrefillToken: 36 * time.Microsecond, DecodeSeq: 130 * time.Microsecond,
				AttentionPair: 20 * time.Nanosecond, AdapterLoad: 10 * time.Millisecond},
			Blocks: 65_536, MaxBatchedTokens: 2048, MaxSeqs: 128,
		},
	},
}

// ProfileNamed returns the profile of that name.
func ProfileNamed(name string) (Profile, error) {
	i := slices.IndexFunc(Profiles, func(p Profile) bool { return p.Name == name })
	if i < 0 {
		names := make([]string, len(Profiles))
		for i, p := range Profiles {
			names[i] = p.Name
		}
		return Profile{}, fmt.Errorf("unknown profile %q: choose one of %v", name, names)
	}
	return Profiles[i], nil
}
