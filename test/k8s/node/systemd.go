// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// What this program is told to be, by its only argument.
const (
	asFirst    = "first"    // process 1 of the node: systemd, in the end
	asPrograms = "programs" // who starts the node's programs
)

// self is this program in a root file system that does not have it.
const self = "/proc/self/exe"

// startSystemd runs the node in a PID namespace whose process 1 is systemd, as the guest's own process 1 is internal/vm's. It
// returns when that has ended.
func startSystemd() error {
	cmd := command(self, asFirst)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("systemd: %w", err)
	}
	return errors.New("systemd ended")
}

// becomeSystemd starts who starts the programs, and goes on as systemd.
func becomeSystemd() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts to this namespace: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc of this PID namespace: %w", err)
	}
	// The kubelet mounts volumes into containers that run.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts with containers: %w", err)
	}
	if err := command(self, asPrograms).Start(); err != nil {
		return err
	}
	const systemd = "/usr/lib/systemd/systemd"
	if err := unix.Exec(systemd, []string{systemd, "--unit=basic.target"}, append(os.Environ(), "container=other")); err != nil {
		return fmt.Errorf("%s: %w", systemd, err)
	}
	return nil
}

// endSystemd ends the PID namespace, and so the node, after an error.
func endSystemd(cause error) error {
	log.Print(cause)
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // see reboot_pid_ns() in kernel/pid_namespace.c
}
