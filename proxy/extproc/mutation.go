package extproc

import (
	"bytes"
	"unsafe"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// A mutation says how a head is to be changed: a HeaderMutation, as it is written.
type mutation struct{ list []byte }

func (m *mutation) reset() { m.list = m.list[:0] }

// diff adds what makes the fields that came into those that are wanted. Names are
// told apart in lower case, as Envoy gives them; of one name, values that differ
// in anything are replaced together.
func (m *mutation) diff(came, wanted []message.Field) {
	same := 0 // most often that is all, or all but what was added
	for same < min(len(came), len(wanted)) && identical(&came[same], &wanted[same]) {
		same++
	}
	for i, f := range wanted[same:] {
		if seen(wanted[same:same+i], f.Name) || sameValues(came, wanted, f.Name) {
			continue
		}
		again := false
		for _, g := range wanted {
			if bytes.EqualFold(g.Name, f.Name) {
				m.add(string(g.Name), g.Value, again)
				again = true
			}
		}
	}
	for i, f := range came[same:] {
		if !seen(wanted, f.Name) && !seen(came[same:same+i], f.Name) {
			m.remove(string(f.Name))
		}
	}
}

// identical tells whether two fields lie in the same memory.
func identical(a, b *message.Field) bool {
	return sameMemory(a.Name, b.Name) && sameMemory(a.Value, b.Value)
}

func sameMemory(a, b []byte) bool {
	return len(a) == len(b) && unsafe.SliceData(a) == unsafe.SliceData(b)
}

// set gives a field one value.
func (m *mutation) set(name string, value []byte) {
	m.add(name, value, false)
}

// overwrite is OVERWRITE_IF_EXISTS_OR_ADD of HeaderValueOption.append_action.
const overwrite = 2

func (m *mutation) add(name string, value []byte, again bool) {
	header := size(len(name)) + size(len(value)) // HeaderValue: key, raw_value
	const how = 2                                // bytes of append_action
	option := size(header) + how
	if again {
		option = size(header) + size(how) // append, a BoolValue: Envoy's ext_proc goes by it, and not by append_action
	}
	m.list = appendTag(m.list, 1, option)
	m.list = appendText(appendTag(m.list, 1, header), 1, name)
	m.list = append(appendTag(m.list, 3, len(value)), value...)
	if again {
		m.list = appendNumber(appendTag(m.list, 2, how), 1, 1)
	} else {
		m.list = appendNumber(m.list, 3, overwrite)
	}
}

func (m *mutation) remove(name string) { m.list = appendText(m.list, 2, name) }

func seen(fields []message.Field, name []byte) bool {
	for i := range fields {
		if bytes.EqualFold(fields[i].Name, name) {
			return true
		}
	}
	return false
}

// sameValues tells whether both have the same values of that name, in order.
func sameValues(a, b []message.Field, name []byte) bool {
	next := func(list []message.Field, at int) int {
		for ; at < len(list); at++ {
			if bytes.EqualFold(list[at].Name, name) {
				return at
			}
		}
		return -1
	}
	i, j := next(a, 0), next(b, 0)
	for i >= 0 && j >= 0 {
		if !bytes.Equal(a[i].Value, b[j].Value) {
			return false
		}
		i, j = next(a, i+1), next(b, j+1)
	}
	return i < 0 && j < 0
}
