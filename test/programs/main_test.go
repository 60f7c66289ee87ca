// SPDX-License-Identifier: Apache-2.0

// Package programs tests whom the gadget names with servers as people run them: Debian's packages, each started before the
// gadget and after it, in a VM. For each attempt that arrives it asks /proc whether who was named is alive, has the socket
// that listens, and accepts where somebody does.
//
// The test binary is both sides: on this machine it makes a root file system of the packages and boots a guest with it; there
// it starts the programs, runs the gadget and connects. The environment chooses:
//
//	E2E_KERNEL    name of the guest's kernel (see vm.Kernels); without, TestPrograms is skipped
//	IMAGE_FILE    archive of the image to test, in place of the embedded one
//	KERNEL_CACHE  folder for the kernel, in place of the user's cache folder; the root file system is beside it
package programs

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"testing"

	log "github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/guest"
)

var (
	chosen   = flag.String("programs", "", "run the programs whose names match this regular expression alone")
	attempts = flag.Int("attempts", 6, "how many attempts each service gets")
)

// inGuest is the environment variable that is set in the guest alone.
const inGuest = "PROGRAMS_IN_GUEST"

// The main thread, by which /proc knows this process, stays in its network namespace.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	flag.Parse()
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "programs:", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	if _, err := regexp.Compile(*chosen); err != nil {
		return 1, fmt.Errorf("-programs: %w", err)
	}
	if os.Getenv(inGuest) != "" {
		log.SetLevel(log.ErrorLevel) // IG's own messages
		return m.Run(), nil
	}
	if os.Getenv("E2E_KERNEL") == "" || testing.Short() {
		return m.Run(), nil // what needs no guest
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return guest.Run(ctx, "programs", guestConfig)
}
