// SPDX-License-Identifier: Apache-2.0

package programs

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
	guestRoot   = "/r"
	guestTests  = "/programs.test"
	guestImage  = "/network.tar"
	guestOwners = "/owners"
	goServer    = "/usr/local/bin/go-server" // below guestRoot
)

// memory holds the root file system, in half of it at most, and all programs at once.
const memory = 6144 // MiB

// guestModules are the devices to the client and to the container, and what the rule of the published port is made of.
var guestModules = []string{"veth", "nf_tables", "nft_chain_nat", "nft_nat", "nft_compat", "xt_nat", "xt_tcpudp"}

// recipe has the programs. docker.io is for docker-proxy alone.
var recipe = rootfs.Recipe{
	Packages: []string{
		"apache2", "bind9", "busybox-static", "chrony", "dnsmasq-base", "docker.io", "haproxy", "iptables", "memcached",
		"mosquitto", //nolint:misspell // its name
		"nginx-light", "nodejs", "openbsd-inetd", "openssh-server", "postfix", "postgresql", "python3", "redis-server", "runc",
		"socat", "systemd", "unbound",
	},
	Unneeded: append([]string{"usr/bin/containerd*", "usr/bin/ctr", "usr/bin/docker", "usr/sbin/dockerd"}, rootfs.Unneeded...),
}

func guestConfig(ctx context.Context, kernel vm.Kernel, dir string) (vm.Config, error) {
	cache, err := guest.CacheBeside("programs")
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
	tests, server := filepath.Join(dir, "tests"), filepath.Join(dir, "server")
	err = errors.Join(guest.GoCommand(ctx, kernel.Arch, "test", "-c", "-o", tests, ".").Run(), guest.GoCommand(ctx, kernel.Arch, "build", "-o", server, "./server").Run())
	if err != nil {
		return vm.Config{}, fmt.Errorf("building for the guest: %w", err)
	}
	files := []vm.File{
		{Guest: guestTests, Host: tests},
		{Guest: guestRoot + goServer, Host: server},
		{Guest: guestOwners, Data: foreign},
		{Guest: guestRoot + configs, Host: "testdata"},
		{Guest: guestRoot, Host: root},
		{Guest: "/usr/bin/runc", Link: guestRoot + "/usr/sbin/runc"}, // where IG looks for a container runtime
	}
	if image := os.Getenv("IMAGE_FILE"); image != "" {
		files = append(files, vm.File{Guest: guestImage, Host: image})
	}
	return vm.Config{
		Kernel: kernel, Files: files, Modules: guest.Modules(kernel, guestModules), MemoryMiB: memory,
		Command: append([]string{guestTests}, guest.Args(os.Args[1:])...),
		Env:     []string{inGuest + "=1"},
		Stdout:  os.Stdout, Stderr: os.Stderr,
	}, nil
}
