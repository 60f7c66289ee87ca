// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Kernel is a kernel that can be booted, as FetchKernel unpacks it.
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

// kernelParts are the packages that a kernel is made of: image and modules are one package or several.
var kernelParts = regexp.MustCompile(`^linux-(image|binary|modules)-`)

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
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("folder for kernels: %w", err)
	}
	return filepath.Join(dir, "gadget-network", "kernels"), nil
}

func fetchKernel(ctx context.Context, osRelease, cacheDir string, progress io.Writer) (Kernel, error) {
	meta, err := metaPackage(osRelease, runtime.GOARCH)
	if err != nil {
		return Kernel{}, err
	}
	parts, err := resolve(ctx, meta)
	if err != nil {
		return Kernel{}, err
	}
	cacheDir, err = filepath.Abs(cacheDir)
	if err != nil {
		return Kernel{}, err
	}
	dir := filepath.Join(cacheDir, parts[0].name+"_"+parts[0].version+"_"+runtime.GOARCH)
	if k, err := findKernel(dir, runtime.GOARCH); err == nil || !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	if err := download(ctx, parts, dir, progress); err != nil {
		return Kernel{}, err
	}
	return findKernel(dir, runtime.GOARCH)
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

type debPackage struct{ name, version string }

// resolve follows a meta package to the packages that a kernel is made of, the image first.
func resolve(ctx context.Context, meta string) ([]debPackage, error) {
	_, depends, err := show(ctx, meta)
	if err != nil {
		return nil, err
	}
	var parts []debPackage
	for queue := depends; len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if !kernelParts.MatchString(name) || slices.ContainsFunc(parts, func(p debPackage) bool { return p.name == name }) {
			continue
		}
		version, depends, err := show(ctx, name)
		if err != nil {
			return nil, err
		}
		parts = append(parts, debPackage{name, version})
		queue = append(queue, depends...)
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("package %s depends on no kernel (it depends on %q)", meta, depends)
	}
	return parts, nil
}

// show returns the version of a package that apt would install, and the names of what it depends on.
func show(ctx context.Context, name string) (version string, depends []string, err error) {
	out, err := command(ctx, "", nil, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", nil, fmt.Errorf("%w (is apt's list of packages there? apt-get update fetches it)", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch key, value, _ := strings.Cut(lines.Text(), ": "); key {
		case "Version":
			version = cmp.Or(version, value)
		case "Depends", "Pre-Depends":
			for _, dep := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == '|' }) {
				depends = append(depends, strings.Fields(dep)[0])
			}
		}
	}
	if version == "" {
		return "", nil, fmt.Errorf("apt has no package %s: run apt-get update", name)
	}
	return version, depends, lines.Err()
}

// download unpacks packages into dir, which is there only once it is complete.
func download(ctx context.Context, parts []debPackage, dir string, progress io.Writer) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), ".fetch-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	root := filepath.Join(temp, "root")
	for _, p := range parts {
		if err := downloadOne(ctx, p, temp, root, progress); err != nil {
			return err
		}
	}
	if _, err := findKernel(root, runtime.GOARCH); err != nil {
		return fmt.Errorf("packages %v are no kernel: %w", parts, err)
	}
	err = os.Rename(root, dir)
	if _, statErr := os.Stat(dir); statErr == nil {
		return nil // whoever was faster has the same
	}
	return err
}

func downloadOne(ctx context.Context, p debPackage, temp, root string, progress io.Writer) error {
	args := []string{"download", p.name + "=" + p.version}
	if os.Geteuid() == 0 {
		// apt's own download user cannot write here; apt would do the same, with a warning.
		args = append([]string{"-o", "APT::Sandbox::User=root"}, args...)
	}
	if _, err := command(ctx, temp, progress, "apt-get", args...); err != nil {
		return fmt.Errorf("%w (a list that is too old names versions that are gone: apt-get update)", err)
	}
	debs, err := filepath.Glob(filepath.Join(temp, p.name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return errors.Join(fmt.Errorf("package %s: apt-get download left %d files, not one", p.name, len(debs)), err)
	}
	if _, err := command(ctx, temp, progress, "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	return os.Remove(debs[0])
}

// command runs a program in dir and returns its output, which progress sees too.
func command(ctx context.Context, dir string, progress io.Writer, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if progress != nil {
		cmd.Stdout = io.MultiWriter(&out, progress)
	}
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s not found: this needs Debian's or Ubuntu's package tools", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			strings.ReplaceAll(strings.TrimSpace(said.String()), "\n", "; "))
	}
	return out.Bytes(), nil
}

// findKernel finds the one kernel in an unpacked package; the error is os.ErrNotExist if dir is not there.
func findKernel(dir, arch string) (Kernel, error) {
	if _, err := os.Stat(dir); err != nil {
		return Kernel{}, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, errors.Join(fmt.Errorf("%s: %d kernels in boot, not one", dir, len(images)), err)
	}
	k := Kernel{Image: images[0], Release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), Arch: arch}
	for _, lib := range []string{"lib", "usr/lib"} {
		k.ModulesDir = filepath.Join(dir, lib, "modules", k.Release)
		if _, err := os.Stat(filepath.Join(k.ModulesDir, "modules.builtin")); err == nil {
			return k, nil
		}
	}
	return Kernel{}, fmt.Errorf("%s: no modules of %s", dir, k.Release)
}
