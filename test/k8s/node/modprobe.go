// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// modprobe is what the kernel starts when it wants a module: in the root file system of the guest's init, which has no
// modprobe. This program takes its place there, and has that of the node's root file system load the module.
func modprobe(root string) error {
	if err := unix.Chroot(root); err != nil {
		return err
	}
	return unix.Exec("/usr/sbin/modprobe", os.Args, os.Environ())
}
