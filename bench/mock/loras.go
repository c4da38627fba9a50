package mock

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// adapter is a LoRA adapter that may be asked for as a model.
type adapter struct{ name, path string }

// adapterNamed returns the index of an adapter, or -1. s.mu is held.
func (s *Server) adapterNamed(name string) int {
	return slices.IndexFunc(s.adapters, func(a adapter) bool { return a.name == name })
}

// loaded returns the adapters in the order they were loaded.
func (s *Server) loaded() []adapter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.adapters)
}

// hasModel says whether name is served, and as which adapter. No name means the base model.
func (s *Server) hasModel(name string) (adapter string, ok bool) {
	if name == "" || name == s.cfg.Model {
		return "", true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return name, s.adapterNamed(name) >= 0
}

func invalidInput(message string) *apiError {
	return &apiError{Message: message, Type: "InvalidUserInput", Code: http.StatusBadRequest}
}

func notFound(message string) *apiError {
	return &apiError{Message: message, Type: "NotFoundError", Code: http.StatusNotFound}
}

// loadAdapter is POST /v1/load_lora_adapter (vllm/entrypoints/openai/models/serving.py). It answers when the adapter has been loaded,
// which takes the profile's AdapterLoad.
func (x *exchange) loadAdapter() {
	f, e := x.parse()
	if e != nil {
		x.fail(e)
		return
	}
	for _, name := range []string{"lora_name", "lora_path"} {
		if f.get(name) == nil {
			f.missing(name)
		}
	}
	a := adapter{f.text("lora_name"), f.text("lora_path")}
	inPlace := f.boolean("load_inplace")
	if e := f.err(); e != nil {
		x.fail(e)
		return
	}
	x.s.mu.Lock()
	e = x.s.refuseAdapter(a, inPlace)
	x.s.mu.Unlock()
	if e != nil {
		x.fail(e)
		return
	}
	if !x.pause(x.s.adapterLoad()) {
		return
	}
	if e := x.s.addAdapter(a, inPlace); e != nil {
		x.fail(e)
		return
	}
	x.answer(http.StatusOK, "", []byte("Success: LoRA adapter '"+a.name+"' added successfully."))
}

// adapterLoad is how long loading an adapter takes.
func (s *Server) adapterLoad() time.Duration {
	cfg := s.drivers[0].eng.Config() // it does not change
	return time.Duration(float64(cfg.Cost.AdapterLoad) / cfg.Speed)
}

// maxAdapters bounds how many adapters can be loaded.
const maxAdapters = 10_000

// refuseAdapter says why an adapter cannot be loaded. s.mu is held.
func (s *Server) refuseAdapter(a adapter, inPlace bool) *apiError {
	switch {
	case a.name == "" || a.path == "":
		return invalidInput("Both 'lora_name' and 'lora_path' must be provided.")
	case a.name == s.cfg.Model:
		return invalidInput("The lora adapter '" + a.name + "' conflicts with a served base model.")
	case !inPlace && s.adapterNamed(a.name) >= 0:
		return invalidInput("The lora adapter '" + a.name + "' has already been loaded. If you want to load the adapter in place, set " +
			"'load_inplace' to True.")
	case !strings.HasPrefix(a.path, s.cfg.LoraRoot):
		return notFound("Loading lora " + a.name + " failed: No adapter found for " + a.path)
	case len(s.adapters) >= maxAdapters:
		return &apiError{Message: "too many adapters", Type: "InternalServerError", Code: http.StatusInternalServerError}
	}
	return nil
}

// addAdapter makes an adapter a model, unless another request has loaded it meanwhile.
func (s *Server) addAdapter(a adapter, inPlace bool) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.refuseAdapter(a, inPlace); e != nil {
		return e
	}
	if i := s.adapterNamed(a.name); i >= 0 {
		s.adapters[i] = a
		return nil
	}
	s.adapters = append(s.adapters, a)
	return nil
}

// unloadAdapter is POST /v1/unload_lora_adapter. What runs with the adapter is not disturbed.
func (x *exchange) unloadAdapter() {
	f, e := x.parse()
	if e != nil {
		x.fail(e)
		return
	}
	if f.get("lora_name") == nil {
		f.missing("lora_name")
	}
	name := f.text("lora_name")
	if e := f.err(); e != nil {
		x.fail(e)
		return
	}
	if name == "" {
		x.fail(invalidInput("'lora_name' needs to be provided to unload a LoRA adapter."))
		return
	}
	x.s.mu.Lock()
	i := x.s.adapterNamed(name)
	if i >= 0 {
		x.s.adapters = slices.Delete(x.s.adapters, i, i+1)
	}
	x.s.mu.Unlock()
	if i < 0 {
		x.fail(notFound("The lora adapter '" + name + "' cannot be found."))
		return
	}
	x.answer(http.StatusOK, "", []byte("Success: LoRA adapter '"+name+"' removed successfully."))
}

// pause waits as long as an engine is busy with something, and returns false if the client left meanwhile.
func (x *exchange) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.c.in.gone:
		x.keepAlive = false
		return false
	}
}
