// SPDX-License-Identifier: Apache-2.0

// Package image tests the gadget image as users make and move it: built by the
// project's own script and Makefile, kept, pushed and pulled by the stock ig.
package image

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// store is where ig keeps images, credentials and nothing else.
	store = "/var/lib/ig"
	// isolated tells the test binary that the store is its own.
	isolated = "IMAGE_TEST_ISOLATED"
)

// TestMain runs the tests in a mount namespace in which ig's store is a file
// system of their own, so that they neither see nor touch this machine's images,
// and nothing is left of them.
func TestMain(m *testing.M) {
	switch {
	case os.Geteuid() != 0:
		fmt.Println("skipped: only root has a store of ig, and may have one of its own for the tests")
		os.Exit(0)
	case os.Getenv(isolated) == "":
		os.Exit(runIsolated())
	}
	if err := mountStore(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runIsolated runs this binary again in a mount namespace and returns its status.
func runIsolated() int {
	// The child dies with the thread that started it.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintf(os.Stderr, "starting the tests in a mount namespace: %v\n", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func mountStore() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := os.MkdirAll(store, 0o755); err != nil {
		return fmt.Errorf("making ig's store: %w", err)
	}
	if err := unix.Mount("tmpfs", store, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting a file system on %s: %w", store, err)
	}
	return nil
}
