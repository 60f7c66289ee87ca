// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/e2e/measured"
	"gadget.example/network/test/report/results"
)

// row is what came of the tests under one kernel.
type row struct {
	Kernel   vm.KernelSpec
	Measured map[string]string // by the names of package measured
	Results  results.Results
	Failure  string // what is wrong beside tests that failed
	Took     time.Duration
}

func (r row) green() bool { return r.Failure == "" && r.Results.Failed == 0 && r.Results.Passed > 0 }

const header = `| kernel | Linux | arch | by | boot | ready | verified | passed | failed | skipped | took |
|---|---|---|---|---|---|---|---|---|---|---|`

// String is the row as the table has it.
func (r row) String() string {
	cells := []string{
		r.Kernel.Name,
		r.value(measured.Release),
		r.Kernel.Arch,
		r.value(measured.Accelerator),
		r.seconds(measured.Boot),
		r.seconds(measured.Ready),
		thousands(r.value(measured.Verified)),
		fmt.Sprint(r.Results.Passed),
		because(r.Results.Failed, r.Failure),
		because(r.Results.Skipped, strings.Join(r.Results.Reasons, "; ")),
		r.Took.Round(time.Second).String(),
	}
	for i, c := range cells {
		cells[i] = strings.ReplaceAll(c, "|", `\|`)
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// value is "?" when a run ended before it was measured.
func (r row) value(name string) string { return cmp.Or(r.Measured[name], "?") }

func (r row) seconds(name string) string {
	d, err := time.ParseDuration(r.Measured[name])
	if err != nil {
		return r.value(name)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func because(n int, reason string) string {
	if reason == "" {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d: %s", n, reason)
}

// thousands puts commas into a number, as the table has them.
func thousands(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// table is what a file has between its marks.
func table(rows []row, digest string) string {
	var b strings.Builder
	var took time.Duration
	fmt.Fprintln(&b, header)
	for _, r := range rows {
		fmt.Fprintln(&b, r)
		took += r.Took
	}
	fmt.Fprintf(&b, "\nImage `%s` under each. Together the runs took %s, on %d CPUs.\n",
		digest, took.Round(time.Minute), runtime.NumCPU())
	return b.String()
}

// save leaves the row for a later run that writes the table.
func (r row) save(dir string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(rowFile(dir, r.Kernel), append(b, '\n'), 0o644))
}

func rowFile(dir string, k vm.KernelSpec) string { return filepath.Join(dir, k.Name+".json") }

// load returns the rows of kernels, which are there and green and of one image.
func load(dir string, kernels []vm.KernelSpec, digest string) ([]row, error) {
	var rows []row
	for _, k := range kernels {
		b, err := os.ReadFile(rowFile(dir, k))
		if err != nil {
			return nil, fmt.Errorf("kernel %s has not been tested: %w", k.Name, err)
		}
		r := row{}
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("row of kernel %s: %w", k.Name, err)
		}
		if !r.green() || r.Measured[measured.Digest] != digest {
			return nil, fmt.Errorf("kernel %s is not green with image %s: test it again", k.Name, digest)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// The marks in the file that has the table.
const (
	begin = "<!-- made by make test-kernels -->\n"
	end   = "<!-- end of what make test-kernels made -->\n"
)

// write puts the table between the marks of a file.
func write(file, table string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no place for the table: %q and %q", file, begin, end)
	}
	return os.WriteFile(file, []byte(before+begin+table+end+after), 0o644)
}
