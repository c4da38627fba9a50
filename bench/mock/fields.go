package mock

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// fields is a request body, read as pydantic reads it: each value that does not fit adds a line to one error.
type fields struct {
	values map[string]json.RawMessage
	errs   []string
	param  string // where the first error is

	refused *apiError // what is wrong although each field is right
}

// invalid is the error body of a request that fails validation. Its type has a space, unlike that of other bad requests.
func invalid(param *string, errs ...string) *apiError {
	noun := "error"
	if len(errs) > 1 {
		noun = "errors"
	}
	return &apiError{
		Message: fmt.Sprintf("%d validation %s:\n  %s", len(errs), noun, strings.Join(errs, "\n  ")),
		Type:    "Bad Request", Param: param, Code: http.StatusBadRequest,
	}
}

// parse reads the body of x as a JSON object.
func (x *exchange) parse() (*fields, *apiError) {
	if t, _, _ := mime.ParseMediaType(x.req.Header.Get("Content-Type")); t != "application/json" {
		return nil, invalid(nil, "Unsupported Media Type: Only 'application/json' is allowed")
	}
	f := &fields{}
	var value json.RawMessage
	if err := json.Unmarshal(x.body, &value); err != nil {
		pos, msg := pythonSyntaxError(x.body, err)
		loc := "body." + strconv.Itoa(pos)
		return nil, invalid(&loc, fmt.Sprintf("{'type': 'json_invalid', 'loc': '%s', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', "+
			"'ctx': {'error': %s}}", loc, pythonString(msg)))
	}
	if err := json.Unmarshal(value, &f.values); err != nil || f.values == nil {
		loc := "body"
		return nil, invalid(&loc, fmt.Sprintf("{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or "+
			"object to extract fields from', 'input': %s}", pythonValue(value)))
	}
	return f, nil
}

// pythonSyntaxError says where and what Python's json module finds wrong.
func pythonSyntaxError(body []byte, err error) (pos int, msg string) {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return 0, "Expecting value"
	}
	text := syntax.Error()
	pos = int(syntax.Offset) - 1
	switch {
	case strings.HasPrefix(text, "unexpected end"):
		pos = len(body)
		switch trimmed := bytes.TrimSpace(body); {
		case len(trimmed) == 0:
			return 0, "Expecting value"
		case bytes.IndexByte([]byte(":[,"), trimmed[len(trimmed)-1]) >= 0:
			return pos, "Expecting value"
		case trimmed[len(trimmed)-1] == '{':
			return pos, "Expecting property name enclosed in double quotes"
		}
		return pos, "Expecting ',' delimiter"
	case strings.Contains(text, "after object key:value pair"), strings.Contains(text, "after array element"):
		return pos, "Expecting ',' delimiter"
	case strings.Contains(text, "after object key"):
		return pos, "Expecting ':' delimiter"
	case strings.Contains(text, "beginning of object key string"):
		return pos, "Expecting property name enclosed in double quotes"
	case strings.Contains(text, "after top-level value"):
		return pos, "Extra data"
	}
	return pos, "Expecting value"
}

// pythonString is repr() of a string.
func pythonString(s string) string {
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		return `"` + s + `"`
	}
	return "'" + strings.ReplaceAll(s, "'", `\'`) + "'"
}

// pythonValue is how vLLM shows an input that does not fit.
func pythonValue(raw json.RawMessage) string {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return string(raw)
	}
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		return pythonString(v)
	case []any:
		return fmt.Sprintf("'<list of %d items>'", len(v))
	case map[string]any:
		return fmt.Sprintf("'<dict of %d items>'", len(v))
	}
	return string(bytes.TrimSpace(raw))
}

// get returns a field's value, or nil when it is absent or null.
func (f *fields) get(name string) json.RawMessage {
	v := f.values[name]
	if string(v) == "null" {
		return nil
	}
	return v
}

func (f *fields) add(name, kind, msg string, input string) {
	if f.param == "" {
		f.param = "body." + name
	}
	f.errs = append(f.errs, fmt.Sprintf("{'type': '%s', 'loc': 'body.%s', 'msg': '%s', 'input': %s}", kind, name, msg, input))
}

// missing reports a required field that is absent.
func (f *fields) missing(name string) {
	f.add(name, "missing", "Field required", fmt.Sprintf("'<dict of %d items>'", len(f.values)))
}

// err returns what was found wrong, or nil.
func (f *fields) err() *apiError {
	if len(f.errs) == 0 {
		return f.refused
	}
	return invalid(&f.param, f.errs...)
}

func (f *fields) integer(name string, absent int) int {
	raw := f.get(name)
	if raw == nil {
		return absent
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			f.add(name, "int_parsing", "Input should be a valid integer, unable to parse string as an integer", pythonValue(raw))
		}
		return n
	}
	var number float64
	if json.Unmarshal(raw, &number) != nil {
		f.add(name, "int_type", "Input should be a valid integer", pythonValue(raw))
		return 0
	}
	if number != float64(int(number)) {
		f.add(name, "int_from_float", "Input should be a valid integer, got a number with a fractional part", pythonValue(raw))
	}
	return int(number)
}

func (f *fields) number(name string, absent float64) float64 {
	raw := f.get(name)
	if raw == nil {
		return absent
	}
	var number float64
	var text string
	if json.Unmarshal(raw, &text) == nil {
		raw = json.RawMessage(text)
	}
	if json.Unmarshal(raw, &number) != nil {
		f.add(name, "float_type", "Input should be a valid number", pythonValue(raw))
	}
	return number
}

func (f *fields) boolean(name string) bool {
	var b bool
	raw := f.get(name)
	if raw == nil || json.Unmarshal(raw, &b) == nil {
		return b
	}
	var text string
	json.Unmarshal(raw, &text)
	b, err := strconv.ParseBool(text)
	if err != nil {
		f.add(name, "bool_type", "Input should be a valid boolean", pythonValue(raw))
	}
	return b
}

func (f *fields) text(name string) string {
	var s string
	if raw := f.get(name); raw != nil && json.Unmarshal(raw, &s) != nil {
		f.add(name, "string_type", "Input should be a valid string", pythonValue(raw))
	}
	return s
}

// texts reads a string or an array of strings.
func (f *fields) texts(name string) []string {
	raw := f.get(name)
	if raw == nil {
		return nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}
	}
	var many []string
	if json.Unmarshal(raw, &many) != nil {
		f.add(name, "list_type", "Input should be a valid list", pythonValue(raw))
	}
	return many
}

// object reads a nested object; nil when there is none.
func (f *fields) object(name string) *fields {
	raw := f.get(name)
	if raw == nil {
		return nil
	}
	inner := &fields{}
	if json.Unmarshal(raw, &inner.values) != nil {
		f.add(name, "model_type", "Input should be a valid dictionary or instance", pythonValue(raw))
		return nil
	}
	return inner
}
