package mock

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

const (
	maxSchemaDepth = 24   // of nested schemas; deeper ones get null
	maxExampleLen  = 8192 // bytes of an example; what would follow is left out, which may make it invalid
	maxExampleSize = 1024 // items of an array and letters of a string
)

// example returns a JSON document that fits a JSON schema and has no more than it must: the required properties, as few items as
// allowed. The same seed gives the same one. It knows the keywords that tools use; of "pattern", "not" and conditions it does not.
func example(schema json.RawMessage, seed uint64) string {
	e := &exampler{gen: newGenerator(seed), root: schema}
	if node := parseSchema(schema); len(node.Type) > 0 || !node.empty() {
		e.value(node, 0)
	} else {
		e.out = append(e.out, "{}"...)
	}
	return string(e.out)
}

// schemaNode is the part of a schema that decides what fits it.
type schemaNode struct {
	Type             schemaTypes
	Ref              string `json:"$ref"`
	Const            json.RawMessage
	Enum             []json.RawMessage
	AnyOf            []json.RawMessage
	OneOf            []json.RawMessage
	AllOf            []json.RawMessage
	Properties       map[string]json.RawMessage
	Required         []string
	Items            json.RawMessage
	PrefixItems      []json.RawMessage
	MinItems         int
	MinLength        int
	MaxLength        *int
	Format           string
	Minimum          *float64
	Maximum          *float64
	ExclusiveMinimum *float64
	ExclusiveMaximum *float64
	MultipleOf       *float64
}

// schemaTypes is one type or several.
type schemaTypes []string

func (t *schemaTypes) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = schemaTypes{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}

// parseSchema reads what it understands of a schema; anything else says nothing.
func parseSchema(raw json.RawMessage) *schemaNode {
	n := &schemaNode{}
	if len(raw) > 0 && json.Unmarshal(raw, n) != nil {
		return &schemaNode{}
	}
	return n
}

// empty reports whether anything fits.
func (n *schemaNode) empty() bool {
	return n.Ref == "" && n.Const == nil && len(n.Enum)+len(n.AnyOf)+len(n.OneOf)+len(n.AllOf)+len(n.Properties)+len(n.Required)+len(n.PrefixItems) == 0 &&
		n.Items == nil
}

// kind is the type to make.
func (n *schemaNode) kind() string {
	for _, t := range n.Type {
		if t != "null" {
			return t
		}
	}
	switch {
	case len(n.Type) > 0:
		return "null"
	case n.Properties != nil || n.Required != nil:
		return "object"
	case n.Items != nil || n.PrefixItems != nil:
		return "array"
	case n.Minimum != nil || n.Maximum != nil || n.MultipleOf != nil:
		return "number"
	}
	return "string"
}

// exampler writes an example.
type exampler struct {
	gen  generator
	root json.RawMessage
	out  []byte
}

func (e *exampler) raw(s string) { e.out = append(e.out, s...) }

func (e *exampler) value(n *schemaNode, depth int) {
	if depth > maxSchemaDepth || len(e.out) > maxExampleLen {
		e.raw("null")
		return
	}
	switch {
	case n.Ref != "":
		e.value(parseSchema(e.resolve(n.Ref)), depth+1)
		return
	case n.Const != nil:
		e.compact(n.Const)
		return
	case len(n.Enum) > 0:
		e.compact(n.Enum[e.gen.random()%uint64(len(n.Enum))])
		return
	case len(n.AnyOf) > 0:
		e.value(firstOf(n.AnyOf), depth+1)
		return
	case len(n.OneOf) > 0:
		e.value(firstOf(n.OneOf), depth+1)
		return
	case len(n.AllOf) > 0:
		e.value(e.merge(n), depth+1)
		return
	}
	switch n.kind() {
	case "object":
		e.object(n, depth)
	case "array":
		e.array(n, depth)
	case "integer", "number":
		e.number(n)
	case "boolean":
		e.raw(strconv.FormatBool(e.gen.random()&1 == 0))
	case "string":
		e.raw(quote(e.text(n)))
	default:
		e.raw("null")
	}
}

func (e *exampler) compact(v json.RawMessage) {
	b, err := marshal(v)
	if err != nil {
		b = []byte("null")
	}
	e.out = append(e.out, b...)
}

// resolve finds what a reference into the document stands for.
func (e *exampler) resolve(ref string) json.RawMessage {
	path, ok := strings.CutPrefix(ref, "#")
	if !ok {
		return nil
	}
	at := e.root
	for _, step := range strings.Split(path, "/")[1:] {
		step = strings.NewReplacer("~1", "/", "~0", "~").Replace(step)
		var inner map[string]json.RawMessage
		if json.Unmarshal(at, &inner) != nil {
			return nil
		}
		at = inner[step]
	}
	return at
}

