package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/discovery/file"
)

// TestConfigViewHasEveryKey compares what /config shows with the keys that the file may have.
func TestConfigViewHasEveryKey(t *testing.T) {
	_, err := file.Parse("f", []byte("nothing: 0"))
	keys := regexp.MustCompile(`\(keys: (.*)\)`).FindStringSubmatch(err.Error())
	if keys == nil {
		t.Fatal(err)
	}
	c, err := file.Parse("f", []byte("listen: {hbone: ':15008'}\ntls: {spiffe: {}}\nwaypoint_for: workload\npools: [{name: p, endpoints: ['http://10.0.0.1:8000']}]"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(describeConfig(c))
	if err != nil {
		t.Fatal(err)
	}
	var shown map[string]json.RawMessage
	if err := json.Unmarshal(text, &shown); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"auth", "policies", "extension_providers", "normalization", "trusted_proxies"} {
		if shown[who] != nil {
			t.Errorf("%s, which says who may do what, is shown", who)
		}
		shown[who] = json.RawMessage("left out")
	}
	for key := range strings.SplitSeq(keys[1], ", ") {
		if shown[key] == nil {
			t.Errorf("%s is not shown", key)
		}
		delete(shown, key)
	}
	if len(shown) > 0 {
		t.Errorf("the file has no such keys: %v", shown)
	}
}

// Lists are lists when they are empty too: scripts go through them.
func TestConfigViewHasNoNulls(t *testing.T) {
	c, err := file.Parse("f", []byte("pools: [{name: p, endpoints: ['http://10.0.0.1:8000']}]\nroutes: [{backendRefs: [{name: p}]}]"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(describeConfig(c))
	if err != nil || strings.Contains(string(text), ":null") {
		t.Errorf("%s %v", text, err)
	}
}
