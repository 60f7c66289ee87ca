// SPDX-License-Identifier: Apache-2.0

// Package results reads what `go test -json` prints.
package results

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Results are what became of tests.
type Results struct {
	Passed, Failed, Skipped int
	// Reasons are why tests were skipped, each once.
	Reasons []string
}

func (r Results) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.Passed, r.Failed, r.Skipped)
}

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

// reader is what is known so far.
type reader struct {
	Results
	out         io.Writer
	each        func(string)
	output      map[string][]string // of packages and tests that have not ended, by their names
	ran, broken map[string]int      // tests that ended, and those of them that failed, by package
}

// longTest is how many seconds a test takes that gets a line of its own.
const longTest = 10

// Read reads all events. It prints to out a line for each package when it is
// done, and for each test that took long, and what failed or was skipped in full;
// each, if not nil, gets every line that the tests printed. A package that ran no
// test is a failed one.
func Read(in io.Reader, out io.Writer, each func(line string)) (Results, error) {
	r := reader{out: out, each: each, output: map[string][]string{}, ran: map[string]int{}, broken: map[string]int{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			return r.Results, nil
		}
		if err != nil {
			return r.Results, fmt.Errorf("reading the events: %w", err)
		}
	}
}

func (r *reader) line(line []byte) {
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
func (r *reader) keep(e event) {
	if r.each != nil {
		r.each(strings.TrimSuffix(e.Output, "\n"))
	}
	name := e.name()
	r.output[name] = append(r.output[name], e.Output)
}

func (e event) name() string {
	if e.ImportPath != "" {
		return e.ImportPath
	}
	return e.Package + " " + e.Test
}

func (r *reader) endTest(e event) {
	name := e.name()
	output := r.output[name]
	delete(r.output, name)
	r.ran[e.Package]++
	switch e.Action {
	case "pass":
		r.Passed++
		if e.Elapsed >= longTest && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(r.out, "      %s in %.0fs\n", e.Test, e.Elapsed)
		}
	case "fail":
		r.Failed++
		r.broken[e.Package]++
		fmt.Fprintf(r.out, "FAIL  %s\n%s", name, strings.Join(output, ""))
	case "skip":
		r.Skipped++
		if reason := skipReason(output); !slices.Contains(r.Reasons, reason) {
			r.Reasons = append(r.Reasons, reason)
		}
		fmt.Fprintf(r.out, "SKIP  %s\n%s", name, strings.Join(output, ""))
	}
}

// skipReason is what a test gave t.Skip: the last line that it printed and that
// does not frame its output, without the place in the source.
func skipReason(output []string) string {
	reason := "no reason given"
	for _, line := range output {
		text := strings.TrimSpace(line)
		if text == "" || strings.HasPrefix(text, "=== ") || strings.HasPrefix(text, "--- ") {
			continue
		}
		if place, said, ok := strings.Cut(text, ": "); ok && strings.Contains(place, ".go:") {
			text = said
		}
		reason = text
	}
	return reason
}

func (r *reader) endPackage(e event) {
	output := append(r.output[e.FailedBuild], r.output[e.name()]...)
	delete(r.output, e.name())
	noTests := slices.ContainsFunc(output, func(line string) bool { return strings.Contains(line, "[no test files]") })
	switch {
	case noTests:
	case r.ran[e.Package] == 0:
		r.Failed++
		fmt.Fprintf(r.out, "FAIL  %s: no test was run\n%s", e.Package, strings.Join(output, ""))
	case e.Action == "fail":
		fmt.Fprintf(r.out, "FAIL  %s\n%s", e.Package, strings.Join(output, ""))
		r.endUnended(e.Package)
		if r.broken[e.Package] == 0 {
			r.Failed++ // the package itself
		}
	default:
		took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond)
		fmt.Fprintf(r.out, "ok    %s  %d tests in %s\n", e.Package, r.ran[e.Package], took)
	}
}

// endUnended counts and shows the tests that a panic or the time limit cut off.
func (r *reader) endUnended(pkg string) {
	for name, output := range r.output {
		if strings.HasPrefix(name, pkg+" ") {
			r.Failed++
			r.broken[pkg]++
			fmt.Fprintf(r.out, "FAIL  %s: did not end\n%s", name, strings.Join(output, ""))
			delete(r.output, name)
		}
	}
}
