package route

import (
	"bytes"
	"strconv"

	"github.com/fairway-proxy/fairway/proxy/message"
)

// Apply changes fields, in place where there is room. A nil m changes nothing.
func (m *HeaderModifier) Apply(fields []message.Field) []message.Field {
	if m == nil {
		return fields
	}
	kept := fields[:0]
	for _, f := range fields {
		if !m.drops(f.Name) {
			kept = append(kept, f)
		}
	}
	kept = append(kept, m.Set...)
	return append(kept, m.Add...)
}

// drops tells whether fields of that name go: they are removed, or set anew.
func (m *HeaderModifier) drops(name []byte) bool {
	for _, r := range m.Remove {
		if message.EqualFold(name, r) {
			return true
		}
	}
	for _, s := range m.Set {
		if len(s.Name) == len(name) && bytes.EqualFold(s.Name, name) {
			return true
		}
	}
	return false
}

// Rewrite changes the authority and the target of r by the rule's Rewrite, if it
// has one.
func (f Found) Rewrite(r *message.Request) {
	w := f.Filters.Rewrite
	if w == nil {
		return
	}
	if w.Hostname != "" {
		r.Authority = []byte(w.Hostname)
	}
	if w.Path != nil {
		r.Target = f.appendTarget(nil, r, w.Path)
	}
}

// Location is where the rule's Redirect sends a request that came by that scheme.
func (f Found) Location(r *message.Request, scheme string) []byte {
	d := f.Redirect
	host, port := splitPort(r.Authority)
	if d.Hostname != "" {
		host = []byte(d.Hostname)
	}
	if d.Scheme != "" {
		scheme, port = d.Scheme, nil
	}
	if d.Port != 0 {
		port = strconv.AppendInt(nil, int64(d.Port), 10)
	}
	to := append([]byte(scheme), "://"...)
	to = append(to, host...)
	if len(port) > 0 && !(scheme == "http" && string(port) == "80") && !(scheme == "https" && string(port) == "443") {
		to = append(append(to, ':'), port...)
	}
	if d.Path == nil {
		return append(to, r.Target...)
	}
	return f.appendTarget(to, r, d.Path)
}

// appendTarget appends r's target with its path modified (HTTPPathModifier).
func (f Found) appendTarget(dst []byte, r *message.Request, m *PathModifier) []byte {
	path := r.Path()
	start := len(dst)
	dst = append(dst, m.Replacement...)
	if m.Prefix && f.prefix != notPrefix {
		// What follows the prefix begins with a slash, or is nothing.
		rest := path[f.prefix:]
		if len(rest) > 0 {
			dst = append(bytes.TrimSuffix(dst, []byte("/")), rest...)
		}
	}
	if len(dst) == start || dst[start] != '/' {
		dst = append(append(dst[:start:start], '/'), dst[start:]...)
	}
	return append(dst, r.Target[len(path):]...)
}

// StatusCode is the status of a redirect.
func (d *Redirect) StatusCode() int {
	if d.Status == 0 {
		return 302
	}
	return d.Status
}
