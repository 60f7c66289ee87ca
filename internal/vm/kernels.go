// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// KernelSpec is a kernel of Debian's that Fetch knows by name.
type KernelSpec struct {
	Name    string // as Fetch takes it
	Suite   string // Debian's suite that has it; one that ends in "-security" is in the security archive
	Package string // the package that always depends on the suite's newest build of it
	Arch    string // as Go and Debian have it, such as amd64
}

// kernels are flavours for virtual machines, which are small. A suite of security updates has each kernel's newest build,
// and an index of a twentieth of the whole suite's size.
var kernels = []KernelSpec{
	{"5.10", "bullseye-security", "linux-image-cloud-amd64", "amd64"},
	{"6.1", "bookworm-security", "linux-image-cloud-amd64", "amd64"},
	{"6.12", "bookworm-security", "linux-image-6.12-cloud-amd64", "amd64"},
	{"newest", "trixie-backports", "linux-image-cloud-amd64", "amd64"},
	{"6.12-arm64", "bookworm-security", "linux-image-6.12-cloud-arm64", "arm64"},
	{"newest-arm64", "trixie-backports", "linux-image-cloud-arm64", "arm64"},
}

// Kernels returns the kernels that Fetch knows by name.
func Kernels() []KernelSpec { return slices.Clone(kernels) }

// Fetch returns a kernel of Kernels by its name, on any machine whose apt has Debian's archive; for the empty name it is
// FetchKernel. What FetchKernel says of apt, the cache and progress holds here too. apt's lists of the suite live in
// cacheDir and are renewed once a day; the machine's own stay as they are.
func Fetch(ctx context.Context, name, cacheDir string, progress io.Writer) (Kernel, error) {
	if name == "" {
		return FetchKernel(ctx, cacheDir, progress)
	}
	i := slices.IndexFunc(kernels, func(s KernelSpec) bool { return s.Name == name })
	if i < 0 {
		return Kernel{}, fmt.Errorf("kernel %q is not known: there are %s", name, strings.Join(kernelNames(), ", "))
	}
	k, err := kernels[i].fetch(ctx, cacheDir, progress)
	if err != nil {
		return Kernel{}, fmt.Errorf("get kernel %s from Debian's suite %s: %w", name, kernels[i].Suite, err)
	}
	return k, nil
}

func kernelNames() []string {
	var names []string
	for _, s := range kernels {
		names = append(names, s.Name)
	}
	return names
}

func (s KernelSpec) fetch(ctx context.Context, cacheDir string, progress io.Writer) (k Kernel, err error) {
	err = s.withLists(ctx, cacheDir, progress, func(from apt, cacheDir string) (err error) {
		parts, err := from.resolve(ctx, s.Package)
		if err != nil {
			return err
		}
		k, err = unpackOnce(ctx, from, parts, s.Arch, cacheDir, progress)
		return err
	})
	return k, err
}

// withLists calls get with the suite's lists and the absolute path of cacheDir, and once more with newer lists if it fails.
func (s KernelSpec) withLists(ctx context.Context, cacheDir string, progress io.Writer, get func(apt, string) error) (err error) {
	cacheDir, err = filepath.Abs(cacheDir)
	if err != nil {
		return err
	}
	root, err := openSuite(ctx, filepath.Join(cacheDir, "apt", s.Suite+"_"+s.Arch))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	renewed, err := root.renew(ctx, s, progress)
	if err != nil {
		return err
	}
	err = get(root.apt(), cacheDir)
	if err == nil || renewed || ctx.Err() != nil {
		return err
	}
	// The lists are up to a day old: the archive may have replaced what they name since.
	if err := root.update(ctx, s, progress); err != nil {
		return err
	}
	return get(root.apt(), cacheDir)
}
