package extproc

import (
	"fmt"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// said is what there is to know of a ProcessingRequest, as text.
func said(b []byte) (string, error) {
	var r request
	if err := r.read(b); err != nil {
		return "", err
	}
	var text []byte
	var last bool
	var err error
	switch r.part {
	case inRequestHeaders, inResponseHeaders, inRequestTrailers, inResponseTrailers:
		last, err = r.headers(func(name, value []byte) { text = fmt.Appendf(text, "%q=%q ", name, value) })
	case inRequestBody, inResponseBody:
		var body []byte
		body, last, err = r.body()
		text = fmt.Appendf(text, "%q", body)
	}
	if err != nil {
		return "", err
	}
	m, err := r.modes()
	if err != nil {
		return "", err
	}
	hint, hinted, err := r.lookUp(subsetSpace, subsetKey)
	if err != nil {
		return "", err
	}
	texts, isList, err := readTexts(hint, maxSubset)
	if err != nil {
		return "", err
	}
	served, ok, err := r.lookUp(destinationSpace, servedKey)
	if err != nil {
		return "", err
	}
	by, err := readText(served, nil)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s last %v, modes %v %d %d, observes %v, subset %v %q %v, served %v %q",
		r.part, text, last, r.config != nil, m.request, m.response, r.observes, hinted, texts, isList, ok, by), nil
}

// saidByGenerated is the same by generated code.
func saidByGenerated(m *extprocv3.ProcessingRequest) string {
	var text []byte
	headers := func(h *corev3.HeaderMap) {
		for _, f := range h.GetHeaders() {
			value := f.GetRawValue()
			if len(value) == 0 {
				value = []byte(f.GetValue())
			}
			text = fmt.Appendf(text, "%q=%q ", f.GetKey(), value)
		}
	}
	var p part
	last := false
	switch r := m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		p, last = inRequestHeaders, r.RequestHeaders.GetEndOfStream()
		headers(r.RequestHeaders.GetHeaders())
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		p, last = inResponseHeaders, r.ResponseHeaders.GetEndOfStream()
		headers(r.ResponseHeaders.GetHeaders())
	case *extprocv3.ProcessingRequest_RequestBody:
		p, last = inRequestBody, r.RequestBody.GetEndOfStream()
		text = fmt.Appendf(text, "%q", r.RequestBody.GetBody())
	case *extprocv3.ProcessingRequest_ResponseBody:
		p, last = inResponseBody, r.ResponseBody.GetEndOfStream()
		text = fmt.Appendf(text, "%q", r.ResponseBody.GetBody())
	case *extprocv3.ProcessingRequest_RequestTrailers:
		p = inRequestTrailers
		headers(r.RequestTrailers.GetTrailers())
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		p = inResponseTrailers
		headers(r.ResponseTrailers.GetTrailers())
	}
	hint, hinted := m.GetMetadataContext().GetFilterMetadata()[subsetSpace].GetFields()[subsetKey]
	texts, isList := []string{hint.GetStringValue()}, false
	if list, ok := hint.GetKind().(*structpb.Value_ListValue); ok {
		texts, isList = nil, true
		for _, v := range list.ListValue.GetValues() {
			if len(texts) < maxSubset {
				texts = append(texts, v.GetStringValue())
			}
		}
	}
	served, ok := m.GetMetadataContext().GetFilterMetadata()[destinationSpace].GetFields()[servedKey]
	c := m.GetProtocolConfig()
	return fmt.Sprintf("%d %s last %v, modes %v %d %d, observes %v, subset %v %q %v, served %v %q",
		p, text, last, c != nil, c.GetRequestBodyMode(), c.GetResponseBodyMode(), m.GetObservabilityMode(), hinted, texts, isList, ok, served.GetStringValue())
}

// What generated code reads in a message is what is read here: in any that it would
// write, and in any other that is not refused.
func FuzzWire(f *testing.F) {
	metadata := func(space, key string, v *structpb.Value) *corev3.Metadata {
		return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{space: {Fields: map[string]*structpb.Value{key: v}}}}
	}
	head := &extprocv3.HttpHeaders{EndOfStream: true, Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: ":method", RawValue: []byte("POST")}, {Key: "x-text", Value: "old"}, {Key: "x-both", Value: "text", RawValue: []byte("raw")},
	}}}
	list, err := structpb.NewList([]any{"10.0.0.1:8000", 1, true, nil, []any{"x"}, "10.0.0.2:8000"})
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []*extprocv3.ProcessingRequest{
		{
			Request:         &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: head},
			ProtocolConfig:  &extprocv3.ProtocolConfiguration{RequestBodyMode: modev3.ProcessingMode_FULL_DUPLEX_STREAMED, ResponseBodyMode: modev3.ProcessingMode_BUFFERED},
			MetadataContext: metadata(subsetSpace, subsetKey, structpb.NewListValue(list)),
			Attributes:      map[string]*structpb.Struct{"x": {Fields: map[string]*structpb.Value{"y": structpb.NewNumberValue(1)}}},
		},
		{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: head}, MetadataContext: metadata(destinationSpace, servedKey, structpb.NewStringValue("10.0.0.2:8000"))},
		{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte("body"), EndOfStream: true}}, ObservabilityMode: true},
		{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: []byte("body")}}},
		{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{Trailers: head.Headers}}, MetadataContext: metadata(subsetSpace, subsetKey, structpb.NewStringValue("a, b"))},
		{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}, MetadataContext: metadata(subsetSpace, subsetKey, structpb.NewBoolValue(true))},
		{},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m extprocv3.ProcessingRequest
		got, err := said(b)
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		want := saidByGenerated(&m)
		if err == nil && got != want {
			t.Errorf("%x\nis read as   %s\nby generated %s", b, got, want)
		}
		written, err := proto.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = said(written); err != nil || got != want {
			t.Errorf("%x\nis read as   %s, %v\nby generated %s", written, got, err, want)
		}
	})
}
