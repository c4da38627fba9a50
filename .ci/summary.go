// Summary reads the output of `go test -json` on standard input and tells it briefly: a line for each
// package, all that failing tests printed, why tests were skipped, the minutes it took, and last,
// alone on its line, "N passed, N failed, N skipped". It counts tests and subtests; a package that fails without a failing
// test (it does not build, it panics) counts as one failed. With -v it prints everything as it comes.
//
// It exits with 1 when something failed, and when there was nothing to count.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// tally is what has been counted, and the output of tests that have not ended yet.
type tally struct {
	passed, failed, skipped int
	verbose                 bool
	output                  map[string]*strings.Builder // by package and test
	failedIn                map[string]bool             // packages with a failing test
}

func main() {
	start := time.Now()
	verbose := flag.Bool("v", false, "print everything as it comes")
	flag.Parse()
	t := tally{verbose: *verbose, output: map[string]*strings.Builder{}, failedIn: map[string]bool{}}

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Action == "" {
			fmt.Println(lines.Text()) // not from the tests: make's echo, a linker's warning
			continue
		}
		t.add(e)
	}
	if err := lines.Err(); err != nil {
		fmt.Println("summary: reading the tests' output:", err)
		t.failed++
	}
	fmt.Printf("took %.1f min\n", time.Since(start).Minutes())
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if t.failed > 0 || t.passed+t.skipped == 0 {
		os.Exit(1)
	}
}

func (t *tally) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		switch {
		case t.verbose || e.Action == "build-output":
			fmt.Print(e.Output)
		default:
			if t.output[key] == nil {
				t.output[key] = new(strings.Builder)
			}
			t.output[key].WriteString(e.Output)
		}
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	if e.Test == "" {
		t.endPackage(e, t.output[key])
	} else {
		t.endTest(e, t.output[key])
	}
	delete(t.output, key)
}

func (t *tally) endTest(e event, output *strings.Builder) {
	switch e.Action {
	case "pass":
		t.passed++
		return
	case "skip":
		t.skipped++
	case "fail":
		t.failed++
		t.failedIn[e.Package] = true
	}
	if output != nil {
		fmt.Print(output)
	}
}

func (t *tally) endPackage(e event, output *strings.Builder) {
	if e.Action == "fail" && !t.failedIn[e.Package] {
		t.failed++
	}
	if e.Action == "fail" {
		for _, key := range slices.Sorted(maps.Keys(t.output)) { // tests that did not end: a time-out, a panic
			if strings.HasPrefix(key, e.Package+" ") && t.output[key] != output {
				fmt.Print(t.output[key])
				delete(t.output, key)
			}
		}
		if output != nil {
			fmt.Print(output)
		}
	}
	if !t.verbose && e.Action != "skip" { // skip: a package without tests
		fmt.Printf("%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
	}
}
