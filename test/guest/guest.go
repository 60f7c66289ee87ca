// SPDX-License-Identifier: Apache-2.0

// Package guest is what tests have in common that run themselves in a VM.
package guest

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gadget.example/network/internal/vm"
)

// limit bounds a guest whatever go test's own limit is.
const limit = time.Hour

// Limit leaves the driver some of go test's own time to clean up.
func Limit() time.Duration {
	if f := flag.Lookup("test.timeout"); f != nil {
		if own, ok := f.Value.(flag.Getter).Get().(time.Duration); ok && own > 0 {
			return min(limit, own*9/10)
		}
	}
	return limit
}

// Kernel is the one that E2E_KERNEL names, or this machine's distribution's.
func Kernel(ctx context.Context) (vm.Kernel, error) {
	cache, err := Cache()
	if err != nil {
		return vm.Kernel{}, err
	}
	return vm.Fetch(ctx, os.Getenv("E2E_KERNEL"), cache, os.Stderr)
}

// Cache is the folder for kernels: KERNEL_CACHE, or the user's.
func Cache() (string, error) {
	if cache := os.Getenv("KERNEL_CACHE"); cache != "" {
		return cache, nil
	}
	return vm.DefaultCache()
}

// modulesIfAny are built in, or part of another, in newer kernels: by folder.
var modulesIfAny = map[string]string{"nft_counter": "kernel/net/netfilter"}

// Modules are the given ones, and with them those that only some kernels have.
func Modules(kernel vm.Kernel, names []string) []string {
	all := slices.Clone(names)
	for name, folder := range modulesIfAny {
		if files, _ := filepath.Glob(filepath.Join(kernel.ModulesDir, folder, name+".ko*")); len(files) > 0 {
			all = append(all, name)
		}
	}
	return all
}

// Args are go test's flags but those that name files of this machine.
func Args(args []string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(arg string) bool {
		return slices.ContainsFunc([]string{"testlogfile", "outputdir", "coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace", "gocoverdir"},
			func(name string) bool { return strings.HasPrefix(strings.TrimLeft(arg, "-"), "test."+name) })
	})
}

// GoCommand builds static programs: they run in guests and in containers. The
// flag is make's: ig's packages, compiled with it, need not be compiled again.
func GoCommand(ctx context.Context, arch string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch, "GOFLAGS="+os.Getenv("GOFLAGS")+" -trimpath")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}