// firstOf returns the first of several schemas that does not want null.
func firstOf(all []json.RawMessage) *schemaNode {
	for _, raw := range all {
		if n := parseSchema(raw); n.kind() != "null" {
			return n
		}
	}
	return parseSchema(all[0])
}

// merge makes one schema of all that must fit at once.
func (e *exampler) merge(n *schemaNode) *schemaNode {
	m := *n
	m.AllOf = nil
	m.Properties = map[string]json.RawMessage{}
	maps.Copy(m.Properties, n.Properties)
	for _, raw := range n.AllOf {
		part := parseSchema(raw)
		if part.Ref != "" {
			part = parseSchema(e.resolve(part.Ref))
		}
		if len(m.Type) == 0 {
			m.Type = part.Type
		}
		if len(m.Enum) == 0 {
			m.Enum = part.Enum
		}
		maps.Copy(m.Properties, part.Properties)
		m.Required = append(m.Required, part.Required...)
	}
	if len(m.Type) == 0 && len(m.Properties) == 0 {
		m.Properties = nil
	}
	return &m
}

func (e *exampler) object(n *schemaNode, depth int) {
	e.raw("{")
	for i, name := range n.Required {
		if slices.Contains(n.Required[:i], name) || len(e.out) > maxExampleLen {
			continue
		}
		if e.out[len(e.out)-1] != '{' {
			e.raw(", ")
		}
		e.raw(quote(name) + ": ")
		e.value(parseSchema(n.Properties[name]), depth+1)
	}
	e.raw("}")
}

func (e *exampler) array(n *schemaNode, depth int) {
	e.raw("[")
	for i := range min(max(n.MinItems, len(n.PrefixItems)), maxExampleSize) {
		item := n.Items
		if i < len(n.PrefixItems) {
			item = n.PrefixItems[i]
		}
		if i > 0 {
			e.raw(", ")
		}
		e.value(parseSchema(item), depth+1)
	}
	e.raw("]")
}

// number writes a small number within the limits.
func (e *exampler) number(n *schemaNode) {
	low, high := 1.0, 100.0
	if n.Minimum != nil || n.ExclusiveMinimum != nil {
		low = math.Inf(-1)
		if n.Minimum != nil {
			low = math.Ceil(*n.Minimum)
		}
		if n.ExclusiveMinimum != nil {
			low = max(low, math.Floor(*n.ExclusiveMinimum)+1)
		}
		high = low + 99
	}
	if n.Maximum != nil || n.ExclusiveMaximum != nil {
		high = math.Inf(1)
		if n.Maximum != nil {
			high = math.Floor(*n.Maximum)
		}
		if n.ExclusiveMaximum != nil {
			high = min(high, math.Ceil(*n.ExclusiveMaximum)-1)
		}
		if n.Minimum == nil && n.ExclusiveMinimum == nil {
			low = min(low, high)
		}
	}
	step := 1.0
	if n.MultipleOf != nil && *n.MultipleOf > 0 {
		step = *n.MultipleOf
	}
	low, high = math.Ceil(low/step), math.Floor(high/step)
	v := low
	if span := high - low; span >= 1 {
		v += float64(e.gen.random() % (uint64(min(span, 99)) + 1))
	}
	v *= step
	switch { // no whole number lies between the limits
	case n.Maximum != nil && v > *n.Maximum:
		v = *n.Maximum
	case n.ExclusiveMaximum != nil && n.ExclusiveMinimum != nil && v >= *n.ExclusiveMaximum:
		v = (*n.ExclusiveMaximum + *n.ExclusiveMinimum) / 2
	}
	if math.IsInf(v, 0) || math.IsNaN(v) {
		v = 0
	}
	e.out = strconv.AppendFloat(e.out, v, 'f', -1, 64)
}

// formats are texts in the formats that have one.
var formats = map[string]string{
	"date-time": "2026-01-02T03:04:05Z", "date": "2026-01-02", "time": "03:04:05Z", "duration": "P1D",
	"email": "reader@example.com", "hostname": "example.com", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
	"uri": "https://example.com/", "uuid": "01234567-89ab-4cde-8f01-23456789abcd",
}

// text is two words, or as many as its length needs.
func (e *exampler) text(n *schemaNode) string {
	if s, ok := formats[n.Format]; ok {
		return s
	}
	_, s := e.gen.next()
	_, more := e.gen.next()
	s += more
	for len(s) < min(n.MinLength, maxExampleSize) {
		_, more := e.gen.next()
		s += more
	}
	if n.MaxLength != nil && len(s) > *n.MaxLength {
		s = s[:max(0, *n.MaxLength)]
	}
	return s
}
