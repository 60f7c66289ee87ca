// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/guest"
	"gadget.example/network/test/rootfs"
)

// Paths in the guest.
const (
	guestRoot  = "/r"
	guestTests = "/service.test"
	guestAgent = "/agent"
	installed  = "/usr/local/bin/netgadget" // below guestRoot
)

// systemRoot is the root of the system that runs, for processes that are not in it.
const systemRoot = "/proc/1/root"

// memory holds the root file system, in half of it at most.
const memory = 3072 // MiB

var recipe = rootfs.Recipe{Packages: []string{"runc", "systemd"}, Unneeded: rootfs.Unneeded}

// machineID is any: systemd takes a machine that has one for no new one, and asks nothing on the console.
const machineID = "0123456789abcdef0123456789abcdef\n"

func guestConfig(ctx context.Context, kernel vm.Kernel, dir string) (vm.Config, error) {
	cache, err := guest.CacheBeside("service")
	if err != nil {
		return vm.Config{}, err
	}
	root, err := recipe.Make(ctx, cache)
	if err != nil {
		return vm.Config{}, err
	}
	tests, agent := filepath.Join(dir, "tests"), filepath.Join(dir, "agent")
	err = errors.Join(guest.GoCommand(ctx, kernel.Arch, "test", "-c", "-o", tests, ".").Run(),
		guest.GoCommand(ctx, kernel.Arch, "build", "-o", agent, "../e2e/agent").Run())
	if err != nil {
		return vm.Config{}, fmt.Errorf("building for the guest: %w", err)
	}
	return vm.Config{
		Kernel: kernel, MemoryMiB: memory, Modules: guest.Modules(kernel, nil),
		Files: []vm.File{
			{Guest: guestTests, Host: tests},
			{Guest: guestAgent, Host: agent},
			{Guest: guestRoot + installed, Host: "../../build/netgadget"},
			{Guest: guestRoot + "/etc/machine-id", Data: []byte(machineID), Mode: 0o644},
			{Guest: guestRoot, Host: root},
		},
		System: []string{"/lib/systemd/systemd"}, Root: guestRoot,
		Command: append([]string{guestTests}, guest.Args(os.Args[1:])...),
		Env:     []string{inGuest + "=1"},
		Stdout:  os.Stdout, Stderr: os.Stderr,
	}, nil
}
