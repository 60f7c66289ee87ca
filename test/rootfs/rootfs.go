// SPDX-License-Identifier: Apache-2.0

// Package rootfs makes root file systems of Debian's packages, for guests of internal/vm.
package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// suite is Debian's, whose programs are tested.
const suite = "bookworm"

// version changes with how the file system is made.
const version = 1

// Recipe is what a root file system is made of.
type Recipe struct {
	Packages []string
	// Unneeded are patterns of paths below the root: what the guest's memory is too dear for, and what an initramfs cannot hold.
	Unneeded []string
}

// Unneeded are what nobody needs: see Recipe.
var Unneeded = []string{
	"dev/*", "usr/share/doc", "usr/share/i18n", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt/*",
	"var/lib/apt/lists/*",
}

// Make returns a folder with a root file system of the packages, which is made once. It needs root, and a Debian.
func (r Recipe) Make(ctx context.Context, cache string) (dir string, err error) {
	key := sha256.Sum256(fmt.Append(nil, version, suite, r.Packages, r.Unneeded))
	dir = filepath.Join(cache, fmt.Sprintf("rootfs-%s-%x", suite, key[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Fprintf(os.Stderr, "Making a root file system of %d Debian packages in %s (some 2 minutes)\n", len(r.Packages), dir)
	sources, err := debianSources(ctx)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	part, err := os.MkdirTemp(cache, ".rootfs-*")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(part)) }()
	root := filepath.Join(part, "root")
	args := append([]string{"--quiet", "--variant=minbase", "--include=" + strings.Join(r.Packages, ","), suite, root}, sources...)
	if err := command(ctx, "mmdebstrap", args...).Run(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w (it is Debian's package mmdebstrap, and needs root)", err)
	}
	for _, pattern := range r.Unneeded {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", err
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return "", err
			}
		}
	}
	return dir, os.Rename(root, dir)
}

// debianSources are the suite and its security updates, from where this machine's apt gets Debian's packages.
func debianSources(ctx context.Context) ([]string, error) {
	var sources []string
	for label, name := range map[string]string{"Debian": suite, "Debian-Security": suite + "-security"} {
		out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)",
			"Created-By: Packages", "Origin: Debian", "Label: "+label).Output()
		if err != nil {
			return nil, fmt.Errorf("apt-get indextargets: %w", err)
		}
		archives := strings.Fields(string(out))
		if len(archives) == 0 {
			return nil, fmt.Errorf("this machine's apt has no archive with the label %q: only Debian has it", label)
		}
		sources = append(sources, fmt.Sprintf("deb %s %s main", archives[0], name))
	}
	return sources, nil
}

// Owners lists what does not belong to root, a line each, for GiveBack: the guest's files all do at first.
func Owners(root string) ([]byte, error) {
	list := []byte{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || stat.Uid == 0 && stat.Gid == 0 {
			return nil
		}
		list = fmt.Appendf(list, "%d %d %o %s\n", stat.Uid, stat.Gid, stat.Mode&^unix.S_IFMT, strings.TrimPrefix(path, root))
		return nil
	})
	return list, err
}

// GiveBack makes files below the root their owners' again: of the list that Owners made.
func GiveBack(root string, list []byte) error {
	for line := range strings.Lines(string(list)) {
		var uid, gid int
		var mode uint32
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if _, err := fmt.Sscanf(line, "%d %d %o", &uid, &gid, &mode); err != nil || len(fields) != 4 {
			return fmt.Errorf("list of owners: line %q", line)
		}
		path := filepath.Join(root, fields[3])
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
		if mode&(unix.S_ISUID|unix.S_ISGID) != 0 { // a new owner takes these away
			if err := unix.Chmod(path, mode); err != nil {
				return err
			}
		}
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}
