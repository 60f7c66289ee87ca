// SPDX-License-Identifier: Apache-2.0

// Command kernels runs the e2e tests under kernels of Debian's, each in a VM, one
// after the other, and prints a row of a table when one is done. It exits with 1
// unless all are green: every test that was not skipped passed, on the image that
// this command was built with.
//
//	go run ./test/kernels [-run REGEXP] [-rows DIR] [-readme FILE] [-only-table] [KERNEL...]
//
// The kernels are those of vm.Kernels, by name; none: all of them. With -readme,
// the table is written into FILE, from the rows in DIR that other runs left, too:
// it has every kernel, or it is not written. With -only-table nothing else is done.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"gadget.example/network/internal/gadget/image"
	"gadget.example/network/internal/vm"
	"gadget.example/network/test/report/results"
)

type options struct {
	run, flags, rows, readme string
	onlyTable                bool
	kernels                  []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.run, "run", "", "run only tests that match this, as go test does")
	flag.StringVar(&o.flags, "flags", "", "flags of the tests, such as \"-attempts 3000 -packets 20000\" for a quick run")
	flag.StringVar(&o.rows, "rows", "build/kernels", "folder for the rows of the table")
	flag.StringVar(&o.readme, "readme", "", "file to write the table of all kernels into, between its marks")
	flag.BoolVar(&o.onlyTable, "only-table", false, "run nothing, write the table from the rows that are there")
	flag.Parse()
	o.kernels = flag.Args()
	if err := o.test(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

// errRed is about kernels whose rows have said why.
var errRed = errors.New("not every kernel is green")

func (o options) test(ctx context.Context, out io.Writer) error {
	if o.onlyTable && o.readme == "" {
		return errors.New("-only-table has no file for the table: name one with -readme")
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	if !o.onlyTable {
		if err := o.testAll(ctx, out, digest); err != nil {
			return err
		}
	}
	if o.readme == "" {
		return nil
	}
	all, err := load(o.rows, vm.Kernels(), digest)
	if err != nil {
		return err
	}
	return write(o.readme, table(all, digest))
}

func (o options) testAll(ctx context.Context, out io.Writer, digest string) error {
	kernels, err := choose(vm.Kernels(), o.kernels)
	if err != nil {
		return err
	}
	var rows []row
	for i, k := range kernels {
		fmt.Fprintf(out, "kernel %s, %d of %d: %s of %s, 20 to 50 minutes where nothing but QEMU's own emulation runs it\n",
			k.Name, i+1, len(kernels), k.Package, k.Suite)
		r, err := testKernel(ctx, goTest(ctx, k.Name, o.run, o.flags), k, digest, out)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", k.Name, err)
		}
		fmt.Fprintf(out, "%s\n%s\n", header, r)
		if err := r.save(o.rows); err != nil {
			return err
		}
		rows = append(rows, r)
	}
	fmt.Fprintf(out, "\n%s\n%s\n", table(rows, digest), total(rows))
	if slices.ContainsFunc(rows, func(r row) bool { return !r.green() }) {
		return errRed
	}
	return nil
}

// choose returns the kernels with these names, in the order of the table.
func choose(all []vm.KernelSpec, names []string) ([]vm.KernelSpec, error) {
	if len(names) == 0 {
		return all, nil
	}
	known := make([]string, 0, len(all))
	for _, k := range all {
		known = append(known, k.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("kernel %q is not known: there are %s", name, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(k vm.KernelSpec) bool { return !slices.Contains(names, k.Name) }), nil
}

// total is the line that ends the output of every target that runs tests.
func total(rows []row) results.Results {
	var sum results.Results
	for _, r := range rows {
		sum.Passed += r.Results.Passed
		sum.Failed += r.Results.Failed
		sum.Skipped += r.Results.Skipped
		if r.Results.Failed == 0 && !r.green() {
			sum.Failed++
		}
	}
	return sum
}
