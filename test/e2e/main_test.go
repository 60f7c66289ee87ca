// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the gadget with real traffic on a real kernel: agents
// (separate processes, in network namespaces of their own) make attempts and say
// what they did, and the events must be exactly those that follow from it.
//
// The tests run on this machine if it can run ig, as root, else in a VM. The
// environment can choose:
//
//	E2E_IN        "host" or "vm", in place of what this machine can do
//	E2E_KERNEL    name of the VM's kernel (see vm.Kernels), in place of the newest
//	              of this machine's distribution
//	IMAGE_FILE    archive of the image that TestWho scores, in place of the one that
//	              was built; an absolute path
//	KERNEL_CACHE  folder for the VM's kernel, in place of the user's cache folder
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"testing"

	log "github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/preflight"
	"gadget.example/network/test/e2e/measured"
)

// artifacts is where what is under test lies, by name: a folder of links or
// files, made by setUp or by the VM's.
var artifacts string

// Programs and files under test and beside them, by their name in artifacts.
const (
	igBinary        = "ig"
	gadgetctlBinary = "gadgetctl"
	netgadgetBinary = "netgadget"
	agentBinary     = "agent"
	firstBinary     = "first"
	imageFile       = "network.tar"
	connectionsFile = "network-connections.tar"
)

func artifact(name string) string { return filepath.Join(artifacts, name) }

func TestMain(m *testing.M) {
	if os.Getenv(bareRun) != "" {
		os.Exit(runBare(os.Getenv(bareRun + "_NETNS")))
	}
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		measured.Write(os.Stdout, measured.Failure, reason(err))
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	in := os.Getenv("E2E_IN")
	lacking := preflight.Missing(preflight.Run())
	if in == "vm" || in == "" && lacking != nil {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
		defer stop()
		return runInVM(ctx, lacking, os.Args[1:]...)
	}
	if lacking != nil {
		return 1, lacking
	}
	log.SetLevel(log.ErrorLevel) // IG's own messages
	if in != inGuest {
		dir, err := os.MkdirTemp("", "e2e-*")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		// Agents of other users run from there.
		if err := errors.Join(os.Chmod(dir, 0o755), linkArtifacts(context.Background(), dir, runtime.GOARCH)); err != nil {
			return 1, err
		}
		artifacts = dir
	} else {
		artifacts = guestArtifacts
		if err := prepareGuest(); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}
