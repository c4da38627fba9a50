package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServesUntilStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- cli.Execute(ctx, newCommand(), []string{"--listen", "127.0.0.1:0", "--model", "tiny", "--lora", "a", "--profile", "tiny-cpu", "--speed", "50", "--json"}, w, io.Discard)
		w.Close()
	}()
	var start struct {
		Listen, Model, Profile string
		Loras                  []string
	}
	line, _ := bufio.NewReader(r).ReadBytes('\n')
	if err := json.Unmarshal(line, &start); err != nil || start.Model != "tiny" || start.Profile != "tiny-cpu" || len(start.Loras) != 1 {
		t.Fatalf("start line %q: %v", line, err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Post("http://"+start.Listen+"/v1/chat/completions", "application/json",
		strings.NewReader(`{"model":"a","messages":[{"role":"user","content":"hi"}],"max_tokens":3}`))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"model":"a"`)) {
		t.Errorf("%s: %s", resp.Status, body)
	}
	stop()
	if c := <-code; c != cli.Done {
		t.Errorf("exit code %d", c)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"version", cli.Done, "mockvllm"},
		{"version --json", cli.Done, `"version"`},
		{"--help", cli.Done, "llama3-8b-h100"},
		{"--no-such-flag", cli.Misused, "--no-such-flag"},
		{"extra", cli.Misused, "extra"},
		{"--profile abacus", cli.Misused, "tiny-cpu"},
		{"--speed 0", cli.Misused, "--speed"},
		{"--num-gpu-blocks 1", cli.Misused, "--num-gpu-blocks"},
		{"--lora-load-time -1s", cli.Misused, "--lora-load-time"},
		{"--max-loras 0", cli.Misused, "--max-loras"},
		{"--max-model-len 999999999", cli.Misused, "does not fit"},
		{"--listen 127.0.0.1:notaport", cli.Failed, "notaport"},
	} {
		var out bytes.Buffer
		if code := cli.Execute(t.Context(), newCommand(), strings.Fields(tt.args), &out, &out); code != tt.code || !strings.Contains(out.String(), tt.says) {
			t.Errorf("%q: exit code %d, said %q", tt.args, code, out.String())
		}
	}
}
