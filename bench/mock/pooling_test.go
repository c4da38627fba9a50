package mock

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type embeddings struct {
	ID, Object, Model string
	Data              []struct {
		Index     int
		Object    string
		Embedding any
	}
	Usage map[string]any
}

func TestEmbeddings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t, tiny())
		c := connect(t, ln)
		ask := func(input, more string) embeddings {
			_, text := c.ask(post("/v1/embeddings", fmt.Sprintf(`{"model":"tiny","input":%s%s}`, input, more)))
			return decode[embeddings](t, text)
		}
		for input, n := range map[string]int{
			`"hello there"`: 1, `["a","b","c"]`: 3, `[1,2,3]`: 1, `[[1,2],[3]]`: 2,
		} {
			e := ask(input, "")
			if len(e.Data) != n || e.Object != "list" || e.Model != "tiny" || !strings.HasPrefix(e.ID, "embd-") || e.Usage["prompt_tokens"].(float64) < float64(n) ||
				e.Usage["prompt_tokens"] != e.Usage["total_tokens"] || e.Usage["completion_tokens"] != 0.0 {
				t.Errorf("%s: %+v", input, e)
			}
			for i, d := range e.Data {
				var square float64
				for _, v := range d.Embedding.([]any) {
					square += v.(float64) * v.(float64)
				}
				if d.Index != i || d.Object != "embedding" || len(d.Embedding.([]any)) != defaultDimensions || math.Abs(square-1) > 1e-5 {
					t.Errorf("%s: element %d: index %d, %d numbers, length %v", input, i, d.Index, len(d.Embedding.([]any)), square)
				}
			}
		}
		floats := ask(`"hello"`, `,"dimensions":8`).Data[0].Embedding.([]any)
		packed, err := base64.StdEncoding.DecodeString(ask(`"hello"`, `,"dimensions":8,"encoding_format":"base64"`).Data[0].Embedding.(string))
		if err != nil || len(packed) != 4*len(floats) || len(floats) != 8 {
			t.Fatalf("%d numbers, %d bytes: %v", len(floats), len(packed), err)
		}
		for i, v := range floats {
			if got := math.Float32frombits(binary.LittleEndian.Uint32(packed[4*i:])); float64(got) != v.(float64) {
				t.Errorf("number %d is %v in base64 and %v", i, got, v)
			}
		}
		for body, want := range map[string]string{
			`{}`: "2 validation errors", `{"input":{}}`: "valid string", `{"input":[]}`: "at least one", `{"input":"x","encoding_format":"hex"}`: "float or base64",
			`{"input":"x","dimensions":0}`: "out of range", `{"input":"x","model":"y"}`: "does not exist",
		} {
			if resp, text := c.ask(post("/v1/embeddings", body)); resp.StatusCode < 400 || !strings.Contains(text, want) {
				t.Errorf("%s: %s %s", body, resp.Status, text)
			}
		}
		begun := time.Now()
		ask(fmt.Sprintf("%q", strings.Repeat("long words ", 1000)), "")
		if took := time.Since(begun); took < 50*time.Millisecond {
			t.Errorf("2,000 tokens took %v", took)
		}
		if st := s.Stats(); st.Answered != 7 || st.Received != 13 || st.Refused != 6 || st.Engine.Running != 0 || st.Engine.GenerationTokens != 10 {
			t.Errorf("%+v", st)
		}
	})
}

// A text is nearer to one it shares words with than to another.
func TestNearness(t *testing.T) {
	at := func(text string) []float64 { return embed(tokenize(nil, text), defaultDimensions) }
	rivers, again, trains := at("the river runs through the city"), at("a river in the city"), at("my train leaves without him")
	if near, far := cosine(rivers, again), cosine(rivers, trains); near < far+.1 {
		t.Errorf("near %v, far %v", near, far)
	}
	if self := cosine(rivers, rivers); math.Abs(self-1) > 1e-5 {
		t.Errorf("a vector of length %v", self)
	}
	embed(nil, 4) // no tokens, no direction, no panic
}

