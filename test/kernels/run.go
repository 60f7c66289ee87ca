// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/e2e/measured"
	"gadget.example/network/test/report/results"
)

const (
	// testLimit bounds one kernel's tests, as go test's -timeout; the guest has a
	// little less.
	testLimit = "60m"
	// killDelay is what a run that was interrupted may take to put its guest away.
	killDelay = time.Minute
)

// goTest is `go test` of the e2e tests under a kernel, with flags of their own;
// make lint vets them. When ctx is done it is interrupted, with the test that
// runs.
func goTest(ctx context.Context, kernel, run, flags string) *exec.Cmd {
	args := []string{"test", "-trimpath", "-vet=off", "-count=1", "-json", "-timeout", testLimit, "-run", run, "./test/e2e"}
	cmd := exec.CommandContext(ctx, "go", append(args, strings.Fields(flags)...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "E2E_IN=vm", "E2E_KERNEL="+kernel)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = killDelay
	return cmd
}

// testKernel runs the tests and returns what came of them. It is an error only
// when there is nothing to say of the kernel.
func testKernel(ctx context.Context, tests *exec.Cmd, k vm.KernelSpec, digest string, out io.Writer) (row, error) {
	r := row{Kernel: k, Measured: map[string]string{}}
	events, err := tests.StdoutPipe()
	if err != nil {
		return r, err
	}
	start := time.Now()
	if err := tests.Start(); err != nil {
		return r, err
	}
	read, readErr := results.Read(events, out, func(line string) {
		if name, value, ok := measured.Parse(line); ok {
			r.Measured[name] = value
		}
		// How a test ended, but not one of its parts: it is minutes until all have.
		if ended, ok := strings.CutPrefix(line, "--- "); ok && !strings.Contains(ended, "/") {
			fmt.Fprintf(out, "  %s\n", ended)
		}
	})
	waitErr := tests.Wait()
	if ctx.Err() != nil {
		return r, errors.New("interrupted")
	}
	if readErr != nil {
		return r, readErr
	}
	r.Results, r.Took = read, time.Since(start)
	r.Failure = cmp.Or(r.Measured[measured.Failure], r.fault(digest, waitErr))
	return r, nil
}

// fault is what is wrong beside the tests; "" when nothing is.
func (r row) fault(digest string, err error) string {
	tested := r.Measured[measured.Digest]
	switch {
	case r.Results.Failed > 0:
		return ""
	case r.Results.Passed == 0:
		return "no test passed"
	case err != nil:
		return fmt.Sprintf("go test: %v", err)
	case tested != digest:
		return fmt.Sprintf("image %s was tested, not %s", cmp.Or(tested, "without a digest"), digest)
	}
	return ""
}
