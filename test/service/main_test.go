// SPDX-License-Identifier: Apache-2.0

// Package service tests `netgadget install` and `uninstall` under a true systemd: process 1 of a VM, of a root file system that
// is made of Debian's packages. The test binary is both sides: on this machine it boots the guest; there it installs the
// service, makes traffic, and compares the journal with what was done.
//
// The environment chooses:
//
//	E2E_KERNEL    name of the guest's kernel (see vm.Kernels); without, the tests are skipped
//	KERNEL_CACHE  folder for the kernel, in place of the user's cache folder; the root file system is beside it
package service

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/guest"
)

// inGuest is the environment variable that is set in the guest alone.
const inGuest = "SERVICE_IN_GUEST"

func TestMain(m *testing.M) {
	flag.Parse()
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	if os.Getenv(inGuest) != "" || os.Getenv("E2E_KERNEL") == "" || testing.Short() {
		return m.Run(), nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return guest.Run(ctx, "service", guestConfig)
}
