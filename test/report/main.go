// SPDX-License-Identifier: Apache-2.0

// Command report reads what `go test -json` prints, and prints a line for each
// package when it is done, what failed in full, and at last how many tests
// passed, failed and were skipped. It exits with 1 unless all of them passed: a
// skipped test is no success, and a package that ran none is a failed one.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json`, see `go doc test2json` and `go help
// buildjson`.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

// report is what is known so far.
type report struct {
	out                     io.Writer
	passed, failed, skipped int
	output                  map[string][]string // of packages and tests that have not ended, by their names
	ran, broken             map[string]int      // tests that ended, and those of them that failed, by package
}

func main() {
	ok, err := newReport(os.Stdout).read(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func newReport(out io.Writer) *report {
	return &report{out: out, output: map[string][]string{}, ran: map[string]int{}, broken: map[string]int{}}
}

// read reports all events, and whether every test was run and passed.
func (r *report) read(in io.Reader) (bool, error) {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return false, fmt.Errorf("reading the events: %w", err)
		}
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return r.passed > 0 && r.failed+r.skipped == 0, nil
}

func (r *report) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil {
		fmt.Fprintf(r.out, "%s\n", strings.TrimSuffix(string(line), "\n"))
		return
	}
	switch e.Action {
	case "output", "build-output":
		r.keep(e)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(e)
		}
	}
}

// keep takes output that is shown if what prints it fails.
func (r *report) keep(e event) {
	name := e.name()
	r.output[name] = append(r.output[name], e.Output)
}

func (e event) name() string {
	if e.ImportPath != "" {
		return e.ImportPath
	}
	return e.Package + " " + e.Test
}

func (r *report) endTest(e event) {
	name := e.name()
	output := strings.Join(r.output[name], "")
	delete(r.output, name)
	r.ran[e.Package]++
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		r.broken[e.Package]++
		fmt.Fprintf(r.out, "FAIL  %s\n%s", name, output)
	case "skip":
		r.skipped++
		fmt.Fprintf(r.out, "SKIP  %s\n%s", name, output)
	}
}

func (r *report) endPackage(e event) {
	output := append(r.output[e.FailedBuild], r.output[e.name()]...)
	delete(r.output, e.name())
	noTests := slices.ContainsFunc(output, func(line string) bool { return strings.Contains(line, "[no test files]") })
	switch {
	case noTests:
	case r.ran[e.Package] == 0:
		r.failed++
		fmt.Fprintf(r.out, "FAIL  %s: no test was run\n%s", e.Package, strings.Join(output, ""))
	case e.Action == "fail":
		fmt.Fprintf(r.out, "FAIL  %s\n%s", e.Package, strings.Join(output, ""))
		r.endUnended(e.Package)
		if r.broken[e.Package] == 0 {
			r.failed++ // the package itself
		}
	default:
		took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond)
		fmt.Fprintf(r.out, "ok    %s  %d tests in %s\n", e.Package, r.ran[e.Package], took)
	}
}

// endUnended counts and shows the tests that a panic or the time limit cut off.
func (r *report) endUnended(pkg string) {
	for name, output := range r.output {
		if strings.HasPrefix(name, pkg+" ") {
			r.failed++
			r.broken[pkg]++
			fmt.Fprintf(r.out, "FAIL  %s: did not end\n%s", name, strings.Join(output, ""))
			delete(r.output, name)
		}
	}
}
