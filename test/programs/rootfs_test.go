// SPDX-License-Identifier: Apache-2.0

package programs

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

// packages have the programs. docker.io is for docker-proxy alone.
var packages = []string{
	"apache2", "bind9", "busybox-static", "chrony", "dnsmasq-base", "docker.io", "haproxy", "iptables", "memcached",
	"mosquitto", //nolint:misspell // its name
	"nginx-light", "nodejs", "openbsd-inetd", "openssh-server", "postfix", "postgresql", "python3", "redis-server", "runc",
	"socat", "systemd", "unbound",
}

// rootfsVersion changes with how the file system is made.
const rootfsVersion = 1

// unneeded is what the guest's memory is too dear for, and what an initramfs cannot hold.
var unneeded = []string{
	"dev/*", "usr/bin/containerd*", "usr/bin/ctr", "usr/bin/docker", "usr/sbin/dockerd", "usr/share/doc", "usr/share/i18n",
	"usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt/*", "var/lib/apt/lists/*",
}

// makeRootfs returns a folder with a root file system of the packages, which is made once.
func makeRootfs(ctx context.Context, cache string) (dir string, err error) {
	key := sha256.Sum256(fmt.Append(nil, rootfsVersion, suite, packages, unneeded))
	dir = filepath.Join(cache, fmt.Sprintf("rootfs-%s-%x", suite, key[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Fprintf(os.Stderr, "Making a root file system of %d Debian packages in %s (some 2 minutes)\n", len(packages), dir)
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
	args := append([]string{"--quiet", "--variant=minbase", "--include=" + strings.Join(packages, ","), suite, root}, sources...)
	if err := command(ctx, "mmdebstrap", args...).Run(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w (it is Debian's package mmdebstrap, and needs root)", err)
	}
	for _, pattern := range unneeded {
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

// owners lists what does not belong to root, a line each: the guest's files all do at first.
func owners(root string) ([]byte, error) {
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

func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}
