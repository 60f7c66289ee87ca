// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

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

// runInVM runs these same tests in a VM, and returns their status.
func runInVM(ctx context.Context, args []string) (int, error) {
	dir, err := os.MkdirTemp("", "service-*")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, guest.Limit())
	defer cancel()
	config, err := guestConfig(ctx, dir, args)
	if err != nil {
		return 1, err
	}
	result, err := vm.Run(ctx, config)
	if err != nil {
		return 1, err
	}
	fmt.Printf("in a VM with Linux %s: boot %v, tests %v\n", config.Kernel.Release, result.Boot.Round(time.Second), result.Command.Round(time.Second))
	return result.ExitStatus, nil
}

func guestConfig(ctx context.Context, dir string, args []string) (vm.Config, error) {
	kernel, err := guest.Kernel(ctx)
	if err != nil {
		return vm.Config{}, err
	}
	if kernel.Arch != runtime.GOARCH {
		return vm.Config{}, fmt.Errorf("kernel %s is for %s: the root file system is made for this machine alone", kernel.Release, kernel.Arch)
	}
	cache, err := guest.Cache()
	if err != nil {
		return vm.Config{}, err
	}
	root, err := recipe.Make(ctx, filepath.Join(filepath.Dir(cache), "service"))
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
		Command: append([]string{guestTests}, guest.Args(args)...),
		Env:     []string{inGuest + "=1"},
		Stdout:  os.Stdout, Stderr: os.Stderr,
	}, nil
}
