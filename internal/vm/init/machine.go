// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm/guest"
)

type mount struct {
	fstype, target, data string
}

// mountBasics mounts what PID 1 itself needs.
func mountBasics() error {
	return mountAll([]mount{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", "mode=0755"},
	}, false)
}

// mountRest mounts what commands expect. A file system that this kernel lacks is left out: whether it is needed is the
// command's to say.
func mountRest() error {
	return mountAll([]mount{
		{"devpts", "/dev/pts", "ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/run", "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"debugfs", "/sys/kernel/debug", ""},
		{"tracefs", "/sys/kernel/tracing", ""},
		{"bpf", "/sys/fs/bpf", "mode=0700"},
	}, true)
}

func mountAll(mounts []mount, optional bool) error {
	for _, m := range mounts {
		err := mountOne(m)
		if optional && errors.Is(err, unix.ENODEV) {
			log.Printf("this kernel has no %s", m.fstype)
			continue
		}
		if err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

func mountOne(m mount) error {
	if strings.HasPrefix(m.target, "/sys/") {
		// sysfs makes its own mount points, where the kernel has the file system.
		if _, err := os.Stat(m.target); errors.Is(err, os.ErrNotExist) {
			return unix.ENODEV
		}
	} else if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	return unix.Mount(m.fstype, m.target, m.fstype, 0, m.data)
}

// linkDescriptors makes the names in /dev that shells use for open files.
func linkDescriptors() error {
	for link, target := range map[string]string{
		"/dev/fd":     "/proc/self/fd",
		"/dev/stdin":  "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: socket: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

func loadModules(modules []guest.Module) error {
	for _, m := range modules {
		err := loadModule(m.Path)
		switch {
		case err == nil, errors.Is(err, unix.EEXIST):
		case m.Optional:
			log.Printf("optional module %s: %v", m.Path, err)
		default:
			return fmt.Errorf("load module %s: %w", m.Path, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// oomKills is the kernel's own count of the processes that it killed for want of memory (since Linux 4.13).
func oomKills() (uint64, error) {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.ParseUint(strings.TrimSpace(n), 10, 64)
		}
	}
	return 0, nil
}
