// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Kernel is a kernel that can be booted, as Fetch unpacks it.
type Kernel struct {
	Image      string // path of the bzImage (amd64) or Image (arm64)
	ModulesDir string // path of its /lib/modules/RELEASE
	Release    string // as uname -r has it
	Arch       string // as Go and Debian have it, such as amd64
}

// metaPackages is by the distribution's ID in os-release: the package that always depends on the newest kernel, of the
// flavour for virtual machines. %s is the architecture.
var metaPackages = map[string]string{
	"debian": "linux-image-cloud-%s",
	"ubuntu": "linux-image-virtual",
}

// FetchKernel returns the newest kernel that this machine's distribution has for virtual machines, of the machine's own
// architecture. apt downloads its packages, from where this machine gets its packages and checked against the signed
// index; nothing is installed. They are unpacked into a folder of cacheDir of their own (100 MB and more), once a version.
// What apt says goes to progress (nil discards).
func FetchKernel(ctx context.Context, cacheDir string, progress io.Writer) (Kernel, error) {
	k, err := fetchKernel(ctx, "/etc/os-release", cacheDir, progress)
	if err != nil {
		return k, fmt.Errorf("get a kernel from apt: %w", err)
	}
	return k, nil
}

// DefaultCache is the folder in the user's cache folder where this module's kernels live.
func DefaultCache() (string, error) {
	dir, err := userCache()
	if err != nil {
		return "", fmt.Errorf("folder for kernels: %w", err)
	}
	return filepath.Join(dir, "kernels"), nil
}

// userCache is this module's folder in the user's cache folder.
func userCache() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "gadget-network"), err
}

func fetchKernel(ctx context.Context, osRelease, cacheDir string, progress io.Writer) (Kernel, error) {
	meta, err := metaPackage(osRelease, runtime.GOARCH)
	if err != nil {
		return Kernel{}, err
	}
	parts, err := systemApt.resolve(ctx, meta)
	if err != nil {
		return Kernel{}, err
	}
	return unpackOnce(ctx, systemApt, parts, runtime.GOARCH, cacheDir, progress)
}

// unpackOnce returns the kernel that packages make, from the cache if it has them in these versions.
func unpackOnce(ctx context.Context, from apt, parts []debPackage, arch, cacheDir string, progress io.Writer) (Kernel, error) {
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return Kernel{}, err
	}
	dir := filepath.Join(cacheDir, parts[0].name+"_"+parts[0].version+"_"+arch)
	if k, err := findKernel(dir, arch); err == nil || !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	check := func(root string) error {
		if _, err := findKernel(root, arch); err != nil {
			return fmt.Errorf("packages %v are no kernel: %w", parts, err)
		}
		return nil
	}
	if err := from.download(ctx, parts, dir, check, progress); err != nil {
		return Kernel{}, err
	}
	return findKernel(dir, arch)
}

// metaPackage names the kernel's package for a distribution (or one that it is like) and an architecture.
func metaPackage(osRelease, arch string) (string, error) {
	b, err := os.ReadFile(osRelease)
	if err != nil {
		return "", err
	}
	vars := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[k] = strings.Trim(v, `"'`)
	}
	for _, id := range append([]string{vars["ID"]}, strings.Fields(vars["ID_LIKE"])...) {
		if meta, ok := metaPackages[id]; ok {
			return strings.ReplaceAll(meta, "%s", arch), nil
		}
	}
	return "", fmt.Errorf("distribution %q: only Debian's and Ubuntu's kernels are known", vars["ID"])
}

// imagePatterns are where packages have the kernel: in /boot, and from 7.2 on beside its modules.
var imagePatterns = []string{"boot/vmlinuz-*", "lib/modules/*/vmlinuz", "usr/lib/modules/*/vmlinuz"}

// findKernel finds the one kernel in an unpacked package; the error is os.ErrNotExist if dir is not there.
func findKernel(dir, arch string) (Kernel, error) {
	if _, err := os.Stat(dir); err != nil {
		return Kernel{}, err
	}
	var images []string
	for _, pattern := range imagePatterns {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return Kernel{}, err
		}
		images = append(images, found...)
	}
	if len(images) != 1 {
		return Kernel{}, fmt.Errorf("%s: %d kernels in it, not one", dir, len(images))
	}
	k := Kernel{Image: images[0], Arch: arch}
	var inBoot bool
	if k.Release, inBoot = strings.CutPrefix(filepath.Base(k.Image), "vmlinuz-"); !inBoot {
		k.Release = filepath.Base(filepath.Dir(k.Image))
	}
	for _, lib := range []string{"lib", "usr/lib"} {
		k.ModulesDir = filepath.Join(dir, lib, "modules", k.Release)
		if _, err := os.Stat(filepath.Join(k.ModulesDir, "modules.builtin")); err == nil {
			return k, nil
		}
	}
	return Kernel{}, fmt.Errorf("%s: no modules of %s", dir, k.Release)
}
