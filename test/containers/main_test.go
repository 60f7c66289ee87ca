// SPDX-License-Identifier: Apache-2.0

// Package containers tests the gadget with container runtimes as people have them: Debian's containerd, Docker and Podman,
// in a VM. What containers are told to do is compared with what the stock ig reports of them.
//
// The test binary is both sides: on this machine it makes a root file system of the packages and boots a guest with it; there
// it starts the runtimes, runs ig and makes traffic. The environment chooses:
//
//	E2E_KERNEL    name of the guest's kernel (see vm.Kernels); without, all is skipped
//	KERNEL_CACHE  folder for the kernel, in place of the user's cache folder; the root file system is beside it
package containers

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/guest"
	"gadget.example/network/test/rootfs"
)

// inGuest is the environment variable that is set in the guest alone.
const inGuest = "CONTAINERS_IN_GUEST"

// Paths in the guest.
const (
	guestRoot   = "/r" // the root file system, which becomes the guest's own
	guestOwners = "/owners"
	guestTests  = "/containers.test"
	igProgram   = "/usr/local/bin/ig" // below guestRoot, as the next ones
	netgadget   = "/usr/local/bin/netgadget"
	imageFile   = "/network.tar"
	rootedTests = "/usr/local/bin/containers.test"
)

// memory holds the root file system, in half of it at most, and the runtimes with their copies of images.
const memory = 6144 // MiB

// guestModules are what networks of containers are made of.
var guestModules = []string{
	"veth", "bridge", "br_netfilter", "overlay", "nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_compat", "nft_ct", "xt_nat",
	"xt_MASQUERADE", "xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_multiport", "xt_tcpudp", "ipt_REJECT",
	"ip6_tables", "ip6table_nat", "ip6table_filter", "ip_tables", "iptable_nat", "iptable_filter",
}

var recipe = rootfs.Recipe{
	Packages: []string{
		"busybox-static", "containerd", "containernetworking-plugins", "docker.io", "iproute2", "iptables", "podman", "runc",
	},
	Unneeded: rootfs.Unneeded,
}

func TestMain(m *testing.M) {
	flag.Parse()
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "containers:", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (int, error) {
	switch {
	case os.Getenv(inGuest) == "initramfs":
		return 1, enterRoot()
	case os.Getenv(inGuest) != "":
		return m.Run(), nil
	case os.Getenv("E2E_KERNEL") == "":
		fmt.Println("skipped: E2E_KERNEL names no kernel for the guest")
		return 0, nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return guest.Run(ctx, "containers", guestConfig)
}

func guestConfig(ctx context.Context, kernel vm.Kernel, dir string) (vm.Config, error) {
	cache, err := guest.CacheBeside("containers")
	if err != nil {
		return vm.Config{}, err
	}
	root, err := recipe.Make(ctx, cache)
	if err != nil {
		return vm.Config{}, err
	}
	foreign, err := rootfs.Owners(root)
	if err != nil {
		return vm.Config{}, err
	}
	tests := filepath.Join(dir, "tests")
	if err := guest.GoCommand(ctx, kernel.Arch, "test", "-c", "-o", tests, ".").Run(); err != nil {
		return vm.Config{}, fmt.Errorf("building for the guest: %w", err)
	}
	ig := os.Getenv("IG")
	if ig == "" {
		ig = "../../build/ig"
	}
	return vm.Config{
		Kernel: kernel, MemoryMiB: memory,
		Modules: guest.Modules(kernel, guestModules),
		Files: []vm.File{
			{Guest: guestTests, Host: tests},
			{Guest: guestRoot + rootedTests, Host: tests},
			{Guest: guestRoot + igProgram, Host: ig},
			{Guest: guestRoot + netgadget, Host: "../../build/netgadget"},
			{Guest: guestRoot + imageFile, Host: "../../build/network.tar"},
			{Guest: guestOwners, Data: foreign},
			{Guest: guestRoot, Host: root},
		},
		Command: append([]string{guestTests}, guest.Args(os.Args[1:])...),
		Env:     []string{inGuest + "=initramfs"},
		Stdout:  os.Stdout, Stderr: os.Stderr,
	}, nil
}

// enterRoot makes the root file system the guest's own, a mount that runtimes can leave, and goes on there.
func enterRoot() error {
	owners, err := os.ReadFile(guestOwners)
	if err != nil {
		return err
	}
	if err := rootfs.GiveBack(guestRoot, owners); err != nil {
		return err
	}
	// The guest's process 1 keeps its own.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace: %w", err)
	}
	mount := func(source, target, kind string, flags uintptr) {
		if err == nil {
			if err = unix.Mount(source, target, kind, flags, ""); err != nil {
				err = fmt.Errorf("mounting %s: %w", target, err)
			}
		}
	}
	mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE)
	mount(guestRoot, guestRoot, "", unix.MS_BIND)
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		mount(dir, guestRoot+dir, "", unix.MS_BIND|unix.MS_REC)
	}
	for _, dir := range []string{"/run", "/tmp", "/var/lib"} {
		mount("tmpfs", guestRoot+dir, "tmpfs", 0)
	}
	if err := errors.Join(err, unix.Chdir(guestRoot)); err != nil {
		return err
	}
	mount(".", "/", "", unix.MS_MOVE)
	if err := errors.Join(err, unix.Chroot("."), unix.Chdir("/")); err != nil {
		return err
	}
	for name, value := range map[string]string{
		inGuest: "root", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
	} {
		err = errors.Join(err, os.Setenv(name, value))
	}
	if err != nil {
		return err
	}
	return unix.Exec(rootedTests, append([]string{rootedTests}, os.Args[1:]...), os.Environ())
}
