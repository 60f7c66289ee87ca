// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"gadget.example/network/internal/vm"
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

// vmLimit bounds a guest whatever go test's own limit is.
const vmLimit = time.Hour

// guestModules are the devices to the client and to the container, and what the rule of the published port is made of.
var guestModules = []string{"veth", "nf_tables", "nft_chain_nat", "nft_nat", "nft_compat", "xt_nat", "xt_tcpudp"}

// guestModulesIfAny are built in, or part of another, in newer kernels: by folder.
var guestModulesIfAny = map[string]string{"nft_counter": "kernel/net/netfilter"}

// runInVM runs these same tests in a VM, and returns their status.
func runInVM(ctx context.Context, args []string) (int, error) {
	dir, err := os.MkdirTemp("", "programs-*")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, testLimit())
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

// testLimit leaves some of go test's own time to clean up.
func testLimit() time.Duration {
	if f := flag.Lookup("test.timeout"); f != nil {
		if limit, ok := f.Value.(flag.Getter).Get().(time.Duration); ok && limit > 0 {
			return min(vmLimit, limit*9/10)
		}
	}
	return vmLimit
}

func guestConfig(ctx context.Context, dir string, args []string) (vm.Config, error) {
	cache := os.Getenv("KERNEL_CACHE")
	if cache == "" {
		var err error
		if cache, err = vm.DefaultCache(); err != nil {
			return vm.Config{}, err
		}
	}
	kernel, err := vm.Fetch(ctx, os.Getenv("E2E_KERNEL"), cache, os.Stderr)
	if err != nil {
		return vm.Config{}, err
	}
	if kernel.Arch != runtime.GOARCH {
		return vm.Config{}, fmt.Errorf("kernel %s is for %s: the root file system is made for this machine alone", kernel.Release, kernel.Arch)
	}
	root, err := makeRootfs(ctx, filepath.Join(filepath.Dir(cache), "programs"))
	if err != nil {
		return vm.Config{}, err
	}
	foreign, err := owners(root)
	if err != nil {
		return vm.Config{}, err
	}
	tests, server := filepath.Join(dir, "tests"), filepath.Join(dir, "server")
	err = errors.Join(goCommand(ctx, "test", "-c", "-o", tests, ".").Run(), goCommand(ctx, "build", "-o", server, "./server").Run())
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
		Kernel: kernel, Files: files, Modules: modules(kernel), MemoryMiB: memory,
		Command: append([]string{guestTests}, guestArgs(args)...),
		Env:     []string{inGuest + "=1"},
		Stdout:  os.Stdout, Stderr: os.Stderr,
	}, nil
}

// modules are those of a kernel that the guest needs.
func modules(kernel vm.Kernel) []string {
	all := slices.Clone(guestModules)
	for name, folder := range guestModulesIfAny {
		if files, _ := filepath.Glob(filepath.Join(kernel.ModulesDir, folder, name+".ko*")); len(files) > 0 {
			all = append(all, name)
		}
	}
	return all
}

// guestArgs are go test's flags but those that name files of this machine.
func guestArgs(args []string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(arg string) bool {
		name := strings.TrimLeft(arg, "-")
		return strings.HasPrefix(name, "test.testlogfile") || strings.HasPrefix(name, "test.outputdir") || strings.HasPrefix(name, "test.gocoverdir")
	})
}

// goCommand builds static programs. The flag is make's: ig's packages, compiled with it, need not be compiled again.
func goCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := command(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="+os.Getenv("GOFLAGS")+" -trimpath")
	return cmd
}
