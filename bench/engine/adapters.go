package engine

import "slices"

// adapterSlots are the LoRA adapters on the GPU: at most max, each with the number of running sequences that use it, the least
// recently used first. An adapter that nobody uses stays until its slot is needed.
type adapterSlots struct {
	max    int
	loaded []adapter
}

type adapter struct {
	name  string
	users int
}

func (a *adapterSlots) index(name string) int {
	return slices.IndexFunc(a.loaded, func(x adapter) bool { return x.name == name })
}

// available reports whether a sequence of this adapter may start: the adapter is in use, or fewer than max are.
func (a *adapterSlots) available(name string) bool {
	if name == "" {
		return true
	}
	used := 0
	for _, x := range a.loaded {
		if x.name == name {
			return true
		}
		if x.users > 0 {
			used++
		}
	}
	return used < a.max
}

// acquire adds a user to an available adapter and reports whether it must be loaded for that.
func (a *adapterSlots) acquire(name string) (load bool) {
	if name == "" {
		return false
	}
	x := adapter{name: name}
	if i := a.index(name); i >= 0 {
		x = a.loaded[i]
		a.loaded = slices.Delete(a.loaded, i, i+1)
	} else {
		load = true
		if len(a.loaded) == a.max {
			i := slices.IndexFunc(a.loaded, func(x adapter) bool { return x.users == 0 })
			a.loaded = slices.Delete(a.loaded, i, i+1)
		}
	}
	x.users++
	a.loaded = append(a.loaded, x)
	return load
}

func (a *adapterSlots) release(name string) {
	if name != "" {
		a.loaded[a.index(name)].users--
	}
}
