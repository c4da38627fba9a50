package route

import (
	"fmt"
	"strconv"
	"strings"
)

// String shows the conditions in one line: "POST /v1/* x-tenant=a ?version=2".
func (m Match) String() string {
	var parts []string
	if m.Method != "" {
		parts = append(parts, m.Method)
	}
	switch m.Path.Type {
	case Exact:
		parts = append(parts, m.Path.Value)
	case RegularExpression:
		parts = append(parts, "~"+m.Path.Value)
	default:
		parts = append(parts, strings.TrimRight(m.Path.Value, "/")+"/*")
	}
	for _, h := range m.Headers {
		parts = append(parts, h.String())
	}
	for _, q := range m.Query {
		parts = append(parts, "?"+q.String())
	}
	return strings.Join(parts, " ")
}

// String shows the condition: "name=value", or "name~expression".
func (v ValueMatch) String() string {
	if v.Type == RegularExpression {
		return v.Name + "~" + v.Value
	}
	return v.Name + "=" + v.Value
}

// Texts shows what the rule does to a request, one text for each thing.
func (r *Rule) Texts() (all []string) {
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if d := r.Redirect; d != nil {
		to := d.Hostname
		if d.Scheme != "" {
			to = d.Scheme + "://" + to
		}
		if d.Port != 0 {
			to += ":" + strconv.Itoa(d.Port)
		}
		add("redirect %d %s", d.StatusCode(), strings.TrimSpace(to+" "+d.Path.String()))
	}
	if w := r.Rewrite; w != nil {
		add("rewrite %s", strings.TrimSpace(w.Hostname+" "+w.Path.String()))
	}
	if r.RequestHeaders != nil {
		add("change request headers")
	}
	if r.ResponseHeaders != nil {
		add("change response headers")
	}
	for _, m := range r.Mirrors {
		if m.Denominator == 0 {
			add("mirror to %s", m.Pool)
		} else {
			add("mirror %d/%d to %s", m.Numerator, m.Denominator, m.Pool)
		}
	}
	if d := r.Timeouts.Request; d != nil {
		add("request timeout %s", d)
	}
	if d := r.Timeouts.BackendRequest; d != nil {
		add("backend timeout %s", d)
	}
	if t := r.Retry; t != nil {
		add("retry %d×", t.Attempts)
	}
	return all
}

// String shows what a path becomes; "" for nil.
func (m *PathModifier) String() string {
	switch {
	case m == nil:
		return ""
	case m.Prefix:
		return "prefix → " + m.Replacement
	}
	return "path → " + m.Replacement
}
