// SPDX-License-Identifier: Apache-2.0

// Command report reads what `go test -json` prints, and prints a line for each
// package when it is done, what failed in full, and at last how many tests
// passed, failed and were skipped. It exits with 1 unless all of them passed: a
// skipped test is no success, and a package that ran none is a failed one.
package main

import (
	"fmt"
	"io"
	"os"

	"gadget.example/network/test/report/results"
)

func main() {
	ok, err := report(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// report reports all events, and whether every test was run and passed.
func report(in io.Reader, out io.Writer) (bool, error) {
	r, err := results.Read(in, out, nil)
	if err != nil {
		return false, err
	}
	fmt.Fprintln(out, r)
	return r.Passed > 0 && r.Failed+r.Skipped == 0, nil
}
