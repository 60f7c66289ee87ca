// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// userlandSuite is the suite of Debian's whose packages a guest of another architecture gets. It is one in which /bin and
// /lib are still folders in the packages, so that these are a root file system as they are.
const userlandSuite = "bookworm"

// userlandPackages are runc with the libraries that it is linked with, and busybox.
var userlandPackages = []string{"busybox-static", "libc6", "libseccomp2", "runc"}

// Userland gives a guest of any architecture what Busybox gives one of this machine's own, and runc, from Debian's archive.
// What Fetch says of apt, the cache and progress holds here too.
func Userland(ctx context.Context, arch, cacheDir string, progress io.Writer) ([]File, error) {
	host, err := findBusybox()
	if err != nil {
		return nil, err
	}
	links, err := applets(host)
	if err != nil {
		return nil, err
	}
	var files []File
	from := KernelSpec{Suite: userlandSuite, Arch: arch}
	err = from.withLists(ctx, cacheDir, progress, func(from apt, cacheDir string) error {
		files = nil
		for _, name := range userlandPackages {
			dir, err := from.unpackPackage(ctx, name, arch, cacheDir, progress)
			if err != nil {
				return err
			}
			files = append(files, File{Guest: "/", Host: dir})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("get %v for %s from Debian's suite %s: %w", userlandPackages, arch, userlandSuite, err)
	}
	return append(files, links...), nil
}

// unpackPackage returns the folder that holds a package, from the cache if it has it in this version.
func (a apt) unpackPackage(ctx context.Context, name, arch, cacheDir string, progress io.Writer) (string, error) {
	version, _, err := a.show(ctx, name)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cacheDir, name+"_"+version+"_"+arch)
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	unchecked := func(string) error { return nil } // apt has checked what is in it
	return dir, a.download(ctx, []debPackage{{name, version}}, dir, unchecked, progress)
}
