//go:build e2e && linux

package process

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// Sum adds up the samples of a metric on a page for Prometheus, of those whose labels hold every one of the words, such as
// `code="200"`. It is 0 where there are none.
func Sum(page, name string, words ...string) (float64, error) {
	sum := 0.0
lines:
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		space := strings.LastIndexByte(rest, ' ')
		for _, w := range words {
			if !strings.Contains(rest[:space], w) {
				continue lines
			}
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[space:]), 64)
		if err != nil {
			return 0, fmt.Errorf("%q: %w", line, err)
		}
		sum += v
	}
	return sum, nil
}

// Page is what a URL answers with 200.
func Page(url string) (string, error) {
	r, err := asking.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, r.Status, page)
	}
	return string(page), err
}

// SumAt is Sum of the page at a URL.
func SumAt(url, name string, words ...string) (float64, error) {
	page, err := Page(url)
	if err != nil {
		return 0, err
	}
	return Sum(page, name, words...)
}

// Metric is SumAt, without which the test ends.
func Metric(t testing.TB, url, name string, words ...string) float64 {
	t.Helper()
	sum, err := SumAt(url, name, words...)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
