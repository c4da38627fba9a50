package message

import (
	"slices"
	"strings"
	"testing"
)

func TestEqualFold(t *testing.T) {
	for _, tt := range []struct {
		name, lower string
		want        bool
	}{
		{"", "", true},
		{"host", "host", true},
		{"Host", "host", true},
		{"CONTENT-TYPE", "content-type", true},
		{"X-A1_z", "x-a1_z", true},
		{"AZ", "az", true},
		{"host", "", false},
		{"", "host", false},
		{"hos", "host", false},
		{"hosts", "host", false},
		{"hort", "host", false},
		// Only letters fold: these differ from one another by the same bit.
		{"@", "`", false},
		{"[", "{", false},
		{"]", "}", false},
		{"^", "~", false},
		{"\r", "-", false},
		{"x\x00", "x ", false},
		// The Kelvin sign is no k, as Unicode would have it.
		{"\u212a", "k", false},
		{"\u212aey", "key", false},
		{"\xc0", "\xe0", false},
		// The second one is given in lower case.
		{"Host", "Host", false},
	} {
		if got := EqualFold([]byte(tt.name), tt.lower); got != tt.want {
			t.Errorf("EqualFold(%q, %q) = %v", tt.name, tt.lower, got)
		}
	}
}

// For every byte there is: ASCII letters fold, and nothing else does.
func TestEqualFoldBytes(t *testing.T) {
	for b := range 256 {
		name := []byte{byte(b)}
		lower := string(name)
		if 'A' <= b && b <= 'Z' {
			lower = strings.ToLower(lower)
		}
		for other := range 256 {
			l := string([]byte{byte(other)})
			if got, want := EqualFold(name, l), l == lower; got != want {
				t.Errorf("EqualFold(%q, %q) = %v", name, l, got)
			}
		}
	}
}

// fields makes fields of "name: value" lines.
func fields(lines ...string) []Field {
	var all []Field
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		all = append(all, Field{Name: []byte(name), Value: []byte(value)})
	}
	return all
}

func lines(fields []Field) []string {
	var all []string
	for _, f := range fields {
		all = append(all, string(f.Name)+": "+string(f.Value))
	}
	return all
}

func TestGet(t *testing.T) {
	head := fields("Accept: a", "X-Model: first", "accept: b", "X-Empty: ", "x-model: second")
	for _, tt := range []struct {
		fields []Field
		name   string
		want   string
		found  bool
	}{
		{head, "accept", "a", true},
		{head, "x-model", "first", true},
		{head, "x-empty", "", true},
		{head, "x-mode", "", false},
		{head, "x-models", "", false},
		{head, "", "", false},
		{nil, "accept", "", false},
	} {
		got := Get(tt.fields, tt.name)
		if string(got) != tt.want || (got != nil) != tt.found {
			t.Errorf("Get(%q) = %q, found %v", tt.name, got, got != nil)
		}
	}
}

func TestDelete(t *testing.T) {
	head := []string{"A: 1", "X: 2", "b: 3", "x: 4", "C: 5", "X: 6"}
	for _, tt := range []struct {
		from []string
		name string
		want []string
	}{
		{head, "x", []string{"A: 1", "b: 3", "C: 5"}},
		{head, "a", head[1:]},
		{head, "none", head},
		{[]string{"X: 1", "x: 2"}, "x", nil},
		{[]string{"x: 1"}, "x", nil},
		{nil, "x", nil},
	} {
		in := fields(tt.from...)
		got := Delete(in, tt.name)
		if !slices.Equal(lines(got), tt.want) {
			t.Errorf("Delete(%q, %q) = %q, want %q", tt.from, tt.name, lines(got), tt.want)
		}
		if len(got) > 0 && &got[0] != &in[0] {
			t.Errorf("Delete(%q, %q) made another slice", tt.from, tt.name)
		}
	}
}

func TestPath(t *testing.T) {
	for target, want := range map[string]string{
		"":                   "",
		"*":                  "*",
		"/":                  "/",
		"?":                  "",
		"/v1/models":         "/v1/models",
		"/v1/models?":        "/v1/models",
		"/v1/models?a=b":     "/v1/models",
		"/v1/models?a=b?c=d": "/v1/models",
		"/a%3Fb?c":           "/a%3Fb",
		"?/v1/models":        "",
	} {
		r := Request{Target: []byte(target)}
		if got := string(r.Path()); got != want {
			t.Errorf("the path of %q is %q, want %q", target, got, want)
		}
		if string(r.Target) != target {
			t.Errorf("the target %q became %q", target, r.Target)
		}
	}
}

// RFC 9112 section 6.3: whatever the fields say.
func TestNoBody(t *testing.T) {
	for _, tt := range []struct {
		method string
		status int
		want   bool
	}{
		{"GET", 200, false},
		{"POST", 200, false},
		{"POST", 201, false},
		{"GET", 205, false},
		{"GET", 301, false},
		{"GET", 404, false},
		{"GET", 500, false},
		{"GET", 100, true},
		{"GET", 101, true},
		{"GET", 103, true},
		{"GET", 199, true},
		{"GET", 204, true},
		{"POST", 204, true},
		{"GET", 304, true},
		{"HEAD", 200, true},
		{"HEAD", 404, true},
		{"HEAD", 204, true},
		{"head", 200, false}, // methods are case-sensitive: RFC 9110 section 9.1
		{"HEADS", 200, false},
	} {
		if got := NoBody([]byte(tt.method), tt.status); got != tt.want {
			t.Errorf("NoBody(%s, %d) = %v", tt.method, tt.status, got)
		}
	}
}

func TestAllocs(t *testing.T) {
	head := fields("Accept: a", "X-Model: m", "Content-Type: application/json")
	request := Request{Method: []byte("POST"), Target: []byte("/v1/completions?x")}
	if n := testing.AllocsPerRun(100, func() {
		Get(head, "content-type")
		Get(head, "none")
		Delete(head, "none")
		request.Path()
		NoBody(request.Method, 200)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