func TestScores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		const q, near, far = `"where is the river"`, `"the river is here"`, `"bread tastes good"`
		type scores struct {
			Object string
			Data   []struct {
				Index  int
				Object string
				Score  float64
			}
		}
		for _, body := range []string{
			`{"text_1":` + q + `,"text_2":[` + near + `,` + far + `]}`,
			`{"queries":` + q + `,"documents":[` + near + `,` + far + `]}`,
			`{"queries":[` + q + `,` + q + `],"items":[` + near + `,{"content":[{"type":"text","text":` + far + `}]}]}`,
		} {
			_, text := c.ask(post("/score", body))
			if s := decode[scores](t, text); len(s.Data) != 2 || s.Data[1].Index != 1 || s.Data[0].Object != "score" || s.Data[0].Score <= s.Data[1].Score || s.Data[0].Score > 1 {
				t.Errorf("%s: %s", body, text)
			}
		}
		type ranks struct {
			ID      string
			Usage   map[string]int
			Results []struct {
				Index    int
				Document struct {
					Text       *string
					MultiModal []any `json:"multi_modal"`
				}
				Score float64 `json:"relevance_score"`
			}
		}
		for _, path := range []string{"/rerank", "/v1/rerank", "/v2/rerank"} {
			_, text := c.ask(post(path, `{"query":`+q+`,"documents":[`+far+`,`+near+`]}`))
			if r := decode[ranks](t, text); len(r.Results) != 2 || r.Results[0].Index != 1 || *r.Results[0].Document.Text != "the river is here" || r.Usage["total_tokens"] == 0 {
				t.Errorf("%s: %s", path, text)
			}
		}
		_, text := c.ask(post("/rerank", `{"top_n":1,"query":`+q+`,"documents":[`+far+`,{"content":[{"type":"text","text":`+near+`}]}]}`))
		if r := decode[ranks](t, text); len(r.Results) != 1 || r.Results[0].Document.Text != nil || len(r.Results[0].Document.MultiModal) != 1 {
			t.Error(text)
		}
		for path, bodies := range map[string][]string{
			"/score":  {`{}`, `{"text_1":["a","b"],"text_2":["c"]}`, `{"text_1":"a","text_2":[]}`},
			"/rerank": {`{"query":"a"}`, `{"query":["a","b"],"documents":["c"]}`, `{"query":"a","documents":"b","top_n":"x"}`},
		} {
			for _, body := range bodies {
				if resp, text := c.ask(post(path, body)); resp.StatusCode != 400 {
					t.Errorf("%s %s: %s", path, body, text)
				}
			}
		}
	})
}

func TestClassifyAndPooling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		_, text := c.ask(post("/classify", `{"input":["good","bad"]}`))
		for _, d := range decode[struct {
			Data []struct {
				Label   string
				Probs   []float64
				Classes int `json:"num_classes"`
			}
		}](t, text).Data {
			if best := d.Probs[1] > d.Probs[0]; math.Abs(d.Probs[0]+d.Probs[1]-1) > 1e-9 || best != (d.Label == "LABEL_1") || d.Classes != 2 {
				t.Error(text)
			}
		}
		_, text = c.ask(post("/pooling", `{"messages":[{"role":"user","content":"hi"}]}`))
		if d := decode[struct {
			Data []struct {
				Object string
				Data   []float64
			}
		}](t, text).Data; len(d) != 1 || d[0].Object != "pooling" || len(d[0].Data) != defaultDimensions {
			t.Error(text)
		}
	})
}

func TestTokenizeAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t, tiny())
		c := connect(t, ln)
		const prompt = "Zebras graze, 42 of them."
		_, text := c.ask(post("/tokenize", fmt.Sprintf(`{"prompt":%q,"add_special_tokens":false,"return_token_strs":true}`, prompt)))
		r := decode[struct {
			Count  int
			Tokens []uint32
			Strs   []string `json:"token_strs"`
		}](t, text)
		if r.Count != len(r.Tokens) || strings.Join(r.Strs, "") != prompt {
			t.Error(text)
		}
		_, text = c.ask(post("/detokenize", fmt.Sprintf(`{"tokens":%s}`, strings.ReplaceAll(fmt.Sprint(r.Tokens), " ", ","))))
		if text != fmt.Sprintf(`{"prompt":%q}`, prompt) {
			t.Error(text)
		}
		// What /tokenize counts is what an answer's usage says.
		_, text = c.ask(post("/tokenize", userSays("How many?", "")))
		if n := c.chat(userSays("How many?", `,"max_tokens":1`)).Usage.PromptTokens; decode[struct{ Count int }](t, text).Count != n {
			t.Errorf("%d tokens in the usage, %s", n, text)
		}
		for path, bodies := range map[string][]string{
			"/tokenize":   {`{"messages":1}`, `{"prompt":1}`},
			"/detokenize": {`{}`, `{"tokens":"x"}`, `{"tokens":[-1]}`},
		} {
			for _, body := range bodies {
				if resp, text := c.ask(post(path, body)); resp.StatusCode != 400 {
					t.Errorf("%s %s: %s", path, body, text)
				}
			}
		}
		if resp, _ := c.ask(post("/detokenize", `{"model":"x","tokens":[1]}`)); resp.StatusCode != 404 {
			t.Error(resp.Status)
		}
	})
}

func TestVocabularyIsBounded(t *testing.T) {
	v := newVocabulary()
	var b strings.Builder
	for i := range 2 * maxVocabulary {
		fmt.Fprintf(&b, "%c%c%c%c ", 'a'+i%26, 'a'+i/26%26, 'a'+i/676%26, 'a'+i/17576%26)
	}
	v.learn(b.String())
	if len(v.texts) > maxVocabulary {
		t.Errorf("%d tokens", len(v.texts))
	}
	if v.text(5) != "\uFFFD" {
		t.Error("an unknown token has a text")
	}
}
