package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-proxy/fairway/bench/sim"
	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

const quick = "--warmup 2s --measure 4s --rate 20 --seeds 2 --policies round-robin,fairway "

// The rows have the keys that scripts read.
func TestCompareJSON(t *testing.T) {
	code, stdout, stderr := loadtest(t.Context(), strings.Fields("compare --json --workload mix --by-criticality --replicas 2 "+quick)...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var rows []map[string]any
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 6 {
		t.Fatalf("%d rows for two policies and three criticalities", len(rows))
	}
	keys := strings.Fields(`workload policy load replicas seeds criticality requests refused ttft_p50_s ttft_p90_s ttft_p90_sd tpot_p90_s
		gap_p90_s e2e_p90_s hit_rate goodput tokens_per_s slo_met cost ttft_error tpot_error`)
	for _, row := range rows {
		for _, k := range keys {
			if _, ok := row[k]; !ok {
				t.Errorf("a row without %s", k)
			}
		}
		if len(row) != len(keys) || row["workload"] != "mix" || row["replicas"] != 2.0 || row["seeds"] != 2.0 || row["requests"] == 0.0 {
			t.Errorf("row %v", row)
		}
	}
	if rows[0]["policy"] != "round-robin" || rows[3]["policy"] != "fairway" || rows[0]["criticality"] != "Critical" || rows[1]["criticality"] != "Sheddable" {
		t.Errorf("the rows are not in the order asked for: %v", rows)
	}
}

func TestCompareTable(t *testing.T) {
	code, stdout, stderr := loadtest(t.Context(), strings.Fields("compare --workload unshared "+quick)...)
	if code != 0 || !strings.Contains(stdout, "TTFT") || strings.Count(stdout, "\n") != 5 || !strings.Contains(stdout, "20.0 requests/s") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

// A load is a fraction of what was measured, for every workload there is.
func TestCompareKnowsEverySaturationRate(t *testing.T) {
	for _, w := range strings.Split(workloads(), "\n") {
		name := strings.Fields(w)[0]
		code, _, stderr := loadtest(t.Context(), "compare", "--quiet", "--workload", name, "--load", "0.1", "--seeds", "1", "--policies", "fairway", "--warmup", "1ms", "--measure", "1s")
		if code != 0 {
			t.Errorf("%s: %s", name, stderr)
		}
	}
}

func TestCompareTrace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "trace.jsonl")
	text := strings.Repeat(`{"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [1, 2, 3]}`+"\n", 5) +
		`{"timestamp": 3000, "input_length": 1200, "output_length": 5, "hash_ids": [1, 2, 3]}` + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := loadtest(t.Context(), "compare", "--json", "--workload", file, "--load", "0.5", "--seeds", "1", "--policies", "fairway", "--warmup", "1ns", "--measure", "1h")
	var rows []sim.Row
	if err := json.Unmarshal([]byte(stdout), &rows); code != 0 || err != nil {
		t.Fatalf("exit %d: %v: %s", code, err, stderr)
	}
	if len(rows) != 1 || rows[0].Requests != 1 || rows[0].HitRate < 0.9 {
		t.Errorf("rows %+v", rows)
	}
	code, stdout, stderr = loadtest(t.Context(), "compare", "--quiet", "--workload", file, "--load", "0.5", "--seeds", "1", "--policies", "fairway")
	if code != 0 || !strings.Contains(stdout, "1.0 requests/s (50 % of the trace's own rate)") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

// Who interrupts is told what there is.
func TestCompareInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, stdout, stderr := loadtest(ctx, strings.Fields("compare --json --workload chat --load 0.5")...)
	if code != 0 || strings.TrimSpace(stdout) != "[]" {
		t.Errorf("exit %d: %q %q", code, stdout, stderr)
	}
	if code, stdout, _ = loadtest(ctx, strings.Fields("compare --workload chat --load 0.5")...); code != 0 || !strings.Contains(stdout, "interrupted") {
		t.Errorf("exit %d: %q", code, stdout)
	}
}

func TestCompareMisuse(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.jsonl")
	if err := os.WriteFile(bad, []byte("timestamp\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"--workload chatter":    "shared-prefix",
		"--load 0":              "--load",
		"--seeds 0":             "--seeds",
		"--replicas -1":         "--replicas",
		"--policies best":       "epp-default",
		"--measure -1s":         "--measure",
		"--slo tps=1":           "ttft",
		"--costs 1,0":           "--costs",
		"--workload " + bad:     "bad.jsonl:1",
		"--workload chat extra": "extra",
	} {
		code, stdout, stderr := loadtest(t.Context(), append([]string{"compare"}, strings.Fields(args)...)...)
		if code != cli.Misused || !strings.Contains(stderr, want) || stdout != "" {
			t.Errorf("%s: exit %d, %q", args, code, stderr)
		}
	}
}

// Tables go between their marks and nowhere else.
func TestTablesNeedTheirMarks(t *testing.T) {
	begin, end := marks("saturation")
	old := "before\n" + begin + "\nold\n" + end + "\nafter\n"
	for _, tables := range []string{"first\n", "second\n"} {
		text, err := replaceSection("p", []byte(old), "saturation", tables)
		if want := "before\n" + begin + "\n\n" + tables + end + "\nafter\n"; err != nil || string(text) != want {
			t.Fatalf("%v: %q, want %q", err, text, want)
		}
		old = string(text)
	}
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("# Routing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := loadtest(t.Context(), "tables", "--page", page); code != cli.Failed || !strings.Contains(stderr, "latencies: begin") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if code, _, stderr := loadtest(t.Context(), "tables"); code != cli.Misused || !strings.Contains(stderr, "--page") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// All of make bench-routing, in a hurry: every table of the page on routing is made, with a figure in every cell.
func TestTables(t *testing.T) {
	text, err := os.ReadFile("../../docs/routing.md")
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(t.TempDir(), "routing.md")
	if err := os.WriteFile(page, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := loadtest(t.Context(), "tables", "--page", page, "--seeds", "1", "--warmup", "1ns", "--measure", "100ms"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if text, err = os.ReadFile(page); err != nil {
		t.Fatal(err)
	}
	for _, s := range sections {
		begin, end := marks(s.name)
		_, rest, _ := strings.Cut(string(text), begin)
		made, _, _ := strings.Cut(rest, end)
		if rows := strings.Count(made, "\n| "); rows < 4 || strings.Contains(made, "NaN") || strings.Contains(made, "%!") {
			t.Errorf("%s: %d rows in %s", s.name, rows, made)
		}
	}
}

func TestSaturationOfOne(t *testing.T) {
	code, _, stderr := loadtest(t.Context(), "saturation", "--workloads", "chatter")
	if code != cli.Misused || !strings.Contains(stderr, "chatter") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
