// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"gadget.example/network/internal/vm"
)

// Run runs tests in a VM whose root file system is made of this machine's packages, and returns their status. configure is
// given the kernel, and a folder for what it makes, which is then removed.
func Run(ctx context.Context, name string, configure func(ctx context.Context, kernel vm.Kernel, dir string) (vm.Config, error)) (int, error) {
	dir, err := os.MkdirTemp("", name+"-*")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, Limit())
	defer cancel()
	kernel, err := Kernel(ctx)
	if err != nil {
		return 1, err
	}
	if kernel.Arch != runtime.GOARCH {
		return 1, fmt.Errorf("kernel %s is for %s: the root file system is made for this machine alone", kernel.Release, kernel.Arch)
	}
	config, err := configure(ctx, kernel, dir)
	if err != nil {
		return 1, err
	}
	result, err := vm.Run(ctx, config)
	if err != nil {
		return 1, err
	}
	fmt.Printf("in a VM with Linux %s: boot %v, tests %v\n", kernel.Release, result.Boot.Round(time.Second), result.Command.Round(time.Second))
	return result.ExitStatus, nil
}

// CacheBeside is a folder beside that for kernels.
func CacheBeside(name string) (string, error) {
	cache, err := Cache()
	return filepath.Join(filepath.Dir(cache), name), err
}
