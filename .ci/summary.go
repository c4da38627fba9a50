// Summary reads the output of `go test -json` on standard input and tells it briefly: a line for each
// package, all that failing tests printed, why tests were skipped, the minutes it took, and last,
// alone on its line, "N passed, N failed, N skipped". It counts tests and subtests; a package that fails without a failing
// test (it does not build, it panics) counts as one failed. With -v it prints everything as it comes. What failing tests and
// builds printed is written to the file that the environment's FAILURES names, too, after what is there.
//
// It exits with 1 when something failed, and when there was nothing to count.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
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
	failures                strings.Builder             // what they printed
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
	if name := os.Getenv("FAILURES"); name != "" && t.failures.Len() > 0 {
		if err := appendTo(name, t.failures.String()); err != nil {
			fmt.Println("summary: keeping what failed:", err)
		}
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
	case "build-output":
		fmt.Print(e.Output)
		t.failures.WriteString(e.Output)
		return
	case "output":
		if t.verbose {
			fmt.Print(e.Output)
		}
		if t.output[key] == nil {
			t.output[key] = new(strings.Builder)
		}
		t.output[key].WriteString(e.Output)
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
	t.tell(e, output)
}

// maxFailure bounds what is kept of one failing test's output: its end, in bytes.
const maxFailure = 6000

// tell prints what a test or a package printed, and keeps it if it failed.
func (t *tally) tell(e event, output *strings.Builder) {
	if output == nil {
		return
	}
	text := output.String()
	if !t.verbose {
		fmt.Print(text)
	}
	if e.Action == "fail" {
		if cut := len(text) - maxFailure; cut > 0 {
			text = "[...]" + text[cut:]
		}
		t.failures.WriteString(text)
	}
}

// appendTo writes text at the end of a file.
func appendTo(name, text string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (t *tally) endPackage(e event, output *strings.Builder) {
	if e.Action == "fail" && !t.failedIn[e.Package] {
		t.failed++
	}
	if e.Action == "fail" {
		for _, key := range slices.Sorted(maps.Keys(t.output)) { // tests that did not end: a time-out, a panic
			if strings.HasPrefix(key, e.Package+" ") && t.output[key] != output {
				t.tell(e, t.output[key])
				delete(t.output, key)
			}
		}
		t.tell(e, output)
	}
	if !t.verbose && e.Action != "skip" { // skip: a package without tests
		fmt.Printf("%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
	}
}
